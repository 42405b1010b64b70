"""The engine ``parsl``: Parsl's HighThroughputExecutor behind a host, over CurveZMQ.

Only what the runner needs to start it is here; ``parsl_host`` holds what imports Parsl.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, ClassVar

from executors.engines.base import Capabilities, Resources
from executors.engines.hosted import EXISTING, open_hosted
from executors.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from executors.engines.pool import Pool
    from sites.profile import SiteProfile


class ParslEngine:
    """Parsl's high-throughput executor."""

    name: ClassVar[str] = "parsl"
    capabilities: ClassVar[Capabilities] = Capabilities(kills_on_memory=True)

    @contextlib.contextmanager
    def open(self, site: SiteProfile, want: Resources) -> Iterator[Pool]:
        """``want.workers`` workers here, or in each of ``want.jobs`` batch jobs; leaving ends all at once."""
        if site.scheduler == EXISTING:
            raise UsageError(
                f"the site {site.name!r} has a Dask scheduler that runs already: use dask/{site.name}"
            )
        with open_hosted(self.name, "executors.engines.parsl_host:serve", site, want) as pool:
            yield pool
