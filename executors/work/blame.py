"""Whose fault it is: the chunk that a dead worker was in, and what belongs to a task at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from executors.work import answers, policy
from executors.work.model import Failure, Kind, Node

if TYPE_CHECKING:
    from executors.work.model import Task
    from executors.work.notes import LastWords


def of_task(task: Task, failure: Failure) -> bool:
    """Whether a failure is of a chunk of this task."""
    return any(
        piece.index == failure.file and piece.lo <= failure.chunk < piece.lo + len(piece.ranges)
        for piece in task.slices
    )


def chunk_node(task: Task, file: int, chunk: int) -> Node:
    """The node of one chunk of a task."""
    return Node(task.node.split, file, file + 1, chunk, chunk + 1)


def blamed(task: Task, words: LastWords, error: BaseException | None) -> Failure:
    """The failure of the chunk that a dead worker was in."""
    piece = next((p for p in task.slices if p.index == words.file), task.slices[0])
    inside = 0 <= words.chunk - piece.lo < len(piece.ranges)
    kind = words.kind
    if kind is Kind.LOST and error is not None:
        kind = policy.classify_engine(error)
    what = (
        "the chunk's time limit ran out"
        if kind is Kind.TIMEOUT
        else answers.words(error)[:500] or "the worker died"
    )
    return Failure(
        file=words.file,
        chunk=words.chunk,
        path=piece.path,
        range=piece.ranges[words.chunk - piece.lo] if inside else (0, 0),
        kind=kind,
        error="TimeoutError" if kind is Kind.TIMEOUT else type(error).__name__ if error else "WorkerLost",
        message=what,
        frames=words.frames,
        host=words.host,
        pid=words.pid,
    )


def said(error: BaseException | None) -> str:
    """What came back instead of a receipt, in a line."""
    return "no valid receipt" if error is None else f"{type(error).__name__}: {answers.words(error)[:500]}"
