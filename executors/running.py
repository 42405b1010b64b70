"""One whole run: settings in, outputs and an account out. The only place where all rooms meet.

``execute`` is what the command and the Python interface call.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from executors import outputs, planning, words
from executors.asked import Asked
from executors.combining import merge_dirs
from executors.errors import (
    EngineError,
    ExecutorsError,
    IncompleteError,
    InterruptedRunError,
    PlanChangedError,
    SiteError,
    UsageError,
)
from executors.finish import Finish
from executors.inspection import inspect, read_stored, status
from executors.memory import budget as budgets
from executors.memory import footprints
from executors.redact import redact
from executors.signals import stopping
from executors.work import limits, lock, notes
from executors.work.drive import Drive, merge_here
from executors.work.journal import Journal
from executors.work.layout import Tree
from executors.work.plan import Plan
from executors.work.policy import Limits
from executors.work.ranges import Ranges, beside
from executors.work.report import Outcome, Silent
from executors.work.sizing import Sizing
from executors.work.store import Store, make_folder, sweep
from executors.work.terms import Terms
from executors.work.worker import Place

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager
    from pathlib import Path

    from executors import jobs
    from executors.ahead import Ahead
    from executors.engines.base import Resources
    from executors.engines.nursery import Spare
    from executors.fingerprint import Fingerprint
    from executors.options import Settings
    from executors.where import Where
    from executors.work.report import Observer
    from executors.workflow import Workflow
    from sites.scene import Check

__all__ = ["execute", "inspect", "merge_dirs", "plan_only", "profile_memory", "status"]

CHUNK_TIMEOUT = 3600.0
OURS = ("plan.json", "ranges.jsonl", "manifest.json", "failed.json", "journal.jsonl")
FOLDERS = ("store", "notes", "logs", "job", "damaged")


def execute(
    settings: Settings,
    *,
    observer: Observer | None = None,
    workflow: Workflow | None = None,
    fileset: Any = None,
    folder: Path | None = None,
) -> Outcome:
    """Do what the settings say; errors of use are raised before any work starts."""
    observer = observer or Silent()
    place = _place(settings, observer)
    with _begun(place) as spare:
        ahead = _look_ahead(settings, place, folder or settings.outputdir)
        asked = _asked(settings, observer, workflow, fileset, folder, place=place)
        _heed(asked, ahead)
        return _execute(replace(asked, spare=spare))


def _execute(asked: Asked) -> Outcome:
    settings = asked.settings
    # Whoever overtakes this lock took this runner for dead: it must then write no more.
    with lock.hold(asked.folder, lost=asked.stop):
        if settings.overwrite:
            _wipe(asked.folder)
        try:
            plan = _kept_or_new(asked)
            done = _already_done(asked, plan)
            if done is not None:
                return done
            if settings.check:
                budgets.refuse(plan, asked.known, asked.budget)
            return _work(asked, plan)
        except OSError as error:
            raise SiteError(f"{asked.folder}: {error.strerror or error}") from error


def _begun(place: Where) -> AbstractContextManager[Spare | None]:
    """What the engine imports to start is imported beside what the analysis imports."""
    if place.inline:
        return contextlib.nullcontext()
    from executors.engines.hosted import spare_for

    return spare_for(place.engine.name, place.site)


def _look_ahead(settings: Settings, place: Where, folder: Path) -> Ahead | None:
    """Begin to ask whether the site would refuse later."""
    if place.local or not settings.check:
        return None
    from executors.ahead import Ahead

    return Ahead(place, folder, insecure=settings.insecure)


def _heed(asked: Asked, ahead: Ahead | None) -> None:
    """Refuse what the site would refuse later, with the command that mends it."""
    if ahead is None:
        return
    from executors.checking import one_line

    for warning in ahead.warnings(asked.folder):
        asked.observer.message("warning", one_line(warning))


def _place(settings: Settings, observer: Observer) -> Where:
    from executors.where import where

    place = where(settings)
    if place.why:
        observer.message("info", place.why)
    for warning in place.warnings:
        observer.message("warning", warning)
    if settings.scaleout is not None and place.local:
        observer.message("warning", "--scaleout is for batch sites; on this machine -j says how many workers")
    return place


def _asked(
    settings: Settings,
    observer: Observer,
    workflow: Workflow | None = None,
    fileset: Any = None,
    folder: Path | None = None,
    *,
    place: Where | None = None,
) -> Asked:
    from executors import selection
    from executors.fileset import read_fileset
    from executors.fingerprint import fingerprint
    from executors.workflow import load_workflow

    place = place or _place(settings, observer)
    workflow = workflow or load_workflow(settings.wf, settings.wf_arg)
    read = read_fileset(settings.json if fileset is None else fileset)
    for warning in read.warnings:
        observer.message("warning", warning)
    chosen = selection.limit(selection.only(read, settings.only), settings.limit)
    mark = fingerprint(
        workflow.processor,
        schema=settings.schema,
        columns=sorted(_columns(settings, workflow)),
    )
    for note in mark.notes:
        observer.message("warning", note)
    folder = folder or settings.outputdir / outputs.run_name(workflow.name, read.name)
    place = _fitted(settings, place, mark, observer)
    how = planning.access(chosen, place.site, settings, os.environ)
    memory = budgets.budget(place)
    chunk = budgets.chosen(settings, memory)
    if chunk == budgets.AUTO and memory is None:
        memory = budgets.of_machine(place.slots)
    return Asked(settings, workflow, chosen, mark, folder, observer, place, how, chunk, memory)


def _fitted(settings: Settings, place: Where, mark: Fingerprint, observer: Observer) -> Where:
    """With ``-j auto`` here: as many workers as fit by what the analysis needed when it was measured last."""
    if settings.workers != "auto" or not place.local:
        return place
    known = footprints.recall(mark.digest, settings.cache)
    if not known:
        return place
    from executors.where import where

    fitting = where(settings, need=budgets.reasonable(known))
    if fitting.workers != place.workers:
        observer.message("info", fitting.why)
    return fitting


def _columns(settings: Settings, workflow: Workflow) -> tuple[str, ...]:
    return settings.columns or tuple(getattr(workflow.processor, "columns", None) or ())


def _wipe(folder: Path) -> None:
    """Remove a run of ours; files of others in the folder stay."""
    for name in OURS:
        (folder / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in folder.glob("hist_*.coffea"):
        path.unlink(missing_ok=True)


# -- the plan ---------------------------------------------------------------------------------------


def _kept_or_new(asked: Asked) -> Plan:
    """The plan of this directory, made now or by the first run, with all counted that can be."""
    path = asked.folder / "plan.json"
    kept = Plan.load(path) if path.exists() else None
    begun = any(Store(asked.folder / "store").scan()) or outputs.read_json(
        asked.folder / "manifest.json"
    ).get("outputs")
    if not begun:
        kept = None  # nothing is counted or written yet: what is asked now is what counts
    asked = asked.like(kept)
    if kept is not None:
        planning.compare(kept, asked.plan, asked.folder)
        _same_analysis(asked, kept)
    start = asked.plan if kept is None else _mended_files(asked, kept)
    with stopping(asked.stop):
        plan = planning.fill_counts(start, asked.settings, asked.how, asked.observer.message, asked.stop)
    if kept is None:
        plan = _cut_like(asked, plan)
    if asked.stop.is_set():
        raise InterruptedRunError("interrupted while counting; the same command goes on from here")
    if plan != kept:
        plan.save(path)
        beside(path).unlink(missing_ok=True)  # what it held is in the plan now, or of another one
    if asked.settings.validate:
        _validate(asked, plan)
    return plan


def _cut_like(asked: Asked, plan: Plan) -> Plan:
    """The plan with the ranges of another run, where the command says so."""
    folder = asked.settings.ranges
    if folder is None:
        return plan
    try:
        plan, left = planning.cut_like(plan, Plan.load(folder / "plan.json"))
    except OSError as error:
        raise UsageError(f"--ranges {folder}: no run lies there: {error.strerror}") from error
    if left:
        asked.observer.message(
            "warning", f"{words.number(left, 'file')} of which {folder} has no ranges: by memory"
        )
    return plan


def _validate(asked: Asked, plan: Plan) -> None:
    """Open every file and refuse to begin if one of them is bad; nothing is edited."""
    bad = planning.unreadable(plan, asked.how, asked.stop)
    if asked.stop.is_set():
        raise InterruptedRunError("interrupted while checking files; the same command begins again")
    if bad:
        listed = "".join(f"\n  {path}: {why}" for path, why in bad[:20])
        raise IncompleteError(
            f"{len(bad)} of {sum(len(d.files) for d in plan.datasets)} files cannot be used:{listed}\n"
            "Mend them, take them out of the fileset, or go without --validate and with --skipbadfiles"
        )


def _same_analysis(asked: Asked, kept: Plan) -> None:
    mark = asked.fingerprint
    if mark.digest == kept.fingerprint:
        return
    if asked.settings.reuse:
        asked.observer.message(
            "warning", "--reuse: what is done stays as an earlier version of the analysis made it"
        )
        return
    from executors.fingerprint import changes

    said = "".join(f"\n  - {line}" for line in changes(kept.fingerprint_parts, mark.parts)[:10])
    raise PlanChangedError(
        f"the analysis changed since {asked.folder} was begun:{said}\n"
        "--overwrite starts anew; --reuse keeps what is done, knowingly; or choose another --outputdir"
    )


def _mended_files(asked: Asked, kept: Plan) -> Plan:
    """The kept plan, to be counted anew where an input file of which nothing is counted was replaced."""
    replaced = set(planning.really_replaced(kept, asked.plan, asked.how))
    if not replaced:
        return kept
    counted = replaced & read_stored(asked.folder, kept).counted_paths()
    if counted:
        raise PlanChangedError(
            f"{len(counted)} input files were replaced after their events were counted, such as "
            f"{min(counted)}: the result would mix two versions. --overwrite starts anew"
        )
    asked.observer.message(
        "info", f"{len(replaced)} input files were replaced before any event of theirs was counted"
    )
    return planning.uncounted(kept, replaced, asked.plan)


def plan_only(settings: Settings, *, observer: Observer | None = None) -> Outcome:
    """What a run would do: the plan in words and data. Nothing is written but the cache of counts."""
    from executors.inspection import plan_text
    from executors.where import submitted

    asked = _asked(settings, observer or Silent(), None, None, None)
    path = asked.folder / "plan.json"
    kept = Plan.load(path) if path.exists() and not settings.overwrite else None
    asked = asked.like(kept)
    if kept is not None:
        planning.compare(kept, asked.plan, asked.folder)
    plan = planning.fill_counts(kept or asked.plan, settings, asked.how, asked.observer.message, asked.stop)
    try:
        job = submitted(asked.where, asked.folder.resolve())
    except SiteError as error:  # nothing is submitted now: what is missing then is said, no more
        job = {}
        asked.observer.message("warning", error.message)
    text, data = plan_text(
        plan,
        settings,
        asked.folder,
        kept=kept is not None,
        urls=asked.how.urls,
        memory=budgets.lines(plan, asked.known, asked.budget),
        where=asked.where.words,
        job=job,
    )
    unknown = sum(f.entries is None for d in plan.datasets for f in d.files)
    code = IncompleteError.exit_code if unknown else 0
    try:
        if settings.check:
            budgets.refuse(plan, asked.known, asked.budget)
    except SiteError as error:
        asked.observer.message("error", error.message)
        code = error.exit_code
    return Outcome(code, text, None, data)


def profile_memory(settings: Settings, *, observer: Observer | None = None) -> Outcome:
    """What a run would need of memory, by a few pieces of each dataset; no run is begun or changed."""
    from executors.memory.probe import profile

    asked = _asked(settings, observer or Silent(), None, None, None)
    return profile(asked, _analysis(asked, asked.plan))


def expected_memory(settings: Settings) -> Check:
    """Whether a run would fit into the memory of a worker, by what was measured of its analysis before."""
    from sites.scene import Check

    asked = _asked(settings, Silent(), None, None, None)
    plan = planning.fill_counts(asked.plan, settings, asked.how, asked.observer.message, asked.stop)
    said = "; ".join(budgets.lines(plan, asked.known, asked.budget)) or "nobody says what a worker has"
    try:
        budgets.refuse(plan, asked.known, asked.budget)
    except SiteError as error:
        return Check("memory", False, said, error.message.splitlines()[-1])
    return Check("memory", True if asked.known and asked.budget else None, said)


# -- the work ---------------------------------------------------------------------------------------


def _already_done(asked: Asked, plan: Plan) -> Outcome | None:
    """The outcome of a run that finished earlier, if all it wrote is still whole."""
    manifest = outputs.read_json(asked.folder / "manifest.json")
    wanted = not asked.settings.no_merge and asked.settings.index is None
    if not (manifest.get("complete") and manifest.get("plan") == plan.digest() and wanted):
        return None
    recorded = manifest.get("outputs", {})
    if outputs.merged_name(plan) not in recorded or outputs.outputs_intact(asked.folder, recorded):
        return None
    if asked.settings.output is not None:
        asked.settings.output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(asked.folder / outputs.merged_name(plan), asked.settings.output)
    events = sum(row["events_counted"] for row in manifest["datasets"].values())
    text = (
        f"already complete: {events} events in {asked.folder / outputs.merged_name(plan)}; "
        "nothing was done (--overwrite starts anew)"
    )
    return Outcome(0, text, None, manifest)


def _work(asked: Asked, plan: Plan) -> Outcome:
    from executors import jobs

    settings, spot = asked.settings, asked.where
    inline = spot.inline
    folder = asked.folder.resolve()
    for name in ("store", "notes", "logs"):
        make_folder(folder / name)
    notes.clear(folder / "notes")
    place = Place(
        run=folder,
        shared=spot.shared,
        chunk_timeout=settings.chunk_timeout or CHUNK_TIMEOUT,
        inline=inline,
    )
    place.store.sweep()
    for swept in (folder, folder / "job"):
        sweep(swept)
    analysis = _analysis(asked, plan)
    call = jobs.prepare(analysis, place)
    want = _wanted(asked, plan, place, call)
    slots = 1 if inline else want.lanes
    began = time.monotonic()
    with stopping(asked.stop, place.stop, 4.0 if inline else None), contextlib.ExitStack() as stack:
        stack.callback(analysis.close)
        try:
            pool = stack.enter_context(spot.engine.open(spot.site, want))
        except ExecutorsError:
            raise
        except Exception as error:
            # Engines are libraries of others: whatever they raise while opening is the site's to mend.
            raise EngineError(
                f"{settings.executor} could not be opened: {type(error).__name__}: {error}"
            ) from error
        if inline:
            call = jobs.local(analysis, call)
        return _drive(asked, plan, place, Opened(pool, analysis, call, slots, inline, stack.close, began))


def _wanted(asked: Asked, plan: Plan, place: Place, call: jobs.Call) -> Resources:
    """What the engine is asked for."""
    from executors import jobs, luggage
    from executors.engines.base import Resources

    spot, folder = asked.where, place.run
    want = Resources(
        workers=spot.workers,
        memory=spot.worker_memory(spot.workers),
        log_dir=folder / "logs",
        sole=True,
        spare=asked.spare,
        preload=() if spot.inline else ("executors.coffea.analysis",),
        tell=partial(_told, asked.observer),
        insecure=asked.settings.insecure,
        env=asked.how.env,
    )
    if not spot.local:
        done = read_stored(folder, plan).ledger
        most = spot.for_chunks(done.chunks_planned - done.chunks_done)
        want = replace(want, jobs=most, scratch=spot.private_base(folder))
    if not place.shared:
        names = [part[len("module ") :] for part in asked.fingerprint.parts if part.startswith("module ")]
        sent = (call.digest, call.path.read_bytes(), luggage.pack(names))
        if left := luggage.left_behind(names):
            asked.observer.message("warning", left)
        want = replace(want, initializer=jobs.receive, initargs=sent)
    return want


def _told(observer: Observer, level: str, text: str) -> None:
    """Pass on what an engine says of its jobs; their present state is no message."""
    if level != "status":
        observer.message(level, text)
    elif (show := getattr(observer, "status", None)) is not None:
        show(text)


@dataclass(frozen=True)
class Opened:
    """The engine as the run has it, and what it is given to do."""

    pool: Executor
    analysis: Any
    call: jobs.Call
    slots: int
    inline: bool
    close: Callable[[], None]
    began: float


def _drive(asked: Asked, plan: Plan, place: Place, opened: Opened) -> Outcome:
    analysis = opened.analysis
    _tell_odd_files(asked, plan)
    tree = Tree(plan)
    journal = Journal(place.run / "journal.jsonl", redact)
    ranges = Ranges(beside(place.run / "plan.json"))
    have = asked.budget or (budgets.of_machine(opened.slots) if plan.auto else None)
    sizing = Sizing([d.name for d in plan.datasets], budget=have.memory if have else None, known=asked.known)
    drive = Drive(
        tree, place, opened.call, opened.pool, _terms(asked.settings, opened), journal=journal,
        observer=asked.observer, stop=asked.stop, urls=dict(asked.how.urls),
        combine_here=None if place.shared else merge_here(place, analysis), sizing=sizing, ranges=ranges,
    )  # fmt: skip
    finish = Finish(drive, analysis, asked.workflow.processor, asked.settings, asked.folder)
    finish.mixed = asked.fingerprint.digest != plan.fingerprint
    drive.on_split = finish.split
    try:
        journal.write(
            "run", pid=os.getpid(), executor=asked.settings.executor, argv=sys.argv[:1], budget=sizing.budget
        )
        resumed = drive.resume()
        drive.ledger.resumed()
        asked.observer.started(drive.ledger.rows(), workers=opened.slots, resumed_events=resumed)
        finish.splits_done()
        selected = _selected(plan, asked.settings.index)
        drive.plan_work(selected)
        with contextlib.suppress(KeyboardInterrupt):
            drive.run()
            return finish.outcome(selected, opened.began, opened.close)
        asked.stop.set()
        return finish.outcome(selected, opened.began, opened.close)
    finally:
        journal.close()
        ranges.close()
        if not opened.inline:  # the runner's own memory is in what it measures of itself
            footprints.remember(asked.fingerprint.digest, sizing.fits(), asked.settings.cache)


def _tell_odd_files(asked: Asked, plan: Plan) -> None:
    """Say which files bring nothing: those without an event, and those that could not be opened."""
    if text := planning.twins(plan):
        asked.observer.message("warning", text)
    files = [f for d in plan.datasets for f in d.files]
    if empty := [f.path for f in files if f.entries == 0]:
        asked.observer.message(
            "info", f"{words.number(len(empty), 'file')} without an event, such as {empty[0]}"
        )
    if unknown := [f for f in files if f.entries is None]:
        asked.observer.message(
            "warning",
            f"{words.number(len(unknown), 'file')} could not be opened, such as {unknown[0].path}: "
            f"{unknown[0].error}",
        )


def _analysis(asked: Asked, plan: Plan) -> Any:
    from executors import jobs
    from executors.coffea.analysis import CoffeaAnalysis

    jobs.by_value(asked.workflow.processor)
    return CoffeaAnalysis(
        asked.workflow.processor,
        datasets={d.name: d.metadata for d in plan.datasets},
        schema=asked.settings.schema,
        columns=_columns(asked.settings, asked.workflow),
        timeout=asked.how.timeout,
        client=asked.how.env,
        ahead=asked.where.inline and limits.cores() > 1,
    )


def _terms(settings: Settings, opened: Opened) -> Terms:
    terms = Terms(
        slots=opened.slots,
        inline=opened.inline,
        limits=replace(Limits(), retries=settings.retries),
        keep_splits=settings.fsize is not None or settings.no_merge,
        merge_all=not settings.no_merge,
    )
    return terms if settings.task_seconds is None else replace(terms, task_seconds=settings.task_seconds)


def _selected(plan: Plan, index: tuple[int, ...] | None) -> list[int] | None:
    """The splits that ``--index`` names: from where to where, by dataset index and split."""
    if index is None:
        return None
    splits = plan.splits()
    first = (index[0], index[1] if len(index) > 1 else 0)
    last = (index[2], index[3]) if len(index) == 4 else None
    chosen = [
        n for n, s in enumerate(splits)
        if (s.index, s.part) >= first and (last is None or (s.index, s.part) <= last)
    ]  # fmt: skip
    if not chosen:
        end = splits[-1] if splits else None
        raise UsageError(
            f"--index {','.join(map(str, index))}: no split lies there"
            + (f"; the last one is {end.index},{end.part}" if end else "")
        )
    return chosen
