"""What an engine leaves behind at a batch site if the whole machine dies: noted while the engine is open.

Whatever of ours dies, the keeper cleans up after it. When all of it dies at once, as when a login node goes
down, jobs still wait in the queue: who next has the same folder of logs to themselves removes them.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.batch.allowed import OPTION
from executors.batch.schedulers import scheduler_of
from executors.errors import ExecutorsError, SiteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sites.profile import SiteProfile

NOTE = "open-{}.json"
NAME = re.compile(r"open-(cs-[a-z0-9]+-[0-9a-f]{8})\.json", re.ASCII)
PRIVATE = re.compile(r"(dask|parsl)-[a-z0-9_]+", re.ASCII)


@contextlib.contextmanager
def noted(logs: Path | None, site: SiteProfile, job: str, private: Path) -> Iterator[None]:
    """While this lasts, a note says what an engine has at a batch system, and where its keys are."""
    if logs is None:
        yield
        return
    note = logs / NOTE.format(job)
    words = {
        "scheduler": site.scheduler,
        "options": list(site.job.submit_options),
        "private": str(private),
        "machine": _machine(),
    }
    try:
        note.write_text(json.dumps(words), encoding="utf-8")
    except OSError as error:
        raise SiteError(f"{note}: {error.strerror}: jobs that nobody knows of are not submitted") from error
    yield  # not in a finally: what broke out of the engine may have left something
    note.unlink(missing_ok=True)


def remove(logs: Path, scratch: Path | None, tell: Callable[[str, str], None]) -> None:
    """Remove what earlier engines with these logs have left; all of them must be dead."""
    for note in sorted(logs.glob(NOTE.format("*"))):
        found = NAME.fullmatch(note.name)
        words = _read(note)
        if found is None or words is None:
            tell("warning", f"{note}: not understood, and left alone")
        elif _remove(found[1], words, scratch, tell):
            note.unlink(missing_ok=True)


def _remove(job: str, words: dict[str, Any], scratch: Path | None, tell: Callable[[str, str], None]) -> bool:
    private = Path(words["private"])
    if words["machine"] == _machine() and not private.exists():
        return True  # its keeper has done it all
    try:
        scheduler_of(words["scheduler"], words["options"]).cancel_named(job)
    except ExecutorsError as error:
        tell("warning", f"jobs named {job} of a run that died may still be in the queue: {error.message}")
        return False
    tell("info", f"whatever was left of {job}, of a run that died with all its processes, is removed")
    base = tempfile.gettempdir() if scratch is None else scratch
    if private.parent == Path(base).resolve() and PRIVATE.fullmatch(private.name):
        shutil.rmtree(private, ignore_errors=True)
    return True


def _read(note: Path) -> dict[str, Any] | None:
    """What a note says; None if it cannot be one of ours: nothing of it goes into a command then."""
    try:
        words = json.loads(note.read_text(encoding="utf-8"))
        options = words["options"]
        good = all(isinstance(words[key], str) for key in ("scheduler", "private", "machine"))
        good = good and isinstance(options, list)
        good = good and all(isinstance(one, str) and OPTION.fullmatch(one) for one in options)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return words if good else None


def _machine() -> str:
    """The machine and its start: after the next start, nothing of ours is alive there."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot}"
    return socket.gethostname()
