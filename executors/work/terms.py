"""How a run is driven: the terms that may change from run to run without changing the answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from executors.work import policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from executors.work.merge import MergeTask
    from executors.work.model import Receipt, Task

Call: TypeAlias = "Callable[[Task | MergeTask], Receipt]"

MOST_CHUNKS = 512


@dataclass(frozen=True, slots=True)
class Terms:
    """How a run is driven. Everything here may change from run to run without changing the answer."""

    slots: int = 1  # tasks that the pool can run at once
    inline: bool = False  # the pool runs a task inside submit()
    task_seconds: float = 5.0
    canaries: int = 4  # single chunks handed out before the first success
    limits: policy.Limits = field(default_factory=policy.Limits)
    patience: float = 600.0  # seconds without an answer before an idle pool is given a task again
    reissues: int = 3
    grace: float = 4.0  # seconds that running tasks get to finish after a stop
    merging: bool = True
    keep_splits: bool = False  # split sums stay in the store: they are outputs of their own
    merge_all: bool = True  # merge beyond the splits


@dataclass(slots=True)
class Assignment:
    """A task that was handed out, and what it was for."""

    task: Task | MergeTask
    chunks: int
    since: float
    reissued: int = 0
