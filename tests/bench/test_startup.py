"""How soon the command answers, against Python itself; and how soon the first event is reached.

Whole processes, as a shell sees them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bench.figures import FULL, ROUNDS, Figure, median, ratio, report
from bench.timed import first_event

from executors.coffea import made

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RUNNER = str(ROOT / "runner.py")
TURNS = 15 if FULL else 7  # they take a twentieth of a second each


def took(argv: list[str], code: int) -> float:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, timeout=60, check=False)
    ended = time.perf_counter()
    assert done.returncode == code, done.stderr[-2000:]
    return ended - began


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run's directory."""
    folder = tmp_path_factory.mktemp("finished")
    run(folder, "iterative", "first")
    return next(path for path in (folder / "first").iterdir() if path.name.startswith("hist_"))


def run(folder: Path, executor: str, name: str) -> tuple[float, float]:
    """Seconds to the first event, and to the end, of four small files."""
    if not (folder / "fileset.json").exists():
        (folder / "fileset.json").write_text(json.dumps({"made": made.make_files(folder)["made"]}))
    mark = folder / f"mark-{name}"
    argv = [
        sys.executable, RUNNER, "--wf", f"{HERE / 'timed.py'}:Timed", "--wf-arg", f"mark={mark}",
        "--json", str(folder / "fileset.json"), "--executor", executor, "-j", "2", "--schema", "BaseSchema",
        "--chunk", str(made.EVENTS), "--outputdir", str(folder / name), "--cache", str(folder / name), "-q",
    ]  # fmt: skip
    # Parsl looks for its own programs.
    env = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    began = time.time()
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=200, check=False)
    ended = time.time()
    assert done.returncode == 0, done.stderr[-3000:]
    return first_event(mark, began), ended - began


@pytest.mark.timeout(600)
def test_the_command_answers(finished, tmp_path):
    """``--help``, a usage error, ``status`` and ``sites`` against a Python that does nothing."""
    asked = [
        ("runner.py --help", [RUNNER, "--help"], 0, "8", "4"),
        ("a usage error", [RUNNER, "--nonsense"], 2, "8", "4"),
        ("runner.py --show-config", [RUNNER, "--wf", "x", "--json", "y", "--show-config"], 0, "", ""),
        ("runner.py status", [RUNNER, "status", str(finished)], 0, "", ""),
        ("runner.py sites", [RUNNER, "sites"], 0, "", ""),
    ]
    rows = [
        [took(["-c", "pass"], 0), *(took(argv, code) for _, argv, code, _, _ in asked)] for _ in range(TURNS)
    ]
    figures = []
    for column, (name, _, _, must, reach) in enumerate(asked, 1):
        found, spread = ratio(rows, column, 0)
        bare = f"python -c pass, {1e3 * median(rows, 0):.0f} ms"
        said = f"{1e3 * median(rows, column):.0f} ms"
        figures.append(Figure(name, bare, said, found, must, reach, TURNS, spread))
    report(*figures)
    for figure in figures:
        assert figure.must == "" or figure.ratio <= float(figure.must), figure


@pytest.mark.timeout(1200)
def test_the_first_event(tmp_path):
    """From the command to the first event of four small files, on every engine of this machine."""
    engines = ["iterative", "futures", "dask/local", "parsl/local"]
    rows = []
    for turn in range(ROUNDS):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import coffea.processor"], timeout=60, check=True)
        imports = time.perf_counter() - begun
        firsts = [run(tmp_path, engine, f"{engine.partition('/')[0]}{turn}")[0] for engine in engines]
        rows.append([imports, *firsts])
    figures = []
    for column, engine in enumerate(engines, 1):
        found, spread = ratio(rows, column, 0)
        bare = f"python -c 'import coffea.processor', {median(rows, 0):.2f} s"
        said = f"{median(rows, column):.2f} s"
        figures.append(Figure(f"first event, {engine}", bare, said, found, "", "", ROUNDS, spread))
    report(*figures)
