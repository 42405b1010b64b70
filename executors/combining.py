"""``merge``: the sums of one run or of several in one file, made later; refuses gaps and double counting."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from executors import outputs, words
from executors.errors import DamagedError, IncompleteError, UsageError
from executors.inspection import find
from executors.work import lock, merge
from executors.work.report import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from executors.inspection import Found
    from executors.work.packed import Packed


def merge_dirs(
    folders: Sequence[Path],
    out: Path | None = None,
    *,
    overwrite: bool = False,
    allow_missing: int = 0,
    allow_missing_files: int = 0,
    postprocess: bool = True,
) -> Outcome:
    """Merge one run or several into one ``.coffea`` file; refuses what is incomplete or counted twice."""
    if not folders:
        raise UsageError("merge needs at least one directory of a run")
    if out is None and len(folders) > 1:
        raise UsageError("merging several runs needs a place for the result: -o FILE")
    if len({os.path.realpath(f) for f in folders}) != len(folders):
        raise UsageError("the same directory is given twice: its events would be counted twice")
    with contextlib.ExitStack() as stack:
        for folder in folders:
            if (folder / "plan.json").exists():
                stack.enter_context(lock.hold(folder))
        runs = [find(folder) for folder in folders]
        _check_same_analysis(runs)
        _check_overlap(runs)
        missing = _check_complete(runs, allow_missing, allow_missing_files)
        target = out or runs[0].folder / outputs.merged_name(runs[0].plan)
        return _merged(
            runs, target, overwrite=overwrite, postprocess=postprocess, missing=missing, inside=out is None
        )


def _check_same_analysis(runs: list[Found]) -> None:
    first = runs[0]
    for other in runs[1:]:
        if other.plan.fingerprint != first.plan.fingerprint:
            raise UsageError(
                f"{other.folder} and {first.folder} were made by different analyses: they do not add up"
            )


def _check_overlap(runs: list[Found]) -> None:
    """Refuse the same events of the same dataset in two runs."""
    seen: dict[tuple[str, str], list[tuple[int, int, Path]]] = {}
    for run in runs:
        for dataset in run.plan.datasets:
            for file in dataset.files:
                spans = seen.setdefault((dataset.name, file.uuid or file.path), [])
                for start, stop in file.ranges(run.plan.chunk):
                    for a, b, folder in spans:
                        if folder != run.folder and start < b and a < stop:
                            raise UsageError(
                                f"{folder} and {run.folder} both hold events of dataset {dataset.name!r}, "
                                f"such as {file.path} [{max(a, start)}:{min(b, stop)}]: "
                                "they would be counted twice"
                            )
                spans.extend((start, stop, run.folder) for start, stop in file.ranges(run.plan.chunk))


def _check_complete(runs: list[Found], events: int, files: int) -> int:
    missing = sum(run.missing for run in runs)
    unknown = sum(run.ledger.unknown_files() for run in runs)
    if unknown > files or missing > events:
        where = [
            f"{run.folder}: {row.name} lacks {row.events_planned - row.events_counted} "
            f"of {row.events_planned} events"
            for run in runs
            for row in run.ledger.rows()
            if row.events_planned != row.events_counted
        ]
        where += [
            f"{run.folder}: {run.ledger.unknown_files()} files not counted"
            for run in runs
            if run.ledger.unknown_files()
        ]
        listed = "".join(f"\n  {line}" for line in where[:10])
        raise IncompleteError(
            f"not merged, events are missing:{listed}\nRun the command of that directory again, or accept "
            f"the loss: {words.accept(missing, unknown)}"
        )
    return missing


def _merged(
    runs: list[Found], target: Path, *, overwrite: bool, postprocess: bool, missing: int, inside: bool
) -> Outcome:
    from executors.coffea.pack import combine, unpack
    from executors.coffea.save import file_digest, save

    parts = [p for run in runs if (p := _total(run)) is not None]
    whole: Packed | None = None
    for part in parts:
        whole = part if whole is None else combine(whole, part)
    value: Any = {} if whole is None else unpack(whole)
    if postprocess:
        value = _postprocessed(runs[0].folder, value)
    existing = file_digest(target) if target.exists() else None
    recorded = outputs.read_json(target.parent / "manifest.json").get("outputs", {}).get(target.name)
    temporary = target.with_name(f".{target.name}.merge")
    digest = save(value, temporary)
    try:
        if (
            existing is not None
            and existing != digest
            and not overwrite
            and (not inside or recorded == existing)
        ):
            raise UsageError(
                f"{target} exists and holds something else; --overwrite replaces it, -o chooses another"
            )
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    if inside:
        _record(runs[0].folder, target.name, digest, whole)
    events = sum(run.ledger.events_counted for run in runs)
    same = " (as it was)" if existing == digest else ""
    text = f"merged {events} events of {len(runs)} run{'s' if len(runs) > 1 else ''} into {target}{same}"
    if missing:
        text += f"; {missing} events are missing, as accepted"
    return Outcome(
        0, text, None, {"output": str(target), "digest": whole.digest() if whole else "", "events": events}
    )


def _total(run: Found) -> Packed | None:
    from executors.coffea.pack import combine

    root = run.coverage.tree.root
    shape = run.coverage.shape(root) if root is not None else None
    if shape is None:
        return None
    try:
        packed, events = merge.total(shape, run.store, combine)
    except merge.DamagedPartError as error:
        raise DamagedError(
            f"{run.folder}: a stored result is damaged ({error}); run the command of that directory again"
        ) from error
    if events != run.ledger.events_counted:
        raise DamagedError(
            f"{run.folder}: {events} events are stored where {run.ledger.events_counted} were counted"
        )
    return packed


def _postprocessed(folder: Path, value: Any) -> Any:
    """Apply the postprocess of the processor that the run's own workers were sent."""
    from executors.jobs import stored_analysis

    analysis = stored_analysis(folder)
    postprocess = getattr(getattr(analysis, "processor", None), "postprocess", None)
    if postprocess is None:
        return value
    result = postprocess(value)
    return value if result is None else result


def _record(folder: Path, name: str, digest: str, whole: Packed | None) -> None:
    manifest = outputs.read_json(folder / "manifest.json")
    manifest["outputs"] = {**manifest.get("outputs", {}), name: digest}
    manifest["merged"] = name
    manifest["digest"] = whole.digest() if whole else ""
    outputs.write_json(folder / "manifest.json", manifest)
