"""Make the demo's data: NanoAOD-like files of muon pairs from resonances and continuum, and their fileset.

``python -m configs.make_data DIR [--events N] [--seed N]`` writes ``DIR/*.root`` and ``DIR/fileset.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import awkward as ak
import numpy as np
import uproot

MUON_MASS = 0.1056583745
CLUSTER = 25_000
RESOLUTION = 0.011  # of the mass, about what the detectors reach


class Source(NamedTuple):
    """What muon pairs come from: mass and natural width in GeV, typical pt of the pair, and its share."""

    mass: float
    width: float
    pt: float
    share: float


RESONANCES = (
    Source(0.7827, 0.0087, 8.0, 0.030),  # omega
    Source(1.0195, 0.0043, 8.0, 0.030),  # phi
    Source(3.0969, 9e-5, 10.0, 0.160),  # J/psi
    Source(3.6861, 3e-4, 10.0, 0.014),  # psi(2S)
    Source(9.4603, 5e-5, 9.0, 0.070),  # Upsilon(1S)
    Source(10.0233, 3e-5, 9.0, 0.025),  # Upsilon(2S)
    Source(10.3552, 2e-5, 9.0, 0.015),  # Upsilon(3S)
    Source(91.1876, 2.4952, 15.0, 0.140),  # Z
)
# name, share of all events, files, simulation?
DATASETS = (
    ("DoubleMuon_A", 0.4, 4, False),
    ("DoubleMuon_B", 0.35, 3, False),
    ("DYJetsToMuMu", 0.25, 3, True),
)


def pairs(rng: np.random.Generator, entries: int, simulation: bool) -> dict[str, Any]:
    """Mass and motion of one pair an event; simulation has only the Z and its continuum."""
    table = [s for s in RESONANCES if not simulation or s.mass > 50]
    shares = np.array([s.share for s in table]) * (5.0 if simulation else 1.0)
    kind = rng.choice(len(table) + 1, entries, p=[*shares, 1 - shares.sum()])
    low, high = (10.0 if simulation else 0.3), 200.0
    # The continuum falls like a power of the mass; the last kind is that.
    mass = low * (1 - rng.random(entries) * (1 - (low / high) ** 1.1)) ** (-1 / 1.1)
    pt = rng.exponential(10.0, entries)
    for i, source in enumerate(table):
        chosen = kind == i
        n = int(chosen.sum())
        wide = source.mass + source.width / 2 * np.tan(np.pi * (rng.random(n) - 0.5) * 0.99)
        mass[chosen] = np.maximum(wide * rng.normal(1.0, RESOLUTION, n), 0.25)
        pt[chosen] = rng.exponential(source.pt, n)
    return {"mass": mass, "pt": pt, "eta": rng.normal(0, 1.4, entries), "resonant": kind < len(table)}


def decay(rng: np.random.Generator, pair: dict[str, Any]) -> tuple[Any, Any]:
    """Two muons, back to back in the pair's rest frame in any direction, boosted: px, py, pz of each."""
    n = len(pair["mass"])
    energy = pair["mass"] / 2
    momentum = np.sqrt(np.maximum(energy**2 - MUON_MASS**2, 0))
    cosine, angle = rng.uniform(-1, 1, n), rng.uniform(0, 2 * np.pi, n)
    sine = np.sqrt(1 - cosine**2)
    own = momentum * np.stack([sine * np.cos(angle), sine * np.sin(angle), cosine])
    around = rng.uniform(0, 2 * np.pi, n)
    lab = pair["pt"] * np.stack([np.cos(around), np.sin(around), np.sinh(pair["eta"])])
    # Boost by gamma * beta = p / m of the pair.
    boost = lab / pair["mass"]
    gamma = np.sqrt(1 + (boost**2).sum(axis=0))
    along = (boost * own).sum(axis=0)
    shared = boost * energy
    moved = own + boost * along / (1 + gamma)
    return shared + moved, shared - moved


def muons(rng: np.random.Generator, pair: dict[str, Any]) -> Any:
    """The muons of all events, those of the pair and now and then a third one, highest pt first."""
    n = len(pair["mass"])
    one, two = decay(rng, pair)
    extra = rng.exponential(4.0, n) * np.stack(
        [np.cos(a := rng.uniform(0, 2 * np.pi, n)), np.sin(a), np.ones(n)]
    )
    third = rng.random(n) < 0.15
    px, py, pz = np.stack([one, two, extra], axis=-1)
    pt = np.hypot(px, py)
    # Combinatorial pairs are of any sign; those of a resonance are opposite.
    sign = rng.choice([-1, 1], n)
    other = np.where(pair["resonant"] | (rng.random(n) < 0.6), -sign, sign)
    fields = {
        "pt": pt.astype("f4"),
        "eta": np.arcsinh(pz / np.maximum(pt, 1e-6)).astype("f4"),
        "phi": np.arctan2(py, px).astype("f4"),
        "mass": np.full((n, 3), MUON_MASS, "f4"),
        "charge": np.stack([sign, other, rng.choice([-1, 1], n)], axis=-1).astype("i4"),
        "pfRelIso04_all": rng.exponential(0.08, (n, 3)).astype("f4"),
        "tightId": rng.random((n, 3)) < 0.96,
    }
    seen = (np.abs(fields["eta"]) < 2.4) & (pt > 2.0)
    seen[:, 2] &= third
    order = np.argsort(np.where(seen, -pt, np.inf), axis=1)
    counts = seen.sum(axis=1)
    kept = np.arange(3) < counts[:, None]
    return ak.zip({k: ak.unflatten(np.take_along_axis(v, order, 1)[kept], counts) for k, v in fields.items()})


def columns(rng: np.random.Generator, entries: int, run: int, first: int, simulation: bool) -> dict[str, Any]:
    """All columns of one file."""
    found = muons(rng, pairs(rng, entries, simulation))
    out = {
        "run": np.full(entries, run, "u4"),
        "luminosityBlock": ((first + np.arange(entries)) // 1000).astype("u4"),
        "event": (first + np.arange(entries)).astype("u8"),
        "PV_npvs": rng.poisson(35, entries).astype("i4"),
        "MET_pt": rng.exponential(25, entries).astype("f4"),
        "MET_phi": rng.uniform(-np.pi, np.pi, entries).astype("f4"),
        "HLT_DoubleMu": np.asarray(ak.num(found) >= 2) & (rng.random(entries) < 0.97),
        "HLT_IsoMu24": np.asarray(ak.any(found.pt > 24, axis=1)) & (rng.random(entries) < 0.9),
        "Muon": found,
    }
    if simulation:
        # Multiples of 1/64, a few of them negative as generators' weights are: sums are exact in any order.
        size = (rng.integers(48, 81, entries) / 64) * np.where(rng.random(entries) < 0.02, -1, 1)
        out["genWeight"] = size.astype("f4")
    return out


def write(path: Path, data: dict[str, Any]) -> None:
    """One file, compressed, a cluster for each ``CLUSTER`` events."""
    types = {k: v.type if isinstance(v, ak.Array) else v.dtype for k, v in data.items()}
    entries = len(data["run"])
    with uproot.recreate(path, compression=uproot.ZLIB(1)) as file:
        tree = file.mktree(
            "Events",
            types,
            counter_name=lambda collection: f"n{collection}",
            field_name=lambda outer, inner: f"{outer}_{inner}" if outer else inner,
        )
        for start in range(0, entries, CLUSTER):
            tree.extend({k: v[start : start + CLUSTER] for k, v in data.items()})


def make(directory: Path, events: int = 1_000_000, seed: int = 1) -> Path:
    """Write all files and the fileset; the same seed gives the same events."""
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    fileset: dict[str, Any] = {}
    for index, (name, share, files, simulation) in enumerate(DATASETS):
        paths, first = {}, 0
        for part in range(files):
            entries = int(events * share * (part + 1) / files) - first
            path = directory / f"{name}_{part}.root"
            rng = np.random.default_rng([seed, index, part])
            write(
                path,
                columns(rng, entries, 1 if simulation else 360_000 + 10 * index + part, first, simulation),
            )
            paths[str(path)] = "Events"
            first += entries
        fileset[name] = {"files": paths, "metadata": {"is_mc": simulation, "label": name.replace("_", " ")}}
    out = directory / "fileset.json"
    out.write_text(json.dumps(fileset, indent=2) + "\n")
    return out


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    print(make(asked.directory, asked.events, asked.seed))


if __name__ == "__main__":
    main()
