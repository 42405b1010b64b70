"""The same events and the same physics through this project and through its peers, in turn: ``make bench-peers``.

Whole commands are timed, as a user waits for them: start-up, imports, planning, the work, the result on disk.
``BENCH_EVENTS``, ``BENCH_ROUNDS`` and ``BENCH_FULL`` say how much; ``BENCH_JSON`` keeps the figures.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(HERE)]

from bench import wide  # noqa: E402
from bench.figures import FULL, ROUNDS, Figure, median, ratio, report  # noqa: E402
from environments import PEERS, Absent, ready, versions  # noqa: E402

EVENTS = int(os.environ.get("BENCH_EVENTS", "5000000" if FULL else "1000000"))
A_FILE = min(EVENTS, 500_000)
ENGINES = {"iterative": 1, "futures": 2}


@dataclass(frozen=True)
class Case:
    """What is run: files of so many branches, an engine, a size of chunks."""

    branches: int
    events: int
    engine: str
    chunk: int

    def files(self) -> list[str]:
        if self.branches > 20:
            return [str(wide.wide(self.events, branches=self.branches))]
        return [str(wide.narrow(A_FILE, seed=1 + i)) for i in range(max(1, self.events // A_FILE))]

    def __str__(self) -> str:
        return f"{self.engine}, {self.branches:,} branches, {self.events:,} events, chunks of {self.chunk:,}"


CASES = [
    *(Case(20, EVENTS, engine, chunk) for engine in ENGINES for chunk in (50_000, 5_000)),
    Case(1500, A_FILE, "futures", 5_000 if FULL else 25_000),
]


@dataclass(frozen=True)
class Way:
    """One program: how it is called, and where it leaves its result."""

    name: str
    python: Path
    label: str = ""

    def command(self, data: Path, case: Case, out: Path) -> list[str]:
        engine, chunk, workers = case.engine, str(case.chunk), str(ENGINES[case.engine])
        if self.name == "ours":
            return [
                str(self.python), str(ROOT / "runner.py"), "--wf", f"{HERE / 'dimuon.py'}:Dimuon",
                "--json", str(data / "fileset.json"), "--executor", engine, "-j", workers, "--chunk", chunk,
                "--outputdir", str(out), "--cache", str(out / "cache"), "-q",
            ]  # fmt: skip
        if self.name == "coffea":
            script = [str(self.python), str(HERE / "run_coffea.py")]
            return [*script, str(data / "fileset.json"), engine, chunk, str(out / "output.coffea")]
        # The command "pocket-coffea run" imports its plots first, which need /cvmfs; this is what it runs then.
        return [
            str(self.python), "-m", "pocket_coffea.scripts.runner", "--cfg", str(HERE / "pocket_dimuon.py"),
            "-o", str(out), "-e", engine, "-s", workers, "-c", chunk, "--ignore-grid-certificate",
        ]  # fmt: skip

    def result(self, out: Path) -> Path:
        (found,) = out.glob("hist_*/hist_*.coffea" if self.name == "ours" else "*.coffea")
        return found


class Spent(NamedTuple):
    """Seconds on the wall, and of all processors."""

    wall: float
    cpu: float


def main() -> int:
    """Install, make the events, run in turn, compare the results, print the table."""
    ways = [Way("ours", Path(sys.executable)), *installed()]
    with tempfile.TemporaryDirectory(prefix="bench-peers-") as folder:
        for i, case in enumerate(CASES):
            data = Path(folder) / str(i)
            data.mkdir()
            report(*compared(ways, data, case))
    return 0


def installed() -> list[Way]:
    """The peers that could be installed; the others are told of, with what went wrong."""
    known = ("coffea", "uproot", "awkward", "numpy")
    print(f"ours: {versions(Path(sys.executable), known)}")
    ways = []
    for peer in PEERS:
        try:
            found = ready(peer)
            print(f"{peer.name}: {found}", flush=True)
            ways.append(Way(peer.name, peer.python, found.partition(",")[0]))
        except Absent as error:
            print(f"{peer.name} could not be installed here:\n{error}", file=sys.stderr)
    return ways


def compared(ways: list[Way], data: Path, case: Case) -> list[Figure]:
    """Every way in turn, in every round; the results must agree."""
    make(data, case)
    spent: dict[str, list[Spent]] = {way.name: [] for way in ways}
    for turn in range(max(3, ROUNDS)):
        results = {}
        first = turn % len(ways)  # each goes first in turn: what the one before left warm is shared fairly
        for way in ways[first:] + ways[:first]:
            out = data / f"{way.name}-{turn}"
            out.mkdir()
            spent[way.name].append(timed(way.command(data, case, out), data))
            results[way.name] = json.loads(
                call([str(way.python), str(HERE / "bins.py"), str(way.result(out))], data)
            )
        for name, result in results.items():
            agree(case, results["ours"], result, name)
    return [line(case, way.label, spent[way.name], spent["ours"]) for way in ways if way.name != "ours"]


def make(data: Path, case: Case) -> None:
    """The data set in both forms."""
    files = case.files()
    (data / "fileset.json").write_text(json.dumps({"made": {"files": dict.fromkeys(files, "Events")}}))
    facts = {"sample": "made", "year": "2018", "isMC": "True", "xsec": "1", "nevents": str(case.events)}
    (data / "pocket.json").write_text(json.dumps({"made": {"metadata": facts, "files": files}}))


def line(case: Case, name: str, theirs: list[Spent], ours: list[Spent]) -> Figure:
    """How many times longer a peer took."""
    found, spread = ratio([(t.wall, o.wall) for t, o in zip(theirs, ours, strict=True)], 0, 1)
    return Figure(str(case), f"{name}: {said(theirs)}", said(ours), found, "", "", len(ours), spread)


def said(rows: list[Spent]) -> str:
    """The medians, as words."""
    return f"{median(rows, 0):.1f} s, of CPU {median(rows, 1):.1f} s"


def agree(case: Case, ours: dict, theirs: dict, name: str) -> None:
    """The same events and weights; an event at the edge of a bin may fall to either side of it."""
    # PocketCoffea adds the sums of weights of its chunks in single precision.
    off = 1e-5 if name == "pocket-coffea" else 0
    if not ours["events"] == theirs["events"] == case.events:
        raise SystemExit(f"{case}: {name} counted {theirs['events']:,} events, and ours {ours['events']:,}")
    if abs(ours["weights"] - theirs["weights"]) > off * ours["weights"]:
        raise SystemExit(f"{case}: {name} has weights of {theirs['weights']}, and ours {ours['weights']}")
    for variable in ("mass", "pt"):
        whole, others = sum(ours[variable]), sum(theirs[variable])
        moved = sum(abs(a - b) for a, b in zip(ours[variable], theirs[variable], strict=True))
        if not whole or abs(whole - others) > 1e-6 or moved > 1e-4 * whole:
            raise SystemExit(
                f"{case}: {name} filled other bins of {variable}: {moved} of {whole} moved, {others}"
            )


def timed(argv: list[str], data: Path) -> Spent:
    """What a command costs, its workers included."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    call(argv, data)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Spent(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def call(argv: list[str], data: Path) -> str:
    env = {**os.environ, "PEERS_DATASETS": str(data / "pocket.json"), "PYTHONWARNINGS": "ignore"}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(argv, cwd=data, env=env, capture_output=True, text=True, timeout=3600, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise SystemExit(f"exit code {done.returncode} of {' '.join(argv)}:\n{said}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
