"""A processor whose use of memory is known: what it takes, it touches; also loaded by path from the command line.

``--wf tests/greedy.py:make --wf-arg per_event=1000 --wf-arg 'spike={"*%5000": 20000}'``
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
from analyses import Sum

PAGE = 4096
EATER = (
    "import os,sys,time; held=bytearray(int(sys.argv[1])); held[::4096]=b'x'*len(held[::4096]); "
    "print('full',flush=True); sys.stdin.read()"
)


def filled(size: int) -> np.ndarray:
    """So many bytes, every page of them really there."""
    held = np.empty(max(0, int(size)), "u1")
    held[::PAGE] = 1
    return held


class Greedy(Sum):
    """Takes ``fixed + per_event * events`` bytes for a chunk, and ``seconds`` of time.

    ``spike``: more bytes an event for a chunk with a certain entry: ``{"nano_0.root@2500": 9000}``; ``%2500``
    is every 2500th entry, ``*`` any file. ``leak``: bytes that a chunk leaves behind in the process.
    ``children``: taken by a process of the task's own. ``once``: a folder; a spike comes once, not again.
    """

    def __init__(self, per_event=0, fixed=0, spike=None, leak=0, children=False, seconds=0, once=""):
        super().__init__()
        self.per_event, self.fixed, self.spike = float(per_event), int(fixed), dict(spike or {})
        self.leak, self.children, self.seconds, self.once = (
            int(leak),
            bool(children),
            float(seconds),
            str(once),
        )

    def size(self, events) -> int:
        """Bytes that these events take."""
        per_event = self.per_event + sum(
            more for where, more in self.spike.items() if self.within(events.metadata, where)
        )
        return int(self.fixed + per_event * len(events))

    def within(self, about, where: str) -> bool:
        """Whether a chunk holds the entry (of a file) that a spike names."""
        start, stop = about["entrystart"], about["entrystop"]
        name, every, entry = where.partition("%")
        if not every:
            name, _, entry = where.partition("@")
        if name != "*" and not about["filename"].endswith(name):
            return False
        # The first entry of its kind at or after the beginning.
        first = int(entry) if not every else -(-start // int(entry)) * int(entry)
        return start <= first < stop and self.first_time(f"{os.path.basename(about['filename'])}-{first}")

    def first_time(self, mark: str) -> bool:
        """Whether a spike is still to come, where it comes once."""
        if not self.once:
            return True
        try:
            open(os.path.join(self.once, mark), "x").close()
        except FileExistsError:
            return False
        return True

    def fault(self, events):
        size = self.size(events)
        if self.leak:
            # Not in this module, which may be imported anew for each task.
            sys.__dict__.setdefault("_greedy_leaked", []).append(filled(self.leak))
        if self.children:
            self.by_a_child(size)
        else:
            held = filled(size)
            time.sleep(self.seconds)
            del held

    def by_a_child(self, size: int) -> None:
        """The same in a process of the task's own."""
        command = [sys.executable, "-S", "-E", "-c", EATER, str(size)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            child.stdout.readline()
            time.sleep(self.seconds)
            child.stdin.close()


def make(
    per_event: float = 0,
    fixed: int = 0,
    spike: dict | None = None,
    leak: int = 0,
    children: bool = False,
    seconds: float = 0,
    once: str = "",
):
    """The processor, as the command line makes it."""
    return Greedy(per_event, fixed, spike, leak, children, seconds, once)
