"""Preflight: what has to be right at a site before a run, each check with the command that mends it.

The checks follow from the profile, all at once and each within a bounded time. Nothing is changed, sent or
submitted; only in the run's own folder a file is written and removed.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from executors.errors import ExecutorsError
from sites import check_account, check_batch, check_dask, check_folders, check_here, clusters
from sites.scene import Check, Scene

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sites.profile import SiteProfile

__all__ = ["CHECKS", "Check", "Scene", "preflight", "stops"]

GRACE: Final = 3.0  # seconds beyond the patience of a single question

# In the order in which they are shown.
CHECKS: Final[Mapping[str, Callable[[Scene], list[Check]]]] = {
    "site": check_here.site_fits,
    "scheduler": check_batch.scheduler,
    "account": check_account.account,
    "cluster": clusters.check,
    "existing": check_dask.scheduler,
    "tls": check_dask.files,
    "address": check_here.address,
    "port": check_here.port,
    "credential": check_here.credential,
    "folder": check_folders.run_folder,
    "logs": check_folders.log_folder,
    "space": check_folders.space,
    "image": check_batch.image,
    "python": check_batch.python,
    "files": check_here.open_files,
    "clock": check_here.clock,
}


def preflight(
    site: SiteProfile,
    engine: str,
    folder: Path,
    *,
    quick: bool = True,
    checks: Mapping[str, Callable[[Scene], list[Check]]] = CHECKS,
    **more: Any,
) -> list[Check]:
    """Everything that can be checked of a site from here; ``more`` are further fields of a ``Scene``."""
    return survey(Scene(site=site, engine=engine, folder=folder, quick=quick, **more), checks)


def stops(checks: list[Check]) -> list[Check]:
    """Those with which a run would fail."""
    return [one for one in checks if one.ok is False]


def survey(
    scene: Scene, checks: Mapping[str, Callable[[Scene], list[Check]]] = CHECKS, limit: float | None = None
) -> list[Check]:
    """The answers of the checks, side by side: one that hangs, as on a dead file server, delays no other."""
    answers: queue.SimpleQueue[tuple[str, list[Check]]] = queue.SimpleQueue()
    end = time.monotonic() + (limit if limit is not None else scene.patience + GRACE)
    for name, check in checks.items():
        # Daemon threads: one that never comes back must not keep the program from ending.
        threading.Thread(
            target=_answer, args=(name, check, scene, answers), name=f"check-{name}", daemon=True
        ).start()
    found: dict[str, list[Check]] = {}
    while len(found) < len(checks):
        try:
            name, given = answers.get(timeout=max(end - time.monotonic(), 0.001))
        except queue.Empty:
            break
        found[name] = given
    return [one for name in checks for one in found.get(name, [_silent(name, scene)])]


def _answer(
    name: str,
    check: Callable[[Scene], list[Check]],
    scene: Scene,
    answers: queue.SimpleQueue[tuple[str, list[Check]]],
) -> None:
    try:
        given = check(scene)
    except ExecutorsError as error:
        given = [Check(name, False, error.message)]
    except Exception as error:  # noqa: BLE001 - a check that breaks says so; it must not break the others
        given = [Check(name, None, f"could not be checked: {type(error).__name__}: {error}")]
    answers.put((name, given))


def _silent(name: str, scene: Scene) -> Check:
    where = {"folder": f"ls {scene.folder}", "space": f"df {scene.folder}", "logs": f"ls {scene.logs}"}
    mend = f"look by hand: {where[name]}" if name in where else "check the network, or try again"
    return Check(name, None, "no answer in time", mend)
