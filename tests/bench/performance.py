"""``performance.py FIGURES DOCUMENT``: write the measured figures into the document, between its markers.

The figures are the lines of JSON that the measurements leave (``make bench``, ``make bench-peers``). Of what
was measured more than once the last run counts; what lies outside the markers is written by people.
"""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.figures import number

MARK = "<!-- {name}: {what} (made by: make bench-docs) -->"
HEAD = ("measure", "against", "must", "reach for", "measured", "spread", "verdict")
# The groups of the table, in the order of what happens in a run; what is not named here comes last.
GROUPS = {
    "planning": "Planning",
    "chunks": "The chunk",
    "overhead": "The chunk",
    "sites": "Engines and sites",
    "driver": "The driver",
    "growth": "The driver",
    "merge": "The merge",
    "startup": "Start-up",
    "sizes": "Memory",
    "memory_cost": "Memory",
}
PEERS = "compare.py"
NUMBER = re.compile(r"([\d,]*\.?\d+(?:e[-+]?\d+)?)\s*([^\d;,(]*)")


def main() -> None:
    figures, document = map(Path, sys.argv[1:])
    if not figures.exists():
        sys.exit(f"there is no {figures} yet: make bench")
    known = latest([json.loads(line) for line in figures.read_text().splitlines()])
    text = document.read_text()
    for name, made in (("targets", targets(known)), ("peers", peers(known))):
        if made:
            text = between(text, name, made)
    document.write_text(text)


def latest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each test the figures of its last run."""
    last = {row["test"]: row["run"] for row in rows}
    return [row for row in rows if row["run"] == last[row["test"]]]


def between(text: str, name: str, made: str) -> str:
    """The document with something else between two markers."""
    begin, end = (MARK.format(name=name, what=what) for what in ("begin", "end"))
    head, found, rest = text.partition(begin)
    if not found or end not in rest:
        sys.exit(f"the document has no place for it; it needs these two lines:\n{begin}\n{end}")
    return f"{head}{begin}\n\n{made}\n\n{end}{rest.partition(end)[2]}"


def targets(rows: list[dict[str, Any]]) -> str:
    """All figures of the project's own measurements, in groups."""
    groups: dict[str, list[dict[str, Any]]] = {name: [] for name in (*GROUPS.values(), "Other")}
    own = [row for row in rows if row["test"] != PEERS]
    for row in own:
        found = re.search(r"test_(\w+)\.py", row["test"])
        groups[GROUPS.get(found[1] if found else "", "Other")].append(row)
    parts = [f"### {name}\n\n{table(found)}" for name, found in groups.items() if found]
    return "\n\n".join([where(own, "make bench"), *parts]) if own else ""


def peers(rows: list[dict[str, Any]]) -> str:
    """The comparison with other programs."""
    found = [row for row in rows if row["test"] == PEERS]
    return f"{where(found, 'make bench-peers')}\n\n{table(found)}" if found else ""


def where(rows: list[dict[str, Any]], command: str) -> str:
    """Machine, versions, load, date and command."""
    full = {row["full"] for row in rows}
    said = {True: f"`{command} BENCH_FULL=1`", False: f"`{command}` (small sizes)"}
    loads = [row["load"] for row in rows]
    days = sorted({datetime.fromtimestamp(row["when"], UTC).date().isoformat() for row in rows})
    lines = [
        ("command", " and ".join(said[one] for one in sorted(full, reverse=True))),
        *((key, "; ".join(dict.fromkeys(row[key] for row in rows))) for key in ("machine", "versions")),
        ("load average", f"{min(loads):.1f} to {max(loads):.1f} while it ran, the measurements' own part included"),
        ("date", " to ".join(dict.fromkeys((days[0], days[-1])))),
    ]  # fmt: skip
    return "\n".join(f"- **{key}**: {value}" for key, value in lines)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown; a column that is empty everywhere is left out."""
    body = [cells(row) for row in rows]
    kept = [i for i in range(len(HEAD)) if any(row[i] for row in body)]
    lines = [[HEAD[i] for i in kept], ["---"] * len(kept), *([row[i] for i in kept] for row in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(row: dict[str, Any]) -> list[str]:
    """One figure."""
    must, reach = bounds(row["must"], row["reach"])
    ratio = "" if row["ratio"] is None else number(row["ratio"])
    measured = f"{ratio} ({row['value']})" if ratio and row["value"] else ratio or row["value"]
    rounds = f" ×{row['rounds']}" if row["rounds"] > 1 else ""
    said = [row["measure"], row["baseline"], must, reach, measured, f"{row['spread']}{rounds}".strip()]
    return [text.replace("|", r"\|") for text in said] + [verdict(row, must, reach)]


def bounds(must: str, reach: str) -> tuple[str, str]:
    """With their direction: of two bare numbers the harder to reach tells it, and a lone one is a most."""
    try:
        sign = "≥" if float(reach) > float(must) else "≤"
    except ValueError:
        sign = "≤"
    return directed(must, sign), directed(reach, sign)


def directed(bound: str, sign: str) -> str:
    """One of them."""
    bound = bound.replace("<=", "≤").replace(">=", "≥")
    return f"{sign} {bound}" if re.fullmatch(r"[\d.]+", bound) else bound


def verdict(row: dict[str, Any], must: str, reach: str) -> str:
    """Whether the bounds were kept, where a program can tell."""
    if (kept := holds(row, must)) is None:
        return ""
    return "**missed**" if not kept else "reached" if holds(row, reach) else "kept"


def holds(row: dict[str, Any], bound: str) -> bool | None:
    """Whether one bound was kept: by the ratio if it has no unit, else by the value in the same unit."""
    found = re.fullmatch(r"([≤≥]) ([\d.,e+-]+)\s*([^\d]*)", bound)
    if not found:
        return None
    sign, limit, unit = found[1], float(found[2].replace(",", "")), found[3].strip()
    value = row["ratio"] if not unit else in_unit(row["value"], unit)
    return None if value is None else value <= limit if sign == "≤" else value >= limit


def in_unit(text: str, unit: str) -> float | None:
    """The number at the beginning of a value, if it is of this unit."""
    found = NUMBER.match(text)
    return float(found[1].replace(",", "")) if found and found[2].strip() == unit else None


if __name__ == "__main__":
    main()
