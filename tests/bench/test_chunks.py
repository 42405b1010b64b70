"""What a chunk costs, beside coffea's Runner and a bare loop over uproot and numpy: the same physics and files.

All of one round run one after the other, then the next round; ratios are medians over the rounds, of times without
the start of the engine (the whole is printed beside). BENCH_CHUNKS says how many chunks (100 with BENCH_FULL),
BENCH_ENGINES which engines.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from bench import wide
from bench.figures import FULL, ROUNDS, Figure, report

HERE = Path(__file__).resolve().parent
CHUNKS = int(os.environ.get("BENCH_CHUNKS", "100" if FULL else "40"))
ENGINES = os.environ.get("BENCH_ENGINES", "iterative,futures,dask,parsl").split(",")
WORKERS = 2
PEER = "coffea Runner, same engine and workers"
WIDE_CHUNK, NARROW_CHUNK = 5_000, 50_000


def run(who: str, engine: str, chunk: int, paths: list[Path], tmp: Path) -> dict:
    workers = 1 if engine == "iterative" else WORKERS
    argv = [
        sys.executable,
        str(HERE / "chunk_run.py"),
        who,
        engine,
        str(workers),
        str(chunk),
        *map(str, paths),
    ]
    env = os.environ | {"BENCH_TMP": str(tmp), "XDG_CACHE_HOME": str(tmp)}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])  # Parsl asks for it
    done = subprocess.run(argv, capture_output=True, text=True, timeout=1200, check=False, cwd=tmp, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    return said | {"net": max(1e-3, said["seconds"] - said["start"])}


def rounds(
    engine: str, chunk: int, paths: list[Path], tmp: Path, whos: tuple[str, ...]
) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {who: [] for who in whos}
    for _ in range(ROUNDS):
        for who in whos:
            found[who].append(run(who, engine, chunk, paths, tmp))
    said = {(row["events"], row["digest"]) for rows in found.values() for row in rows}
    assert len(said) == 1, f"the results differ: {said}"
    print(f"\n{engine}: {said.pop()[0]} events, {ROUNDS} rounds")
    for who, rows in found.items():
        net, whole, cpu = ([row[key] for row in rows] for key in ("net", "seconds", "cpu"))
        print(
            f"  {who:7} {statistics.median(net):7.2f} s ({min(net):.2f}–{max(net):.2f}), "
            f"with the start {statistics.median(whole):.2f}, CPU {statistics.median(cpu):.2f}"
        )
    return found


def ratio(found: dict[str, list[dict]], over: str, under: str) -> list[float]:
    """Round by round, so that a change of the machine's mood is in both."""
    return [a["net"] / b["net"] for a, b in zip(found[over], found[under], strict=True)]


def figure(measure: str, baseline: str, value: str, ratios: list[float], must: str, reach: str) -> float:
    """Report the median of what every round gave."""
    middle = statistics.median(ratios)
    spread = f"{min(ratios):.3g}-{max(ratios):.3g}"
    report(Figure(measure, baseline, value, round(middle, 3), must, reach, len(ratios), spread))
    return middle


def seconds(found: dict[str, list[dict]], who: str) -> float:
    return statistics.median(row["net"] for row in found[who])


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("engine", ENGINES)
def test_chunks_of_a_wide_file(engine, tmp_path):
    """1,500 branches, 20 of them read, nothing declared."""
    paths = [wide.wide(1000), wide.wide(CHUNKS * WIDE_CHUNK)]
    whos = ("ours", "coffea", "bare") if engine == "iterative" else ("ours", "coffea")
    found = rounds(engine, WIDE_CHUNK, paths, tmp_path, whos)
    measure = f"{CHUNKS} chunks of a file of 1,500 branches, {engine}"
    value = f"{seconds(found, 'ours'):.2f} s"
    faster = figure(measure, PEER, value, ratio(found, "coffea", "ours"), ">= 12", ">= 25")
    assert faster >= 12
    if "bare" in found:
        pairs = zip(found["ours"], found["bare"], strict=True)
        above = [(ours["net"] - bare["net"]) / CHUNKS * 1e3 for ours, bare in pairs]
        value = f"{statistics.median(above):+.1f} ms"
        more = figure(f"{measure}, ms a chunk above it", "bare loop", value, above, "<= 15", "<= 3")
        assert more <= 15


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("engine", ENGINES)
def test_narrow_events(engine, tmp_path):
    """20 branches, all of them read."""
    files = max(1, CHUNKS // 10)
    paths = [wide.narrow(1000), *(wide.narrow(10 * NARROW_CHUNK, seed) for seed in range(1, files + 1))]
    plain = engine in {"iterative", "futures"}
    found = rounds(
        engine, NARROW_CHUNK, paths, tmp_path, ("ours", "coffea", "bare") if plain else ("ours", "coffea")
    )
    measure = f"{files / 2:g}M events of 20 branches, {engine}"
    value = f"{seconds(found, 'ours'):.2f} s"
    faster = figure(measure, PEER, value, ratio(found, "coffea", "ours"), "> 1", ">= 1.5")
    assert faster >= 1
    if plain:
        processes = "one process" if engine == "iterative" else f"{WORKERS} processes"
        slower = figure(
            measure, f"bare loop in {processes}", value, ratio(found, "ours", "bare"), "<= 1.15", "<= 1"
        )
        assert slower <= 1.15
