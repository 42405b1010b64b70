"""On the node: the runner's packages out of their archive, around the node's own Python.

Runs from the parcel before anything else does, so only the standard library may enter. What is in the archive
is decided by ``environment``.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import importlib
import json
import os
import shutil
import site
import sys
import sysconfig
import tarfile
import time
import zlib
from pathlib import Path
from typing import IO, Any

from executors.errors import SiteError

MANIFEST = "environment.json"  # the first member: what the others need of a Python, and how much room
READ = 1 << 20  # bytes at a time
BLOCK = 4096  # bytes: what the smallest file takes on a disk
FULL = (errno.ENOSPC, errno.EDQUOT)


def interpreter() -> dict[str, str]:
    """What compiled packages ask of a Python: its minor version, and its binary interface."""
    kind = sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag
    return {"python": f"{sys.version_info[0]}.{sys.version_info[1]}", "abi": str(kind)}


def settle(archive: Path, folder: Path, *, own: bool) -> str:
    """Unpack into the folder and have this process, and what it starts, use it; says what that took.

    ``own``: the archive is this job's copy and not needed any more. SiteError says what does not fit.
    """
    began = time.monotonic()
    try:
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r|", bufsize=READ) as packed:
            manifest = _manifest(packed)
            _fits(manifest, folder)
            packages = folder / "lib" / f"python{manifest['python']}" / "site-packages"
            packages.mkdir(parents=True)
            count = _unpack(packed, packages)
            while stream.read(READ):  # only its end has the checksum of what was read
                pass
    except (EOFError, zlib.error, tarfile.TarError, KeyError, ValueError) as error:
        raise _damaged(archive, f"{type(error).__name__}: {error}") from error
    except OSError as error:
        raise _failed(error, archive, folder) from error
    if count != manifest["files"]:  # a stream that ends between two files looks whole
        raise _damaged(archive, f"{count} of {manifest['files']} files")
    if own:
        with contextlib.suppress(OSError):
            archive.unlink()
    _use(folder, packages, system=bool(manifest["system"]))
    took = f"{count:,} files, {manifest['bytes'] / 1e6:,.0f} MB in {time.monotonic() - began:.0f} s"
    return f"unpacked the runner's packages: {took}"


def _manifest(packed: tarfile.TarFile) -> dict[str, Any]:
    first = packed.next()
    content: IO[bytes] | None = packed.extractfile(first) if first and first.name == MANIFEST else None
    if content is None:
        raise tarfile.ReadError(f"it does not begin with {MANIFEST}")
    manifest: dict[str, Any] = json.loads(content.read())
    return {key: manifest[key] for key in ("python", "abi", "files", "bytes", "system")}


def _fits(manifest: dict[str, Any], folder: Path) -> None:
    """Refuse where compiled packages would fail to load one by one, or where they do not all fit."""
    here = interpreter()
    if {key: manifest[key] for key in here} != here:
        raise SiteError(
            f"this node's Python {sys.executable} is {here['python']} ({here['abi']}), the environment that "
            f"was shipped needs {manifest['python']} ({manifest['abi']}): name one of that kind "
            "(--worker-python), or use a container (--ship-env container --image PATH)"
        )
    free = shutil.disk_usage(folder).free
    if free < manifest["bytes"] + BLOCK * manifest["files"]:
        raise _no_room(folder, f"the environment's {manifest['bytes'] / 1e6:,.0f} MB")


def _unpack(packed: tarfile.TarFile, packages: Path) -> int:
    """Every file in its place; nothing can be written to another one."""
    count, made = 0, {packages}
    while (member := packed.next()) is not None:
        target = packages / member.name
        content = packed.extractfile(member)
        if content is None or ".." in target.parts or not target.is_relative_to(packages):
            raise tarfile.ReadError(f"{member.name!r} is no file of an environment")
        if target.parent not in made:
            target.parent.mkdir(parents=True, exist_ok=True)
            made.add(target.parent)
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, member.mode & 0o755)
        with content, os.fdopen(handle, "wb") as file:
            shutil.copyfileobj(content, file, READ)
        count += 1
    return count


def _use(folder: Path, packages: Path, *, system: bool) -> None:
    """A virtual environment around the packages, for each Python that this process starts and for itself."""
    base = Path(getattr(sys, "_base_executable", None) or sys.executable)
    (folder / "bin").mkdir()
    python = folder / "bin" / "python3"
    python.symlink_to(base)
    config = f"home = {base.parent}\ninclude-system-site-packages = {str(system).lower()}\n"
    (folder / "pyvenv.cfg").write_text(config, encoding="utf-8")
    theirs = {*site.getsitepackages(), site.getusersitepackages()}
    before = list(sys.path)
    first = next((at for at, entry in enumerate(before) if entry in theirs), len(before))
    site.addsitedir(str(packages))
    new = [entry for entry in sys.path if entry not in before]
    # In the place of the node's own packages, which may be others of the same name.
    sys.path[:] = [*before[:first], *new, *(before[first:] if system else ())]
    sys.executable = str(python)
    importlib.invalidate_caches()


def _damaged(archive: Path, why: str) -> SiteError:
    return SiteError(
        f"the environment's archive {archive.name} came damaged ({why}): remove it where the runner keeps "
        f"it, and start again: rm ~/.cache/coffea-scaleout/{archive.name}"
    )


def _failed(error: OSError, archive: Path, folder: Path) -> SiteError:
    if isinstance(error, FileNotFoundError) and not archive.exists():
        return SiteError(
            f"this node does not see the environment's archive {archive}: a run below a folder that "
            "nodes share, or a container (--ship-env container --image PATH)"
        )
    if error.errno in FULL:
        return _no_room(folder, "the environment")
    if error.errno is None:  # gzip's own: what it reads is none
        return _damaged(archive, str(error))
    return SiteError(f"the environment cannot be unpacked in {folder}: {error}")


def _no_room(folder: Path, what: str) -> SiteError:
    free = shutil.disk_usage(folder).free / 1e6
    return SiteError(
        f"this node has no room for {what} in {folder} ({free:,.0f} MB free): ask for more (--disk 8GB), or "
        "name a larger folder (job.scratch)"
    )
