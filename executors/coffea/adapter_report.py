"""What happened to the items of one executor's calls: the record that makes skipping and retrying visible.

Plain data for people and tests. Nothing is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from executors.coffea.adapter_item import Trouble
    from executors.work.model import Kind

LONGEST_NAME = 300


@dataclass(frozen=True, slots=True)
class Mishap:
    """One item and what went wrong with it."""

    step: str  # "preprocessing" or "processing"
    item: Any
    kind: Kind
    error: str
    message: str
    frames: tuple[str, ...] = ()
    attempts: int = 1
    host: str = ""

    def __str__(self) -> str:
        where = f" at {self.frames[-1]}" if self.frames else ""
        times = f" (tried {self.attempts} times)" if self.attempts > 1 else ""
        text = self.message.strip().split("\n", 1)[0][:200]
        return f"{item_name(self.item)}: {self.kind}: {self.error}: {text}{where}{times}"


@dataclass
class Report:
    """All that an executor did since it was made or cleared; the copies that ``Runner`` makes share it."""

    planned: int = 0  # items handed to the executor, files and chunks alike
    done: int = 0
    skipped: list[Mishap] = field(default_factory=list)  # left out because skipbadfiles allows it
    failed: list[Mishap] = field(default_factory=list)  # missing from the result, which is an error
    retried: list[Mishap] = field(default_factory=list)  # failed once and tried again, each time it happened
    not_run: int = 0  # items never tried because the call stopped early

    @property
    def complete(self) -> bool:
        """Whether every item handed over is in the results."""
        return self.done == self.planned

    def clear(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]

    def __str__(self) -> str:
        head = (
            f"{self.done} of {self.planned} items done, {len(self.skipped)} skipped, "
            f"{len(self.failed)} failed, {self.not_run} not run, {len(self.retried)} retries"
        )
        lines = [f"  skipped {m}" for m in self.skipped] + [f"  failed {m}" for m in self.failed]
        return "\n".join([head, *lines])


def mishap(step: str, item: Any, trouble: Trouble, attempts: int) -> Mishap:
    """The record of one trouble."""
    return Mishap(
        step, item, trouble.kind, trouble.error, trouble.message, trouble.frames, attempts, trouble.host
    )


def item_name(item: Any) -> str:
    """An item as a person would name it: dataset, file and entries for coffea's own."""
    if hasattr(item, "entrystart"):
        return f"{item.dataset} {item.filename} [{item.entrystart}, {item.entrystop})"
    if hasattr(item, "filename"):
        return f"{item.dataset} {item.filename}"
    return repr(item)[:LONGEST_NAME]


def listing(mishaps: Iterable[Mishap], most: int = 10) -> str:
    """Some mishaps, one a line, and how many more there are."""
    lines = [f"  {m}" for m in mishaps]
    rest = [f"  … and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join(lines[:most] + rest)
