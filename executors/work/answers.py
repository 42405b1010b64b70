"""Whether what an engine handed back has the form of an answer at all. Nothing here says that it is true."""

from __future__ import annotations

import math
from collections.abc import Mapping

from executors.work.model import ChunkRecord, Failure, Kind, Node, Part, Receipt


def receipt_of(answer: object, task: str) -> Receipt | None:
    """The answer, if it is a well-formed receipt of that task; None for anything else."""
    if not isinstance(answer, Receipt) or answer.task != task:
        return None
    whole = (
        _all(answer.parts, _is_part)
        and _all(answer.failures, _is_failure)
        and _all(answer.chunks, _is_record)
        and _is_time(answer.seconds)
        and _is_time(answer.cpu)
        and _is_extra(answer.extra)
    )
    return answer if whole else None


def words(error: BaseException | None) -> str:
    """What an exception says of itself; also of one that cannot even be shown."""
    if error is None:
        return ""
    try:
        return str(error)[:2000]
    except Exception:  # noqa: BLE001 - `__str__` is the user's code, or an engine's
        return "(an error without words)"


def _all(items: object, good: object) -> bool:
    return isinstance(items, tuple) and callable(good) and all(good(item) for item in items)


def _is_node(node: object) -> bool:
    return isinstance(node, Node) and all(type(n) is int for n in node)


def _is_part(part: object) -> bool:
    return (
        isinstance(part, Part)
        and _is_node(part.node)
        and isinstance(part.id, str)
        and isinstance(part.digest, str)
        and type(part.entries) is int
        and isinstance(part.payload, bytes | None)
    )


def _is_failure(failure: object) -> bool:
    return (
        isinstance(failure, Failure)
        and type(failure.file) is int
        and type(failure.chunk) is int
        and isinstance(failure.range, tuple)
        and len(failure.range) == 2
        and all(type(n) is int for n in failure.range)
        and isinstance(failure.kind, Kind)
        and isinstance(failure.path, str)
        and isinstance(failure.error, str)
        and isinstance(failure.message, str)
        and type(failure.peak) is int
    )


def _is_record(record: object) -> bool:
    return isinstance(record, ChunkRecord) and all(
        type(n) is int
        for n in (record.peak, record.bytes_read, record.before, record.children, record.mapped)
    )


def _is_time(seconds: object) -> bool:
    return isinstance(seconds, float | int) and math.isfinite(seconds) and seconds >= 0


def _is_extra(extra: object) -> bool:
    if not isinstance(extra, Mapping):
        return False
    put_error = extra.get("put_error")
    return (put_error is None or (isinstance(put_error, tuple) and len(put_error) == 2)) and _all(
        extra.get("damaged", ()), _is_damaged
    )


def _is_damaged(row: object) -> bool:
    return (
        isinstance(row, tuple)
        and len(row) == 3
        and _is_node(row[0])
        and isinstance(row[1], str)
        and isinstance(row[2], str)
    )
