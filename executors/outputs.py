"""What a run leaves for people: indexed and merged ``.coffea`` files, the manifest, what failed."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from executors.redact import cleaned, redact
from executors.work.store import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from executors.work.coverage import Coverage
    from executors.work.ledger import Ledger
    from executors.work.model import Range
    from executors.work.plan import Plan, PlannedFile
    from executors.work.sizing import Sizing

PACKAGES = (
    "coffea-scaleout",
    "coffea",
    "uproot",
    "awkward",
    "hist",
    "boost-histogram",
    "numpy",
    "dask",
    "distributed",
    "parsl",
)


def slug(text: str) -> str:
    """Text as part of a file name: what is not plain is replaced, and a short hash keeps names apart."""
    plain = re.sub(r"[^A-Za-z0-9_.+=-]", "_", text).lstrip(".-") or "_"
    if plain == text and len(plain) <= 80:
        return plain
    return f"{plain[:60]}-{hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()}"


def run_name(workflow: str, fileset: str) -> str:
    """The name of a run's directory and of its merged file."""
    return f"hist_{slug(workflow)}_{slug(fileset)}"


def indexed_name(plan: Plan, dataset: int, part: int) -> str:
    """The name of an indexed output; the numbers are those that ``--index`` takes."""
    return f"{run_name(plan.workflow, plan.fileset)}_{dataset}_{part}.coffea"


def merged_name(plan: Plan) -> str:
    """The name of the merged output."""
    return f"{run_name(plan.workflow, plan.fileset)}.coffea"


def versions() -> dict[str, str]:
    """The versions of what shapes a result."""
    from importlib import metadata

    out = {}
    for name in PACKAGES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def write_json(path: Path, content: Any) -> None:
    """Write a document whole, for people and programs; secrets do not reach it."""
    text = json.dumps(cleaned(content), indent=1, ensure_ascii=False, default=lambda one: redact(str(one)))
    write_whole(path, [text.encode("utf-8", "surrogatepass"), b"\n"])


def read_json(path: Path) -> dict[str, Any]:
    """A document, or nothing if it is not there or not whole."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def missing_fileset(plan: Plan, coverage: Coverage) -> dict[str, Any]:
    """What is not counted, in the form that ``--json`` takes: ranges of files, or whole unknown files."""
    out: dict[str, Any] = {}
    tree = coverage.tree
    for number, split in enumerate(tree.splits):
        dataset = plan.datasets[split.dataset]
        files: dict[str, Any] = {}
        root = tree.split_root(number)
        # A split merged into a sum above it has nothing missing: only what lies below no stored node counts.
        lost: dict[int, list[Range]] = {}
        if not any(above in coverage.stored for above in coverage.path(root)):
            for node in coverage.missing(root):
                for _, file, lo, hi in tree.pieces(node):
                    spans = tree.file(number, file).some_ranges(plan.chunk, lo, hi)
                    lost.setdefault(file, []).extend(spans)
            for _, file in tree.uncut(root):
                lost.setdefault(file, []).extend(tree.file(number, file).uncut())
        for index, planned in enumerate(split.files):
            if planned.entries is None or index in lost:
                files[planned.path] = _missing_file(planned, lost.get(index))
        if files:
            entry = out.setdefault(dataset.name, {"files": {}, "metadata": dict(dataset.metadata)})
            entry["files"].update(files)
    return out


def _missing_file(file: PlannedFile, ranges: Iterable[Range] | None) -> dict[str, Any]:
    content: dict[str, Any] = {"object_path": file.treename} if file.treename else {}
    if ranges is None:
        return content
    joined: list[list[int]] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1][1] = stop
        else:
            joined.append([start, stop])
    return {**content, "steps": joined, "num_entries": file.entries, "uuid": file.uuid}


def failures(plan: Plan, ledger: Ledger) -> list[dict[str, Any]]:
    """Each range that was given up, and why, for the manifest."""
    out: list[dict[str, Any]] = []
    for node, failure in sorted(ledger.lost.items()):
        split = ledger.tree.splits[node.split]
        out.append(
            {
                "dataset": plan.datasets[split.dataset].name,
                "file": ledger.tree.file(node.split, node.first).path,
                "range": list(failure.range),
                "kind": str(failure.kind),
                "error": failure.error,
                "message": failure.message[:1000],
                "frames": list(failure.frames),
                "host": failure.host,
            }
        )
    for dataset in plan.datasets:
        out.extend(
            {
                "dataset": dataset.name,
                "file": file.path,
                "range": None,
                "kind": "not counted",
                "error": file.error,
            }
            for file in dataset.files
            if file.entries is None
        )
    return out


def halved(plan: Plan, ledger: Ledger) -> list[dict[str, Any]]:
    """The chunks that were processed in pieces: their sums may differ in the last bits from a whole one's."""
    return [
        {
            "dataset": plan.datasets[ledger.tree.splits[node.split].dataset].name,
            "file": ledger.tree.file(node.split, node.first).path,
            "chunk": node.lo,
            "pieces": pieces,
        }
        for node, pieces in ledger.halved()
        if node not in ledger.lost
    ]


def account(ledger: Ledger, sizing: Sizing | None = None) -> dict[str, Any]:
    """The account by dataset, for the manifest; with what was measured of memory, where work was done."""
    return {
        row.name: {
            "files": row.files,
            "events_planned": row.events_planned,
            "events_counted": row.events_counted,
            "events_missing": row.events_planned - row.events_counted,
            "chunks_planned": row.chunks_planned,
            "chunks_counted": row.chunks_done,
            "failures": row.failures,
            "reasons": list(row.reasons),
            "peak_memory": ledger.peak[i],
            "memory": _memory(ledger, sizing, i) if sizing is not None else {},
        }
        for i, row in enumerate(ledger.rows())
    }


def _memory(ledger: Ledger, sizing: Sizing, dataset: int) -> dict[str, Any]:
    """What the chunks of a dataset needed of memory in this run; empty where none was measured."""
    fit, node = sizing.measured(dataset), ledger.peak_at[dataset]
    if fit is None or node is None:
        return {}
    file = ledger.tree.file(node.split, node.first)
    (span,) = file.some_ranges(ledger.tree.plan.chunk, node.lo, node.hi)
    return {
        "peak": ledger.peak[dataset],
        "chunk": [file.path, *span],
        "bytes_per_event": round(fit.per_event, 1),
        "fixed": fit.fixed,
        "spread": round(fit.spread, 3),
        "points": fit.points,
        "budget": sizing.budget,
    }


def outputs_intact(folder: Path, recorded: Mapping[str, str]) -> list[str]:
    """Of the outputs a manifest names, those that are missing or not as they were written."""
    bad = []
    for name, digest in recorded.items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=20)).hexdigest()
        except OSError:
            found = ""
        if found != digest:
            bad.append(name)
    return bad
