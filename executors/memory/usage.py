"""What the chunks of runs needed of memory: read from the journals of their directories.

Runs at work and unfinished ones can be read as well. Nothing of a run is changed, and nothing that it has
stored is unpickled: what its results hold is read from their structure.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from executors import addresses, inspection, outputs
from executors.errors import DamagedError, UsageError
from executors.memory import plot as memory_plot
from executors.work import journal
from executors.work.footprint import Fit, Footprint
from executors.work.model import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from executors.inspection import Found
    from executors.work.model import Node
    from executors.work.store import Store

KINDS = ("array + hist", "hist only", "array only", "counts only")
HISTOGRAMS, ARRAYS = frozenset("hH"), frozenset("aARCy")  # tags of a stored structure


@dataclass(slots=True)
class Usage:
    """What the chunks of one dataset of one run, or of a probe, needed."""

    dataset: str
    run: str = ""
    kind: str = ""  # of KINDS; empty where nothing is stored yet
    footprint: Footprint = field(default_factory=Footprint)
    chunks: int = 0
    highest: int = 0  # bytes
    where: tuple[str, int, int] | None = None  # the chunk that needed most: path, start, stop
    too_big: int = 0  # times that a chunk failed for memory
    burst: int = 0  # the fewest events that did, where a probe tried
    longest: int = 0  # events of the largest file that is known; 0 where none is
    budget: int | None = None  # bytes a worker may use, where that is known
    recorded: Fit | None = None  # as the manifest has it, where the journal is gone

    def took(self, events: int, before: int, peak: int) -> bool:
        """Take one chunk in; whether it is the highest so far."""
        self.footprint.add(events, peak, before)
        self.chunks += 1
        if peak <= self.highest:
            return False
        self.highest = peak
        return True

    @property
    def fit(self) -> Fit | None:
        """The line through the peaks."""
        return self.footprint.fit() or self.recorded

    @property
    def curve(self) -> memory_plot.Curve:
        """The same for the plot."""
        points = tuple((point.events, point.peak) for point in self.footprint.points)
        return memory_plot.Curve(self.dataset, points, self.fit, self.budget)


def read(folder: Path) -> list[Usage]:
    """The datasets of one run that anything was measured of; UsageError where that is none."""
    found = inspection.find(folder)
    datasets = found.plan.datasets
    usages = [Usage(d.name, folder.resolve().name) for d in datasets]
    for line in journal.read(folder / "journal.jsonl"):
        if line.get("event") in ("task", "failure"):
            _take(line, found, usages)
        elif line.get("event") == "run" and isinstance(line.get("budget"), int):
            for usage in usages:
                usage.budget = line["budget"]
    told = outputs.read_json(folder / "manifest.json")
    kind = _held(found, told.get("workflow_arguments") or {})
    for usage in usages:
        _told(usage, told)
        usage.kind = kind
    measured = [usage for usage in usages if usage.chunks or usage.too_big or usage.highest]
    if not measured:
        raise UsageError(
            f"{folder}: no chunk of this run was measured: "
            + (
                "it has not finished a chunk yet"
                if not found.ledger.chunks_done
                else "its journal is not there"
            )
        )
    return measured


def _take(line: Mapping[str, Any], found: Found, usages: Sequence[Usage]) -> None:
    """One line of the journal; lines of an older plan, or of another program, count for nothing."""
    tree = found.coverage.tree
    try:
        number = int(line["node"][0])
        usage = usages[tree.splits[number].dataset]
        if number < 0:
            return
        if line["event"] == "failure":
            if line["kind"] == Kind.MEMORY:
                usage.too_big += 1
            return
        parts = max(int(line.get("parts") or 1), 1)
        for file, chunk, entries, before, peak in line.get("memory") or ():
            if usage.took(-(-entries // parts), before, peak):
                planned = tree.file(number, file)
                span = planned.some_ranges(found.plan.chunk, chunk, chunk + 1)
                usage.where = (addresses.public(planned.path), *(span[0] if span else (0, entries)))
    except (LookupError, TypeError, ValueError):
        return


def _told(usage: Usage, manifest: Mapping[str, Any]) -> None:
    """What the manifest says beside the journal, or instead of one that was removed."""
    row = (manifest.get("datasets") or {}).get(usage.dataset) or {}
    memory = row.get("memory") or {}
    usage.budget = memory.get("budget") or usage.budget
    if usage.chunks:
        return
    usage.highest = int(memory.get("peak") or row.get("peak_memory") or 0)
    if memory.get("chunk"):
        path, start, stop = memory["chunk"]
        usage.where, usage.chunks = (path, start, stop), memory["points"]
        parts = memory["fixed"], memory["bytes_per_event"], memory["spread"], memory["points"]
        usage.recorded = Fit(*parts, widest=stop - start)


def _held(found: Found, arguments: Mapping[str, Any]) -> str:
    """Of KINDS, by the first stored result that can be read; empty where there is none."""
    for node in found.coverage.stored:
        if kind := kind_of(found.store, node, found.coverage.tree.id(node), arguments):
            return kind
    return ""


def kind_of(store: Store, node: Node, identity: str, arguments: Mapping[str, Any]) -> str:
    """Of KINDS: whether a stored result holds arrays, histograms or both, by its structure alone."""
    try:
        with store.reading(node, identity) as stored:
            tags = set(_tags(json.loads(bytes(stored.section("skeleton")).partition(b"\n")[2])))
    except (DamagedError, OSError, ValueError):
        return ""
    # An analysis that writes its arrays beside its result says so by this argument, in the original.
    arrays = bool(tags & ARRAYS) or arguments.get("isArray") is True
    return KINDS[_KIND[arrays, bool(tags & HISTOGRAMS)]]


_KIND = {(True, True): 0, (False, True): 1, (True, False): 2, (False, False): 3}


def _tags(node: Any) -> Iterator[str]:
    """The tags of a stored structure, which is [tag, nodes within, …]."""
    pending = [node]
    while pending:
        tag, within = pending.pop()[:2]
        yield tag
        pending += within
