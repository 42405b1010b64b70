"""From what ``--wf`` and ``--wf-arg`` say to a processor that can be run; mistakes are found before that.

It imports the user's module and nothing heavier. What a processor computes, and how it is identified
(``fingerprint``), is not known here.

The object that a workflow names may be

- an instance with a method ``process`` (a ``ProcessorABC`` instance): taken as it is;
- a class with a method ``process``: made with the arguments;
- a function. Of its parameters without a default, those that ``--wf-arg`` does not give are counted. None
  left: it makes the processor, and is called once, with the arguments. One left: it is itself applied to
  the events, which are its first parameter (``def analyse(events, cut=20)``). A parameter declared as text,
  number, path and so on is never the events, and what is declared to return a processor makes one.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from executors import sources
from executors.errors import UnknownNameError, UsageError
from executors.values import MismatchError, Spelled, convert, literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SCALARS = (str, int, float, bool, Path, list, tuple, set, dict, frozenset)
_LONGEST_NAME = 80
_EVENTS = ("events", "event", "evts", "ev")  # a first parameter that no --wf-arg is meant to give


@dataclass(frozen=True)
class Workflow:
    """A processor ready to run."""

    name: str  # as in output names
    processor: Any  # has process(events), or is called with the events
    origin: str  # the file it comes from, or its module
    arguments: Mapping[str, Any]  # as given, with their types


def load_workflow(spec: str, arguments: Mapping[str, Any] | None = None) -> Workflow:
    """The workflow that ``spec`` names: registered name, ``module:object`` or ``path/file.py:object``."""
    found = sources.locate(spec)
    processor, given = make_processor(found.value, arguments or {}, spec)
    return Workflow(slug(found.name), processor, found.origin, given)


def from_object(processor: Any, name: str | None = None) -> Workflow:
    """The workflow of a Python object: a processor, a class without arguments, a function of the events."""
    if isinstance(processor, Workflow):
        return processor
    if isinstance(processor, str):
        return load_workflow(processor)
    own = _name_of(processor)
    if isinstance(processor, type) or not callable(processor) or hasattr(processor, "process"):
        processor, _ = make_processor(processor, {}, own)
    else:
        _takes_events(processor, own)
    home = getattr(processor, "__module__", None) or type(processor).__module__
    origin = getattr(sys.modules.get(home), "__file__", None) or home
    return Workflow(slug(name or own), processor, origin, {})


def _name_of(processor: Any) -> str:
    inner = processor.func if isinstance(processor, functools.partial) else processor
    name = getattr(inner, "__name__", None) or type(inner).__name__
    return str(name).strip("<>")


def _takes_events(function: Any, name: str) -> None:
    try:
        inspect.signature(function).bind(None)
    except ValueError:  # built in: it says nothing of what it takes
        return
    except TypeError as error:
        raise UsageError(f"{name} cannot be called with the events alone: {error}") from None


def slug(text: str) -> str:
    """The text as it can stand in a file name anywhere: ASCII letters, digits, ``_``, ``.``, ``-``."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", text).lstrip(".-")[:_LONGEST_NAME]
    return name or "_"


def make_processor(value: Any, arguments: Mapping[str, Any], spec: str) -> tuple[Any, dict[str, Any]]:
    """The processor that an object is or makes, and the arguments with their types."""
    if isinstance(value, type):
        if not callable(getattr(value, "process", None)):
            raise UsageError(f"{spec} is a class without a method process(events); it cannot be run")
        call, given, free = _bound(value, arguments, spec)
        if free:
            raise _missing(spec, value, free)
        return _made(call, spec), given
    if callable(getattr(value, "process", None)):
        if arguments:
            raise UsageError(
                f"{spec} is a processor already made; it takes no --wf-arg (name its class instead)"
            )
        return value, {}
    if not callable(value):
        kind = type(value).__name__
        raise UsageError(f"{spec} is a {kind}, neither a processor nor a function of the events")
    return _from_function(value, arguments, spec)


def _from_function(function: Any, arguments: Mapping[str, Any], spec: str) -> tuple[Any, dict[str, Any]]:
    call, given, free = _bound(function, arguments, spec)
    if not free:
        processor = _made(call, spec)
        if isinstance(processor, type) or not (hasattr(processor, "process") or callable(processor)):
            raise UsageError(
                f"{spec} made a {type(processor).__name__}, not a processor or a function of the events"
            )
        return processor, given
    if len(free) > 1 or _is_scalar(free[0]) or _makes_processor(function):
        raise _missing(spec, function, free[free[0].name in _EVENTS :])
    if not given:
        return function, given
    if free[0].name != next(iter(inspect.signature(function).parameters)):
        raise UsageError(f"{spec}: the events must be its first parameter, before {', '.join(given)}")
    return functools.partial(function, **given), given


def _bound(
    target: Any, arguments: Mapping[str, Any], spec: str
) -> tuple[Callable[[], Any], dict[str, Any], list[inspect.Parameter]]:
    """The call with its arguments, these with their types, and the parameters that nothing was given for."""
    try:
        parameters = dict(inspect.signature(target).parameters)
    except (ValueError, TypeError):  # built in: it says nothing of what it takes
        given = {key: literal(v) if isinstance(v, Spelled) else v for key, v in arguments.items()}
        return functools.partial(target, **given), given, []
    kinds = _annotations(target)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {k: p for k, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    given = {}
    for key, value in arguments.items():
        if key not in named and not open_ended:
            raise UnknownNameError.of(f"argument of {spec}", key, named)
        given[key] = _typed(value, named.get(key), kinds.get(key), f"--wf-arg {key}={value}")
    free = [
        p.replace(annotation=kinds.get(key, p.annotation))
        for key, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and key not in given
    ]
    return functools.partial(target, **given), given, free


def _annotations(target: Any) -> dict[str, Any]:
    """The annotations of what is called, those that can be read."""
    function = inspect.getattr_static(target, "__init__") if isinstance(target, type) else target
    function = function.func if isinstance(function, functools.partial) else function
    if not inspect.isroutine(function) and not isinstance(target, type):
        function = getattr(function, "__call__", function)  # noqa: B004 - its annotations are wanted
    try:
        return get_type_hints(function)
    except (NameError, TypeError, AttributeError, SyntaxError):
        # Names that exist for type checkers only: then the simple ones are read by themselves.
        raw = getattr(function, "__annotations__", {})
        known = {kind.__name__: kind for kind in _SCALARS}
        return {
            k: v if isinstance(v, type) else known[v]
            for k, v in raw.items()
            if isinstance(v, type) or v in known
        }


def _typed(value: Any, parameter: inspect.Parameter | None, kind: Any, where: str) -> Any:
    if kind is None and parameter is not None and type(parameter.default) in _SCALARS:
        kind = type(parameter.default)
        if not isinstance(value, Spelled):
            return value  # a default is a hint for reading text, not a promise about types
    try:
        return convert(value, Any if kind is None else kind)
    except MismatchError as error:
        raise UsageError(f"{where}: expected {error}") from None


def _is_scalar(parameter: inspect.Parameter) -> bool:
    return parameter.annotation in _SCALARS or parameter.kind is parameter.KEYWORD_ONLY


def _makes_processor(function: Any) -> bool:
    returned = _annotations(function).get("return")
    return isinstance(returned, type) and hasattr(returned, "process")


def _missing(spec: str, target: Any, free: list[inspect.Parameter]) -> UsageError:
    names = [p.name for p in free]
    what = "argument" if len(names) == 1 else "arguments"
    flags = " ".join(f"--wf-arg {name}=…" for name in names)
    signature = f"{getattr(target, '__name__', 'it')}{inspect.signature(target)}"
    return UsageError(f"{spec}: missing {what} {', '.join(names)}: add {flags}  [{signature}]")


def _made(call: Callable[[], Any], spec: str) -> Any:
    with sources.users_code(f"{spec} could not be made"):
        return call()
