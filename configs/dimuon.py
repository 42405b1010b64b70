"""The demo's workflow: the spectrum of opposite-sign muon pairs, from the omega to the Z."""

from __future__ import annotations

from typing import Any

import awkward as ak
import hist
import numpy as np
from coffea.processor import ProcessorABC


class DimuonProcessor(ProcessorABC):  # type: ignore[misc]
    """Pairs the two leading good muons of an event; counts what every cut leaves.

    Arguments: ``min_pt`` of both muons in GeV, ``max_iso`` relative, ``trigger`` the name of an HLT path.
    """

    def __init__(self, min_pt: float = 3.0, max_iso: float = 0.4, trigger: str = "DoubleMu") -> None:
        self.min_pt, self.max_iso, self.trigger = float(min_pt), float(max_iso), trigger

    def process(self, events: Any) -> dict[str, Any]:
        """One chunk: a spectrum, a cut flow and sums of weights, under the dataset's name."""
        # Simulation has weights, data has none: the usual question, which no reader may answer wrongly.
        weight = events.genWeight if "genWeight" in events.fields else ak.ones_like(events.run, dtype="f8")
        weight = np.asarray(weight, dtype="f8")
        muons = events.Muon
        good = muons[muons.tightId & (muons.pt > self.min_pt) & (muons.pfRelIso04_all < self.max_iso)]
        cuts = {
            "all": np.ones(len(events), dtype=bool),
            "trigger": np.asarray(events.HLT[self.trigger]),
            "two muons": np.asarray(ak.num(good) >= 2),
        }
        passed = np.logical_and.reduce(list(cuts.values()))
        pairs = good[passed][:, :2]
        first, second = pairs[:, 0], pairs[:, 1]
        opposite = np.asarray(first.charge != second.charge)
        mass = np.asarray((first + second).mass)
        spectrum = new_spectrum()
        for sign, chosen in (("opposite", opposite), ("same", ~opposite)):
            spectrum.fill(sign=sign, mass=mass[chosen], weight=weight[passed][chosen])
        return {
            events.metadata["dataset"]: {
                "events": len(events),
                "sum of weights": float(weight.sum()),
                "cutflow": {**_cutflow(cuts), "opposite sign": int(opposite.sum())},
                "mass": spectrum,
            }
        }

    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        """Of the merged result: the share of events that is left in the end."""
        for counts in accumulator.values():
            kept = counts["cutflow"]["opposite sign"]
            counts["efficiency"] = kept / counts["events"] if counts["events"] else 0.0
        return accumulator


def new_spectrum() -> Any:
    """An empty spectrum: bins of equal width in the logarithm of the mass."""
    return (
        hist.Hist.new.StrCat(["opposite", "same"], name="sign")
        .Reg(600, 0.3, 300.0, name="mass", label="dimuon mass [GeV]", transform=hist.axis.transform.log)
        .Weight()
    )


def _cutflow(cuts: dict[str, Any]) -> dict[str, int]:
    left = np.logical_and.accumulate(list(cuts.values()))
    return {name: int(mask.sum()) for name, mask in zip(cuts, left, strict=True)}
