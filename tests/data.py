"""Test data, made on the spot: NanoAOD-shaped files, filesets of them, and every way they come damaged.

Nothing here reads the project's own code, so that a test cannot agree with a fault by sharing it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np
import uproot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

IDS = ("run", "luminosityBlock", "event")
MUON = ("pt", "eta", "phi", "mass", "charge")


def columns(entries: int, seed: int = 0, wide: int = 0) -> dict[str, Any]:
    """The flat columns of one file; the same seed gives the same events, sums of ``genWeight`` are exact."""
    rng = np.random.default_rng(seed)
    per_event = rng.poisson(1.2, entries).astype("u4")
    total = int(per_event.sum())
    muon = {
        "pt": (5 + rng.exponential(30, total)).astype("f4"),
        "eta": rng.normal(0, 1.5, total).astype("f4"),
        "phi": rng.uniform(-np.pi, np.pi, total).astype("f4"),
        "mass": np.full(total, 0.1057, "f4"),
        "charge": rng.choice([-1, 1], total).astype("i4"),
    }
    return {
        "run": np.full(entries, 1 + seed, "u4"),
        "luminosityBlock": (np.arange(entries) // 100).astype("u4"),
        "event": np.arange(entries, dtype="u8"),
        "genWeight": (rng.integers(32, 97, entries) / 64).astype("f4"),
        "MET_pt": rng.exponential(30, entries).astype("f4"),
        "MET_phi": rng.uniform(-np.pi, np.pi, entries).astype("f4"),
        "HLT_IsoMu24": rng.random(entries) < 0.3,
        "nMuon": per_event,
        **{f"Muon_{name}": ak.unflatten(values, per_event) for name, values in muon.items()},
        **{f"HLT_x{i}": np.zeros(entries, "?") for i in range(wide)},
    }


def write_columns(
    path: Path, data: Mapping[str, Any], cluster: int, rntuple: bool = False, treename: str = "Events"
) -> None:
    """Write flat columns as a TTree (or an RNTuple), one cluster for each ``cluster`` entries."""
    entries = len(next(iter(data.values())))
    with uproot.recreate(path, compression=uproot.ZLIB(1)) as file:
        if rntuple:
            out = file.mkrntuple(treename, {name: values[:0] for name, values in data.items()})
            parts = dict(data)
        else:
            # A jagged column is written by its collection, which brings the counter of its own.
            muon = {n.removeprefix("Muon_"): v for n, v in data.items() if n.startswith("Muon_")}
            parts = {n: v for n, v in data.items() if n != "nMuon" and not n.startswith("Muon_")}
            if muon:
                parts["Muon"] = ak.zip(muon)
            types = {
                n: v.type if isinstance(v, ak.Array) else np.dtype((v.dtype, v.shape[1:]))
                for n, v in parts.items()
            }
            out = file.mktree(
                treename,
                types,
                counter_name=lambda collection: f"n{collection}",
                field_name=lambda outer, inner: f"{outer}_{inner}" if outer else inner,
            )
        for start in range(0, entries, cluster):
            out.extend({name: values[start : start + cluster] for name, values in parts.items()})


def write_events(
    path: str | os.PathLike[str],
    entries: int,
    seed: int = 0,
    cluster: int = 50_000,
    wide: int = 0,
    rntuple: bool = False,
    treename: str = "Events",
) -> Path:
    """A NanoAOD-shaped file; ``wide`` more flat branches make it as slow to parse as a real one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_columns(path, columns(entries, seed, wide), cluster, rntuple, treename)
    return path


def make_fileset(
    directory: str | os.PathLike[str],
    datasets: Mapping[str, Sequence[int]],
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """One file for each number of entries, as a fileset in coffea's form with some metadata."""
    fileset: dict[str, Any] = {}
    for name, sizes in datasets.items():
        files = {}
        for i, entries in enumerate(sizes):
            path = write_events(Path(directory) / name / f"nano_{i}.root", entries, seed=seed, **options)
            files[str(path)] = options.get("treename", "Events")
            seed += 1
        fileset[name] = {"files": files, "metadata": {"is_mc": True, "xsec": 2.5, "label": name}}
    return fileset


# --- damage ---------------------------------------------------------------------------------------


def _missing(path: Path) -> None:
    path.unlink()


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def _garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(1).bytes(max(4096, path.stat().st_size)))


def _html(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><head><title>503 Service Unavailable</title></head></html>\n" * 40)


def _shape(path: Path) -> tuple[str, int, bool]:
    with uproot.open({str(path): None}) as file:
        name = next(k for k, c in file.classnames(cycle=False).items() if c in {"TTree", "ROOT::RNTuple"})
        return name, int(file[name].num_entries), file.classname_of(name) != "TTree"


def _no_tree(path: Path) -> None:
    _, entries, rntuple = _shape(path)
    write_events(path, entries, rntuple=rntuple, treename="Runs")


def _not_a_tree(path: Path) -> None:
    name, _, _ = _shape(path)
    with uproot.recreate(path) as file:
        file[name] = np.histogram([1.0, 2.0, 3.0])


def _no_ids(path: Path) -> None:
    name, entries, rntuple = _shape(path)
    kept = {k: v for k, v in columns(entries).items() if k not in IDS}
    write_columns(path, kept, 50_000, rntuple, name)


def _changed(path: Path) -> None:
    name, entries, rntuple = _shape(path)
    write_events(path, entries + 7, seed=99, rntuple=rntuple, treename=name)


def basket(path: Path, column: str = "Muon_pt") -> tuple[int, int]:
    """Where the last stored piece (basket or page) of a column lies: offset and bytes."""
    with uproot.open({str(path): None}) as file:
        tree = file[_shape(path)[0]]
        if isinstance(tree, uproot.behaviors.TTree.TTree):
            branch = tree[column]
            last = branch.num_baskets - 1
            return int(branch.member("fBasketSeek")[last]), int(branch.member("fBasketBytes")[last])
        wanted = _with_children(tree[column])
        where = [
            page.locator
            for cluster in tree.page_link_list
            for record, pages in zip(tree.column_records, cluster, strict=True)
            if record.field_id in wanted
            for page in pages.pages
        ]
        biggest = max(where, key=lambda locator: locator.num_bytes)
        return int(biggest.offset), int(biggest.num_bytes)


def _with_children(field: Any) -> set[int]:
    out = {field.field_id}
    for child in field.fields:
        out |= _with_children(child)
    return out


def _overwrite(path: Path, offset: int, change: Callable[[bytes], bytes], size: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(size)
        file.seek(offset)
        file.write(change(old))


def _flipped(path: Path) -> None:
    offset, size = basket(path)
    # Behind the key and the compression header, so that what is damaged is the data.
    skip = min(size // 2, 110)
    _overwrite(path, offset + skip, lambda old: bytes(b ^ 0xA5 for b in old), max(1, (size - skip) // 2))


def _zeroed(path: Path) -> None:
    offset, size = basket(path)
    _overwrite(path, offset, lambda old: bytes(len(old)), size)


def _denied(path: Path) -> None:
    path.chmod(0)


_DAMAGE: dict[str, Callable[[Path], None]] = {
    "missing": _missing,
    "directory": _directory,
    "empty": _empty,
    "half": lambda path: _cut(path, 0.5),
    "short": lambda path: _cut(path, 0.95),
    "garbage": _garbage,
    "html": _html,
    "no-tree": _no_tree,
    "not-a-tree": _not_a_tree,
    "no-ids": _no_ids,
    "changed": _changed,
    "flipped": _flipped,
    "zeroed": _zeroed,
}

KINDS: tuple[str, ...] = tuple(_DAMAGE)
DENIED = "denied"  # of no effect for root, so not among KINDS
LAZY: tuple[str, ...] = ("flipped", "zeroed")  # seen only when Muon_pt is read


def corrupt(kind: str, path: str | os.PathLike[str]) -> Path:
    """Damage one good file in place, in the way that is named."""
    path = Path(path)
    {**_DAMAGE, DENIED: _denied}[kind](path)
    return path


def mend(path: str | os.PathLike[str], good: str | os.PathLike[str]) -> Path:
    """Put a good copy back in the place of a damaged one."""
    path = Path(path)
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    shutil.copyfile(good, path)
    return path
