"""Workers that hold more memory from task to task: an analysis that leaves something behind in each chunk.

What a worker holds before the first chunk of a task is what earlier tasks left. It settles after a few, when
all is imported and every cache is warm; where it keeps growing after that, the worker is to be replaced.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WARM = 3  # tasks until a worker holds all that it needs
FLOOR = 4  # tasks of which the least counts: freed memory stays with the process for a while
SEEN = 4  # growing steps after that, before anybody calls it a leak
LEAST = 64 << 20  # bytes: less is not worth a new worker
SHARE = 0.15  # of the budget, where there is one
MOST_WORKERS = 100_000


@dataclass(slots=True)
class _Worker:
    base: int = 0
    last: int = 0
    tasks: int = 0
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=FLOOR))
    steps: deque[bool] = field(default_factory=lambda: deque(maxlen=16))  # whether its floor rose, lately


@dataclass(frozen=True, slots=True)
class Leak:
    """How a worker grew."""

    host: str
    pid: int
    base: int  # bytes when it was warm
    now: int
    tasks: int  # since then

    def __str__(self) -> str:
        grew = f"a worker grew from {self.base >> 20} to {self.now >> 20} MiB over {self.tasks} tasks"
        return f"the analysis leaves memory behind: {grew}"


class Leaks:
    """What the workers of a run held, task after task."""

    def __init__(self, budget: int | None = None) -> None:
        self._most = max(LEAST, int(SHARE * budget)) if budget else LEAST
        self._workers: dict[tuple[str, int], _Worker] = {}
        self.found = 0
        self.per_task = 0  # bytes, of the last one found

    def saw(self, host: str, pid: int, before: int) -> Leak | None:
        """A worker began a task holding so much; the leak, when it has grown too much for any other name."""
        if before <= 0 or (len(self._workers) >= MOST_WORKERS and (host, pid) not in self._workers):
            return None
        worker = self._workers.setdefault((host, pid), _Worker())
        worker.tasks += 1
        worker.recent.append(before)
        floor = min(worker.recent)
        if worker.tasks <= WARM + FLOOR:
            worker.base = worker.last = floor
            return None
        worker.steps.append(floor > worker.last)
        worker.last = floor
        grown = floor - worker.base
        if grown < self._most or len(worker.steps) < SEEN or sum(worker.steps) < 0.75 * len(worker.steps):
            return None
        del self._workers[host, pid]
        self.found += 1
        self.per_task = grown // (worker.tasks - WARM - FLOOR)
        return Leak(host, pid, worker.base, floor, worker.tasks - WARM - FLOOR)
