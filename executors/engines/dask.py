"""The engine ``dask``: a Dask scheduler and workers behind a host, over TLS.

On this machine all of it stays on loopback (``dask_host``); at a batch system the workers are in jobs
(``dask_remote``); a scheduler that runs already is used as it is (``dask_foreign``). Only what the runner
needs to start it is here; Dask is imported in the host.
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

    # Of every site: workers of batch jobs can be elsewhere and may not see the store, which the profile says;
    # at a scheduler of others, a call whose worker is lost may be made again before it counts as lost.

    name: ClassVar[str] = "dask"
    capabilities: ClassVar[Capabilities] = Capabilities(kills_on_memory=True)

    @contextlib.contextmanager
    def open(self, site: SiteProfile, want: Resources) -> Iterator[Pool]:
        """The site's workers, one task at a time in each; leaving ends at once all that was started here."""
        with open_hosted(self.name, "executors.engines.dask_host:serve", site, want) as pool:
            yield pool
