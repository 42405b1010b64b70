"""The physics that is run side by side: jagged cuts, the mass of muon pairs, two weighted histograms."""

from __future__ import annotations

import awkward as ak
import hist
import numpy as np
from coffea.processor import ProcessorABC


class Dimuon(ProcessorABC):
    """Opposite-sign pairs of the two leading good muons of a triggered event."""

    def process(self, events):
        muons = events.Muon
        good = muons[muons.tightId & (muons.pt > 5) & (muons.pfRelIso04_all < 0.4)]
        passed = events.HLT.IsoMu24 & (ak.num(good) >= 2)
        pairs, weight = good[passed][:, :2], events.genWeight[passed]
        first, second = pairs[:, 0], pairs[:, 1]
        opposite = first.charge != second.charge
        out = {
            "events": len(events),
            "weights": float(np.sum(np.asarray(events.genWeight, "f8"))),
            "mass": hist.Hist.new.Reg(120, 0, 240, name="mass").Weight(),
            "pt": hist.Hist.new.Reg(60, 0, 300, name="pt").Weight(),
        }
        weight = weight[opposite]
        out["mass"].fill(mass=(first + second).mass[opposite], weight=weight)
        out["pt"].fill(pt=first.pt[opposite], weight=weight)
        return out

    def postprocess(self, accumulator):
        return accumulator
