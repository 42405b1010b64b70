"""``selftest``: a hundred chunks of made data through the whole path at a site, and a table to paste.

It is how people find out that a site works for them, and how we learn of sites where we cannot go.
"""

from __future__ import annotations

import dataclasses
import platform
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from executors import words
from executors.errors import ExecutorsError, SiteError
from executors.options import Settings
from executors.running import execute
from executors.where import where
from executors.work import journal
from executors.work.report import Outcome
from sites.commands import ask
from sites.overrides import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from executors.where import Where
    from executors.work.report import DatasetCount, Observer, Snapshot, Summary

PACKAGES = ("coffea", "uproot", "awkward", "dask", "distributed", "parsl")
# What a batch system says of its own version.
VERSIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "condor": ("condor_version",),
    "lsf": ("lsid", "-V"),
    "pbs": ("qstat", "--version"),
    "sge": ("qstat", "-help"),
    "slurm": ("sinfo", "--version"),
}


class _Clocked:
    """An observer that hands everything on and remembers when the first result came."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.first: float | None = None
        self.said: list[str] = []

    def started(self, datasets: Sequence[DatasetCount], *, workers: int = 0, resumed_events: int = 0) -> None:
        """Hand on."""
        self._observer.started(datasets, workers=workers, resumed_events=resumed_events)

    def progressed(self, snapshot: Snapshot) -> None:
        """Hand on."""
        if self.first is None and snapshot.chunks_done:
            self.first = time.monotonic()
        self._observer.progressed(snapshot)

    def message(self, level: str, text: str) -> None:
        """Hand on, and keep what went wrong."""
        if level in ("warning", "error"):
            self.said.append(text)
        self._observer.message(level, text)

    def status(self, text: str) -> None:
        """Hand on."""
        if (show := getattr(self._observer, "status", None)) is not None:
            show(text)

    def finished(self, summary: Summary) -> None:
        """Hand on."""
        self._observer.finished(summary)


def selftest(settings: Settings, *, observer: Observer) -> Outcome:
    """Run the made analysis at the site and here, and compare; exit code 0 only if all bits are equal."""
    spot = where(settings)
    base = settings.outputdir.resolve() if spot.shared else None
    try:
        with tempfile.TemporaryDirectory(prefix="selftest-", dir=base) as folder:
            return _tried(settings, spot, Path(folder), observer)
    except OSError as error:
        raise SiteError(f"the selftest cannot write in {base or tempfile.gettempdir()}: {error}") from error


def _tried(settings: Settings, spot: Where, folder: Path, observer: Observer) -> Outcome:
    from executors.coffea.made import MadeProcessor, make_files
    from executors.workflow import from_object

    fileset = make_files(folder)
    files = {} if spot.shared else {name: Path(name).read_bytes() for name in fileset["made"]["files"]}
    workflow = from_object(MadeProcessor(files), "selftest")
    asked = dataclasses.replace(settings, chunk=_chunk(), schema="BaseSchema", retries=3)
    here = dataclasses.replace(Settings(), executor="iterative", chunk=_chunk(), schema="BaseSchema")
    expected = execute(here, workflow=workflow, fileset=fileset, folder=folder / "here")
    clocked, began, there = _Clocked(observer), time.monotonic(), folder / "there"
    try:
        outcome = execute(asked, observer=clocked, workflow=workflow, fileset=fileset, folder=there)
    except ExecutorsError as error:
        rows = _rows(spot, {"result": f"FAILED: {error.message}"})
        return Outcome(error.exit_code, _table(rows), None, dict(rows))
    took = time.monotonic() - began
    equal = (
        outcome.summary is not None
        and expected.summary is not None
        and outcome.summary.digest == expected.summary.digest != ""
    )
    code = outcome.exit_code or (0 if equal else 3)
    found: dict[str, Any] = {
        "result": "ok: every event once, every bit equal" if code == 0 else f"FAILED: {outcome.text}",
        "first result after": _seconds(clocked.first, began),
        "all after": f"{took:.1f} s",
        "chunks": _counted(outcome),
        **_journal(there / "journal.jsonl"),
    }
    if clocked.said:
        found["warnings"] = " | ".join(clocked.said[:5])
    rows = _rows(spot, found)
    return Outcome(code, _table(rows), None, dict(rows))


def _counted(outcome: Outcome) -> str:
    """How much of what was planned was done."""
    if outcome.summary is None:
        return "none"
    names = ("chunks_done", "chunks_planned", "events_counted", "events_planned")
    done, chunks, counted, events = (sum(getattr(row, one) for row in outcome.summary.rows) for one in names)
    return f"{done} of {chunks}, {counted:,} of {events:,} events"


def _chunk() -> int:
    from executors.coffea.made import EVENTS

    return EVENTS


def _seconds(moment: float | None, began: float) -> str:
    return f"{moment - began:.1f} s" if moment is not None else "never"


def _journal(path: Path) -> dict[str, str]:
    """What the journal says of the workers."""
    workers, hosts, tasks, lost = set(), set(), 0, 0
    for line in journal.read(path):
        if line["event"] == "task":
            workers.add((line.get("host"), line.get("pid")))
            hosts.add(line.get("host"))
            tasks += 1
        lost += line["event"] == "lost"
    there = f"{words.number(len(workers), 'worker')} on {words.number(len(hosts), 'host')}"
    return {"workers": there, "tasks": f"{tasks}, {lost} lost on the way"}


def _rows(spot: Where, found: dict[str, Any]) -> list[tuple[str, str]]:
    site, about = spot.site, spot.site.resources
    packages = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    workers = words.number(spot.workers, "worker")
    asked = [workers if spot.local else f"{words.number(spot.jobs, 'job')} of {workers}"]
    given = {key: getattr(about, key) for key in ("memory", "disk", "walltime")}
    asked += [f"{key} {shown(f'resources.{key}', value)}" for key, value in given.items() if value]
    rows = [
        ("executor", f"{spot.engine.name}/{site.name} ({_scheduler(site.scheduler)})"),
        ("asked", ", ".join(asked)),
        ("store", "seen by the workers" if spot.shared else "not seen by the workers"),
        ("versions", f"Python {platform.python_version()}, {packages}"),
        ("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
    ]
    return [*rows, *((key, str(value)) for key, value in found.items())]


def _scheduler(name: str | None) -> str:
    """The batch system with what it says of its version."""
    if name is None:
        return "this machine"
    said = ask(VERSIONS[name], 5.0).text.split("\n", 1)[0].strip(" $") if name in VERSIONS else ""
    shown = "".join(char for char in said if char.isprintable())[:80]
    return f"{name}: {shown}" if shown else name


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"{key:{width}}  {value}" for key, value in rows)
