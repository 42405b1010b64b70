"""The engine ``dask``: a Dask scheduler and workers behind a host, over TLS on loopback.

Only what the runner needs to start it is here; ``dask_host`` holds what imports Dask.
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


class DaskEngine:
    """A Dask cluster."""

    name: ClassVar[str] = "dask"
    capabilities: ClassVar[Capabilities] = Capabilities(kills_on_memory=True)

    @contextlib.contextmanager
    def open(self, site: SiteProfile, want: Resources) -> Iterator[Pool]:
        """A scheduler and ``want.workers`` workers on loopback; leaving ends them all at once."""
        with open_hosted(self.name, "executors.engines.dask_host:serve", site, want) as pool:
            yield pool
