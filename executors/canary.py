"""One job that says what a worker sees: Python and packages, the run's folder, a credential, scratch.

``look`` runs on the worker, alone and without coffea; the rest compares what it says with this side.
"""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import sys
import tempfile
import time
from concurrent.futures import TimeoutError as LateError
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.engines.base import Resources
from executors.errors import ExecutorsError
from sites.credentials import check as check_credential
from sites.scene import Check

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from executors.options import Settings
    from executors.where import Where
    from sites.profile import SiteProfile

PACKAGES = ("coffea", "uproot", "awkward", "hist", "numpy")
LONGEST = 3600.0  # seconds that a canary is waited for, whatever the site's own limit says
AGAIN = "mend what that names, and fly again: runner.py check --canary, with the same options"
LITTLE = 1_000_000_000  # bytes free on the worker's disk: less is warned of


def fly(settings: Settings, spot: Where, packages: Sequence[str] = ()) -> list[Check]:
    """Open the engine with one job of one worker, ask it what it sees, and judge the answer.

    ``packages`` are wanted there besides those that every run needs.
    """
    wanted = tuple(dict.fromkeys((*PACKAGES, *packages)))
    heard: list[str] = []
    wait = min(spot.site.limits.start, LONGEST)
    begun = time.monotonic()
    try:
        with _folder_for(settings.outputdir) as name:
            folder = Path(name).resolve()
            mark = secrets.token_hex(8)
            (folder / "mark").write_text(mark)
            want = _want(settings, spot, folder if spot.shared else None, heard)
            with spot.engine.open(spot.site, want) as pool:
                future = pool.submit(look, str(folder), mark, wanted, spot.site)
                seen = future.result(timeout=wait)
            answered = (folder / "answer").exists()
    except LateError:
        said = f"no worker came within {wait:.0f} s" + (f": {heard[-1]}" if heard else "")
        return [Check("canary", False, said, "look at the queue, or wait longer: --start-timeout 2h")]
    except ExecutorsError as error:
        return [Check("canary", False, error.message, AGAIN)]
    except (OSError, ImportError) as error:
        return [Check("canary", False, f"the canary failed: {type(error).__name__}: {error}", AGAIN)]
    took = time.monotonic() - begun
    return [
        Check("canary", True, f"a job answered from {seen['host']} after {took:.0f} s"),
        *judge(seen, spot, answered),
    ]


def look(folder: str, mark: str, packages: Sequence[str], site: SiteProfile) -> dict[str, Any]:
    """On the worker: what there is. Nothing is left behind but an answer in the run's folder."""
    place = Path(folder)
    shared = False
    with suppress(OSError):
        shared = (place / "mark").read_text() == mark
        if shared:
            (place / "answer").write_text(mark)
    scratch = Path(os.path.expandvars(site.job.scratch)) if site.job.scratch else Path(tempfile.gettempdir())
    free = None
    with suppress(OSError):
        free = shutil.disk_usage(scratch).free
    found = check_credential(site.proxy.kind, site) if site.proxy.kind else None
    return {
        "host": platform.node(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: _version(name) for name in packages},
        "shared": shared,
        "scratch": str(scratch),
        "free": free,
        "clock": time.time(),
        "credential": None if found is None else (found.ok, found.says),
    }


def judge(seen: dict[str, Any], spot: Where, answered: bool) -> list[Check]:
    """What a worker said, against what is here and what the profile says."""
    return [_python(seen), *_packages(seen), _folder(seen, spot, answered), *_beside(seen, spot)]


@contextmanager
def _folder_for(base: Path) -> Iterator[str]:
    """A folder for the canary where the run's would be; what had to be made for it goes again."""
    made = [one for one in (base, *base.parents) if not one.exists()]
    base.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="canary-", dir=base, ignore_cleanup_errors=True) as name:
            yield name
    finally:
        with suppress(OSError):
            for one in made:
                one.rmdir()


def _want(settings: Settings, spot: Where, scratch: Path | None, heard: list[str]) -> Resources:
    def tell(level: str, text: str) -> None:
        if level != "debug":
            heard.append(text)

    want = Resources(workers=1, memory=spot.worker_memory(1), tell=tell, insecure=settings.insecure)
    return want if spot.local else replace(want, scratch=scratch)


def _version(name: str) -> str:
    """The version of a package that can be imported; else what stands in its way."""
    try:
        import_module(name)
        return version(name)
    except PackageNotFoundError:
        return "unknown"
    except Exception as error:  # noqa: BLE001 - a worker's edge: a broken package may raise anything
        return f"! {type(error).__name__}: {error}"[:200]


def _python(seen: dict[str, Any]) -> Check:
    here, there = platform.python_version_tuple()[:2], tuple(seen["python"].split(".")[:2])
    says = f"workers run {seen['executable']}, Python {seen['python']}"
    if here == there:
        return Check("python", True, says)
    mend = "--worker-python PATH, of the same version as here"
    return Check("python", False, f"{says}; here it is {platform.python_version()}", mend)


def _packages(seen: dict[str, Any]) -> list[Check]:
    there: dict[str, str] = seen["packages"]
    broken = {name: what for name, what in there.items() if what.startswith("!")}
    if broken:
        said = "; ".join(f"{name} cannot be imported ({what[2:]})" for name, what in broken.items())
        mend = f"{seen['executable']} -m pip install {' '.join(broken)}, on a node or in the image"
        return [Check("packages", False, said, mend)]
    differ = []
    for name, what in there.items():
        with suppress(PackageNotFoundError):
            if version(name) != what:
                differ.append(f"{name} {what} there, {version(name)} here")
    if differ:
        return [
            Check("packages", None, "; ".join(differ), "use the same environment on both sides: --ship-env")
        ]
    # Some are installed under another name than they are imported by: their version is not looked for.
    shown = (name if what == "unknown" else f"{name} {what}" for name, what in there.items())
    return [Check("packages", True, ", ".join(shown))]


def _folder(seen: dict[str, Any], spot: Where, answered: bool) -> Check:
    if not spot.shared:
        return Check("store", True, "results travel back with the answers")
    if seen["shared"] and answered:
        return Check("store", True, "workers see the run's folder, and write to it")
    what = "write to" if seen["shared"] else "see"
    mend = "--outputdir, on a file system that workers see (df -T), or --shared-store no"
    return Check("store", False, f"workers do not {what} the run's folder", mend)


def _beside(seen: dict[str, Any], spot: Where) -> list[Check]:
    found = []
    free, scratch = seen["free"], seen["scratch"]
    if free is None:
        found.append(
            Check("scratch", None, f"workers have no folder {scratch}", "look at job.scratch of the site")
        )
    else:
        mend = "ask for more: --disk 5GB" if free < LITTLE else ""
        found.append(
            Check("scratch", None if mend else True, f"{free / 1e9:,.1f} GB free in {scratch}", mend)
        )
    if seen["credential"] is not None:
        ok, says = seen["credential"]
        kind = f"on the worker: {says}"
        required = spot.site.proxy.required
        mend = "make it where workers see it: runner.py sites " + spot.site.name if ok is False else ""
        found.append(Check("credential", ok if ok is not False or required else None, kind, mend))
    return found
