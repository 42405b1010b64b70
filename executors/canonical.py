"""A hash of any Python value, the same in every process: data, functions, classes and what they use.

Values count by content, library code by name (its version is counted elsewhere), local code by its module's
source (``closure``), code without a file by what it compiled to (``code``).
"""

from __future__ import annotations

import copyreg
import pickle
import sys
import types
from typing import Any

from executors import code
from executors.closure import Closure, label
from executors.code import joined
from executors.redact import redact, secret_name

_ATOMS = (str, int, float, complex, bool, bytes, type(None), type(Ellipsis), type(NotImplemented))
_SHOWN = (str, int, float, bool, type(None))
_LONGEST_SHOWN = 40
_REFUSALS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.PickleError,
)
_NO_CODE = frozenset(
    (
        "__dict__",
        "__weakref__",
        "__doc__",
        "__module__",
        "__annotations__",
        "__abstractmethods__",
        "__firstlineno__",
        "__static_attributes__",
        "__qualname__",
        "__parameters__",
        "__orig_bases__",
        "_abc_impl",
    )
)


class Canonical:
    """One pass over a graph of objects; ``code`` collects the parts of code that have no source file."""

    def __init__(self, closure: Closure) -> None:
        self.closure = closure
        self.code: dict[str, str] = {}
        self.opaque: list[str] = []  # of what only type and attributes could be counted
        self._done: dict[int, tuple[Any, bytes]] = {}  # holds the object, so that its id stays its own
        self._active: list[int] = []
        self._walked: set[int] = set()

    def digest(self, value: Any) -> bytes:
        """The hash of a value."""
        if type(value) in _ATOMS:
            return _atom(value)
        key = id(value)
        if key in self._done:
            return self._done[key][1]
        if key in self._active:
            return joined(b"cycle", str(len(self._active) - self._active.index(key)).encode())
        self._active.append(key)
        try:
            found = self._compound(value)
        finally:
            self._active.pop()
        self._done[key] = (value, found)
        return found

    def text(self, value: Any) -> str:
        """The hash as it stands among the parts of a fingerprint."""
        return "#" + self.digest(value).hex()[:24]

    def shown(self, name: str, value: Any) -> str:
        """The value itself where it is short and plain, so that a change can be told; else its hash."""
        large = type(value) is int and value.bit_length() > 128
        text = repr(value) if type(value) in _SHOWN and not large else ""
        plain = 0 < len(text) <= _LONGEST_SHOWN and text.isprintable() and not secret_name(name)
        return text if plain and redact(text) == text else self.text(value)

    def _compound(self, value: Any) -> bytes:
        kind = type(value)
        if kind in (list, tuple, set, frozenset, dict, types.MappingProxyType):
            return self._container(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.ModuleType):
            self.closure.add(value.__name__)
            return joined(b"module", label(value.__name__).encode())
        if kind in _CODE_KINDS:
            return self._callable(value)
        numpy = sys.modules.get("numpy")
        array = numpy is not None and kind is numpy.ndarray
        return self._array(value) if array else self._object(value)

    def _container(self, value: Any) -> bytes:
        if isinstance(value, list | tuple):
            return joined(type(value).__name__.encode(), *(self.digest(item) for item in value))
        if isinstance(value, set | frozenset):  # its order depends on the process
            return joined(b"set", *sorted(self.digest(item) for item in value))
        return joined(b"dict", *sorted(joined(self.digest(k), self.digest(v)) for k, v in value.items()))

    def _array(self, value: Any) -> bytes:
        head = f"{value.dtype.descr if value.dtype.names else value.dtype.str}{value.shape}".encode()
        if value.dtype.hasobject:
            return joined(b"array", head, *(self.digest(item) for item in value.ravel().tolist()))
        return joined(b"array", head, value.tobytes())

    def _callable(self, value: Any) -> bytes:
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.CodeType):
            return code.digest(value)
        if isinstance(value, types.CellType):
            try:
                return self.digest(value.cell_contents)
            except ValueError:
                return b"empty cell"
        if isinstance(value, types.MethodType):
            parts: tuple[Any, ...] = (value.__func__, value.__self__)
        elif isinstance(value, staticmethod | classmethod | property):
            parts = code.parts_of(value)
        else:
            return self._builtin(value)
        return joined(type(value).__name__.encode(), *(self.digest(part) for part in parts))

    def _builtin(self, value: Any) -> bytes:
        owner = getattr(value, "__self__", None)
        bound = b"" if owner is None or isinstance(owner, types.ModuleType) else self.digest(owner)
        home = getattr(value, "__module__", None) or ""
        if home:
            self.closure.add(home)
        return joined(b"builtin", f"{home}.{value.__qualname__}".encode(), bound)

    def _function(self, value: types.FunctionType) -> bytes:
        home, name = value.__module__ or "", value.__qualname__
        head = f"{label(home)}.{name}".encode()
        cells = [self.digest(cell) for cell in value.__closure__ or ()]
        if home and self.closure.add(home):
            # Its module's source is counted; a nameless one also by which one it is.
            own = code.digest(value.__code__) if "<" in name else b""
            return joined(b"function", head, own, self._defaults(value) if "<" in name else b"", *cells)
        if _is_library(home):
            return joined(b"function", head, *cells)
        if "<" in name:
            return joined(b"function", self._own_code(value), *cells)
        if id(value) not in self._walked:
            self._walked.add(id(value))
            self._put(f"function {name}", joined(self._own_code(value), *cells))
        return joined(b"function", head)

    def _defaults(self, value: types.FunctionType) -> bytes:
        return joined(self.digest(value.__defaults__), self.digest(value.__kwdefaults__))

    def _own_code(self, value: types.FunctionType) -> bytes:
        """The code of a function without a file, and the values it finds in its module."""
        for name in sorted(code.imports(value.__code__)):
            self.closure.add(name)
        names = sorted(code.global_names(value.__code__) & value.__globals__.keys())
        for name in names:
            self._global(name, value.__globals__[name])
        return joined(code.digest(value.__code__), self._defaults(value), *(name.encode() for name in names))

    def _global(self, name: str, value: Any) -> None:
        if isinstance(value, type | types.FunctionType | types.ModuleType) and "<" not in getattr(
            value, "__qualname__", ""
        ):
            self.digest(value)  # named in its own right
        elif not name.startswith("__"):
            self._put(f"value {name}", self.shown(name, value))

    def _put(self, name: str, found: str | bytes) -> None:
        text = found if isinstance(found, str) else "#" + found.hex()[:24]
        key, number = name, 2
        while self.code.get(key, text) != text:  # two of one name: a cell that was run again
            key, number = f"{name} ({number})", number + 1
        self.code[key] = text

    def _class(self, value: type) -> bytes:
        home, name = value.__module__, value.__qualname__
        head = joined(b"class", f"{label(home)}.{name}".encode())
        if self.closure.add(home):
            return joined(head, self._body(value)) if "<" in name else head
        if _is_library(home):
            return head
        if "<" in name:
            return joined(head, self._body(value))
        if id(value) not in self._walked:
            self._walked.add(id(value))
            self._put(f"class {name}", self._body(value))
        return head

    def _body(self, value: type) -> bytes:
        """A class without a file of its own: its bases, methods and values."""
        parts = [self.digest(base) for base in value.__bases__]
        for name, item in sorted(vars(value).items()):
            if name not in _NO_CODE:
                parts.append(joined(name.encode(), *(self._member(part) for part in code.parts_of(item))))
        return joined(*parts)

    def _member(self, value: Any) -> bytes:
        if isinstance(value, types.FunctionType) and not _is_library(value.__module__ or ""):
            return joined(self._own_code(value), *(self.digest(cell) for cell in value.__closure__ or ()))
        if isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
            return b"slot"
        return self.digest(value)

    def _object(self, value: Any) -> bytes:
        """Any other object, by how it would be pickled."""
        kind = type(value)
        try:
            # Of exceptions, whoever has imported Dask has another idea, with their tracebacks.
            reducer = None if isinstance(value, BaseException) else copyreg.dispatch_table.get(kind)
            reduced = reducer(value) if reducer is not None else value.__reduce_ex__(4)
        except RecursionError:
            raise
        except _REFUSALS:
            return self._unpicklable(value)
        if isinstance(reduced, str):
            return joined(b"global", f"{getattr(value, '__module__', '')}.{reduced}".encode())
        call, arguments, *rest = reduced
        state, items, pairs = (*rest, None, None, None)[:3]
        return joined(
            b"object",
            self.digest(call),
            self.digest(tuple(arguments)),
            self.digest(state),
            self.digest(list(items) if items is not None else None),
            self.digest(dict(pairs) if pairs is not None else None),
        )

    def _unpicklable(self, value: Any) -> bytes:
        kind = type(value)
        state = getattr(value, "__dict__", None)
        self.opaque.append(f"{kind.__module__}.{kind.__qualname__}")
        return joined(b"unpicklable", self._class(kind), self.digest(dict(state) if state else None))


_CODE_KINDS = (
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    types.MethodWrapperType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    types.CodeType,
    types.CellType,
    staticmethod,
    classmethod,
    property,
)


def _atom(value: Any) -> bytes:
    if type(value) is float:
        return joined(b"float", value.hex().encode())  # repr would do, but hex cannot round
    if type(value) is int:
        return joined(b"int", f"{value:x}".encode())  # repr refuses numbers of thousands of digits
    if type(value) is bytes:
        return joined(b"bytes", value)
    return joined(type(value).__name__.encode(), repr(value).encode("utf-8", "surrogatepass"))


def _is_library(home: str) -> bool:
    """Whether a module is Python's own or installed: known by its name and version."""
    if home in ("__main__", "__mp_main__", ""):
        return False
    if home.partition(".")[0] in sys.stdlib_module_names:
        return True
    module = sys.modules.get(home)
    return getattr(module, "__file__", None) is not None
