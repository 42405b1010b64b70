"""The project's own modules as bytes that travel to workers which do not see the runner's file system.

What is packed are the files of the modules that the analysis imports, what lies beside them in their packages
(corrections, maps), and what else their text names, within limits. Nothing is imported to find out.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from executors.closure import Closure, find, is_local
from executors.companions import Companions, Source, companions, said
from executors.errors import UsageError
from executors.words import number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

LARGEST: Final = 64 << 20  # it is sent to every worker
SKIPPED: Final = {"__pycache__", "node_modules"}
STAMP: Final = (1980, 1, 1, 0, 0, 0)  # equal code gives equal bytes
HERE: Final = b"current folder"  # mark of an archive with files that are opened by their names from there


def pack(names: Iterable[str], script: Path | None = None) -> bytes:
    """The local modules of these names, and the files that go with them, in one archive.

    ``script``: the program's own file, which travels by value; of it only what it names is packed.
    """
    files: dict[str, Path] = {}
    for name, path in _local(names):
        files[_inside(name, path)] = path
        if path.name == "__init__.py":
            files |= dict(_beside(name, path.parent))
    named = _named(names, script)
    total = sum(path.stat().st_size for path in files.values())
    if total > LARGEST:
        big = max(files.values(), key=lambda path: path.stat().st_size)
        raise UsageError(
            f"the workflow's packages hold {number(len(files), 'file')} of {total >> 20} MB, more than the "
            f"{LARGEST >> 20} MB that are sent to workers without a shared file system; the largest: {big}. "
            "Keep data outside of the package, where workers can read it, or give it to the processor"
        )
    files = named.files | files
    return _archive(files, HERE if named.here else b"") if files else b""


def left_behind(names: Iterable[str], script: Path | None = None) -> str:
    """What the code names and ``pack`` leaves, for people; empty if there is nothing."""
    return said(_named(names, script).left)


def own_script() -> Path | None:
    """The file of the program that is running, if it is a script of the user's."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(file) if file and file.endswith(".py") and is_local(Path(file)) else None


def loaded() -> set[str]:
    """The local modules that this program has imported, and those that they import in turn."""
    closure = Closure()
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) and not name.startswith("__"):
            closure.add(name)
    return set(closure.modules)


def _local(names: Iterable[str]) -> Iterator[tuple[str, Path]]:
    for name in sorted(set(names)):
        path = find(name)
        if path is not None and is_local(path):
            yield name, path


def _named(names: Iterable[str], script: Path | None) -> Companions:
    local = list(_local(names))
    sources = [Source(path, _inside(name, path).rpartition("/")[0]) for name, path in local]
    if script is not None:
        sources.append(Source(script, None))
    return companions(sources, [path.parent for _, path in local if path.name == "__init__.py"])


def _inside(name: str, path: Path) -> str:
    parts = name.split(".")
    if path.name == "__init__.py":
        return "/".join([*parts, path.name])
    return "/".join([*parts[:-1], path.name])


def _beside(name: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """The data files of a package; its modules come by name, if anything imports them."""
    base = name.replace(".", "/")
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        hidden = any(part.startswith(".") or part in SKIPPED for part in inner.parts)
        if path.is_file() and not hidden and path.suffix not in (".py", ".pyc", ".root", ".coffea"):
            yield f"{base}/{inner.as_posix()}", path


def _archive(files: dict[str, Path], mark: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = mark
        for name, path in sorted(files.items()):
            about = zipfile.ZipInfo(name, STAMP)
            about.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(about, path.read_bytes())
    return out.getvalue()


def unpack(data: bytes) -> None:
    """On a worker: lay the modules down in its own temporary folder and have them found."""
    if not data:
        return
    folder = tempfile.mkdtemp(prefix="modules-")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(folder)  # our own archive, made by ``pack``
        here = archive.comment == HERE
    sys.path.insert(0, folder)
    if here:  # what is opened by a relative name where the runner is, is found by it here
        os.chdir(folder)


def arrive(data: bytes, first: Callable[..., object] | None, args: tuple[Any, ...]) -> None:
    """On a worker: unpack, then what else a new worker is to run."""
    unpack(data)
    if first is not None:
        first(*args)
