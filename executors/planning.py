"""From a fileset to the kept plan: count what is not known, compare with what an earlier run fixed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from executors import addresses
from executors.errors import FilesetError, PlanChangedError
from executors.redact import redact
from executors.work import plan as plans
from executors.work.cache import Cache, Known
from executors.work.differences import differences
from executors.work.model import Kind
from executors.work.plan import Plan, PlannedDataset, PlannedFile
from executors.work.sizing import MOST
from sites import urls as site_urls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from threading import Event

    from executors.fileset import Dataset, File, Fileset
    from executors.fingerprint import Fingerprint
    from executors.options import Settings
    from sites.profile import SiteProfile

    Say = Callable[[str, str], None]

COUNTERS = 16  # threads that read headers
FAR_COUNTERS = 32  # where a server is asked: they only wait for its answers


def planned_datasets(
    fileset: Fileset, treename: str | None, *, cut: bool = True
) -> tuple[PlannedDataset, ...]:
    """The fileset as it was asked for: nothing is counted yet. ``cut=False``: sizes are chosen later."""
    cuts = None if cut else ()
    return tuple(
        PlannedDataset(
            d.name, d.index, tuple(_planned_file(f, d, treename, cuts) for f in d.files), dict(d.metadata)
        )
        for d in fileset.datasets
    )


def _planned_file(file: File, dataset: Dataset, treename: str | None, cuts: tuple[()] | None) -> PlannedFile:
    size, mtime = _stat(file.path)
    # A range reaching past the end, or a wrong count, is found by the worker, which compares with the file.
    counted = file.entries if file.uuid else None
    steps = tuple((int(a), int(b)) for a, b in file.steps) if file.steps is not None else None
    tree = file.treename or dataset.treename or treename
    return PlannedFile(
        file.path, tree, file.uuid, counted if tree else None, steps, size=size, mtime=mtime, cuts=cuts
    )


def _stat(path: str) -> tuple[int | None, int | None]:
    if "://" in path:
        return None, None
    try:
        found = os.stat(path)  # noqa: PTH116 - a Path for each of 100,000 files is not free
    except OSError:
        return None, None
    return found.st_size, found.st_mtime_ns


def asked_plan(
    fileset: Fileset,
    settings: Settings,
    workflow: str,
    mark: Fingerprint,
    chunk: int | Literal["auto"],
) -> Plan:
    """The plan a command asks for, before anything is counted."""
    auto = chunk == "auto"
    choices: dict[str, Any] = {
        "chunk": "auto" if auto else None,
        "only": [addresses.public(word) for word in settings.only] or None,
        "limit": settings.limit,
        "max": settings.max,
        "max-per-dataset": settings.max_per_dataset,
        "treename": settings.treename,
    }
    return Plan(
        workflow=workflow,
        fileset=fileset.name,
        chunk=MOST if chunk == "auto" else chunk,
        fsize=settings.fsize,
        datasets=planned_datasets(fileset, settings.treename, cut=not auto),
        fingerprint=mark.digest,
        fingerprint_parts=dict(mark.parts),
        choices={k: v for k, v in choices.items() if v is not None},
    )


@dataclass(frozen=True)
class Access:
    """How the runner and the workers get at the input files: their addresses here, and how long they wait."""

    urls: Mapping[str, str] = field(default_factory=dict)  # name in the plan → address, where they differ
    timeout: float = 60.0  # seconds for one answer of a file server
    env: Mapping[str, str] = field(default_factory=dict)  # what the workers' XRootD client is told

    def count(self, files: Sequence[PlannedFile]) -> Iterator[tuple[int, Any]]:
        """Open files for their headers, in parallel: the index of each and its answer."""
        from executors.coffea.count import count_many
        from executors.coffea.xrootd import settle

        asked = [(self.urls.get(file.path, file.path), file.treename) for file in files]
        if any(site_urls.is_xrootd(url) for url, _ in asked):
            settle(self.env)
        far = any("://" in url for url, _ in asked)
        return count_many(asked, workers=FAR_COUNTERS if far else COUNTERS, timeout=self.timeout)


def access(fileset: Fileset, site: SiteProfile, settings: Settings, env: Mapping[str, str]) -> Access:
    """How a site reads these files; FilesetError or SiteError say what it cannot read, and why."""
    named = ((f.path, f.address or f.path) for d in fileset.datasets for f in d.files)
    given = settings.read_timeout
    return Access(
        site_urls.mapping(named, site, env),
        given if given is not None else float(site.xrootd.request_timeout),
        site_urls.xrootd_env(site.xrootd, {**env, **site.env}),
    )


def cut_like(plan: Plan, other: Plan) -> tuple[Plan, int]:
    """The plan with its files cut as those of another, and how many that leaves as they are.

    What the other run has not cut, or not of this many events, is cut later.
    """
    cuts = {
        (d.name, f.path, f.whole): f.cuts if f.cuts is not None else ((f.whole, other.chunk),)
        for d in other.datasets
        for f in d.files
        if f.whole
    }
    found = {
        (i, j): replace(f, cuts=cuts[d.name, f.path, f.whole])
        for i, d in enumerate(plan.datasets)
        for j, f in enumerate(d.files)
        if (d.name, f.path, f.whole) in cuts
    }
    files = sum(f.whole > 0 for d in plan.datasets for f in d.files)
    return plan.with_counts(found), files - len(found)


def compare(kept: Plan, asked: Plan, where: Path) -> None:
    """Refuse a command that asks for something else than the run that lies there."""
    said = differences(kept, asked)
    if said:
        listed = "".join(f"\n  - {line}" for line in said[:10])
        raise PlanChangedError(
            f"{where} holds a run of something else:{listed}\n"
            "Use another --outputdir, give the same options again, or --overwrite to start anew"
        )


def twins(plan: Plan) -> str:
    """Which files of a dataset are one file under two names, whose events are counted twice; or nothing."""
    found: list[tuple[str, str, str]] = []
    for dataset in plan.datasets:
        first: dict[tuple[str, str | None, int], str] = {}
        for file in dataset.files:
            # What is cut into steps by the user may well be listed more than once, for different ones.
            if file.uuid and file.entries and file.steps is None:
                before = first.setdefault((file.uuid, file.treename, file.entries), file.path)
                if before != file.path:
                    found.append((dataset.name, before, file.path))
    if not found:
        return ""
    dataset_name, one, other = found[0]
    many = f" ({len(found)} such files)" if len(found) > 1 else ""
    return (
        f"dataset {dataset_name!r}: {one} and {other} are the same file (equal uuid and entries), and both "
        f"are counted{many}: leave one out, unless that is meant"
    )


def really_replaced(kept: Plan, asked: Plan, how: Access) -> list[str]:
    """Local files of the plan that are other files now; those only touched or copied are not."""
    now = {f.path: (f.size, f.mtime) for d in asked.datasets for f in d.files}
    suspects = [
        f
        for d in kept.datasets
        for f in d.files
        if f.entries is not None and f.size is not None and now.get(f.path, (None, None))[0] is not None
        and now[f.path] != (f.size, f.mtime)
    ]  # fmt: skip
    if not suspects:
        return []
    from executors.coffea.count import Count

    return [
        suspects[i].path
        for i, result in how.count(suspects)
        if isinstance(result, Count)
        and (result.uuid, result.entries) != (suspects[i].uuid, suspects[i].entries)
    ]


def uncounted(kept: Plan, paths: set[str], asked: Plan) -> Plan:
    """The plan with these files as if nobody had counted them."""
    fresh = {(d.name, f.path): f for d in asked.datasets for f in d.files}
    places = {
        (i, j): replace(fresh[d.name, f.path], entries=None, uuid=None)
        for i, d in enumerate(kept.datasets)
        for j, f in enumerate(d.files)
        if f.path in paths
    }
    return kept.with_counts(places)


def fill_counts(plan: Plan, settings: Settings, how: Access, say: Say, stop: Event) -> Plan:
    """Count what nobody has counted; a file that cannot be counted keeps its place, and the reason."""
    wanted = [(i, j) for i, d in enumerate(plan.datasets) for j, f in enumerate(d.files) if f.entries is None]
    filled = plan if not wanted else _fill(plan, wanted, Counting(settings, how, say, stop))
    limited = plans.limit_chunks(filled.datasets, plan.chunk, settings.max, settings.max_per_dataset)
    return filled if limited == filled.datasets else replace(filled, datasets=limited)


@dataclass(frozen=True)
class Counting:
    """What counting needs to know beside the plan."""

    settings: Settings
    how: Access
    say: Say
    stop: Event


def _fill(plan: Plan, wanted: list[tuple[int, int]], counting: Counting) -> Plan:
    cache = Cache(counting.settings.cache)
    try:
        found = _from_cache(plan, wanted, cache)
        rest = [place for place in wanted if place not in found]
        if not rest:
            return plan.with_counts(found)  # and what reads files is not even imported
        fresh = _counted(plan, rest, counting)
        cache.put(
            Known(
                f.path, _asked_tree(plan, place), f.size, f.mtime, f.entries, f.uuid or "", f.treename or ""
            )
            for place, f in fresh.items()
            if f.entries is not None and f.size is not None and f.mtime is not None
        )
    finally:
        cache.close()
    return plan.with_counts({**found, **fresh})


def unreadable(plan: Plan, how: Access, stop: Event) -> list[tuple[str, str]]:
    """Every file opened anew, whatever is known of it: those that cannot be, or that are other files now."""
    from executors.coffea.count import Count

    files = [f for d in plan.datasets for f in d.files]
    bad = []
    for i, result in how.count(files):
        if not isinstance(result, Count):
            bad.append((files[i].path, _said(result)[:300]))
        elif files[i].uuid not in (None, result.uuid):
            bad.append((files[i].path, "it is another file than when the plan was made"))
        if stop.is_set():
            break
    return bad


def _asked_tree(plan: Plan, place: tuple[int, int]) -> str:
    return plan.datasets[place[0]].files[place[1]].treename or ""


def _from_cache(
    plan: Plan, wanted: Iterable[tuple[int, int]], cache: Cache
) -> dict[tuple[int, int], PlannedFile]:
    local = {
        (i, j): file
        for i, j in wanted
        if (file := plan.datasets[i].files[j]).size is not None and file.mtime is not None
    }
    known = cache.find(dict.fromkeys(file.path for file in local.values()))
    found = {}
    for place, file in local.items():
        kept = known.get((file.path, file.treename or ""))
        if kept is not None and (kept.size, kept.mtime) == (file.size, file.mtime):
            found[place] = replace(
                file, entries=kept.entries, uuid=kept.uuid, treename=kept.found, error=None
            )
    return found


def _counted(
    plan: Plan, places: list[tuple[int, int]], counting: Counting
) -> dict[tuple[int, int], PlannedFile]:
    """Count by opening headers, in parallel; what may pass is tried again with growing pauses."""
    out: dict[tuple[int, int], PlannedFile] = {}
    for attempt in range(counting.settings.retries + 1):
        if attempt:
            counting.stop.wait(min(2.0 ** (attempt - 1), 30.0))
        passing = _count_once(plan, places, counting, out)
        if not passing or counting.stop.is_set():
            break
        places = passing
    return out


def _count_once(
    plan: Plan,
    places: list[tuple[int, int]],
    counting: Counting,
    out: dict[tuple[int, int], PlannedFile],
) -> list[tuple[int, int]]:
    from executors.coffea.count import Count

    passing = []
    began = said = time.monotonic()
    asked: dict[tuple[str, str | None], list[tuple[int, int]]] = {}
    for i, j in places:
        file = plan.datasets[i].files[j]
        asked.setdefault((file.path, file.treename), []).append((i, j))
    same = list(asked.values())
    answers = counting.how.count([plan.datasets[i].files[j] for (i, j), *_ in same])
    for done, (number, result) in enumerate(answers, 1):
        for i, j in same[number]:
            file = plan.datasets[i].files[j]
            if isinstance(result, Count):
                out[i, j] = _filled(file, result)
                continue
            out[i, j] = replace(file, error=_said(result)[:500])
            if result.kind is Kind.PASSING:
                passing.append((i, j))
        if counting.stop.is_set():
            break
        if time.monotonic() - said > 5:
            said = time.monotonic()
            counting.say("info", f"counting: {done} of {len(asked)} files in {said - began:.0f} s")
    return passing


def _said(result: Any) -> str:
    # It names the address that was opened, token and all, and goes into the plan.
    return redact(f"{result.error}: {result.message}")


def _filled(file: PlannedFile, result: Any) -> PlannedFile:
    if file.steps is not None and any(stop > result.entries for _, stop in file.steps):
        raise FilesetError(
            f"{file.path} holds {result.entries} events, but the fileset asks for ranges up to "
            f"{max(stop for _, stop in file.steps)}: the file or the fileset is another one"
        )
    if file.uuid is not None and file.uuid != result.uuid:
        raise FilesetError(f"{file.path} is another file than the fileset says (uuid {result.uuid})")
    return replace(file, entries=result.entries, uuid=result.uuid, treename=result.treename, error=None)
