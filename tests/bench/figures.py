"""What the measurements share: rounds in turn, a table for people, a line of JSON for each figure."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import machine

FULL = os.environ.get("BENCH_FULL", "") not in ("", "0")
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5" if FULL else "3"))
RUN = f"{time.time():.3f}-{os.getpid()}"  # what is measured again in another run takes the place of the old figures


@dataclass(frozen=True)
class Figure:
    """One line of the table: a value, what it is compared with, and what it should be."""

    measure: str
    baseline: str
    value: str
    ratio: float | None
    must: str
    reach: str
    rounds: int = 1
    spread: str = ""


def report(*figures: Figure) -> None:
    """Print a table, and add the figures to the file that ``BENCH_JSON`` names."""
    rows = [(f.measure, f.value, "" if f.ratio is None else number(f.ratio), f.spread, f.must, f.reach, f.baseline)
            for f in figures]  # fmt: skip
    head = ("measure", "value", "ratio", "spread", "must", "reach", "against")
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    print()
    for row in (head, *rows):
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    if name := os.environ.get("BENCH_JSON"):
        with Path(name).open("a") as out:
            out.writelines(json.dumps({**asdict(figure), **origin()}) + "\n" for figure in figures)


def origin() -> dict[str, object]:
    """Which test, run and machine a figure is from."""
    test = os.environ.get("PYTEST_CURRENT_TEST", Path(sys.argv[0]).name).removesuffix(" (call)")
    load = os.getloadavg()[0]
    return {"test": test, "run": RUN, "full": FULL, "when": time.time(), "load": load, **machine.facts()}


def seconds(call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def in_turn(rounds: int, *calls) -> list[list[float]]:
    """Seconds of each call, in each of the rounds: one after the other, so that all see the same machine."""
    return [[seconds(call) for call in calls] for _ in range(rounds)]


def ratio(rows, over: int, under: int) -> tuple[float, str]:
    """The median of the ratios of each round, and the least and the greatest of them."""
    found = [row[over] / row[under] for row in rows]
    return statistics.median(found), f"{number(min(found))}-{number(max(found))}"


def median(rows, column: int) -> float:
    return statistics.median(row[column] for row in rows)


def number(value: float) -> str:
    """Three figures, never as a power of ten."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
