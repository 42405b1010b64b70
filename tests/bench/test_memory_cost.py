"""What measuring memory costs a chunk: always on, so less than one part in a hundred of a chunk of one second."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from bench.figures import FULL, Figure, report

ROOT = Path(__file__).resolve().parents[2]
TURNS = 9 if FULL else 5

SCRIPT = f"""
import json, subprocess, sys, time
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from executors.work.memory import meter

def lap():
    with meter().span("made", 1):
        pass

def empty(n=2000):
    began = time.perf_counter()
    for _ in range(n):
        lap()
    return (time.perf_counter() - began) / n

def idle(seconds=1.0, child=False):
    "CPU seconds of a chunk that does nothing for so long."
    argv = [sys.executable, "-I", "-S", "-c", f"import time; time.sleep({{seconds + 0.5}})"]
    running = subprocess.Popen(argv) if child else None
    time.sleep(0.2)
    began = time.process_time()
    with meter().span("made", 1):
        time.sleep(seconds)
    spent = time.process_time() - began
    if running is not None:
        running.wait()
    return spent / seconds

def numpy_chunk():
    "Many arrays of all sizes, most of them let go, as a processor's: 0.3 s."
    kept = []
    for turn in range(30):
        arrays = [np.full(size, 1.5) for size in (6_000, 60_000, 600_000, 250_000)]
        total = sum(float(np.sqrt(a * 2 + 1).sum()) for a in arrays)
        kept.append(arrays[0][:1000].copy())
    return total

def python_chunk():
    "No array at all: whoever else wants the interpreter has to wait for it."
    return sum(i * i % 7 for i in range(4_000_000))

def cpu(work, measured):
    began = time.process_time()
    if measured:
        with meter().span(work.__name__, 1):
            work()
    else:
        work()
    return time.process_time() - began

found = {{"empty": [], "idle": [], "child": [], "numpy": [], "python": []}}
for work in (numpy_chunk, python_chunk, lap):
    work()
for turn in range(int(sys.argv[1])):
    found["empty"].append(empty())
    found["idle"].append(idle())
    found["child"].append(idle(child=True))
    for name, work in (("numpy", numpy_chunk), ("python", python_chunk)):
        order = (True, False) if turn % 2 else (False, True)
        spent = {{measured: [] for measured in order}}
        for _ in range(3):
            for measured in order:
                spent[measured].append(cpu(work, measured))
        found[name].append(min(spent[True]) / min(spent[False]))
print(json.dumps(found))
"""


@pytest.mark.timeout(600)
def test_what_measuring_costs():
    """A chunk's own share, the share of looking for children, and whole chunks with and without."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(TURNS)], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    middle = {name: statistics.median(values) for name, values in found.items()}

    def figure(name, measure, text, baseline, ratio):
        spread = f"{min(found[name]):.3g}-{max(found[name]):.3g}"
        return Figure(measure, baseline, text, ratio, "1.01", "1.002", TURNS, spread)

    second = "a chunk of 1 s"
    report(
        figure("empty", "memory, each chunk", f"{middle['empty'] * 1e6:.0f} us", second, 1 + middle["empty"]),
        figure("idle", "memory, looking for children", f"{middle['idle']:.2%}", second, 1 + middle["idle"]),
        figure("child", "memory, looking at a child", f"{middle['child']:.2%}", second, 1 + middle["child"]),
        figure("numpy", "memory, chunks of arrays (CPU)", "", "not measured", middle["numpy"]),
        figure("python", "memory, chunks of loops (CPU)", "", "not measured", middle["python"]),
    )
    assert middle["empty"] + middle["idle"] < 0.01
