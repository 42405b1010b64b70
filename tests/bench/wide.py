"""Files to measure with: NanoAOD-like with 1,500 branches, and narrow ones with many events.

Made once and kept in the user's cache folder; the same seed gives the same events. Sums of the weights are exact
in any order, so that results can be compared to the last bit.
"""

from __future__ import annotations

import os
from pathlib import Path

import awkward as ak
import numpy as np
import uproot

VERSION = 2  # of the contents: another one makes the files anew
FILLED = {"Muon": 60, "Jet": 60, "Electron": 90, "Tau": 70, "FatJet": 80, "Photon": 50, "GenPart": 12}
TRIGGERS = 700


def cache() -> Path:
    """Where made files are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "coffea-scaleout-bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def narrow(entries: int = 500_000, seed: int = 1, cluster: int = 50_000) -> Path:
    """A file of 20 branches."""
    return _kept(f"narrow-{entries}-{cluster}-{seed}", entries, seed, cluster, 20)


def wide(entries: int = 500_000, seed: int = 1, cluster: int = 20_000, branches: int = 1500) -> Path:
    """A file of as many branches as NanoAOD has; all but 20 are zero."""
    return _kept(f"wide{branches}-{entries}-{cluster}-{seed}", entries, seed, cluster, branches)


def _kept(name: str, entries: int, seed: int, cluster: int, branches: int) -> Path:
    path = cache() / f"{name}-v{VERSION}.root"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        write(part, entries, seed, cluster, branches)
        part.replace(path)
    return path


def write(path: Path, entries: int, seed: int = 1, cluster: int = 20_000, branches: int = 20) -> None:
    """Write one file, a cluster at a time."""
    rng = np.random.default_rng(seed)
    with uproot.recreate(path, compression=uproot.ZSTD(1)) as file:
        tree = None
        for start in range(0, entries, cluster):
            data = _filled(_columns(rng, start, min(cluster, entries - start)), branches)
            if tree is None:
                types = {n: v.type if isinstance(v, ak.Array) else v.dtype for n, v in data.items()}
                tree = file.mktree(
                    "Events",
                    types,
                    counter_name=lambda collection: f"n{collection}",
                    field_name=lambda outer, inner: f"{outer}_{inner}" if outer else inner,
                )
            tree.extend(data)


def _columns(rng: np.random.Generator, start: int, n: int) -> dict[str, object]:
    """The 20 branches that are read."""

    def collection(mean: float, **fields: object) -> ak.Array:
        counts = rng.poisson(mean, n)
        total = int(counts.sum())
        return ak.zip({k: ak.unflatten(make(total), counts) for k, make in fields.items()})

    return {
        "run": np.full(n, 1, "u4"),
        "luminosityBlock": ((start + np.arange(n)) // 1000).astype("u4"),
        "event": (start + np.arange(n)).astype("u8"),
        "genWeight": (rng.integers(32, 97, n) / 64).astype("f4"),
        "MET_pt": rng.exponential(30, n).astype("f4"),
        "MET_phi": rng.uniform(-np.pi, np.pi, n).astype("f4"),
        "HLT_IsoMu24": rng.random(n) < 0.3,
        "Muon": collection(
            1.3,
            pt=lambda k: (3 + rng.exponential(30, k)).astype("f4"),
            eta=lambda k: rng.normal(0, 1.4, k).astype("f4"),
            phi=lambda k: rng.uniform(-np.pi, np.pi, k).astype("f4"),
            mass=lambda k: np.full(k, 0.1057, "f4"),
            charge=lambda k: rng.choice(np.array([-1, 1], "i4"), k),
            tightId=lambda k: rng.random(k) < 0.8,
            pfRelIso04_all=lambda k: rng.exponential(0.2, k).astype("f4"),
        ),
        "Jet": collection(
            2.5,
            pt=lambda k: (15 + rng.exponential(40, k)).astype("f4"),
            eta=lambda k: rng.normal(0, 2.0, k).astype("f4"),
            phi=lambda k: rng.uniform(-np.pi, np.pi, k).astype("f4"),
            mass=lambda k: (5 + rng.exponential(5, k)).astype("f4"),
        ),
    }


def _filled(data: dict[str, object], branches: int) -> dict[str, object]:
    """With zeros in as many more branches as are missing, in collections, triggers and single numbers."""
    missing = branches - 20
    if missing <= 0:
        return data
    n = len(data["run"])
    for name, fields in FILLED.items():
        known = data.get(name)
        if known is None:
            counts = np.arange(n) % 3
            known = {"pt": ak.unflatten(np.zeros(int(counts.sum()), "f4"), counts)}
            missing -= 2
        else:
            counts = ak.num(known)
            known = dict(zip(ak.fields(known), ak.unzip(known), strict=True))
        zeros = ak.unflatten(np.zeros(int(np.sum(counts)), "f4"), counts)
        more = min(missing, fields - len(known))
        known.update({f"x{i}": zeros for i in range(more)})
        missing -= more
        data[name] = ak.zip(known)
    for i in range(missing):
        name, kind = (
            (f"HLT_x{i}", "?")
            if i < TRIGGERS
            else (f"Flag_x{i}", "?")
            if i % 2
            else (f"Extra{i % 37}_x{i}", "f4")
        )
        data[name] = np.zeros(n, kind)
    return data
