"""How Python and its packages get to nodes: not at all, in a container, or as an archive of this environment.

The archive is made once for one state of the environment and kept; equal packages are an equal file. What a
node does with it is in ``unpacking``; nothing that is not of the standard library may enter.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import time
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, Self

from executors.batch import packages
from executors.batch.unpacking import FULL, MANIFEST, interpreter
from executors.errors import SiteError, UsageError
from sites.scene import below

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from executors.batch.packages import Item
    from sites.profile import SiteProfile

FORMAT = 1  # of archive and manifest: another number, another name
PYTHON = "python3"  # of a node or image, where nobody names another
KEEP = 30 * 86400.0  # seconds: an archive that no run has used for so long goes
HALF = 86400.0  # likewise: one that was begun and never finished
PIECE = 4 << 20  # bytes that are compressed at a time
LEVEL = 1  # of compression: the others take three times as long for a tenth less
MOST_THREADS = 4  # of a login node that is everybody's


class Shipped(NamedTuple):
    """What a job starts its pilot with, and what the pilot unpacks first."""

    python: str
    archive: Path | None = None


def ship(site: SiteProfile, folder: Path, tell: Callable[[str, str], object]) -> Shipped:
    """What ``job.ship`` asks for; ``folder`` is the engine's private one, which jobs may be able to read."""
    python = site.job.python
    if site.job.ship == "none":
        return Shipped(python or sys.executable)
    if site.job.ship == "container":
        if site.job.image is None:
            raise UsageError(
                f"job.ship is 'container' at {site.name} and no image is named: --image PATH, "
                "or another --ship-env"
            )
        return Shipped(python or PYTHON)
    archive = pack(tell)
    _room(site, archive, tell)
    # HTCondor takes it from where it is kept; other systems' jobs read it, as all else, in the run's folder.
    if site.scheduler != "condor" or (site.paths.logs and not below(archive, site.paths.logs)):
        archive = _beside(archive, folder)
    return Shipped(python or PYTHON, archive)


def pack(tell: Callable[[str, str], object], folder: Path | None = None) -> Path:
    """The archive of this environment's packages, made now unless it is there."""
    began = time.monotonic()
    if (Path(sys.prefix) / "conda-meta").is_dir():
        raise UsageError(
            f"--ship-env venv cannot take a conda environment along ({sys.prefix}): its packages use "
            "libraries that lie beside them. A container serves (--ship-env container --image PATH), and so "
            "does a virtual environment: python -m venv FOLDER"
        )
    try:
        items = packages.items()
        home = folder or _cache()
        path = home / f"env-{_digest(items)}.tar.gz"
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _whole(path):
            tell("info", f"the environment: {_megabytes(path)}, as packed before")
            return path
        size = f"{len(items):,} files, {sum(item.size for item in items) / 1e6:,.0f} MB"
        tell("info", f"packing this environment for the nodes, once: {size}")
        _write(path, items)
        _clear(home)
    except OSError as error:
        raise _unwritten(error, folder or _cache()) from error
    tell("info", f"the environment: {_megabytes(path)}, made in {time.monotonic() - began:.0f} s ({path})")
    return path


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - never raises
    return Path(base) / "coffea-scaleout"


def _digest(items: Sequence[Item]) -> str:
    """Other packages, another name: by version and time of installation, and not by reading a gigabyte."""
    about = {"format": FORMAT, "system": packages.with_system(), **interpreter()}
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for item in items:
        found.update(f"{item.name}\0{item.size}\0{item.stamp}\n".encode(errors="surrogateescape"))
    return found.hexdigest()[:20]


def _whole(path: Path) -> bool:
    """Whether the archive is there and ours; from now on it has been used today."""
    try:
        about = path.stat()
        if about.st_uid != os.geteuid() or about.st_mode & 0o022 or not about.st_size:
            return False
        os.utime(path)
    except OSError:
        return False
    return True


def _write(path: Path, items: Sequence[Item]) -> None:
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            _pack(file, items)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def _pack(file: IO[bytes], items: Sequence[Item]) -> None:
    about = {
        **interpreter(), "system": packages.with_system(),
        "files": len(items), "bytes": sum(item.size for item in items),
    }  # fmt: skip
    text = json.dumps(about, sort_keys=True).encode()
    with (
        _Pieces(file) as pieces,
        tarfile.open(fileobj=pieces, mode="w|", bufsize=PIECE, format=tarfile.GNU_FORMAT) as archive,  # type: ignore[call-overload]
    ):
        archive.addfile(_member(MANIFEST, len(text)), io.BytesIO(text))
        for item in items:
            with item.path.open("rb") as content:
                archive.addfile(_member(item.name, item.size, item.runs), content)


def _member(name: str, size: int, runs: bool = False) -> tarfile.TarInfo:
    """A file without owner and time, so that equal content is an equal archive."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o755 if runs else 0o644, 0
    return info


class _Pieces:
    """A gzip stream of pieces that are compressed side by side."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(self._threads)
        self._waiting: deque[Future[bytes]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            while kind is None and self._waiting:
                self._file.write(self._waiting.popleft().result())
        finally:
            self._pool.shutdown(cancel_futures=True)

    def write(self, data: bytes) -> int:
        """Take one piece."""
        self._waiting.append(self._pool.submit(zlib.compress, data, LEVEL, zlib.MAX_WBITS | 16))
        if len(self._waiting) > 2 * self._threads:
            self._file.write(self._waiting.popleft().result())
        return len(data)


def _beside(archive: Path, folder: Path) -> Path:
    """The same archive in the run's own folder: no second gigabyte where one file system holds both."""
    target = folder / archive.name
    try:
        try:
            target.hardlink_to(archive)
        except OSError:
            shutil.copyfile(archive, target)
            target.chmod(0o600)
    except OSError as error:
        raise _unwritten(error, folder) from error
    return target


def _clear(home: Path) -> None:
    """Remove what was not used for long, and what was begun and never finished."""
    now = time.time()
    for pattern, limit in (("env-*.tar.gz", KEEP), (".env-*.tar.gz.*", HALF)):
        for old in home.glob(pattern):
            with contextlib.suppress(OSError):
                if now - old.stat().st_mtime > limit:
                    old.unlink()


def _room(site: SiteProfile, archive: Path, tell: Callable[[str, str], object]) -> None:
    """Warn where a job asks for less disk than the environment takes there: it may be held for that."""
    asked, packed = site.resources.disk, archive.stat().st_size
    needed = 4 * packed  # unpacked it is about three times as large
    if asked is not None and asked < needed:
        tell(
            "warning",
            f"the environment takes about {needed / 1e9:.1f} GB of a job's disk, and jobs ask for "
            f"{asked / 1e9:.1f} GB: --disk {needed / 1e9 + 1:.0f}GB",
        )


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:,.0f} MB"


def _unwritten(error: OSError, folder: Path) -> SiteError:
    if error.errno in FULL:
        return SiteError(
            f"there is no room for the environment's archive in {folder}: free some space (df -h {folder}; "
            "quota -s), or name another folder: export XDG_CACHE_HOME=FOLDER"
        )
    return SiteError(f"the environment cannot be packed into {folder}: {error}")
