"""Dask cluster classes that sites offer: which one a profile means, and whether its package is here.

Nothing is imported to find out: a package that submits jobs may ask its batch system as soon as it is.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from executors.errors import UsageError
from sites.scene import Check

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sites.profile import SiteProfile
    from sites.scene import Scene

KEY: Final = "dask.cluster"
CLASS: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
OFFERED: Final = "site"  # the value of that key which means the site's own
# Where the packages come from that are no more than a pip install away from their names.
PACKAGES: Final[Mapping[str, str]] = {
    "dask_jobqueue": "dask-jobqueue",
    "dask_lxplus": "dask-lxplus",
    "lpcjobqueue": "git+https://github.com/CoffeaTeam/lpcjobqueue.git",
}
# What a package imports besides, and what that comes with: HTCondor's newest wheels have ``htcondor2`` alone.
BESIDE: Final[Mapping[str, Mapping[str, str]]] = {"lpcjobqueue": {"htcondor": '"htcondor<25"'}}


def checked(name: str) -> str:
    """The name of a class as it may be imported; else UsageError."""
    if not CLASS.fullmatch(name):
        raise UsageError(f"{KEY} cannot be {name[:80]!r}: module:Class, as dask_jobqueue:SLURMCluster")
    return name


def package(name: str) -> str:
    """What to give to pip for a ``module:Class``."""
    module = name.partition(":")[0].partition(".")[0]
    return PACKAGES.get(module, module)


def lacks(name: str) -> tuple[str, str]:
    """What is missing for a ``module:Class`` to be used, and the command that brings it; else nothing."""
    module = checked(name).partition(":")[0].partition(".")[0]
    if not _there(module):
        return f"{module} is not installed", f"pip install {package(name)}"
    for other, wanted in BESIDE.get(module, {}).items():
        if not _there(other):
            return f"{module} needs the module {other}, which is not here", f"pip install {wanted}"
    return "", ""


def settled(site: SiteProfile) -> tuple[SiteProfile, str]:
    """The site with a class that can be imported in place of ``site``, or none and why not."""
    if site.dask.cluster != OFFERED:
        return site, ""
    offer = site.dask.offers
    if offer is None:
        raise UsageError(f"{KEY}: the site {site.name!r} offers no cluster class; name one: module:Class")
    why, mend = lacks(offer)
    said = f"{offer} is not used: {why} ({mend}); this program's own jobs do the same" if why else ""
    return replace(site, dask=replace(site.dask, cluster=None if why else offer)), said


def check(scene: Scene) -> list[Check]:
    """Whether the class that is to submit can; where none was chosen, that the site's own could be."""
    dask = scene.site.dask
    wanted = dask.offers if dask.cluster in (None, OFFERED) else dask.cluster
    if scene.engine != "dask" or not scene.batch or wanted is None:
        return []
    why, mend = lacks(wanted)
    if dask.cluster is None:
        # dask-jobqueue is always here, and no site's own: nothing that has to be told each time.
        if why or scene.quick or wanted.startswith("dask_jobqueue:"):
            return []
        says = f"jobs are this program's own; {wanted} is installed: --site-set {KEY}={OFFERED} has it submit"
        return [Check("cluster", True, says)]
    if not why:
        return [Check("cluster", True, f"{wanted} submits the jobs")]
    if dask.cluster == OFFERED:
        return [Check("cluster", None, f"{why}: jobs are this program's own", mend)]
    return [Check("cluster", False, f"{wanted} cannot be used: {why}", mend)]


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
