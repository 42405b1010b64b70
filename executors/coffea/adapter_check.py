"""Between coffea's task and the analysis: the events that arrive must be those that were planned.

coffea takes a work item at its word: in a file that has changed since it was looked at, the range is clamped
and the sum is smaller without a word. Runs on the worker; may know the events' file and range, nothing more.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import cloudpickle
import lz4.frame

from executors.coffea.classify import ChangedFileError

if TYPE_CHECKING:
    from collections.abc import Callable


class Checked:
    """The analysis of ``Runner``, called on exactly the events of the work item."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor  # as Runner sends it: compressed bytes, or the object itself

    def __call__(self, events: Any) -> Any:
        """What the analysis returns for these events."""
        refuse_others(events)
        return call_analysis(self.unpacked(), events)

    def unpacked(self) -> Any:
        """The analysis itself; new at each call, so that what it keeps is not counted twice."""
        if isinstance(self.processor, bytes):
            return cloudpickle.loads(lz4.frame.decompress(self.processor))
        return self.processor

    def __getattr__(self, name: str) -> Any:
        # For checkpointers that ask the processor about itself.
        if name.startswith("__") or name == "processor":
            raise AttributeError(name)
        return getattr(self.unpacked(), name)


def call_analysis(processor: Any, events: Any) -> Any:
    """Call it; by this function's name a traceback tells the user's part from the reading of the input."""
    from coffea.processor import ProcessorABC

    return processor.process(events) if isinstance(processor, ProcessorABC) else processor(events)


def checked(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``Runner``'s own work function with the analysis in it checked; any other function as it is."""
    from coffea.processor import Runner

    if not isinstance(function, partial) or function.func is not getattr(Runner, "_work_function", None):
        return function
    processor = function.keywords.get("processor_instance")
    return partial(
        function.func, *function.args, **{**function.keywords, "processor_instance": Checked(processor)}
    )


def refuse_others(events: Any) -> None:
    """Refuse events that are not the planned range of the planned file."""
    about = getattr(events, "metadata", None) or {}
    if "entrystart" not in about or "entrystop" not in about:
        return
    planned, here = about["entrystop"] - about["entrystart"], len(events)
    found, uuid = _uuid(events), about.get("fileuuid")
    if here == planned and (not found or not uuid or found == uuid):
        return
    text = f"{here} entries where {planned} were planned" if here != planned else f"it is {found}, not {uuid}"
    raise ChangedFileError(
        f"{about.get('filename')} is not the file that was looked at before ({text}); "
        "start again without cached metadata: Runner(metadata_cache={})"
    )


def _uuid(events: Any) -> str:
    factory = getattr(events, "attrs", {}).get("@events_factory")
    text = str(getattr(factory, "_partition_key", "")).partition("/")[0]
    # Parquet files have none, and coffea makes one up from the path.
    return text if text.count("-") == 4 else ""
