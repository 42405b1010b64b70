"""The plan: which events are to be counted, in which chunks, fixed by the first run and kept.

A file that cannot be reached when the plan is made keeps its place: its number of entries is filled in
by a later run, and no index of any other file moves. Nothing here opens a file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from executors.errors import DamagedError, PlanChangedError
from executors.work.ranges import with_ranges
from executors.work.store import sweep, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from executors.work.model import Range

VERSION = 1

Cut: TypeAlias = "tuple[int, int]"


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of the plan. ``entries`` is None while nobody could count them."""

    path: str
    treename: str | None = None
    uuid: str | None = None
    entries: int | None = None
    steps: tuple[Range, ...] | None = None  # the user's own ranges, instead of the whole file
    limit: int | None = None  # at most so many chunks are planned
    size: int | None = None  # of a local file when it was counted: tells a replaced one
    mtime: int | None = None
    error: str | None = None
    # Where sizes follow the memory: (up to which event, in ranges of how many), as far as that is fixed.
    cuts: tuple[Cut, ...] | None = None

    @property
    def whole(self) -> int:
        """How many events are asked for, wherever they lie; 0 while nobody could count them."""
        if self.entries is None:
            return 0
        return self.entries if self.steps is None else sum(stop - start for start, stop in self.steps)

    @property
    def open(self) -> bool:
        """Whether some of its ranges are still to be fixed: nobody could count it, or no size is chosen."""
        return self.entries is None or (self.cuts is not None and self.fixed < self.whole)

    @property
    def fixed(self) -> int:
        """Of how many events, counted along what is asked for, the ranges are fixed."""
        if self.cuts is None:
            return self.whole
        return self.cuts[-1][0] if self.cuts else 0

    def _between(self, first: int, last: int) -> Iterator[Range]:
        """Where the events of these numbers lie, counted along what is asked for."""
        passed = 0
        for start, stop in self.steps if self.steps is not None else ((0, self.entries or 0),):
            lo, hi = max(first - passed, 0), min(last - passed, stop - start)
            if lo < hi:
                yield start + lo, start + hi
            passed += stop - start

    def uncut(self) -> tuple[Range, ...]:
        """Where the events lie of which no range is fixed yet."""
        return tuple(self._between(self.fixed, self.whole))

    def _stretches(self, chunk: int) -> Iterator[tuple[int, int, int]]:
        """Where events lie that are cut alike: first, last and the most events of a range."""
        before = 0
        for upto, size in ((self.whole, chunk),) if self.cuts is None else self.cuts:
            yield from ((start, stop, size) for start, stop in self._between(before, upto))
            before = upto

    def ranges(self, chunk: int) -> tuple[Range, ...]:
        """The entry ranges of the file's chunks: equal parts, none above the size."""
        stretches = self._stretches(chunk)
        ranges = tuple(part for start, stop, size in stretches for part in equal_parts(start, stop, size))
        return ranges if self.limit is None else ranges[: self.limit]

    def some_ranges(self, chunk: int, lo: int, hi: int) -> tuple[Range, ...]:
        """The ranges of chunks ``[lo, hi)``; a file of a million chunks is not laid out for one of them."""
        hi = hi if self.limit is None else min(hi, self.limit)
        if self.cuts is None and self.steps is None:
            return tuple(equal_parts(0, self.entries or 0, chunk, lo, hi))
        out: list[Range] = []
        passed = 0
        for start, stop, size in self._stretches(chunk):
            count = -(-(stop - start) // size)
            if passed + count > lo and passed < hi:
                out += equal_parts(start, stop, size, max(lo - passed, 0), hi - passed)
            passed += count
        return tuple(out)

    def chunks(self, chunk: int) -> int:
        """How many chunks the file has, as far as that is fixed."""
        if self.cuts is None and self.steps is None:
            n = -(-(self.entries or 0) // chunk)  # nearly every file of a hundred thousand
        else:
            n = sum(-(-(stop - start) // size) for start, stop, size in self._stretches(chunk))
        return n if self.limit is None else min(n, self.limit)

    def events(self, chunk: int) -> int:
        """How many events of the file are planned."""
        if self.limit is None or self.entries is None:
            return self.whole
        return sum(stop - start for start, stop in self.ranges(chunk))


def equal_parts(start: int, stop: int, most: int, lo: int = 0, hi: int | None = None) -> Iterator[Range]:
    """``[start, stop)`` in equal ranges of at most ``most`` entries; of these all, or only ``[lo, hi)``."""
    length = stop - start
    count = -(-length // most)
    for i in range(lo, count if hi is None else min(hi, count)):
        yield start + i * length // count, start + (i + 1) * length // count


@dataclass(frozen=True, slots=True)
class PlannedDataset:
    """One dataset of the plan; ``index`` is its place in the fileset, whatever was left out."""

    name: str
    index: int
    files: tuple[PlannedFile, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Split:
    """At most ``fsize`` files of one dataset: what one indexed output holds."""

    dataset: int  # position in the plan
    index: int  # dataset index, as in names and --index
    part: int  # split index within the dataset
    first: int  # position of its first file in the dataset
    files: tuple[PlannedFile, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is to be counted. The same plan gives the same tree, and so the same bits, for ever."""

    workflow: str
    fileset: str  # the JSON's stem, as in names
    chunk: int
    fsize: int | None
    datasets: tuple[PlannedDataset, ...]
    fingerprint: str
    fingerprint_parts: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, Any] = field(default_factory=dict)  # only, limit, max, …: what shaped the plan

    @property
    def auto(self) -> bool:
        """Whether sizes follow the memory; ``chunk`` is then the most events of a chunk."""
        return self.choices.get("chunk") == "auto"

    def splits(self) -> tuple[Split, ...]:
        """The splits in order: the positions are what nodes call ``split``."""
        out = []
        for position, dataset in enumerate(self.datasets):
            step = self.fsize or max(1, len(dataset.files))
            for part, first in enumerate(range(0, len(dataset.files), step)):
                out.append(Split(position, dataset.index, part, first, dataset.files[first : first + step]))
        return tuple(out)

    def digest(self) -> str:
        """A hash over all that is planned."""
        body = json.dumps(_rows(self), separators=(",", ":"), sort_keys=True)
        return hashlib.blake2b(body.encode(), digest_size=20).hexdigest()

    def save(self, path: Path) -> None:
        """Write the plan, whole or not at all, with a checksum of its own."""
        body = json.dumps(_rows(self), separators=(",", ":"), sort_keys=True)
        head = {"version": VERSION, "digest": hashlib.blake2b(body.encode(), digest_size=20).hexdigest()}
        sweep(path.parent, path.name)
        write_whole(path, [json.dumps(head).encode(), b"\n", body.encode(), b"\n"])

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan back; a damaged one is refused."""
        text = path.read_bytes()
        head_line, _, body = text.partition(b"\n")
        body = body.removesuffix(b"\n")
        try:
            head = json.loads(head_line)
            whole = head["digest"] == hashlib.blake2b(body, digest_size=20).hexdigest()
            version = head["version"]
        except (ValueError, KeyError, TypeError):
            whole, version = False, None
        if not whole:
            raise DamagedError(f"{path} is damaged; put it back from a copy, or start anew with --overwrite")
        if version != VERSION:
            raise PlanChangedError(f"{path} was written by another version of this program ({version})")
        return with_ranges(_plan_from(json.loads(body)), path)

    def with_counts(self, counted: Mapping[tuple[int, int], PlannedFile]) -> Plan:
        """The plan with the files of ``counted`` (dataset, file) put in place of the unknown ones."""
        datasets = tuple(
            replace(d, files=tuple(counted.get((i, j), f) for j, f in enumerate(d.files)))
            for i, d in enumerate(self.datasets)
        )
        return replace(self, datasets=datasets)


def _rows(item: Plan | PlannedDataset | PlannedFile) -> dict[str, Any]:
    # Not `asdict`, which copies each value of each of perhaps a million files.
    rows = {name: getattr(item, name) for name in item.__slots__}
    if isinstance(item, Plan):
        rows["datasets"] = [_rows(dataset) for dataset in item.datasets]
    elif isinstance(item, PlannedDataset):
        rows["files"] = [_rows(file) for file in item.files]
    return rows


def _plan_from(content: Mapping[str, Any]) -> Plan:
    datasets = tuple(
        PlannedDataset(
            d["name"],
            d["index"],
            tuple(
                PlannedFile(**{**f, "steps": _pairs(f["steps"]), "cuts": _pairs(f.get("cuts"))})
                for f in d["files"]
            ),
            d["metadata"],
        )
        for d in content["datasets"]
    )
    return Plan(**{**content, "datasets": datasets})


def _pairs(rows: Iterable[Iterable[int]] | None) -> tuple[tuple[int, int], ...] | None:
    return None if rows is None else tuple((first, second) for first, second in rows)


def limit_chunks(
    datasets: Iterable[PlannedDataset], chunk: int, most: int | None, per_dataset: int | None
) -> tuple[PlannedDataset, ...]:
    """The datasets with at most ``most`` chunks in total and ``per_dataset`` in each, the first ones.

    What has its limit keeps it, and what nobody has counted gets one when it is counted: a file that comes
    late takes what is left, and moves no other.
    """
    datasets = tuple(datasets)
    if most is None and per_dataset is None:
        return datasets
    left = _rest(most, [file for dataset in datasets for file in dataset.files], chunk)
    out = []
    for dataset in datasets:
        allowed = _rest(per_dataset, dataset.files, chunk)
        files = []
        for file in dataset.files:
            if file.limit is None and file.entries is not None:
                take = min(bound for bound in (file.chunks(chunk), left, allowed) if bound is not None)
                files.append(replace(file, limit=take))
                left = None if left is None else left - take
                allowed = None if allowed is None else allowed - take
            else:
                files.append(file)
        out.append(replace(dataset, files=tuple(files)))
    return tuple(out)


def _rest(most: int | None, files: Iterable[PlannedFile], chunk: int) -> int | None:
    """What of a limit is left beside the files that have theirs."""
    taken = sum(file.chunks(chunk) for file in files if file.limit is not None)
    return None if most is None else max(0, most - taken)
