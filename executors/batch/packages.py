"""Which files make up this environment: what is installed, and what editable installations point to.

Only looks, by the standard library's means; how the files travel is ``environment``'s.
"""

from __future__ import annotations

import ast
import os
import re
import site
import stat
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from executors.batch import parcel

if TYPE_CHECKING:
    from collections.abc import Iterator

INSTALLERS = ("pip", "setuptools", "wheel", "uv", "virtualenv")  # a node installs nothing
THEIRS = {"setuptools": ("_distutils_hack", "pkg_resources", "distutils-precedence.pth")}
EDITABLE = "__editable__"  # how the names begin of what setuptools writes for an editable installation
BESIDE = ("build", "dist", "docs", "examples", "scripts", "setup", "conftest", "tests", "test")
TESTS = "tests"


class Item(NamedTuple):
    """One file: its name below site-packages, where it is, and by what a change is seen."""

    name: str
    path: Path
    size: int
    stamp: int
    runs: bool


def items() -> list[Item]:
    """Every file of this environment, by name; of two with one name, the one that Python would take."""
    found: dict[str, Item] = {}
    for root in roots():
        for item in _installed(root):
            found.setdefault(item.name, item)
    return [found[name] for name in sorted(found)]


def roots() -> list[Path]:
    """Where packages are installed: this environment's folders, and the user's own where they count."""
    named = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if site.ENABLE_USER_SITE:
        named.append(site.getusersitepackages())
    there = {os.path.realpath(one): Path(one) for one in reversed(named) if Path(one).is_dir()}
    return list(reversed(there.values()))


def with_system() -> bool:
    """Whether this is a virtual environment that also sees the packages of the Python below it."""
    base = sysconfig.get_path("purelib", vars={"base": sys.base_prefix, "platbase": sys.base_prefix})
    return sys.prefix != sys.base_prefix and base in sys.path


def _installed(root: Path) -> Iterator[Item]:
    left_out, own = _left_out(), os.path.realpath(root) == os.path.realpath(parcel.ROOT)
    for entry in sorted(os.scandir(root), key=lambda one: one.name):
        name = entry.name
        if _distribution(name) in left_out or (own and name in parcel.PACKAGES):
            continue
        if name.endswith(".pth") and (linked := _linked(root, Path(entry.path))) is not None:
            for other in linked:
                yield from _walk(other, other.name)
        elif not name.startswith(EDITABLE):
            yield from _walk(Path(entry.path), name)


def _distribution(name: str) -> str:
    """``pip`` for ``pip`` and ``pip-24.0.dist-info``."""
    return re.sub(r"-[^-]*\.(dist|egg)-info$", "", name).lower()


def _left_out() -> set[str]:
    """Installers, unless a package says that it needs them to work."""
    needed = {
        re.split(r"[^a-z0-9_-]", line.lower(), maxsplit=1)[0]
        for one in metadata.distributions()
        for line in one.requires or ()
        if "extra" not in line.partition(";")[2]
    }
    names = set(INSTALLERS) - needed
    return names | {other for name in names for other in THEIRS.get(name, ())}


def _linked(root: Path, pth: Path) -> list[Path] | None:
    """What a ``.pth`` file makes importable from elsewhere; None: it is to be read on the node as it is."""
    try:
        lines = pth.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    folders = [Path(line.strip()) for line in lines if line.startswith("/")]
    outside = [one for one in folders if one.is_dir() and not one.is_relative_to(root)]
    if outside:
        return [path for folder in outside for path in _importable(folder)]
    return _found_by_hook(root, lines) if pth.name.startswith(EDITABLE) else ([] if folders else None)


def _importable(folder: Path) -> list[Path]:
    """The modules and packages right in a folder; not this program, which travels in the parcel."""
    if os.path.realpath(folder) == os.path.realpath(parcel.ROOT):
        return []
    kept = []
    for path in sorted(folder.iterdir()):
        module = path.suffix in (".py", ".so") if path.is_file() else (path / "__init__.py").is_file()
        if module and path.name.partition(".")[0] not in BESIDE:
            kept.append(path)
    return kept


def _found_by_hook(root: Path, lines: list[str]) -> list[Path]:
    """The packages that setuptools' import hook maps to their sources."""
    kept = []
    for name in re.findall(r"import (__editable__\w+)", "\n".join(lines)):
        try:
            tree = ast.parse((root / f"{name}.py").read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.value, ast.Dict)
                and ast.unparse(node.target) == "MAPPING"
            ):
                mapping: dict[str, str] = ast.literal_eval(node.value)
                kept += [path for one in mapping.values() if not _ours(path := _source(one))]
    return [path for path in kept if path.exists()]


def _source(mapped: str) -> Path:
    path = Path(mapped)
    return path if path.exists() else path.with_suffix(".py")  # a module stands there without its suffix


def _ours(path: Path) -> bool:
    return Path(os.path.realpath(path)).parent == Path(os.path.realpath(parcel.ROOT))


def _walk(path: Path, name: str, above: tuple[str, ...] = ()) -> Iterator[Item]:
    """A file, or all of a folder; links are followed, but none to a folder that it lies in."""
    try:
        about = path.stat()
    except OSError:  # a link to nowhere
        return
    if stat.S_ISREG(about.st_mode):
        if _travels(name):
            runs = bool(about.st_mode & 0o100)
            yield Item(name, path, about.st_size, about.st_mtime_ns, runs)
        return
    real = os.path.realpath(path)
    if not stat.S_ISDIR(about.st_mode) or path.name == "__pycache__" or real in above:
        return
    for each in sorted(os.listdir(path)):  # noqa: PTH208 - names are all that is wanted
        if not (each.startswith(".") and each in (".git", ".hg", ".svn")):
            yield from _walk(path / each, f"{name}/{each}", (*above, real))


def _travels(name: str) -> bool:
    """Whether a file is of use on a node. Of tests that which others import: some packages' own code does."""
    *folders, last = name.split("/")
    if TESTS not in folders:
        return True
    return last.endswith(".py") and not last.startswith("test_") and last != "conftest.py"
