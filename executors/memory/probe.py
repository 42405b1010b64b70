"""``--profile-memory``: growing pieces of each dataset in one worker of this machine, before a big run.

What they need is fitted, printed and remembered, and the results are thrown away. Nothing of a run is made or
changed: what a run does is not known here.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import textwrap
import time
from concurrent.futures import TimeoutError as LateError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors import addresses, jobs, planning, registry, words
from executors.engines.base import Resources
from executors.errors import AnalysisError, EngineError, IncompleteError, InterruptedRunError, SiteError
from executors.memory import footprints
from executors.memory.advice import advice, budget_of
from executors.memory.report import fitting, memory_text, report
from executors.memory.usage import Usage, kind_of
from executors.signals import stopping
from executors.work import limits, policy, sizing
from executors.work.layout import Tree
from executors.work.model import Failure, Kind, Node, Receipt
from executors.work.report import Outcome
from executors.work.worker import Place

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Executor

    from executors.asked import Asked
    from executors.work.plan import PlannedDataset, PlannedFile

PIECES = 5  # of a dataset, at most
CLEAR = 32 << 20  # bytes: what has grown by so much is told from what only happens to be there
SURE = 256 << 20  # bytes: more need not be grown to know the line
FILES = 3  # of a dataset that are tried for one that can be read
SECONDS = 60.0  # for a dataset; a piece that would take longer is not begun
ALTOGETHER = 600.0  # seconds for all
REST = 0.85  # of this machine's memory: the rest is the system's


@dataclass(frozen=True, slots=True)
class Sample:
    """A dataset and the files of it that may be tried, counted."""

    dataset: PlannedDataset
    files: tuple[PlannedFile, ...]
    why: str = ""  # none can be read


@dataclass(slots=True)
class Probe:
    """One worker, and what it is given to do."""

    asked: Asked
    pool: Executor
    call: jobs.Call
    place: Place
    top: int  # events of the largest piece
    memory: int | None  # bytes that the worker may use
    began: float

    def measured(self, samples: Sequence[Sample]) -> Iterator[Usage]:
        """One dataset after the other, while there is time."""
        for done, sample in enumerate(samples):
            if done and self._left() <= 0:
                left = words.number(len(samples) - done, "dataset")
                self._say("warning", f"{left} not measured, the time is over; --only NAME measures one")
                return
            self._say("info", f"measuring {sample.dataset.name}")
            yield self.measure(sample)

    def measure(self, sample: Sample) -> Usage:
        """The pieces of one dataset, growing; the next file where one turns out to be bad."""
        usage = Usage(sample.dataset.name, longest=max((f.entries or 0 for f in sample.files), default=0))
        why = sample.why
        for file in sample.files:
            why = self._file(usage, sample.dataset, file)
            if not why:
                return usage
        self._say("warning", f"{usage.dataset} could not be measured: {why}")
        return usage

    def _file(self, usage: Usage, dataset: PlannedDataset, file: PlannedFile) -> str:
        """Measure growing pieces of one file; why it cannot be read, if so."""
        until = time.monotonic() + min(SECONDS, max(self._left(), 0.0))
        top = min(self.top, file.entries or 0)
        events = min(sizing.FIRST, max(top // sizing.GROWTH, 1))
        for _ in range(PIECES):
            began = time.monotonic()
            why = self._piece(usage, dataset, file, events)
            if why or usage.burst:
                return why
            now = time.monotonic()
            events = self._next(usage, events, top, (until - now) / max(now - began, 1e-3))
            if not events:
                break
        return ""

    def _piece(self, usage: Usage, dataset: PlannedDataset, file: PlannedFile, events: int) -> str:
        """Measure one piece; why the file cannot be read, if so."""
        receipt = self._one(usage, dataset, file, events)
        if receipt is None or (receipt.failures and receipt.failures[0].kind is Kind.MEMORY):
            usage.too_big += 1
            usage.burst = events
            return ""
        if receipt.failures:
            return _bad(receipt.failures[0])
        if "put_error" in receipt.extra:
            raise SiteError(f"a result could not be stored: {receipt.extra['put_error'][1]}")
        record = receipt.chunks[0]
        if usage.took(record.entries, record.before, record.peak):
            usage.where = (addresses.public(file.path), 0, events)
        return ""

    def _next(self, usage: Usage, events: int, top: int, slower: float) -> int:
        """Events of the next piece, which may take ``slower`` times as long; 0 for none."""
        fit = usage.fit
        if fit is None or events >= top or _clear(usage, events, top):
            return 0
        # Not into the end of this machine's memory: what is known by then is enough to say so.
        most = min(top, fit.within(self.memory) if self.memory else top)
        following = min(int(events * min(sizing.GROWTH, max(slower, 0.0))), most)
        if following < top < 2 * following:
            following = most
        return following if following >= min(2 * events, top) else 0

    def _say(self, level: str, text: str) -> None:
        self.asked.observer.message(level, text)

    def _left(self) -> float:
        return self.began + ALTOGETHER - time.monotonic()

    def _one(self, usage: Usage, dataset: PlannedDataset, file: PlannedFile, events: int) -> Receipt | None:
        """What became of the first events of a file; None if the worker died of their memory."""
        piece = dataclasses.replace(file, steps=((0, events),), limit=None, cuts=None)
        plan = dataclasses.replace(
            self.asked.plan, chunk=events, datasets=(dataclasses.replace(dataset, files=(piece,)),)
        )
        tree = Tree(plan)
        task = tree.task(Node(0, 0, 1, 0, 1), urls=self.asked.how.urls)
        future = self.pool.submit(self.call, task)
        try:
            receipt = _result(future, self.asked.stop)
        except InterruptedRunError:
            raise
        except Exception as error:
            # The engine's edge: how it says that a worker died is its own.
            if policy.classify_engine(error) is Kind.MEMORY:
                return None
            where = f"on the first {events:,} events of {file.path}"
            raise EngineError(f"the worker that measures was lost {where}: {error}") from error
        for part in receipt.parts:
            usage.kind = usage.kind or kind_of(
                self.place.store, part.node, part.id, self.asked.settings.wf_arg
            )
            self.place.store.drop(part.node, part.id)
        return receipt


def _clear(usage: Usage, events: int, top: int) -> bool:
    """Whether the growing part stands out, and the line reaches as far as a run goes."""
    fit = usage.fit
    grown = usage.highest - fit.fixed if fit is not None else 0
    return usage.chunks > 1 and (grown > SURE or (grown > CLEAR and events * sizing.GROWTH >= top))


def _result(future: Any, stop: threading.Event) -> Receipt:
    while True:
        try:
            receipt: Receipt = future.result(timeout=0.25)
        except LateError:
            if stop.is_set():
                raise InterruptedRunError("interrupted while measuring; nothing was begun") from None
            if future.done():
                raise
        else:
            return receipt


def _bad(failure: Failure) -> str:
    """Why an input cannot be read; what is not the input's fault is raised."""
    if failure.kind in (Kind.BAD, Kind.PASSING):
        return f"{failure.path}: {failure.error}: {failure.message}"
    said = f"{failure.error}: {failure.message}" + "".join(f"\n  {frame}" for frame in failure.frames)
    if failure.kind in (Kind.USER, Kind.TIMEOUT):
        start, stop = failure.range
        raise AnalysisError(f"the analysis raised {said}\n  in {failure.path}, entries {start} to {stop}")
    raise SiteError(f"{failure.path}: {said}")


# -- the whole --------------------------------------------------------------------------------------


def profile(asked: Asked, analysis: Any) -> Outcome:
    """Measure, fit, remember and advise; exit code 4 where no chunk fits into a worker."""
    samples = samples_of(asked)
    usages = [usage for usage in _measured(asked, samples, analysis) if usage.chunks or usage.too_big]
    if not usages:
        raise IncompleteError(
            "nothing could be measured: " + (samples[0].why if samples else "there are no datasets")
        )
    have = budget_of(asked)
    for usage in usages:
        usage.budget = have.memory if have else None
    fits = {usage.dataset: usage.fit for usage in usages}
    footprints.remember(
        asked.fingerprint.digest, {n: f for n, f in fits.items() if f is not None}, asked.settings.cache
    )
    workers = 1 if asked.where.inline else asked.where.workers
    code, said = advice(usages, asked.chunk, have, workers)
    width = shutil.get_terminal_size((100, 24)).columns
    wrapped = "\n".join(textwrap.fill(line, width, break_long_words=False) for line in said.splitlines())
    return Outcome(code, fitting(f"{memory_text(usages)}\n\n{wrapped}"), None, report(usages))


def samples_of(asked: Asked) -> list[Sample]:
    """The first files of each dataset that hold events."""
    settings = dataclasses.replace(asked.settings, retries=1, max=None, max_per_dataset=None)
    few = tuple(dataclasses.replace(d, files=d.files[:FILES]) for d in asked.plan.datasets)
    plan = dataclasses.replace(asked.plan, datasets=few)
    counted = planning.fill_counts(plan, settings, asked.how, asked.observer.message, asked.stop)
    return [
        Sample(
            d,
            tuple(f for f in d.files if f.entries),
            "; ".join(f"{f.path}: {f.error or 'without an event'}" for f in d.files) or "it has no files",
        )
        for d in counted.datasets
    ]


def _measured(asked: Asked, samples: Sequence[Sample], analysis: Any) -> list[Usage]:
    """Each dataset measured in one child process, whose folder goes with it."""
    engine, site = registry.resolve("futures/local")
    free = limits.available()
    with stopping(asked.stop), tempfile.TemporaryDirectory(prefix="probe-") as name:
        place = Place(run=Path(name).resolve(), chunk_timeout=asked.settings.chunk_timeout or ALTOGETHER)
        for folder in ("store", "notes", "logs", "job"):
            (place.run / folder).mkdir()
        call = jobs.prepare(analysis, place)
        want = Resources(
            workers=1,
            memory=int(REST * free) if free else None,
            log_dir=place.run / "logs",
            preload=("executors.coffea.analysis",),
            tell=asked.observer.message,
            env={**{k: str(v) for k, v in asked.settings.env.items()}, **asked.how.env},
        )
        with engine.open(site, want) as pool:
            probe = Probe(asked, pool, call, place, top_of(asked), want.memory, time.monotonic())
            return list(probe.measured(samples))


def top_of(asked: Asked) -> int:
    """The most events that a chunk of this run could have."""
    return asked.chunk if isinstance(asked.chunk, int) else sizing.MOST
