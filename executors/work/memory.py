"""The memory that a chunk needed, children included: the kernel's own mark, reset before each chunk.

One ``Meter`` a process, because the mark is one a process. It may be asked by blocks within blocks and by
several threads: whoever resets the mark first writes it down for all that are being measured.

Resident memory before and at the highest is read, not sampled, so no spike is missed however short. Only
children are looked at from time to time, for they may come and go within a chunk: a thread asks the kernel
every 40 ms whether there are any (1 µs), and only if there are reads their marks. Where the kernel has no
mark to reset, that thread samples this process too.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, Self

from executors.work import processes

if TYPE_CHECKING:
    from collections.abc import Hashable
    from types import TracebackType

LOOK = 0.04  # seconds between two questions whether there are children
AT_CHILDREN = 0.015  # seconds between two looks at them
SHARE = 25  # looks cost at most one part in so many of the time
SLOWEST = 0.5
REST = 50  # looks with nothing to measure before the thread ends
GROWN = 1.1  # what the heap may keep of earlier chunks before it is given back, times what is in use
SLACK = 16 << 20
LOOKS = 16  # for which what a child shares may be taken as it was
UNTRIMMED = 15  # chunks of one kind in a row that may start on the heap of the one before
ALIKE = 0.03


class Use(NamedTuple):
    """Bytes of resident memory that a block of work took."""

    before: int = 0
    peak: int = 0  # at the highest, children included; 0 where unknown
    children: int = 0  # the part of the peak that is theirs
    mapped: int = (
        0  # the part of the peak that is pages of files, which the kernel can drop: at least peak - mapped
    )


class Span:
    """A block being measured: a context manager; ``use`` is complete at its end."""

    def __init__(self, meter: Meter, kind: Hashable = None, size: int = 0) -> None:
        self._meter = meter
        self.kind = kind
        self.size = size
        self.use = Use()
        self.own = 0  # the highest of this process alone
        self.clean = False  # whether it started without what earlier ones left
        self.ever = 0
        self.ended = 0

    def __enter__(self) -> Self:
        self._meter.start(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._meter.stop(self)

    def reached(self, own: int, children: int) -> None:
        """Note how high it was for a while."""
        self.own = max(self.own, own)
        if own + children > self.use.peak:
            self.use = self.use._replace(peak=own + children, children=children)


class Usual(NamedTuple):
    """The last chunk that was measured from a clean start, and how many came after it without one."""

    kind: Hashable
    size: int
    peak: int
    since: int = 0

    def covers(self, span: Span, resident: int) -> bool:
        """Whether a chunk that starts with so much will need as much again, and so hides nothing."""
        alike = self.kind == span.kind and abs(self.size - span.size) <= ALIKE * self.size
        return alike and self.since < UNTRIMMED and resident <= self.peak * (1 + ALIKE)


class Meter:
    """Measures this process and its children, for as many blocks at a time as there are."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Span] = []
        self._family = Family()
        self._watching = False
        self._idle = 0
        self._resets = True  # whether the kernel lets the mark start anew
        self._live: int | None = None  # bytes of the heap that were in use when last looked at
        self._files: int | None = None  # pages of files that this process has in any case
        self._usual: Usual | None = None

    def forget(self) -> None:
        """Measure nothing any more: a fork's child has a mark of its own, and nobody who opens the lock."""
        self.__init__()  # type: ignore[misc]

    def span(self, kind: Hashable = None, size: int = 0) -> Span:
        """A block to measure; chunks of one kind and of like size are expected to need alike."""
        return Span(self, kind, size)

    def start(self, span: Span) -> None:
        """Measure a block from now on."""
        with self._lock:
            if self._spans:
                self._note()
            elif span.kind is not None:
                span.clean = self._clean(span)
            self._resets = processes.reset()
            now = processes.resident()[0]
            span.use = Use(before=now, peak=now)
            span.ever, span.ended = processes.ever(), processes.largest_ended()
            if not self._spans:
                self._family = Family()
            if self._family or processes.has_children():
                self._family.anew(processes.status())
            self._spans.append(span)
            self._watch()

    def stop(self, span: Span) -> None:
        """The block is over."""
        with self._lock:
            if span not in self._spans:  # begun before a fork, in the parent
                return
            mapped = self._note()
            self._spans.remove(span)
            if not self._resets and processes.ever() > span.ever:
                span.reached(processes.ever(), 0)
            if processes.largest_ended() > max(span.ended, span.own):
                span.reached(*self._family.to_the_end(processes.largest_ended(), span.use.before))
            span.use = span.use._replace(mapped=min(mapped, span.use.peak))
            if span.clean:
                self._usual = Usual(span.kind, span.size, span.own)

    def _look(self) -> None:
        """Write down how high it was until now, where waiting for the end of the block could lose it."""
        if self._spans and (not self._resets or self._family or processes.has_children()):
            self._note()
            self._resets = processes.reset()

    def _note(self) -> int:
        """Write down the time since the last reset; how many pages of files there are more than at first."""
        status = processes.status()
        now = status.resident if status is not None else processes.resident()[0]
        own = status.peak if status is not None and self._resets else now
        # Children that are new came just now: with them goes what this process has now, not what it had once.
        beside = own if self._family else now
        children = self._family.look(status, beside) if self._family or processes.has_children() else 0
        for span in self._spans:
            span.reached(own, 0)
            span.reached(beside, children)
        if status is None:
            return 0
        self._files = status.mapped if self._files is None else min(self._files, status.mapped)
        return status.mapped - self._files

    def _clean(self, span: Span) -> bool:
        """Whether a chunk starts without what earlier ones left on the heap, which is given back if need be.

        What is given back costs a page fault each when it is used again. A chunk like the last one needs
        as much anyway, and its peak is the same either way.
        """
        resident, heap = processes.resident()
        if self._live is None or heap <= self._live * GROWN + SLACK:
            self._live = heap if self._live is None else min(self._live, heap)
            return True
        usual = self._usual
        if usual is not None and usual.covers(span, resident):
            self._usual = usual._replace(since=usual.since + 1)
            return False
        processes.give_back()
        self._live = processes.resident()[1]
        return True

    def _watch(self) -> None:
        self._idle = 0
        if self._watching:
            return
        self._watching = True
        try:
            threading.Thread(target=self._keep_looking, name="memory", daemon=True).start()
        except RuntimeError:  # no more threads: children are looked at when a block ends, and only then
            self._watching = False

    def _keep_looking(self) -> None:
        pause = LOOK
        while True:
            time.sleep(pause)
            began = time.thread_time()
            with self._lock:
                self._idle = 0 if self._spans else self._idle + 1
                if self._idle >= REST:
                    self._watching = False
                    return
                self._look()
            least = LOOK if self._resets and not self._family else AT_CHILDREN
            pause = min(SLOWEST, max(least, SHARE * (time.thread_time() - began)))


class Kin(NamedTuple):
    """What is remembered of a child."""

    forked: bool  # it runs this very program, on pages of its parent
    peak: int = 0  # when its pages were last counted one by one
    shared: int = 0
    fresh: int = 0  # looks for which that may be taken as it is


class Family:
    """The processes that this one started, as they were at the last look."""

    def __init__(self) -> None:
        self._known: dict[int, Kin] = {}
        self._largest = (0, 0, 0)  # a child's peak; what this process had then, and all children together

    def __len__(self) -> int:
        return len(self._known)

    def anew(self, me: processes.Status | None) -> None:
        """Let the children's marks start from now. Not at each look: they may be measuring themselves."""
        self.look(me)
        for pid in self._known:
            processes.reset(pid)
        self._largest = (0, 0, 0)

    def look(self, me: processes.Status | None = None, own: int = 0) -> int:
        """Bytes that the children had at the highest since their marks began, without what they share."""
        known: dict[int, Kin] = {}
        total = largest = 0
        for pid in processes.descendants():
            status = processes.status(pid)
            # A child that has our very size has just been made: it still shares all, with vfork the mark too.
            if status is None or (
                me is not None and (me.size, me.resident) == (status.size, status.resident)
            ):
                continue
            known[pid] = kin = self._kin(pid, status)
            total += max(0, status.peak - kin.shared)
            largest = max(largest, status.peak)
        self._known = known
        if largest >= self._largest[0]:
            self._largest = (largest, own, total)
        return total

    def _kin(self, pid: int, status: processes.Status) -> Kin:
        kin = self._known.get(pid) or Kin(processes.is_fork(pid))
        if not kin.forked:
            return kin._replace(shared=status.mapped)  # libraries, for the most part: others have them too
        if kin.fresh > 0 and status.peak <= kin.peak * GROWN:
            return kin._replace(fresh=kin.fresh - 1)
        pages = processes.rollup(pid)
        return Kin(True, status.peak, pages.resident - pages.uss if pages is not None else 0, LOOKS)

    def to_the_end(self, ended: int, own: int) -> tuple[int, int]:
        """What was had when the largest child was seen, with what it grew by from then to its end.

        ``ended`` is the peak of the largest child that has ended, as the kernel keeps it. That of a small
        one is its parent's, so the caller leaves out what is not above its own. Of a child that came and
        went between two looks nobody knows what it shared with ``own``: it counts as if that were all.
        """
        peak, beside, total = self._largest
        return (beside, total + max(0, ended - peak)) if total else (own, max(0, ended - own))


_meter = Meter()


def meter() -> Meter:
    """The meter of this process."""
    return _meter


os.register_at_fork(after_in_child=_meter.forget)


def peak() -> int:
    """Bytes of resident memory at the highest since the last reset."""
    status = processes.status()
    return status.peak if status is not None else processes.ever()
