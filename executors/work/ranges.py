"""The ranges that are fixed while a run goes on: a line for each decision, before work is handed out for it.

A later run of the same plan reads them back and keeps to them. A line that a crash of the machine took costs
work and nothing else: a sum stored for ranges that are not fixed any more counts for nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from executors.work.store import ours

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from executors.work.plan import Cut, Plan, PlannedFile


def beside(plan: Path) -> Path:
    """Where the ranges of a plan are kept."""
    return plan.with_name("ranges.jsonl")


class Ranges:
    """The file that decisions are appended to."""

    def __init__(self, path: Path) -> None:
        # Unbuffered: what is handed out is on record when this process is killed.
        self._file = open(path, "ab", buffering=0, opener=ours)  # noqa: SIM115 - closed below; Path.open takes no opener
        if self._file.tell():
            self._write(b"\n")  # after what may be a torn line

    def fix(self, dataset: int, file: int, cuts: tuple[Cut, ...]) -> None:
        """Put on record how a file is cut."""
        self._write((json.dumps([dataset, file, cuts], separators=(",", ":")) + "\n").encode())

    def _write(self, line: bytes) -> None:
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)

    def close(self) -> None:
        """No more decisions."""
        self._file.close()


def with_ranges(plan: Plan, path: Path) -> Plan:
    """The plan with the ranges that were fixed since it was written."""
    cut: dict[tuple[int, int], PlannedFile] = {}
    with contextlib.suppress(FileNotFoundError):
        for dataset, file, cuts in _lines(beside(path)):
            planned = cut.get((dataset, file)) or _file(plan, dataset, file)
            if planned is not None and _goes_on(planned, cuts):
                cut[dataset, file] = replace(planned, cuts=cuts)
    return plan.with_counts(cut) if cut else plan


def _file(plan: Plan, dataset: int, file: int) -> PlannedFile | None:
    inside = 0 <= dataset < len(plan.datasets) and 0 <= file < len(plan.datasets[dataset].files)
    return plan.datasets[dataset].files[file] if inside else None


def _lines(path: Path) -> Iterator[tuple[int, int, tuple[Cut, ...]]]:
    for line in path.read_bytes().splitlines():
        # A torn line is one that nothing was handed out for.
        with contextlib.suppress(ValueError, TypeError):
            dataset, file, cuts = json.loads(line)
            yield int(dataset), int(file), tuple((_whole(upto), _whole(size)) for upto, size in cuts)


def _whole(number: Any) -> int:
    if type(number) is not int or number < 1:
        raise ValueError(number)
    return number


def _goes_on(file: PlannedFile, cuts: tuple[Cut, ...]) -> bool:
    """Whether a decision leaves standing what was fixed before, and stays within the file."""
    if file.cuts is None or file.entries is None or cuts[: len(file.cuts)] != file.cuts:
        return False
    ends = [upto for upto, _ in cuts]
    return ends == sorted(set(ends)) and (not ends or ends[-1] <= file.whole)
