"""The parcel: this package as one file that a batch job can run, ``python parcel.pyz pilot.json``.

A node may have another environment without this package, and no file system in common: the parcel and the
files beside ``pilot.json`` are all that travels. Only the standard library may enter above ``run``.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import shutil
import signal
import stat
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("executors", "sites")
KINDS = frozenset({".py", ".toml", ".typed"})
STAMP = (1980, 1, 1, 0, 0, 0)  # a zip knows no time before; one for all, so that equal code is an equal file
# In words that any Python reads: one that is too old would stop at what it cannot read, and not say why.
MAIN = """\
import sys
if sys.version_info < (3, 11):
    sys.exit("coffea-scaleout: this node's Python %s is %d.%d, and 3.11 or newer is needed: name another one "
             "(--worker-python), or use a container (--image)" % ((sys.executable,) + sys.version_info[:2]))
from executors.batch.parcel import run
sys.exit(run(sys.argv[1:]))
"""
JOB_MEMORY = "EXECUTORS_JOB_MEMORY"  # what this job asked for in bytes, where that is more than the first did
PREFIX, LOCK = "cs-", ".lock"
UNFIT = 69  # EX_UNAVAILABLE of sysexits.h
JOB_IDS = ("SLURM_JOB_ID", "LSB_JOBID", "PBS_JOBID", "JOB_ID")


def build(folder: Path) -> Path:
    """Write ``parcel.pyz`` into the folder; the same code gives the same bytes."""
    target = folder / "parcel.pyz"
    half = folder / f".parcel.{os.getpid()}"
    with zipfile.ZipFile(half, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in _content():
            info = zipfile.ZipInfo(name, STAMP)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
    half.replace(target)
    return target


def _content() -> Iterator[tuple[str, bytes]]:
    yield "__main__.py", MAIN.encode()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*")):
            if path.suffix in KINDS and "__pycache__" not in path.parts:
                yield path.relative_to(ROOT).as_posix(), path.read_bytes()


def job_id(env: Mapping[str, str]) -> str:
    """The job's number as the batch system's own commands name it; ``local`` outside of any."""
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env.get('SLURM_ARRAY_TASK_ID', '0')}"
    if (found := _condor_id(env.get("_CONDOR_JOB_AD", ""))) is not None:
        return found
    for name in JOB_IDS:
        if env.get(name):
            return _with_task(env[name], env)
    return "local"


def _condor_id(path: str) -> str | None:
    if not path:
        return None
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    ad = {key.strip(): value.strip() for key, sign, value in (one.partition("=") for one in lines) if sign}
    return f"{ad['ClusterId']}.{ad['ProcId']}" if {"ClusterId", "ProcId"} <= ad.keys() else None


def _with_task(number: str, env: Mapping[str, str]) -> str:
    if env.get("SGE_TASK_ID", "undefined") != "undefined":
        return f"{number}.{env['SGE_TASK_ID']}"
    if env.get("LSB_JOBINDEX", "0") != "0":
        return f"{number}[{env['LSB_JOBINDEX']}]"
    return number


def run(words: list[str]) -> int:
    """On the node: unpack this parcel into a private folder, call the pilot that the file names, clean up.

    Where the settings name the archive of an environment, all of it runs in that one.
    The pilot's function gets the file's settings with three more: ``local`` (the private folder), ``files``
    (where ``pilot.json`` and what travelled with it lie) and ``job`` (the batch system's number for it).
    """
    if len(words) != 1:
        sys.stderr.write("usage: python parcel.pyz pilot.json\n")
        return 2
    source = Path(words[0]).absolute()
    settings: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    # From here on whatever ends the job politely must pass through the cleaning below.
    signal.signal(signal.SIGTERM, _leave)
    local = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_scratch(settings.get("scratch")))).resolve()
    try:
        _sweep(local.parent)
        settings["lock"] = _lock(local)  # held as long as this process lives
        settings |= {"local": str(local), "files": str(source.parent), "job": job_id(os.environ)}
        if given := os.environ.get(JOB_MEMORY):
            settings["memory"] = int(given)
        if settings.get("environment") and not _settled(source.parent, settings["environment"], local):
            return UNFIT
        try:
            pilot = _pilot(settings["pilot"], local)
        except ImportError as error:
            sys.stderr.write(f"coffea-scaleout: {_lacking(error)}\n")
            return UNFIT
        return int(pilot(settings) or 0)
    finally:
        shutil.rmtree(local, ignore_errors=True)


def _lacking(error: ImportError) -> str:
    """What this Python has not, for whoever chose it: the frames of an import would say nothing to them."""
    python = f"the workers' Python {sys.executable} ({sys.version.split()[0]})"
    lacks = f"lacks {error.name}" if isinstance(error, ModuleNotFoundError) else f"is not fit: {error}"
    return (
        f"{python} {lacks}: install it there, or name another one (--worker-python, --worker-setup, --image)"
    )


def _settled(files: Path, name: str, local: Path) -> bool:
    """Whether the environment that came along is in use; why not is the job's last word."""
    from executors.batch.unpacking import settle
    from executors.errors import SiteError

    # In a folder of its own: what the pilot makes beside it has other names.
    place = local / "env"
    place.mkdir()
    try:
        said = settle(files / name, place, own=not Path(name).is_absolute())  # a name: it travelled here
    except SiteError as error:
        sys.stderr.write(f"coffea-scaleout: {error}\n")
        return False
    sys.stderr.write(f"coffea-scaleout: {said}\n")
    sys.stderr.flush()
    return True


def _lock(folder: Path) -> int:
    new = folder / f"{LOCK}.new"
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(OSError):  # a file system without locks: this folder is never swept
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(folder / LOCK)  # only now: nobody may find it unlocked
    return lock


def _sweep(base: Path) -> None:
    """Remove what jobs of this user left whose every process was killed at once: their locks are free."""
    for folder in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            about = folder.lstat()
            if about.st_uid != os.getuid() or not stat.S_ISDIR(about.st_mode):
                continue
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _leave(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def _scratch(asked: str | None) -> str | None:
    """The folder that the site names, variables expanded on the node; None where there is no such folder."""
    folder = os.path.expandvars(asked) if asked else ""
    return folder if "$" not in folder and Path(folder).is_dir() and os.access(folder, os.W_OK) else None


def _pilot(target: str, local: Path) -> Any:
    # Unpacked, because the keeper is run by its path, and because an archive that is replaced or removed
    # under a running process breaks its next import.
    parcel = Path(sys.argv[0]).absolute()
    code = local / "code"
    with zipfile.ZipFile(parcel) as archive:
        archive.extractall(code)
    kept = [entry for entry in sys.path if entry and Path(entry).absolute() != parcel]
    sys.path[:] = [str(code), *kept]
    for name in [one for one in sys.modules if one.partition(".")[0] in PACKAGES]:
        del sys.modules[name]
    importlib.invalidate_caches()
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)
