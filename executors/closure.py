"""The project-local modules that code reaches by its imports, each with a hash of what its source means.

Local is what is neither of Python nor of an installed package; a package installed as editable is local. Only
source text is read: nothing is imported or run to find out.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import re
import site
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from executors import code

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

_OURS = Path(__file__).resolve().parent.parent
_ALIAS = re.compile(r"workflow_[0-9a-f]{8}_")  # a file loaded by its path: 'sources' made the name
_Documented: TypeAlias = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Closure:
    """Modules reached so far: ``modules`` maps labels to digests, ``libraries`` names installed packages."""

    def __init__(self) -> None:
        self.modules: dict[str, str] = {}
        self.libraries: set[str] = set()
        self.stale: list[str] = []  # edited since they were imported: memory and disk differ
        self._seen: set[str] = set()
        self._paths: dict[str, Path | None] = {}

    def add(self, name: str) -> bool:
        """Take in a module and all that it imports; whether it is a local one."""
        pending = [name]
        while pending:
            each = pending.pop()
            if each in self._seen:
                continue
            self._seen.add(each)
            path = self._paths[each] = self._local(each)
            if path is not None:
                pending += self._take(each, path)
        return self._paths[name] is not None

    def _local(self, name: str) -> Path | None:
        """The file of a local module; a library's name is noted."""
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in ("__main__", "__mp_main__"):
            return None
        path = find(name)
        if path is None or not is_local(path):
            if find(top) is not None:
                self.libraries.add(top)
            return None
        return path

    def _take(self, name: str, path: Path) -> Iterator[str]:
        try:
            raw = path.read_bytes()
        except OSError:
            raw = b""
        tree = None
        if path.suffix == ".py":
            try:
                tree = ast.parse(raw)
            except (SyntaxError, ValueError):
                tree = None
        self.modules[label(name)] = hashed(raw) if tree is None else meaning(tree)
        yield from _parents(name)
        if tree is not None:
            module = sys.modules.get(name)
            if module is not None:
                self._compare(name, module, raw, tree)
            yield from imported(tree, name, path.name == "__init__.py")

    def _compare(self, name: str, module: ModuleType, raw: bytes, tree: ast.Module) -> None:
        """Note what of a module in memory its source does not say: an edited file, a value from outside."""
        loaded = code.changed_since_import(module, raw)
        if loaded is not None:
            self.stale.append(label(name))
            self.modules[f"{label(name)} (as imported before its last change)"] = loaded
        for variable, text in code.values_from_outside(module, tree):
            self.modules[f"{label(name)}: the value of {variable}"] = text


def label(name: str) -> str:
    """A module's name as people know it."""
    return _ALIAS.sub("", name)


def hashed(raw: bytes) -> str:
    """A hash that stands for bytes; marked, so that it is told from text to show."""
    return "#" + hashlib.blake2b(raw, digest_size=12).hexdigest()


def meaning(tree: ast.Module) -> str:
    """A hash of what a module's source says: comments, spaces and docstrings left out."""
    for node in ast.walk(tree):
        if isinstance(node, _Documented) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return hashed(ast.dump(tree).encode("utf-8", "surrogatepass"))


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def imported(tree: ast.Module, name: str, package: bool) -> Iterator[str]:
    """The full names of all modules that a source may import, at any depth of it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _from(node, name, package)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def _from(node: ast.ImportFrom, name: str, package: bool) -> Iterator[str]:
    base = node.module or ""
    if node.level:
        parts = name.split(".")
        parts = parts[: len(parts) - node.level + (1 if package else 0)]
        base = ".".join([*parts, base] if base else parts)
    if not base:
        return
    yield base
    yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def find(name: str) -> Path | None:
    """The file of a module, without importing it or any package above it."""
    module = sys.modules.get(name)
    if module is not None:
        file = getattr(module, "__file__", None)
        return Path(file) if file else None
    top, _, rest = name.partition(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin not in (None, "built-in", "frozen") else None
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    return _below(folders, rest.split("."))


def _below(folders: list[Path], parts: list[str]) -> Path | None:
    for folder in folders:
        place = folder.joinpath(*parts)
        for candidate in (place.with_name(place.name + ".py"), place / "__init__.py"):
            if candidate.is_file():
                return candidate
        compiled = sorted(place.parent.glob(place.name + ".*.so")) if place.parent.is_dir() else []
        if compiled:
            return compiled[0]
    return None


@functools.cache
def _library_roots() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    places = [sysconfig.get_path(name) for name in names] + [
        site.getusersitepackages(),
        *site.getsitepackages(),
    ]
    return tuple({Path(place).resolve() for place in places if place})


@functools.cache
def is_local(path: Path) -> bool:
    """Whether a file belongs to the user's project: not to Python, an installed package, or this one."""
    path = path.resolve()
    if {"site-packages", "dist-packages"} & set(path.parts):
        return False
    if any(root in path.parents for root in _library_roots()):
        return False
    ours = (_OURS / "executors", _OURS / "sites")
    return not any(root in path.parents for root in ours) and path != _OURS / "runner.py"
