"""What a Parsl worker runs: the same call as on every engine, after a note of who has taken it.

It is imported on each worker, so neither Parsl nor anything heavy may enter.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from pathlib import Path
from typing import Any

from executors.engines.call import pack_error, put_on, run

_ready: list[bool] = []


def run_noted(common: dict[str, Any], note: str, ticket: int, blob: bytes) -> bytes:
    """Make a call and leave its outcome beside the note; returns the outcome of an initializer that raised.

    Parsl hands results to a thread of the worker: a next task that kills the worker would take the result of
    this one along. What is in a file by then is safe.
    """
    Path(note).write_text(f"{ticket} {os.getpid()}", encoding="ascii")
    if not _ready:
        try:
            _dress(common)
        except BaseException as error:  # noqa: BLE001 - the worker's edge: the runner must learn why
            return pack_error(error)
        _ready.append(True)
    if blob:
        outcome = outcome_file(note, ticket)
        half = outcome.with_suffix(".part")
        half.write_bytes(run(blob))
        half.replace(outcome)
    return b""


def outcome_file(note: str, ticket: int) -> Path:
    """Where the outcome of one call is."""
    return Path(f"{note}-{ticket}.out")


def _dress(common: dict[str, Any]) -> None:
    log = Path(common["logs"]) / f"worker-{os.environ.get('PARSL_WORKER_RANK', os.getpid())}.log"
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(out)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    faulthandler.enable(file=2)
    sys.path[:] = common["path"]
    os.environ.pop("PYTHONPATH", None)
    if common["pythonpath"] is not None:
        os.environ["PYTHONPATH"] = common["pythonpath"]
    put_on(Path(common["outfit"]).read_bytes())
