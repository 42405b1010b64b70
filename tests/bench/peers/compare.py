"""The same events and the same physics through this project and through its peers, in turn: ``make bench-peers``.

Whole commands are timed, as a user waits for them: start-up, imports, planning, the work, the result on disk.
``BENCH_EVENTS``, ``BENCH_ROUNDS`` and ``BENCH_FULL`` say how much; ``BENCH_JSON`` keeps the figures.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(HERE)]

from bench import wide  # noqa: E402
from bench.figures import FULL, ROUNDS, Figure, report  # noqa: E402
from environments import PEERS, Absent, ready, versions  # noqa: E402

EVENTS = int(os.environ.get("BENCH_EVENTS", "5000000" if FULL else "1000000"))
A_FILE = min(EVENTS, 500_000)
CHUNKS = (50_000, 5_000)
ENGINES = {"iterative": 1, "futures": 2}


@dataclass(frozen=True)
class Way:
    """One program: how it is called, and where it leaves its result."""

    name: str
    python: Path

    def command(self, data: Path, engine: str, chunk: int, out: Path) -> list[str]:
        workers = str(ENGINES[engine])
        if self.name == "ours":
            return [
                str(self.python), str(ROOT / "runner.py"), "--wf", f"{HERE / 'dimuon.py'}:Dimuon",
                "--json", str(data / "fileset.json"), "--executor", engine, "-j", workers, "--chunk", str(chunk),
                "--outputdir", str(out), "--cache", str(out / "cache"), "-q",
            ]  # fmt: skip
        if self.name == "coffea":
            script = [str(self.python), str(HERE / "run_coffea.py")]
            return [*script, str(data / "fileset.json"), engine, str(chunk), str(out / "output.coffea")]
        # The command "pocket-coffea run" imports its plots first, which need /cvmfs; this is what it runs then.
        return [
            str(self.python), "-m", "pocket_coffea.scripts.runner", "--cfg", str(HERE / "pocket_dimuon.py"),
            "-o", str(out), "-e", engine, "-s", workers, "-c", str(chunk), "--ignore-grid-certificate",
        ]  # fmt: skip

    def result(self, out: Path) -> Path:
        (found,) = out.glob("hist_*/hist_*.coffea" if self.name == "ours" else "*.coffea")
        return found


def main() -> int:
    """Install, make the events, run in turn, compare the results, print the table."""
    ways = [Way("ours", Path(sys.executable)), *installed()]
    with tempfile.TemporaryDirectory(prefix="bench-peers-") as folder:
        data = Path(folder)
        make(data)
        figures = [
            figure
            for engine in ENGINES
            for chunk in CHUNKS
            for figure in compared(ways, data, engine, chunk)
        ]
    report(*figures)
    return 0


def installed() -> list[Way]:
    """The peers that could be installed; the others are told of, with what went wrong."""
    known = ("coffea", "uproot", "awkward", "numpy")
    print(f"ours: {versions(Path(sys.executable), known)}")
    ways = []
    for peer in PEERS:
        try:
            print(f"{peer.name}: {ready(peer)}", flush=True)
            ways.append(Way(peer.name, peer.python))
        except Absent as error:
            print(f"{peer.name} could not be installed here:\n{error}", file=sys.stderr)
    return ways


def make(data: Path) -> None:
    """The events, in both forms of a data set."""
    files = [str(wide.narrow(A_FILE, seed=1 + i)) for i in range(max(1, EVENTS // A_FILE))]
    (data / "fileset.json").write_text(json.dumps({"made": {"files": dict.fromkeys(files, "Events")}}))
    facts = {"sample": "made", "year": "2018", "isMC": "True", "xsec": "1", "nevents": str(EVENTS)}
    (data / "pocket.json").write_text(json.dumps({"made": {"metadata": facts, "files": files}}))


def compared(ways: list[Way], data: Path, engine: str, chunk: int) -> list[Figure]:
    """One engine and size of chunks: every way in turn, in every round; the results must agree."""
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    for turn in range(max(3, ROUNDS)):
        results = {}
        for way in ways:
            out = data / f"{way.name}-{engine}-{chunk}-{turn}"
            out.mkdir()
            seconds[way.name].append(timed(way.command(data, engine, chunk, out), data))
            results[way.name] = json.loads(call([str(way.python), str(HERE / "bins.py"), str(way.result(out))], data))
        for name, result in results.items():
            agree(results["ours"], result, name)
    return [line(name, engine, chunk, seconds) for name in seconds if name != "ours"]


def line(name: str, engine: str, chunk: int, seconds: dict[str, list[float]]) -> Figure:
    """How many times longer a peer took."""
    ratios = [theirs / ours for theirs, ours in zip(seconds[name], seconds["ours"], strict=True)]
    return Figure(
        f"{engine}, chunks of {chunk:,}, {EVENTS:,} events", f"{name} {statistics.median(seconds[name]):.1f} s",
        f"{statistics.median(seconds['ours']):.1f} s", statistics.median(ratios), "", "", len(ratios),
        f"{min(ratios):.3g}-{max(ratios):.3g}",
    )  # fmt: skip


def agree(ours: dict, theirs: dict, name: str) -> None:
    """The same events and weights, exactly; an event at the edge of a bin may fall to either side of it."""
    if (ours["events"], ours["weights"]) != (theirs["events"], theirs["weights"]) or ours["events"] != EVENTS:
        raise SystemExit(f"{name} counted other events: {theirs['events']:,}, and ours {ours['events']:,}")
    for variable in ("mass", "pt"):
        moved = sum(abs(a - b) for a, b in zip(ours[variable], theirs[variable], strict=True))
        if moved > 1e-4 * sum(ours[variable]) or abs(sum(ours[variable]) - sum(theirs[variable])) > 1e-6:
            raise SystemExit(f"{name} filled other bins of {variable}: {moved} of {sum(ours[variable])}")


def timed(argv: list[str], data: Path) -> float:
    began = time.perf_counter()
    call(argv, data)
    return time.perf_counter() - began


def call(argv: list[str], data: Path) -> str:
    env = {**os.environ, "PEERS_DATASETS": str(data / "pocket.json"), "PYTHONWARNINGS": "ignore"}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(argv, cwd=data, env=env, capture_output=True, text=True, timeout=3600, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv[:4])} failed:\n{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
