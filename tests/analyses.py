"""Processors for tests, each with one fault; also loaded by path from the command line."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import awkward as ak
import hist
import numpy as np
from coffea import processor


class Sum(processor.ProcessorABC):
    """Exact sums: genWeight is a multiple of 1/64, so every order of adding gives the same bits."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause

    def process(self, events):
        self.fault(events)
        if self.pause:
            time.sleep(self.pause)
        name = events.metadata["dataset"]
        h = hist.Hist.new.StrCat([], growth=True, name="dataset").Reg(32, 0, 128, name="pt").Weight()
        pt = events.Muon.pt
        weight = ak.flatten(ak.broadcast_arrays(events.genWeight, pt)[0])
        h.fill(dataset=name, pt=ak.flatten(pt), weight=weight)
        return {name: {"events": len(events), "sumw": float(ak.sum(events.genWeight)), "pt": h}}

    def fault(self, events) -> None:
        """What goes wrong here."""

    def postprocess(self, accumulator):
        return accumulator

    @staticmethod
    def at(events, file: str, start: int | None = None) -> bool:
        """Whether these are the events of a file (and of the chunk that begins at ``start``)."""
        meta = events.metadata
        return meta["filename"].endswith(file) and start in (None, meta["entrystart"])


class Raises(Sum):
    """Raises on every event."""

    def fault(self, events):
        raise KeyError("no such correction")


class RaisesOnce(Sum):
    """Raises on one chunk, late."""

    def fault(self, events):
        if self.at(events, "tt/nano_1.root", 500):
            raise ValueError("bug on one chunk")


class OwnFile(Sum):
    """Opens a correction file that is not there: an OSError that is no bad input."""

    def fault(self, events):
        Path("/nowhere/corrections.json").read_text()


class ReturnsNone(Sum):
    def process(self, events):
        return None


class Unpicklable(Sum):
    def process(self, events):
        return {"x": (i for i in range(3))}


class Unmergeable(Sum):
    def process(self, events):
        return {"x": np.zeros(2 + events.metadata["entrystart"] // 100)}


class Exits(Sum):
    """Ends its worker on one chunk, always."""

    def fault(self, events):
        if self.at(events, "tt/nano_1.root", 500):
            os._exit(7)


class Killed(Exits):
    def fault(self, events):
        if self.at(events, "tt/nano_1.root", 500):
            os.kill(os.getpid(), signal.SIGKILL)


class Segfaults(Exits):
    def fault(self, events):
        if self.at(events, "tt/nano_1.root", 500):
            os.kill(os.getpid(), signal.SIGSEGV)


class Loops(Sum):
    """Never comes back on one chunk."""

    def fault(self, events):
        if self.at(events, "tt/nano_1.root", 500):
            while True:
                pass


class SysExit(Sum):
    def fault(self, events):
        if self.at(events, "tt/nano_1.root", 500):
            sys.exit(3)


class Prints(Sum):
    """Prints far more than anybody reads."""

    def __init__(self, megabytes: int = 100) -> None:
        super().__init__()
        self.megabytes = megabytes

    def fault(self, events):
        if self.at(events, "tt/nano_1.root", 500):
            for _ in range(self.megabytes):
                print("x" * (1 << 20))


class Mortal(Sum):
    """Its worker dies now and then, in one of five ways (a stopped one hangs), a bounded number of times in all."""

    def __init__(self, folder: str, most: int, one_in: int) -> None:
        super().__init__()
        self.folder, self.most, self.one_in = folder, most, one_in

    def fault(self, events):
        start, name = events.metadata["entrystart"], events.metadata["filename"]
        mark = Path(self.folder) / f"{Path(name).name}-{start}"
        if (start // 50) % self.one_in or len(os.listdir(self.folder)) >= self.most:
            return
        try:
            mark.open("x").close()
        except FileExistsError:
            return
        way = (start // 50 // self.one_in) % 5
        if way == 0:
            os._exit(3)
        if way == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        if way == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if way == 4 and not self.stopped():
            os.kill(os.getpid(), signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGKILL)

    def stopped(self) -> bool:
        """Whether enough workers hang: each costs seconds until it is found."""
        # Beside the folder of deaths: what is counted there must be deaths alone.
        hung = Path(f"{self.folder}-stopped")
        hung.mkdir(exist_ok=True)
        count = len(list(hung.iterdir()))
        try:
            (hung / str(count)).open("x").close()
        except FileExistsError:
            return True
        return count >= self.most // 10
