"""What processors may ask about memory: how much there is now, and how much a block of code needed.

Both work anywhere, on a worker as well as in a notebook, and disturb neither each other nor what the run
itself measures of each chunk.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from executors.work import memory, processes

if TYPE_CHECKING:
    from collections.abc import Iterator

MB = 1 << 20


@dataclass(slots=True)
class MemoryUsed:
    """Bytes of resident memory of one block; complete when the block is over."""

    before: int = 0
    peak: int = 0  # at the highest, processes that the block started included
    after: int = 0
    children: int = 0  # the part of the peak that was theirs
    seconds: float = 0.0

    @property
    def grown(self) -> int:
        """How far it rose above what there was before."""
        return max(0, self.peak - self.before)

    def __str__(self) -> str:
        above, kept = self.grown / MB, (self.after - self.before) / MB
        size = f"{self.peak / MB:.1f} MB at most, {above:.1f} more than before"
        return f"{size}, {kept:+.1f} kept, {self.seconds:.2f} s"


@contextlib.contextmanager
def memory_used() -> Iterator[MemoryUsed]:
    """Measure a block: ``with executors.memory_used() as used: …``, then ``used.peak`` and the rest.

    Blocks may lie within each other. What is filled in is complete also where the block raises.
    """
    used = MemoryUsed()
    span = memory.meter().span()
    began = time.perf_counter()
    try:
        with span:
            used.before = span.use.before
            yield used
    finally:
        used.seconds = time.perf_counter() - began
        used.peak, used.children = span.use.peak, span.use.children
        used.after = processes.resident()[0]


def memory_usage_psutil() -> float:
    """Resident memory of this process now, in MB of 2**20 bytes, as by the original of this name."""
    return processes.resident()[0] / MB
