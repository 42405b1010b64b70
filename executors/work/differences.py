"""What a new command asks for that the kept plan does not, in words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from executors.work.plan import Plan, PlannedDataset


def differences(old: Plan, new: Plan) -> list[str]:
    """What a new command asks for that the kept plan does not, in words; counts are not compared."""
    said = [
        f"{what} was {_shown(a)} and is now {_shown(b)}"
        for what, a, b in (
            ("--chunk", *(("auto" if plan.auto else plan.chunk) for plan in (old, new))),
            ("--fsize", old.fsize, new.fsize),
            ("the workflow", old.workflow, new.workflow),
            *(
                (f"--{k}", old.choices.get(k), new.choices.get(k))
                for k in sorted({*old.choices, *new.choices} - {"chunk"})
            ),
        )
        if a != b
    ]
    before, after = {d.name: d for d in old.datasets}, {d.name: d for d in new.datasets}
    said += [f"dataset {name!r} is gone" for name in before if name not in after]
    said += [f"dataset {name!r} is new" for name in after if name not in before]
    if not said and list(before) != list(after):
        said.append("the datasets are in another order")
    for name in before.keys() & after.keys():
        said += _dataset_differences(before[name], after[name])
    return said


def _shown(value: Any) -> str:
    return "not given" if value is None else str(value)


def _dataset_differences(old: PlannedDataset, new: PlannedDataset) -> Iterator[str]:
    def asked(dataset: PlannedDataset) -> dict[str, Any]:
        return {f.path: f.steps for f in dataset.files}

    was, now = asked(old), asked(new)
    gone, fresh = was.keys() - now.keys(), now.keys() - was.keys()
    if gone or fresh:
        example = min(gone | fresh)
        yield f"dataset {old.name!r}: {len(fresh)} files are new, {len(gone)} are gone (such as {example})"
    elif list(was) != list(now):
        yield f"dataset {old.name!r}: the files are in another order"
    elif was != now:
        yield f"dataset {old.name!r}: the ranges of its files changed"
    trees = {f.path: f.treename for f in old.files if f.treename}
    for file in new.files:
        if file.treename and trees.get(file.path, file.treename) != file.treename:
            yield f"dataset {old.name!r}: {file.path} is to be read from tree {file.treename!r} now"
            break
    if json.dumps(old.metadata, sort_keys=True, default=str) != json.dumps(
        new.metadata, sort_keys=True, default=str
    ):
        yield f"dataset {old.name!r}: its metadata changed"
