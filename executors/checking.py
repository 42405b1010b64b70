"""``runner.py check``: whether a site can be used from here, in words or JSON; and quickly, before each run.

What is checked is in ``sites.checks``; here is what needs the engines: their packages, and a canary job.
Nothing is decided about the run.
"""

from __future__ import annotations

import json
import sys
import textwrap
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from executors.errors import SiteError
from executors.preflight import checks_of
from executors.redact import redact
from executors.where import where
from sites.checks import Check, preflight, stops

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from executors.options import Settings
    from executors.where import Where

WIDTH = 80
MARKS = {True: "✓", False: "✗", None: "-"}
PLAIN = {"✓": "+", "✗": "x", "…": "...", "→": "->"}
OURS = {"configs", "executors", "sites"}  # they travel
LIBRARIES = {"dask": ("dask", "distributed"), "parsl": ("parsl",)}


def check(
    settings: Settings,
    *,
    as_json: bool = False,
    canary: bool = False,
    width: int = WIDTH,
    run: Callable[[Settings], Check] | None = None,
) -> tuple[int, str]:
    """Exit code and text of every check of the site that the settings name: 0, or 4 if a run would fail.

    ``run`` says more of a run, where the settings say what to run.
    """
    spot = where(settings)
    packages = imported(settings)
    found = survey(spot, settings.outputdir, insecure=settings.insecure, packages=packages)
    if run is not None and settings.wf and settings.json:
        found.append(run(settings))
    if canary and not stops(found):
        from executors.canary import fly

        found += fly(settings, spot, packages)
    code = SiteError.exit_code if stops(found) else 0
    if as_json:
        return code, json.dumps(report(settings.executor, spot, found), indent=1, ensure_ascii=True)
    return code, text(settings.executor, spot, found, width)


def survey(
    spot: Where,
    folder: Path,
    *,
    quick: bool = False,
    insecure: bool = False,
    packages: tuple[str, ...] = (),
) -> list[Check]:
    """Every check of an engine at a site; the quick ones take half a second unless something hangs."""
    engine = spot.engine.name
    found = preflight(
        spot.site, engine, folder,
        quick=quick, insecure=insecure, lanes=spot.slots, packages=packages, checks=checks_of(spot),
    )  # fmt: skip
    return [*libraries(engine), *found]


def before_run(spot: Where, folder: Path, *, insecure: bool = False) -> list[Check]:
    """The warnings before a run; SiteError with the commands that mend it, if it would fail."""
    found = survey(spot, folder, quick=True, insecure=insecure)
    bad = stops(found)
    if bad:
        lines = "\n".join(one_line(each) for each in bad)
        asked = "runner.py check shows every check; --no-check goes on all the same"
        raise SiteError(f"{spot.site.name} cannot be used from here:\n{lines}\n({asked})")
    return [each for each in found if each.warns]


def one_line(each: Check) -> str:
    """A check as a message of a run."""
    return redact(f"{each.name}: {each.says}" + (f" → {each.mend}" if each.mend else ""))


def imported(settings: Settings) -> tuple[str, ...]:
    """The installed packages that the code of the workflow imports: workers need them too."""
    if not settings.wf:
        return ()
    from executors import sources
    from executors.closure import Closure

    value, closure = sources.locate(settings.wf).value, Closure()
    closure.add(getattr(value, "__module__", None) or type(value).__module__)
    return tuple(sorted(closure.libraries - OURS))


def libraries(engine: str) -> list[Check]:
    """The engine's own packages and their versions."""
    found = []
    for name in LIBRARIES.get(engine, ()):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            return [Check("engine", False, f"the engine {engine} needs {name}", f"pip install {name}")]
    return [Check("engine", True, ", ".join(found))] if found else []


def report(name: str, spot: Where, found: list[Check]) -> dict[str, Any]:
    """The same for a program."""
    return {
        "executor": name,
        "engine": spot.engine.name,
        "site": spot.site.name,
        "scheduler": spot.site.scheduler,
        "why": spot.why,
        "ok": not stops(found),
        "checks": [
            {"name": one.name, "ok": one.ok, "says": redact(one.says), "mend": redact(one.mend)}
            for one in found
        ],
    }


def text(name: str, spot: Where, found: list[Check], width: int = WIDTH) -> str:
    """The checks for a person, each below the other, and what follows from them."""
    bad, warned = len(stops(found)), sum(one.warns for one in found)
    head = f"{name}: {spot.engine.name} at {spot.site.name}" + (f" ({spot.why})" if spot.why else "")
    lines = [*textwrap.wrap(head, width), ""]
    for one in found:
        lines += _lines(one, width)
    end = f"{bad} of {len(found)} checks failed" if bad else "nothing stands in the way of a run"
    if warned:
        end += f"; {warned} {'warning' if warned == 1 else 'warnings'}"
    unverified = ", ".join(spot.site.unverified)
    notes = textwrap.wrap(f"nobody could check at the site: {unverified}", width) if unverified else []
    return _fitting(redact("\n".join([*lines, "", *notes, end])))


def _lines(one: Check, width: int) -> list[str]:
    mark = "!" if one.warns else MARKS[one.ok]
    indent = " " * 13
    said = textwrap.wrap(
        _clean(one.says), width, initial_indent=f"{mark} {one.name:<10} ", subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    if not one.mend:
        return said
    # Never broken within a word: it is to be copied.
    mend = textwrap.wrap(
        _clean(one.mend), width, initial_indent=f"{indent}→ ", subsequent_indent=f"{indent}  ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return said + mend


def _clean(said: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in said.replace("\n", " "))


def _fitting(said: str) -> str:
    """Without what the stream cannot write."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    try:
        said.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        for mark, plain in PLAIN.items():
            said = said.replace(mark, plain)
    return said
