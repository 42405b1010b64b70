"""Made data and a small analysis over it, for trying a site: the same whole path as a real one.

The files are given along with the processor, so that workers without the runner's file system find them too.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import awkward as ak
import hist
import numpy as np
import uproot
from coffea.processor import ProcessorABC

if TYPE_CHECKING:
    from collections.abc import Mapping

FILES = 4
CHUNKS = 25  # of each file
EVENTS = 400  # of each chunk


def make_files(folder: Path) -> dict[str, Any]:
    """Write the files below a folder; the fileset of them."""
    paths = {}
    for number in range(FILES):
        rng = np.random.default_rng(number)
        path = folder / f"made-{number}.root"
        counts = rng.poisson(2.0, CHUNKS * EVENTS)
        values = ak.unflatten(rng.exponential(25.0, int(counts.sum())), counts)
        with uproot.recreate(path) as file:
            file.mktree("Events", {"pt": "var * float64", "weight": "float64"})
            file["Events"].extend({"pt": values, "weight": rng.normal(1.0, 0.1, len(counts))})
        paths[str(path)] = "Events"
    return {"made": {"files": paths}}


class MadeProcessor(ProcessorABC):  # type: ignore[misc]
    """A weighted spectrum and sums whose last bits show in which order they were added."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name, data in self.files.items():
            _lay_down(Path(name), data)

    def process(self, events: Any) -> dict[str, Any]:
        """One chunk."""
        spectrum = hist.Hist.new.Reg(50, 0, 200, name="pt").Weight()
        weight = np.asarray(events.weight)
        spectrum.fill(pt=ak.flatten(events.pt), weight=np.repeat(weight, ak.num(events.pt)))
        return {"events": len(events), "sum": float(weight.sum()), "pt": spectrum}

    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        """Nothing."""
        return accumulator


def _lay_down(path: Path, data: bytes) -> None:
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.{os.getpid()}")
    half.write_bytes(data)
    with contextlib.suppress(FileExistsError):
        half.rename(path)
