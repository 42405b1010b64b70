"""The analysis over coffea: what a worker runs for a chunk, and what it says when that goes wrong.

Implements ``executors.work.model.Analysis``. ``postprocess`` is not called here: it belongs to the merged
result.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from executors.coffea import classify as told
from executors.coffea.columns import Columns, undeclared
from executors.coffea.events import Input, open_input, schema_named
from executors.coffea.kept import Kept
from executors.coffea.xrootd import PROTOCOL, forgotten_if_failing, settle
from executors.errors import AnalysisError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from executors.work.model import FileSlice, Kind
    from executors.work.packed import Packed


class CoffeaAnalysis:
    """A processor, or a plain function on events, with what it needs to be shown its events.

    ``datasets`` are the names with the user's metadata. ``columns`` declares what is visible; without it the
    processor's own attribute ``columns`` does, and without that everything is visible. ``ahead`` reads ahead
    in local files as well, for a worker that has a second core to itself.
    """

    def __init__(
        self,
        processor: Any,
        datasets: Mapping[str, Mapping[str, Any]],
        *,
        schema: str | type = "NanoAODSchema",
        columns: Sequence[str] | None = None,
        uproot_options: Mapping[str, Any] | None = None,
        timeout: float = 60,
        lazy: bool = True,
        client: Mapping[str, str] | None = None,
        ahead: bool = False,
    ) -> None:
        if not hasattr(processor, "process") and not callable(processor):
            raise UsageError(f"{processor!r} is neither a coffea processor nor a function of events")
        self.processor = processor
        self.datasets = {name: dict(metadata) for name, metadata in datasets.items()}
        self.schema = schema_named(schema)
        self.columns = _declared(processor, columns)
        self.uproot_options = dict(uproot_options or {})
        self.timeout = self.uproot_options.pop("timeout", timeout)
        self.lazy, self.ahead = lazy, ahead
        self.client = dict(
            client or {}
        )  # what the XRootD client is told, also by workers that others started
        self._kept = Kept()
        self._path: str | None = None  # the input opened last, to judge an error by

    @contextlib.contextmanager
    def open(self, dataset: str, piece: FileSlice) -> Iterator[OpenChunks]:
        """Open one file, refusing one that is not the planned one."""
        self._path = piece.address
        if piece.address.startswith(PROTOCOL):
            settle(self.client)
        metadata = self.datasets.get(dataset, {})

        def opened() -> AbstractContextManager[Input]:
            return open_input(
                piece,
                self.schema,
                Columns(self.columns) if self.columns is not None else None,
                dataset=dataset,
                metadata=metadata,
                timeout=self.timeout,
                options=self.uproot_options,
                lazy=self.lazy,
                ahead=self.ahead,
            )

        with self._kept.open(piece, dataset, metadata, opened) as source:
            yield OpenChunks(source, self.processor, piece.address)

    def close(self) -> None:
        """Close the file that is kept open for a next task."""
        self._kept.close()

    def pack(self, value: Any) -> Packed:
        """The flat form of one accumulator."""
        from executors.coffea.pack import pack

        return pack(value)

    def combine(self, left: Packed, right: Packed) -> Packed:
        """The sum of two; ``left`` may be used up."""
        from executors.coffea.pack import combine

        return combine(left, right)

    def classify(self, error: BaseException) -> Kind:
        """What kind of failure an exception is."""
        return told.classify(error, self._path)

    def frames(self, error: BaseException) -> tuple[str, ...]:
        """The user's own frames of an exception; the processor's package is the user's, installed or not."""
        home = getattr(self.processor, "__module__", None) or type(self.processor).__module__
        return told.frames(error, (home.split(".")[0],))


class OpenChunks:
    """One open file whose entry ranges go through the processor."""

    def __init__(self, source: Input, processor: Any, address: str) -> None:
        self._source, self._processor, self._address = source, processor, address

    @property
    def bytes_read(self) -> int:
        """Bytes read from the file so far."""
        return self._source.bytes_read

    def process(self, start: int, stop: int) -> Any:
        """The accumulator of entries ``start`` to ``stop``."""
        self._source.failed = True  # unless this comes to its end
        with forgotten_if_failing(self._address):
            out = self._process(start, stop)
        self._source.failed = False
        return out

    def _process(self, start: int, stop: int) -> Any:
        events = self._source.events(start, stop)
        if len(events) != stop - start:
            raise told.ChangedFileError(
                f"entries {start} to {stop} gave {len(events)} events, not {stop - start}"
            )
        try:
            out = call_analysis(self._processor, events)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            if (missed := undeclared(error, self._source.hidden())) is not None:
                raise missed from error
            raise
        if out is None:
            raise AnalysisError(
                "process() returned None: it must return an accumulator (a dict, a histogram, …)"
            )
        return out


def call_analysis(processor: Any, events: Any) -> Any:
    """Call the user's code; the name of this function marks where that begins in a traceback."""
    return processor.process(events) if hasattr(processor, "process") else processor(events)


def _declared(processor: Any, columns: Sequence[str] | None) -> tuple[str, ...] | None:
    given = columns or getattr(processor, "columns", None)
    # A processor may well have an attribute of this name for something else.
    if given is None or callable(given) or (not columns and not _names(given)):
        return None
    if not _names(given):
        raise UsageError(f"columns must be names of branches, not {given!r}")
    return tuple(given)


def _names(given: Any) -> bool:
    return (
        isinstance(given, list | tuple | set | frozenset)
        and bool(given)
        and all(isinstance(c, str) for c in given)
    )
