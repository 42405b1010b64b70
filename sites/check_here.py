"""Checks of this machine: is it the site's, can it be reached, what may it open, what does the user hold."""

from __future__ import annotations

import os
import resource
import tempfile
import time
from typing import TYPE_CHECKING

from executors.errors import ExecutorsError
from sites import credentials, ports
from sites.detect import fits
from sites.scene import Check, existing

if TYPE_CHECKING:
    from sites.scene import Scene

SKEW = 60.0  # seconds: more, and certificates and tickets fail at their edges
FIRST_YEAR = 1_700_000_000.0  # before this the clock was never set
FILES_A_LANE, FILES = 4, 512  # open files for each worker, and besides
HOSTED = ("dask", "parsl")  # engines that raise their own soft limit as far as the hard one lets them


def site_fits(scene: Scene) -> list[Check]:
    """Whether this machine is one of the site's."""
    site = scene.site
    if not site.detect.hostname and not site.detect.marker:
        return []
    host = scene.fqdn()
    if why := fits(site, host):
        return [Check("site", True, f"this is {site.name}: {why}")]
    known = " or ".join([*site.detect.hostname, *site.detect.marker])
    return [Check("site", None, f"{host} does not look like {site.name} ({known})", f"log in at {site.name}")]


def address(scene: Scene) -> list[Check]:
    """Whether workers can find their way back to this machine."""
    if not scene.batch:
        return []
    spec = scene.site.network.address
    try:
        found = ports.address(spec)
    except ExecutorsError as error:
        others = [name for name, given in ports.interfaces().items() if not given[0].startswith("127.")]
        mend = f"--site-set network.address=interface:{others[0] if others else 'NAME'}"
        return [Check("address", False, error.message, mend)]
    return [Check("address", True, f"workers come back to {found} ({spec})")]


def port(scene: Scene) -> list[Check]:
    """Whether one of the ports that the site leaves open is free."""
    span = scene.site.ports.scheduler
    if span is None or scene.site.scheduler == "existing":
        return []
    try:
        host = ports.address(scene.site.network.address) if scene.batch else "127.0.0.1"
    except ExecutorsError:
        return []  # said by the check of the address
    try:
        found = ports.pick(span, host, hint=scene.site.ports.hint or "")
    except ExecutorsError as error:
        what, mend = error.about.get("what", error.message), error.about.get("mend", "")
        return [Check("port", False, what, mend or "--scheduler-port N, one that is free")]
    return [Check("port", True, f"port {found} is free")]


def credential(scene: Scene) -> list[Check]:
    """Whether the user holds what the site asks for, private and for long enough."""
    proxy = scene.site.proxy
    if proxy.kind is None:
        return []
    found = credentials.check(proxy.kind, scene.site, scene.need)
    if found.ok is not False or proxy.required:
        return [Check("credential", found.ok, found.says, found.mend)]
    if found.state == "missing":
        return [Check("credential", None, f"{found.says} (needed only for files that ask for it)")]
    return [Check("credential", None, found.says, found.mend)]


def open_files(scene: Scene) -> list[Check]:
    """Whether a process may open a connection to each worker."""
    if scene.engine not in HOSTED:
        return []
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = FILES + FILES_A_LANE * scene.lanes
    if hard == resource.RLIM_INFINITY or hard >= need:
        return [Check("files", True, f"{scene.lanes} workers need {need} open files; more are allowed")]
    says = f"a process may open {hard} files, and {scene.lanes} workers may need {need}"
    most = max((hard - FILES) // FILES_A_LANE, 1)
    return [
        Check("files", False, says, f"use at most {most} workers (-s, -j), or a higher limit: ulimit -Hn")
    ]


def clock(scene: Scene) -> list[Check]:
    """Whether this machine agrees on the time with whoever keeps the run's folder."""
    now = time.time()
    if now < FIRST_YEAR:
        return [Check("clock", False, f"the clock of this machine says {time.ctime(now)}", "set it: date")]
    try:
        with tempfile.TemporaryFile(dir=existing(scene.folder)) as file:
            made = _made(file.fileno())
    except OSError:
        return []  # said by the check of the folder
    skew = made - time.time()
    if abs(skew) > SKEW:
        says = f"the file server's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this one"
        return [Check("clock", None, says, "chronyc tracking, or tell the administrators")]
    return [Check("clock", True, "the clocks of this machine and of the file server agree")]


def _made(number: int) -> float:
    os.write(number, b"t")
    os.fsync(number)  # so that a file server gives its own time
    return os.fstat(number).st_mtime
