"""The worker's edge under coffea's ``Runner``: one item in, plain data out.

What happened to an item is decided here, where the exception still has its cause and its traceback: process
pools lose the cause, and an exception that cannot be unpickled breaks some of them altogether. So nothing but
bytes and text goes back. No pool, no retry and no merging in this room.
"""

from __future__ import annotations

import itertools
import os
import pickle
import socket
import traceback
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import cloudpickle
import lz4.frame

from executors.coffea.adapter_reach import led, reached
from executors.errors import AnalysisError
from executors.work.model import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LONGEST_TRACE = 8_000  # characters of a traceback that travel: its end is what a person reads
LONGEST_MESSAGE = 2_000
BEFORE_THE_USER = ("Failed to open file", "Failed creating nanoevents")  # how coffea begins its own texts


@dataclass(frozen=True, slots=True)
class Step:
    """What ``Runner`` wants done to each item, freed of the retry loop that it wraps around it."""

    function: Callable[[Any], Any]
    skip: bool | tuple[type[BaseException], ...] = False  # ``skipbadfiles``
    defer: bool = False  # ``use_result_type``: what could be skipped is handed back as an error instead
    owned: bool = True  # False: the retry loop is still inside, so ours must not multiply it
    metadata: bool = False  # items are files and no user code runs
    client: Mapping[str, str] = field(default_factory=dict)  # how long XRootD's client is to wait

    @property
    def allowed(self) -> tuple[type[BaseException], ...]:
        """The exception classes that ``Runner`` itself lets pass."""
        return (OSError,) if self.skip is True else (self.skip or ())


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why an item gave no result: everything the driver decides with, as plain data."""

    kind: Kind
    error: str  # the type's name
    message: str
    skippable: bool = False  # within what the user asked to skip
    frames: tuple[str, ...] = ()
    trace: str = ""
    links: tuple[bytes, ...] = ()  # the chain of exceptions, outermost first, each pickled by itself
    host: str = ""
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer for one item; ``token`` and ``index`` say for which, so that no other's is taken for it."""

    token: str
    index: int
    payload: bytes | None = None
    trouble: Trouble | None = None


def understand(function: Callable[[Any], Any], function_name: str | None) -> Step:
    """The step inside what ``Runner`` passes to an executor."""
    from coffea.processor import Runner

    from executors.coffea.adapter_check import checked

    metadata = function_name == "get_metadata"
    if not (isinstance(function, partial) and function.func is Runner.automatic_retries):
        return Step(function, owned=not _retries_inside(function), metadata=metadata)
    _retries, skip, inner, *rest = function.args
    keywords = dict(function.keywords)
    defer = bool(keywords.pop("use_result_type", False))
    bare = partial(inner, *rest, **keywords) if rest or keywords else inner
    return Step(checked(bare), _classes(skip), defer, metadata=metadata)


def _retries_inside(function: Any) -> bool:
    # A subclass of Runner with a retry loop of its own: still recognisable by its name.
    return getattr(getattr(function, "func", None), "__name__", "") == "automatic_retries"


def _classes(skip: Any) -> bool | tuple[type[BaseException], ...]:
    if isinstance(skip, type):
        return (skip,)
    return skip if isinstance(skip, bool) else tuple(skip or ())


def pack_step(step: Step) -> bytes:
    """The step as bytes that every task carries: one copy of memory a task instead of one pickling."""
    return bytes(cloudpickle.dumps(step))


def run_item(
    step: bytes, item: bytes, token: str, index: int, compression: int | None, *, url: str = ""
) -> Outcome:
    """Do one item on a worker; every exception comes back described, none is raised.

    ``url`` is where the item's file is opened, if not by its own name.
    """
    try:
        todo: Step = pickle.loads(step)
    except Exception as error:  # noqa: BLE001  the worker's edge
        return Outcome(token, index, trouble=describe(error, Step(_nothing), kind=Kind.USER))
    address = url
    try:
        thing = pickle.loads(item)
        address = url or getattr(thing, "filename", "")
        with reached(address, todo.client):
            value = (led(todo.function, url) if url else todo.function)(thing)
    except (Exception, SystemExit) as error:  # noqa: BLE001  the worker's edge
        return Outcome(token, index, trouble=describe(error, todo, path=address or None, url=url))
    try:
        return Outcome(token, index, payload=dump(value, compression))
    except Exception as error:  # noqa: BLE001  the worker's edge
        refused = AnalysisError(f"the result cannot be sent back: {type(error).__name__}: {error}")
        refused.__cause__ = error
        kind = Kind.MEMORY if isinstance(error, MemoryError) else Kind.USER
        return Outcome(token, index, trouble=describe(refused, todo, kind=kind))


def _nothing(_item: Any) -> None:
    return None


def dump(value: Any, compression: int | None) -> bytes:
    """A result as bytes; by value where its class lives in a notebook or script."""
    raw: bytes = cloudpickle.dumps(value)
    if compression is None:
        return b"p" + raw
    return b"z" + bytes(lz4.frame.compress(raw, compression_level=compression))


def load(payload: bytes) -> Any:
    """The result that ``dump`` wrote."""
    raw = payload[1:] if payload[:1] == b"p" else lz4.frame.decompress(memoryview(payload)[1:])
    return pickle.loads(raw)


def describe(
    error: BaseException, step: Step, *, path: str | None = None, kind: Kind | None = None, url: str = ""
) -> Trouble:
    """An exception as plain data, classified while its traceback is still there."""
    from executors.coffea.classify import classify, frames

    inner = innermost(error)
    if kind is None:
        kind = Kind.USER if isinstance(inner, SystemExit) else classify(inner, path)
    if kind is Kind.USER and (step.metadata or _before_the_user(error)):
        kind = Kind.BAD  # none of the user's code has run: it can only be the file
    return Trouble(
        kind=kind,
        error=type(inner).__name__,
        message=_placed(_text(inner), kind, url)[:LONGEST_MESSAGE],
        skippable=_skippable(error, kind, step),
        frames=frames(inner),
        trace="".join(traceback.format_exception(inner))[-LONGEST_TRACE:],
        links=tuple(_pack_link(link) for link in chain(error)),
        host=socket.gethostname(),
        pid=os.getpid(),
    )


def _placed(text: str, kind: Kind, url: str) -> str:
    """Troubles with the input name where it was really read; its query may hold a token."""
    if not url or kind is Kind.USER:
        return text
    return f"(read as {url.partition('?')[0]}) {text}"


def _before_the_user(error: BaseException) -> bool:
    return type(error) is Exception and _text(error).startswith(BEFORE_THE_USER)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  a __str__ of the user's own can raise anything
        return "(its text cannot be shown)"


def chain(error: BaseException | None) -> list[BaseException]:
    """An exception and its causes, outermost first; a loop of causes ends it."""
    links: list[BaseException] = []
    while error is not None and not any(error is link for link in links):
        links.append(error)
        error = error.__cause__
    return links


def innermost(error: BaseException) -> BaseException:
    """The exception inside coffea's own plain ``Exception`` wrappers, which hide its type."""
    for link in chain(error):
        if type(link) is not Exception or link.__cause__ is None:
            return link
    return error


def _skippable(error: BaseException, kind: Kind, step: Step) -> bool:
    """Whether the user asked to go on without such an item.

    ``True`` means bad input, whatever its class: coffea's own reading of it (any OSError anywhere) would also
    drop events because the user's correction file is missing, and would not skip a file that is not ROOT.
    """
    if step.skip is True:
        return kind in {Kind.BAD, Kind.PASSING, Kind.TIMEOUT}
    return bool(step.skip) and any(isinstance(link, step.allowed) for link in chain(error))


def _pack_link(error: BaseException) -> bytes:
    for form in (_as_it_is, _by_its_parts):
        try:
            data = form(error)
            if type(pickle.loads(data)) is type(error):
                return data
        except Exception:  # noqa: BLE001, S112  a __reduce__ or __init__ of the user's can raise anything
            continue
    return bytes(cloudpickle.dumps(StandInError(f"{type(error).__name__}: {_text(error)}"[:LONGEST_MESSAGE])))


def _as_it_is(error: BaseException) -> bytes:
    return bytes(cloudpickle.dumps(error))


def _by_its_parts(error: BaseException) -> bytes:
    # An __init__ that does not match its args is the usual reason why an exception cannot be unpickled.
    return bytes(cloudpickle.dumps(_Parts(type(error), error.args, dict(vars(error)))))


class _Parts:
    """Pickles as the exception made of these parts, without calling its ``__init__``."""

    def __init__(self, kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> None:
        self.parts = (kind, args, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_revive, self.parts)


def _revive(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(state)
    return error


class StandInError(Exception):
    """Stands for an exception of the worker that cannot travel; its text names the type."""


def revive(trouble: Trouble) -> BaseException:
    """The worker's exception, causes included, with the worker's traceback as a note."""
    errors = [_load_link(link) for link in trouble.links]
    errors = errors or [StandInError(f"{trouble.error}: {trouble.message}")]
    for outer, inner in itertools.pairwise(errors):
        outer.__cause__ = inner
    if trouble.trace:
        errors[0].add_note(f"On {trouble.host}, process {trouble.pid}:\n{trouble.trace}")
    return errors[0]


def _load_link(data: bytes) -> BaseException:
    try:
        error = pickle.loads(data)
    except Exception as failure:  # noqa: BLE001  whatever unpickling a foreign class raises here
        return StandInError(f"cannot be unpickled here: {type(failure).__name__}: {failure}")
    return error if isinstance(error, BaseException) else StandInError(repr(error)[:LONGEST_MESSAGE])
