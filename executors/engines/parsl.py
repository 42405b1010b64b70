"""The engine ``parsl``: Parsl's HighThroughputExecutor behind a host, over CurveZMQ on loopback.

Only what the runner needs to start it is here; ``parsl_host`` holds what imports Parsl.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, ClassVar

from executors.engines.base import Capabilities, Resources
from executors.engines.hosted import open_hosted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from executors.engines.pool import Pool
    from sites.profile import SiteProfile


class ParslEngine:
    """Parsl's high-throughput executor."""

    name: ClassVar[str] = "parsl"
    capabilities: ClassVar[Capabilities] = Capabilities()

    @contextlib.contextmanager
    def open(self, site: SiteProfile, want: Resources) -> Iterator[Pool]:
        """One block of ``want.workers`` workers on this machine; leaving ends it all at once."""
        with open_hosted(self.name, "executors.engines.parsl_host:serve", site, want) as pool:
            yield pool
