"""The same physics as a PocketCoffea workflow, and its smallest configuration.

Only what a configuration must have is here: no calibrators, no variations, no corrections, the one weight.
``PEERS_DATASETS`` names the data set, in PocketCoffea's form.
"""

from __future__ import annotations

import os
import sys

import awkward as ak
import cloudpickle
from omegaconf import OmegaConf
from pocket_coffea.lib.cut_definition import Cut
from pocket_coffea.lib.hist_manager import Axis, HistConf
from pocket_coffea.lib.weights import WeightLambda
from pocket_coffea.utils.configurator import Configurator
from pocket_coffea.workflows.base import BaseProcessorABC

if __name__ in sys.modules:  # a configuration file is imported by its path; workers do not find it
    cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Dimuon(BaseProcessorABC):
    """Opposite-sign pairs of the two leading good muons of a triggered event."""

    def apply_object_preselection(self, variation):
        muons = self.events.Muon
        good = muons.tightId & (muons.pt > 5) & (muons.pfRelIso04_all < 0.4)
        self.events["MuonGood"] = muons[good]

    def count_objects(self, variation):
        self.events["nMuonGood"] = ak.num(self.events.MuonGood)

    def define_common_variables_after_presel(self, variation):
        first, second = self.events.MuonGood[:, 0], self.events.MuonGood[:, 1]
        self.events["pair_mass"] = (first + second).mass
        self.events["first_pt"] = first.pt
        self.events["opposite"] = first.charge != second.charge


def two_muons(events, params, **_):
    return events.HLT.IsoMu24 & (events.nMuonGood >= 2)


def opposite_sign(events, params, **_):
    return events.opposite


def spectrum(field, bins, stop):
    axis = Axis(coll="events", field=field, name=field, label=field, bins=bins, start=0, stop=stop)
    return HistConf([axis], variations=False)


def weight(params, metadata, events, size, shape_variations):
    return events.genWeight


cfg = Configurator(
    workflow=Dimuon,
    workflow_options={"donotscale_sumgenweights": True},
    parameters=OmegaConf.create({"jets_calibration": {}, "default_nano_version": {"2018": 9}}),
    datasets={"jsons": [os.environ["PEERS_DATASETS"]]},
    skim=[],
    preselections=[Cut(name="two_muons", params={}, function=two_muons)],
    categories={"opposite": [Cut(name="opposite_sign", params={}, function=opposite_sign)]},
    weights={"common": {"inclusive": ["genWeight"]}},
    weights_classes=[WeightLambda.wrap_func(name="genWeight", function=weight, has_variations=False)],
    calibrators=[],
    variations={"weights": {"common": {"inclusive": []}}},
    variables={"mass": spectrum("pair_mass", 120, 240), "pt": spectrum("first_pt", 60, 300)},
)
