"""What compiled Python code means, as a hash: for code without a file, and to compare memory with disk.

Line numbers, file names and a function's own docstring are no part of it.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import sys
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_HAS_DOCSTRING = 0x4000000  # a flag of code objects since Python 3.13
_SCALARS = (str, int, float, bool, bytes, complex, type(None), Path)


def joined(*parts: bytes) -> bytes:
    """A hash of several byte strings; where one ends and the next begins makes a difference."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()


def digest(code: CodeType) -> bytes:
    """What a code object does, its inner functions included."""
    numbers = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return joined(
        code.co_code,
        getattr(code, "co_exceptiontable", b""),
        repr((numbers, names)).encode("utf-8", "surrogatepass"),
        *(_constant(value) for value in _constants(code)),
    )


def _constants(code: CodeType) -> tuple[Any, ...]:
    """The constants without the docstring, which changes nothing."""
    values = code.co_consts
    named = not code.co_name.startswith("<") and bool(
        code.co_flags & 0x2
    )  # a def; not a class, a lambda, a module
    documented = code.co_flags & _HAS_DOCSTRING if sys.version_info >= (3, 13) else named
    return values[1:] if documented and values and isinstance(values[0], str) else values


def _constant(value: Any) -> bytes:
    if isinstance(value, CodeType):
        return digest(value)
    if isinstance(value, tuple):
        return joined(b"tuple", *(_constant(item) for item in value))
    if isinstance(value, frozenset):  # its order depends on the process
        return joined(b"set", *sorted(_constant(item) for item in value))
    return joined(type(value).__name__.encode(), repr(value).encode("utf-8", "surrogatepass"))


def inner(code: CodeType) -> Iterator[CodeType]:
    """A code object and all that are nested in it."""
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from inner(value)


def global_names(code: CodeType) -> set[str]:
    """The names that code looks up in its module."""
    return {
        i.argval
        for each in inner(code)
        for i in dis.get_instructions(each)
        if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }


def imports(code: CodeType) -> set[str]:
    """The modules that code imports when it runs."""
    return {i.argval for each in inner(code) for i in dis.get_instructions(each) if i.opname == "IMPORT_NAME"}


def functions_of(namespace: Any) -> Iterator[FunctionType]:
    """The functions that a module or class defines, unwrapped from methods and properties."""
    for value in list(vars(namespace).values()):
        for each in parts_of(value):
            if isinstance(each, FunctionType):
                yield each


def parts_of(value: Any) -> tuple[Any, ...]:
    """A method or property as the functions it is made of; anything else as itself."""
    if isinstance(value, staticmethod | classmethod):
        return (value.__func__,)
    if isinstance(value, property):
        return tuple(part for part in (value.fget, value.fset, value.fdel) if part is not None)
    return (value,)


def changed_since_import(module: ModuleType, source: bytes) -> str | None:
    """A hash of a module's functions in memory, if its file no longer says the same; else None."""
    loader = type(getattr(module, "__loader__", None)).__module__
    if not loader.startswith(("_frozen_importlib", "importlib")):
        return None  # loaded by something that rewrites source, as pytest does
    try:
        compiled = compile(source, module.__file__ or "", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    known = {digest(each) for each in inner(compiled)}
    owners = [
        module,
        *(v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__),
    ]
    loaded = {
        digest(function.__code__)
        for owner in owners
        for function in functions_of(owner)
        if function.__code__.co_filename == module.__file__
    }
    return "#" + joined(*sorted(loaded)).hex()[:24] if loaded - known else None


def values_from_outside(module: ModuleType, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Plain values that a module's functions use and its source does not fix, as one from the environment."""
    used, written = _used_in_functions(tree)
    fixed = _literals(tree)
    folder = str(Path(module.__file__).parent) if module.__file__ else "\0"
    for name in sorted(used - written):
        value = vars(module).get(name)
        if name.startswith("__") or not isinstance(value, _SCALARS) or name not in _assigned(tree):
            continue
        if (name in fixed and _same(fixed[name], value)) or str(value).startswith(folder):
            continue
        yield name, "#" + _constant(value).hex()[:24]


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and repr(one) == repr(other)


def _used_in_functions(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Names that functions read, and names that functions themselves change by 'global'."""
    used: set[str] = set()
    written: set[str] = set()
    for outer in ast.walk(tree):
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            used |= {node.id for node in ast.walk(outer) if isinstance(node, ast.Name)}
            written |= {
                name for node in ast.walk(outer) if isinstance(node, ast.Global) for name in node.names
            }
    return used, written


def _assigned(tree: ast.Module) -> set[str]:
    """Names that the module's own code assigns: imported ones are the business of their own module."""
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _literals(tree: ast.Module) -> dict[str, Any]:
    """Names that are assigned once at the top of a module, to a constant."""
    found: dict[str, Any] = {}
    for node in tree.body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]  # type: ignore[attr-defined]
        try:
            constant = ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
        found.update({target.id: constant for target in targets if isinstance(target, ast.Name)})
    return found
