"""Looking at runs: what a directory holds, status, inspect, the plan in words. Nothing is changed here."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from executors import addresses, outputs, words
from executors.errors import DamagedError, IncompleteError, UsageError
from executors.tables import size
from executors.work import lock
from executors.work.coverage import Coverage
from executors.work.layout import Tree
from executors.work.ledger import Ledger
from executors.work.plan import Plan
from executors.work.report import Outcome
from executors.work.store import Store
from sites.urls import server_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from executors.options import Settings
    from executors.work.plan import PlannedFile


@dataclass(frozen=True)
class Found:
    """A run's directory, read: the plan and what of it is stored."""

    folder: Path
    plan: Plan
    store: Store
    coverage: Coverage
    ledger: Ledger

    def counted_paths(self) -> set[str]:
        """The input files of which any event is counted."""
        tree = self.coverage.tree
        return {
            tree.file(split, file).path
            for node in self.coverage.stored
            for split, file, _, _ in tree.pieces(node)
        }

    @property
    def missing(self) -> int:
        """Events planned and not counted."""
        return self.ledger.events_planned - self.ledger.events_counted


def find(folder: Path) -> Found:
    """Read a run's directory; nothing is changed."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no directory of a run")
    path = folder / "plan.json"
    if not path.exists():
        inside = sorted(p.parent.name for p in folder.glob("*/plan.json"))
        hint = f"; there are runs in it: {', '.join(inside[:5])}" if inside else ""
        raise UsageError(f"{folder} holds no run (no plan.json){hint}")
    return read_stored(folder, Plan.load(path))


def read_stored(folder: Path, plan: Plan) -> Found:
    """What a directory holds of a plan."""
    tree = Tree(plan)
    store = Store(folder / "store")
    coverage, ledger = Coverage(tree), Ledger(tree)
    coverage.recover(store.scan())
    for node in coverage.whole():
        ledger.counted(node, +1)
    return Found(folder, plan, store, coverage, ledger)


def status(folder: Path) -> Outcome:
    """How far a run is: exit code 0 if all is counted, 3 if not."""
    found = find(folder)
    manifest = outputs.read_json(folder / "manifest.json")
    rows = found.ledger.rows()
    lines = [f"{folder}: {_state(found, manifest)}"]
    for row in rows:
        unknown = sum(f.entries is None for d in found.plan.datasets if d.name == row.name for f in d.files)
        tail = f", {unknown} files not counted" if unknown else ""
        tail += _memory(manifest, row.name)
        lines.append(
            f"  {row.name}: {row.events_counted} of {row.events_planned} events, "
            f"{row.chunks_done} of {row.chunks_planned} chunks, {row.files} files{tail}"
        )
    if (holder := lock.holder(folder)) is not None:
        lines.append(f"  a runner is at work: {holder}")
    for failure in manifest.get("failures", [])[:10]:
        span = "{}:{}".format(*failure["range"]) if failure.get("range") else "whole file"
        lines.append(
            f"  missing: {failure['dataset']} {failure['file']} [{span}] "
            f"{failure['kind']}: {' '.join(str(failure['error']).split())[:200]}"
        )
    data = {
        "complete": found.ledger.complete,
        "events_planned": found.ledger.events_planned,
        "events_counted": found.ledger.events_counted,
        "datasets": outputs.account(found.ledger),
        "merged": manifest.get("merged") or None,
    }
    return Outcome(0 if found.ledger.complete else IncompleteError.exit_code, "\n".join(lines), None, data)


def _memory(manifest: Mapping[str, Any], dataset: str) -> str:
    """What the chunks of a dataset needed when a runner last ended; 'runner.py memory' says more."""
    said = (manifest.get("datasets") or {}).get(dataset, {}).get("memory") or {}
    if not said.get("peak"):
        return ""
    return f", {size(said['peak'])} at most, {size(said.get('bytes_per_event') or 0)} an event"


def _state(found: Found, manifest: dict[str, Any]) -> str:
    ledger = found.ledger
    share = f"{ledger.events_counted:,} of {ledger.events_planned:,} events counted"
    if unknown := ledger.unknown_files():
        share += f", {unknown:,} files could not be opened"
    if not ledger.complete:
        return f"incomplete, {share}; the command that began it goes on from here"
    merged = manifest.get("merged")
    return f"complete, {share}" + (
        f", merged in {merged}" if merged else f"; 'runner.py merge {found.folder}' merges"
    )


# -- inspect ----------------------------------------------------------------------------------------


def inspect(path: Path) -> Outcome:
    """Verify every byte of a run's directory, or of one ``.coffea`` file, and say what is in it."""
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    return _inspect_run(path) if path.is_dir() else _inspect_file(path)


def _inspect_run(folder: Path) -> Outcome:
    from executors.work.merge import load

    found = find(folder)
    damaged = []
    good = 0
    for node, identity in found.store.scan():
        try:
            load(found.store, node, identity)
            good += 1
        except DamagedError as error:
            damaged.append(str(error))
    manifest = outputs.read_json(folder / "manifest.json")
    recorded = manifest.get("outputs", {})
    bad_outputs = outputs.outputs_intact(folder, recorded)
    lines = [f"{folder}: {good} stored results are whole, {len(damaged)} damaged"]
    lines += [f"  damaged: {text}" for text in damaged]
    lines += [f"  damaged output: {folder / name}" for name in bad_outputs]
    lines.append(f"  {len(recorded) - len(bad_outputs)} of {len(recorded)} outputs are as they were written")
    bad = bool(damaged or bad_outputs)
    if bad:
        lines.append("  the command that made this run makes again what is damaged")
    data = {"stored": good, "damaged": damaged, "damaged_outputs": bad_outputs}
    return Outcome(DamagedError.exit_code if bad else 0, "\n".join(lines), None, data)


def _inspect_file(path: Path) -> Outcome:
    from executors.coffea.save import file_digest, load

    recorded = outputs.read_json(path.parent / "manifest.json").get("outputs", {}).get(path.name)
    digest = file_digest(path)
    if recorded is not None and recorded != digest:
        raise DamagedError(f"{path} is not as it was written (its digest differs from manifest.json)")
    value = load(path)
    lines = [f"{path}: whole" + (", as written by its run" if recorded else "")]
    lines += list(_described(value, "  "))
    return Outcome(0, "\n".join(lines), None, {"digest": digest})


def _described(value: Any, indent: str, depth: int = 4) -> Iterator[str]:
    if isinstance(value, dict) and depth:
        for key, item in list(value.items())[:50]:
            if isinstance(item, dict):
                yield f"{indent}{key}:"
                yield from _described(item, indent + "  ", depth - 1)
            else:
                yield f"{indent}{key}: {_one_line(item)}"
        if len(value) > 50:
            yield f"{indent}… {len(value) - 50} more"
    else:
        yield f"{indent}{_one_line(value)}"


def _one_line(value: Any) -> str:
    axes = getattr(value, "axes", None)
    if axes is not None and hasattr(value, "sum"):
        with contextlib.suppress(Exception):
            names = ", ".join(f"{getattr(a, 'name', '') or i}({len(a)})" for i, a in enumerate(axes))
            return f"{type(value).__name__} of {names}, sum {value.sum(flow=True)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{type(value).__name__}, {text[:80]}…"


# -- the plan in words ------------------------------------------------------------------------------


def plan_text(
    plan: Plan,
    settings: Settings,
    folder: Path,
    *,
    kept: bool,
    urls: Mapping[str, str],
    memory: Sequence[str],
    where: str,
    job: Mapping[str, str],
) -> tuple[str, dict[str, Any]]:
    """The plan for a person and for a program; ``urls`` differ from the names, ``where`` says who works.

    ``memory`` says what is known of it.
    """
    tree = Tree(plan)
    ledger = Ledger(tree)
    names = [outputs.indexed_name(plan, s.index, s.part) for s in tree.splits] if plan.fsize else []
    state = "the plan kept in" if kept else "the plan of a new run in"
    lines = [f"{state} {folder}"]
    size = "chunks as memory allows" if plan.auto else f"chunks of at most {plan.chunk} events"
    lines.append(f"executor {settings.executor}, {where}, {size}")
    lines += [
        f"  {d.index}: {d.name}: {r.files} files, {r.events_planned} events"
        + _cut(plan, ", {} chunks", r.chunks_planned)
        for d, r in zip(plan.datasets, ledger.rows(), strict=True)
    ]
    lines += _odd_files(plan)
    lines += [f"  {line}" for line in memory]
    lines += _read_elsewhere(plan, urls)
    lines += _job_lines(job)
    if names:
        lines.append(f"  {len(names)} indexed outputs, {names[0]} to {names[-1]}")
    lines.append(
        f"in all {ledger.events_planned} events" + _cut(plan, " in {} chunks", ledger.chunks_planned)
    )
    data = {
        "folder": str(folder),
        "job": dict(job),
        "kept": kept,
        "events": ledger.events_planned,
        "chunks": ledger.chunks_planned,
        "memory": list(memory),
        "datasets": _datasets(plan, urls),
        "outputs": [*names, outputs.merged_name(plan)],
    }
    return "\n".join(lines), data


def _datasets(plan: Plan, urls: Mapping[str, str]) -> dict[str, Any]:
    return {
        d.name: {"index": d.index, "files": [_file_data(f, plan.chunk, urls) for f in d.files]}
        for d in plan.datasets
    }


def _odd_files(plan: Plan) -> Iterator[str]:
    empty = [f.path for d in plan.datasets for f in d.files if f.entries == 0]
    unknown = [f for d in plan.datasets for f in d.files if f.entries is None]
    if empty:
        yield f"  {len(empty)} files hold no event, such as {empty[0]}"
    yield from (f"  cannot be opened: {f.path}: {f.error}" for f in unknown[:20])
    if len(unknown) > 20:
        yield f"  … and {len(unknown) - 20} more that cannot be opened"


def _cut(plan: Plan, text: str, chunks: int) -> str:
    """How many chunks there are, where that is known before the run."""
    return text.format(chunks) if chunks or not plan.auto else ""


def _job_lines(job: Mapping[str, str]) -> list[str]:
    """What the batch system is told of each job, without the script that it runs."""
    if not job:
        return []
    told = job.get("job.sub")
    rows = told.splitlines() if told else [row for row in job["job.sh"].splitlines() if row.startswith("#")]
    return ["  each job is submitted as:", *(f"    {row}" for row in rows if row and row != "#!/bin/bash")]


def _read_elsewhere(plan: Plan, urls: Mapping[str, str]) -> Iterator[str]:
    """One example for each server whose files are read by another address, and how many there are."""
    examples: dict[tuple[str | None, str | None], tuple[str, str]] = {}
    count = 0
    for path in (f.path for d in plan.datasets for f in d.files if f.path in urls):
        url = addresses.public(urls[path])
        if url != path:
            count += 1
            examples.setdefault((server_of(path), server_of(url)), (path, url))
    if count:
        yield f"  {words.number(count, 'file')} read by another address here:"
    yield from (f"    {path} → {url}" for path, url in list(examples.values())[:5])
    if len(examples) > 5:
        yield f"    … and {len(examples) - 5} more servers"


def _file_data(file: PlannedFile, chunk: int, urls: Mapping[str, str]) -> dict[str, Any]:
    return {
        "path": file.path,
        "read_as": addresses.public(urls.get(file.path, file.path)),
        "treename": file.treename,
        "entries": file.entries,
        "chunks": file.chunks(chunk),
        "error": file.error,
    }
