"""Finding the object that a workflow's name means, and importing it as Python would.

Everything the user's module raises on import comes out as one ``UsageError`` with the user's own frames.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import tomllib
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors import signals
from executors.errors import ExecutorsError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

GROUP = "coffea_scaleout.workflows"
_HERE = Path(__file__).resolve().parent
_FORMS = "or module:object, or path/to/file.py:object"


@dataclass(frozen=True)
class Found:
    """An object and where it comes from."""

    value: Any
    name: str
    origin: str


def registered() -> dict[str, str]:
    """Every registered workflow as ``name: module:object``: installed ones, and those of this checkout."""
    table = _of_checkout()
    for entry in importlib.metadata.entry_points(group=GROUP):
        table[entry.name] = entry.value
    return dict(sorted(table.items()))


def _of_checkout() -> dict[str, str]:
    # In a source tree nothing is installed, so nothing is registered; the project file says it all the same.
    try:
        project = tomllib.loads((_HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return dict(project["entry-points"][GROUP]) if project["name"] == "coffea-scaleout" else {}
    except (OSError, KeyError, TypeError, ValueError):
        return {}


def locate(spec: str) -> Found:
    """The object that ``spec`` names."""
    if not spec.strip():
        raise UsageError(f"no workflow is named: give --wf with one of {', '.join(registered())}, {_FORMS}")
    place, colon, path = spec.rpartition(":")
    if not colon:
        place, path = spec, ""
    if place.endswith(".py") or "/" in place:
        return _in_module(_load_file(place), path, spec)
    if colon:
        return _in_module(_load_module(place), path, spec)
    known = registered()
    if spec not in known:
        if Path(spec).is_dir() or Path(spec + ".py").is_file():
            raise UsageError(f"no workflow {spec!r} is registered; for the file write {spec}.py:object")
        raise UnknownNameError.of("workflow", spec, known, f"({_FORMS})")
    place, _, path = known[spec].partition(":")
    found = _in_module(_load_module(place), path.split("[")[0].strip(), known[spec])
    return Found(found.value, spec, found.origin)


def _in_module(module: ModuleType, path: str, spec: str) -> Found:
    origin = getattr(module, "__file__", None) or module.__name__
    if not path:
        raise UsageError(f"{spec} names no object in it: write {spec}:{_suggestion(module)}")
    value: Any = module
    for part in path.split("."):
        if not hasattr(value, part):
            raise UnknownNameError.of(f"object in {origin}", part, _candidates(value), f"(in {spec})")
        value = getattr(value, part)
    return Found(value, path.rpartition(".")[2], origin)


def _candidates(owner: Any) -> list[str]:
    """The names that could be meant: what the module itself defines."""
    home = getattr(owner, "__name__", None)
    public = {name: value for name, value in vars(owner).items() if not name.startswith("_")}
    own = [
        name
        for name, value in public.items()
        if callable(value) and getattr(value, "__module__", home) == home
    ]
    return own or list(public)


def _suggestion(module: ModuleType) -> str:
    own = _candidates(module)
    runnable = [name for name in own if callable(getattr(getattr(module, name), "process", None))]
    return " or :".join((runnable or own)[:5]) or "object"


def _load_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"{name!r} is not the name of a module; for a file write its path with .py")
    _on_path(Path.cwd())  # as 'python -m' does
    with users_code(f"cannot import {name}", missing=name):
        return importlib.import_module(name)


def _load_file(path: str) -> ModuleType:
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        folder = file.parent
        known = [item.name for item in folder.glob("*.py")] if folder.is_dir() else []
        raise UnknownNameError.of(f"workflow file (in {folder})", file.name, known)
    _on_path(Path.cwd())
    name, root = _module_name(file)
    _on_path(root)  # as 'python file.py' does
    with users_code(f"cannot import {path}"):
        if _is_module(name, file):
            return importlib.import_module(name)
        return _by_path(name, file)


def _module_name(file: Path) -> tuple[str, Path]:
    """The dotted name of a file, counted from the outermost package that it is in, and where that lies."""
    parts, folder = [file.stem], file.parent
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        parts.insert(0, folder.name)
        folder = folder.parent
    if file.stem == "__init__":
        parts.pop()
    return ".".join(parts) or file.parent.name, folder


def _is_module(name: str, file: Path) -> bool:
    """Whether importing ``name`` gives this very file, so that workers find it by that name as well."""
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    known = sys.modules.get(name)
    if known is not None:
        return _same(getattr(known, "__file__", None), file)
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(name)
    return spec is not None and _same(spec.origin, file)


def _same(origin: str | None, file: Path) -> bool:
    return origin is not None and Path(origin).exists() and Path(origin).samefile(file)


def _by_path(name: str, file: Path) -> ModuleType:
    """Load a file whose name means another module, or none: its own name here, and by value to workers."""
    import hashlib

    digest = hashlib.blake2b(os.fsencode(file.resolve()), digest_size=4).hexdigest()
    alias = f"workflow_{digest}_" + "".join(c if c.isalnum() else "_" for c in name)
    if alias in sys.modules:
        return sys.modules[alias]
    spec = importlib.util.spec_from_file_location(alias, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{file} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[alias]
        raise
    import cloudpickle

    cloudpickle.register_pickle_by_value(module)
    return module


def _on_path(folder: Path) -> None:
    """Let modules of a folder be found, before others as Python does; but never instead of Python's own."""
    text = str(folder)
    if text not in sys.path:
        hides = any(path.stem in sys.stdlib_module_names for path in folder.glob("*.py"))
        sys.path.insert(len(sys.path) if hides else 0, text)


@contextlib.contextmanager
def users_code(what: str, missing: str = "") -> Iterator[None]:
    """Run the user's own code before the run: whatever it raises is a ``UsageError`` with their frames."""
    try:
        with signals.as_they_were():
            yield
    except ExecutorsError:
        raise
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        if (
            isinstance(error, ModuleNotFoundError)
            and error.name
            and (missing + ".").startswith(error.name + ".")
        ):
            raise _no_module(missing, error.name) from None
        raise UsageError(f"{what}: {_said(error)}{users_frames(error)}") from error


def _no_module(name: str, part: str) -> UsageError:
    folder = Path.cwd()
    if "." in part and (parent := sys.modules.get(part.rpartition(".")[0])) is not None:
        folder = Path(next(iter(getattr(parent, "__path__", [folder]))))
    near = {p.stem for p in folder.glob("*.py")} | {p.parent.name for p in folder.glob("*/__init__.py")}
    text = UnknownNameError.of("module", part.rpartition(".")[2], near).message
    return UsageError(f"cannot import {name}: {text} (looked in {folder} and on Python's own path)")


def _said(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def users_frames(error: BaseException) -> str:
    """The lines of the user's code that an exception passed through, innermost last."""
    lines = []
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith("<frozen ") or _HERE in Path(frame.filename).parents:
            continue
        if os.sep + "importlib" + os.sep in frame.filename:
            continue
        code = f": {frame.line}" if frame.line else ""
        lines.append(f"\n    {frame.filename}:{frame.lineno} in {frame.name}{code}")
    if isinstance(error, SyntaxError) and error.filename:
        lines.append(f"\n    {error.filename}:{error.lineno}: {(error.text or '').strip()}")
    return "".join(lines[-8:])
