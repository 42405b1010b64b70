"""One analysis of 20 branches written three times over the same arithmetic: as a coffea processor, as a bare loop
over uproot and numpy, and as the pieces both share. What differs in time is what brings the columns."""

from __future__ import annotations

import time
from typing import Any

import awkward as ak
import hist
import numpy as np
import uproot
from coffea.processor import ProcessorABC

COLUMNS = (
    "run",
    "luminosityBlock",
    "event",
    "genWeight",
    "MET_pt",
    "MET_phi",
    "HLT_IsoMu24",
    "Muon_pt",
    "Muon_eta",
    "Muon_phi",
    "Muon_mass",
    "Muon_charge",
    "Muon_tightId",
    "Muon_pfRelIso04_all",
    "Jet_pt",
    "Jet_eta",
    "Jet_phi",
    "Jet_mass",
)  # fmt: skip; with the two counters these are 20 branches


def empty() -> dict[str, Any]:
    """The result of no event."""
    return {
        "events": 0,
        "checksum": 0,
        "sum of weights": 0.0,
        "mass": hist.Hist.new.Reg(120, 0, 240, name="mass").Weight(),
        "jet": hist.Hist.new.Reg(60, 0, 300, name="pt").Reg(30, -3, 3, name="eta").Weight(),
        "met": hist.Hist.new.Reg(60, 0, 300, name="met").Reg(16, -3.2, 3.2, name="phi").Weight(),
    }


def physics(get: Any) -> dict[str, Any]:
    """One chunk; ``get`` brings a column by the name of its branch."""
    out = empty()
    weight = np.asarray(get("genWeight"), "f8")
    muon = {
        name: get(f"Muon_{name}")
        for name in ("pt", "eta", "phi", "mass", "charge", "tightId", "pfRelIso04_all")
    }
    good = muon["tightId"] & (muon["pt"] > 5) & (muon["pfRelIso04_all"] < 0.4)
    muon = {name: muon[name][good] for name in ("pt", "eta", "phi", "mass", "charge")}
    two = np.asarray(ak.num(muon["pt"]) >= 2) & np.asarray(get("HLT_IsoMu24"))
    one, other = ({name: np.asarray(values[two][:, i]) for name, values in muon.items()} for i in (0, 1))
    opposite = one["charge"] != other["charge"]
    x, y, z, e = (a + b for a, b in zip(vector(**one), vector(**other), strict=True))
    pair = np.sqrt(np.maximum(e * e - x * x - y * y - z * z, 0))
    out["mass"].fill(mass=pair[opposite], weight=weight[two][opposite])
    jet = {name: get(f"Jet_{name}") for name in ("pt", "eta", "phi", "mass")}
    per_jet = np.repeat(weight, np.asarray(ak.num(jet["pt"])))
    jet = {name: np.asarray(ak.flatten(values)) for name, values in jet.items()}
    out["jet"].fill(pt=jet["pt"], eta=jet["eta"], weight=per_jet)
    out["met"].fill(met=np.asarray(get("MET_pt")), phi=np.asarray(get("MET_phi")), weight=weight)
    out["events"] = len(weight)
    out["sum of weights"] = float(weight.sum())
    ids = sum(int(np.asarray(get(name), "u8").sum()) for name in ("run", "luminosityBlock", "event"))
    out["checksum"] = ids + int(((jet["phi"] > 0) & (jet["mass"] > 8)).sum())
    return out


def vector(pt: Any, eta: Any, phi: Any, mass: Any, charge: Any = None) -> tuple[np.ndarray, ...]:
    """px, py, pz, energy."""
    pt, eta, phi, mass = (a.astype("f8") for a in (pt, eta, phi, mass))
    z = pt * np.sinh(eta)
    return pt * np.cos(phi), pt * np.sin(phi), z, np.sqrt(pt * pt + z * z + mass * mass)


class Spectra(ProcessorABC):
    """The same as a coffea processor."""

    def process(self, events: Any) -> dict[str, Any]:
        known = {name: events[name] for name in ("Muon", "Jet", "MET", "HLT")}

        def get(name: str) -> Any:
            collection, _, field = name.partition("_")
            return known[collection][field] if field else events[name]

        return physics(get)

    def postprocess(self, accumulator: Any) -> Any:
        return accumulator


class Heavy(Spectra):
    """With so many seconds of work a chunk."""

    def __init__(self, seconds: float = 0.5) -> None:
        self.seconds = seconds

    def process(self, events: Any) -> dict[str, Any]:
        end = time.thread_time() + self.seconds
        out = super().process(events)
        while time.thread_time() < end:
            pass
        return out


def add(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """The sum of two results, into the first."""
    for name, value in right.items():
        left[name] += value
    return left


def bare(paths: list[str], chunk: int, columns: tuple[str, ...] = COLUMNS) -> dict[str, Any]:
    """What anybody would write: each file opened once, the wanted branches of each chunk read, the same physics."""
    total = empty()
    for path in paths:
        with uproot.open({path: None}, object_cache=None, array_cache=None) as file:
            tree = file["Events"]
            for start, stop in ranges(tree.num_entries, chunk):
                arrays = tree.arrays(columns, entry_start=start, entry_stop=stop, how=dict)
                total = add(total, physics(arrays.__getitem__))
    return total


def ranges(entries: int, chunk: int) -> list[tuple[int, int]]:
    """As coffea cuts a file."""
    step = -(-entries // max(1, round(entries / chunk)))
    return [(start, min(start + step, entries)) for start in range(0, entries, step)]


def equal(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """To the last bit."""
    return all(
        left[name] == value
        if not hasattr(value, "values")
        else bool(np.array_equal(left[name].view(True), value.view(True)))
        for name, value in right.items()
    )
