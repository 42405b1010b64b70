"""Processors for the tests of real batch systems; loaded by path from the command line."""

from __future__ import annotations

import os
import time
from pathlib import Path

from analyses import Sum

__all__ = ["DiesOnce", "Far", "Hungry", "OneSlow", "Paced", "Sum"]


class Paced(Sum):
    """Takes half a second a chunk until a file says that it may be quick."""

    def __init__(self, gate: str, pause: float = 0.5) -> None:
        super().__init__()
        self.gate, self.slow = Path(gate), float(pause)

    def fault(self, events):
        if not self.gate.exists():
            time.sleep(self.slow)


class Hungry(Sum):
    """Wants three gigabytes for one whole chunk of a file, and nothing for half of it."""

    def fault(self, events):
        if self.at(events, "nano_0.root", 2500) and len(events) > 2000:
            eaten = os.urandom(1 << 20) * 3000
            time.sleep(20 + len(eaten) * 0)


class Far(Sum):
    """Fails where a worker sees what it must not see, or lacks the proxy that should have come along."""

    def __init__(self, unseen: str, proxy: str = "no") -> None:
        super().__init__()
        self.unseen, self.proxy = unseen.split(":"), proxy == "yes"

    def fault(self, events):
        if seen := [path for path in self.unseen if os.path.exists(path)]:
            raise RuntimeError(f"a worker sees {seen}")
        if self.proxy:
            text = Path(os.environ["X509_USER_PROXY"]).read_text()
            if text.count("BEGIN CERTIFICATE") < 2:
                raise RuntimeError("that is no proxy")


class DiesOnce(Sum):
    """Ends its worker on one chunk, once."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = Path(mark)

    def fault(self, events):
        if self.at(events, "nano_0.root", 500) and not self.mark.exists():
            self.mark.touch()
            os._exit(11)


class OneSlow(Sum):
    """Has done everything but one chunk, which waits for a file."""

    def __init__(self, gate: str) -> None:
        super().__init__()
        self.gate = Path(gate)

    def fault(self, events):
        while self.at(events, "nano_0.root", 0) and not self.gate.exists():
            time.sleep(0.1)
