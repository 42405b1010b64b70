"""Whether two event arrays show an analysis the same: fields, values, cross-references, metadata, access log.

Used on generated files, and on coffea's own samples where they are at hand.
"""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np


def _log(events: Any) -> list[Any]:
    return list(events.attrs["@events_factory"].access_log)


def _attempt(what: Any, events: Any) -> Any:
    try:
        return what(events)
    except Exception as error:
        # Both may refuse (a collection that the file lacks), but then alike.
        return type(error).__name__, str(error).split("\n")[0]


def _pair_mass(events: Any) -> Any:
    pairs = ak.combinations(events.Muon, 2)
    return (pairs["0"] + pairs["1"]).mass


QUESTIONS: dict[str, Any] = {
    "length": len,
    "fields": lambda e: e.fields,
    "metadata": lambda e: e.metadata,
    "metadata order": lambda e: list(e.metadata),
    "class": type,
    "attrs": lambda e: sorted(e.attrs),
    "ndim": lambda e: e.ndim,
    "docs": lambda e: e.__doc__,
    "has genWeight": lambda e: ("genWeight" in e.fields, hasattr(e, "genWeight"), hasattr(e, "nothing")),
    "nothing": lambda e: e.nothing,
    "run": lambda e: e.run,
    "weights": lambda e: ak.sum(e.genWeight),
    "muon fields": lambda e: e.Muon.fields,
    "muon mass": lambda e: e.Muon.mass,
    "muon p4 sum": lambda e: ak.sum((e.Muon + e.Muon).mass, axis=1),
    "pairs": _pair_mass,
    "delta r": lambda e: e.Muon.metric_table(e.Muon),
    "nearest": lambda e: e.Muon.nearest(e.Jet).pt,
    "matched gen": lambda e: e.Muon.matched_gen.pdgId,
    "after mask": lambda e: e[ak.num(e.Muon) > 1].Muon.matched_jet.pt,
    "after jagged cut": lambda e: e.Muon[e.Muon.pt > 20].matched_gen.pt,
    "parent": lambda e: e.GenPart.parent.pdgId,
    "children": lambda e: e.GenPart.children.pdgId,
    "distinct parent": lambda e: e.GenPart.distinctParent.pdgId,
    "deep children": lambda e: e.GenPart.distinctChildrenDeep.pdgId,
    "matched muons": lambda e: e.Jet.matched_muons.pt,
    "subjets": lambda e: e.FatJet.subjets.pt,
    "constituents": lambda e: e.FatJet.constituents.pf.pt,
    "MET": lambda e: e.MET.pt,
    "trigger": lambda e: ak.sum(e.HLT[e.HLT.fields[0]]) + ak.sum(e.HLT[e.HLT.fields[-1]]),
    "trigger fields": lambda e: e.HLT.fields,
    "is itself": lambda e: e.Muon._events() is e,
    "with field": lambda e: ak.with_field(e, e.Muon.pt * 2, "twice").twice,
    "with field fields": lambda e: sorted(ak.with_field(e, e.run, "again").fields),
    "slice": lambda e: e[len(e) // 3 :].run,
    "every second": lambda e: e[::2].run,
    "one event": lambda e: e[len(e) // 2].run,
    "several": lambda e: e[["run", "event"]].event,
    "concatenate": lambda e: ak.concatenate([e.run, e.run]),
    "form": lambda e: e.layout.form,
    "type": lambda e: str(e.type),
}


def differences(lazy: Any, public: Any, values: bool = True) -> list[str]:
    """What differs between two event arrays of the same range, in the order in which it was asked."""
    found = []
    for name, question in QUESTIONS.items():
        mine, theirs = _attempt(question, lazy), _attempt(question, public)
        if not _same(mine, theirs):
            found.append(f"{name}: {mine!r} is not {theirs!r}")
        if _log(lazy) != _log(public):
            found.append(f"{name}: the access log differs")
            return found
    if values:
        found += _all_values(lazy, public)
    return found


def _same(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, ak.Array) and isinstance(theirs, ak.Array):
        return str(mine.type) == str(theirs.type) and bool(
            ak.array_equal(ak.materialize(mine), ak.materialize(theirs), equal_nan=True)
        )
    if isinstance(mine, np.generic | float) and isinstance(theirs, np.generic | float):
        return bool(np.array_equal(mine, theirs, equal_nan=True))
    return bool(mine == theirs)


def _all_values(lazy: Any, public: Any) -> list[str]:
    found = []
    for name in public.fields:
        mine, theirs = _attempt(lambda e, n=name: ak.materialize(e[n]), lazy), None
        theirs = _attempt(lambda e, n=name: ak.materialize(e[n]), public)
        if not _same(mine, theirs):
            found.append(f"values of {name}")
    return found
