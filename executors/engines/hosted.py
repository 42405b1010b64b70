"""Opening an engine that lives in a host: folders, nursery, host, pool. No engine's own part may enter."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.engines.call import pack_outfit
from executors.engines.host import Host, HostSlot
from executors.engines.nursery import Nursery, thread_limits
from executors.engines.places import Places
from executors.engines.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from executors.engines.base import Resources
    from sites.profile import SiteProfile


@contextlib.contextmanager
def open_hosted(name: str, target: str, site: SiteProfile, want: Resources) -> Iterator[Pool]:
    """A pool whose workers are behind a host process that runs ``target``; leaving ends everything."""
    with Places(name, want) as places:
        given = {**site.env, **want.env}
        env = given | thread_limits(want.cores, given)
        nursery = Nursery(places.logs, env=env, sweep=places.private)
        host = Host(nursery, f"{name}-host", target, _setup(places, want))
        pool = Pool([HostSlot(host, index) for index in range(want.workers)], nursery.close)
        try:
            pool.wait_ready()
            yield pool
        finally:
            pool.close()
            host.close()


def _setup(places: Places, want: Resources) -> dict[str, Any]:
    return {
        "workers": want.workers,
        "memory": want.memory,
        "private": str(places.private),
        "logs": str(places.logs),
        "outfit": pack_outfit(want.initializer, want.initargs),
        "preload": want.preload,
        "path": [entry or str(Path.cwd()) for entry in sys.path],
    }
