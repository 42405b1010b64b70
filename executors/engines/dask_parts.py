"""What both ends of a Dask cluster of ours share: settings, security, scheduler and worker without HTTP.

Imported in hosts and on nodes only, because it imports Dask; who uses these parts for what may not enter.
"""

from __future__ import annotations

from typing import Any

import distributed
from distributed.security import Security

CONFIG = {
    "distributed.scheduler.allowed-failures": 0,
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.worker-ttl": None,  # a task that keeps the GIL for minutes is not a dead worker
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.admin.large-graph-warning-threshold": "1TB",
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.comm.require-encryption": True,
    "distributed.comm.timeouts.connect": "60s",
    "distributed.diagnostics.nvml": False,
    "distributed.worker.profile.enabled": False,
    # The keeper watches the memory: Dask would pause the worker and the task would wait for ever.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
}


class _NoDashboard:
    """Takes the web server away: it answers anybody, in plain text, TLS or not."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """Nothing listens."""


class QuietScheduler(_NoDashboard, distributed.Scheduler):  # type: ignore[misc]
    """A scheduler that listens for its own protocol only."""


class QuietWorker(_NoDashboard, distributed.Worker):  # type: ignore[misc]
    """A worker that listens for its own protocol only."""


def security(certificate: str, key: str, authority: str | None = None) -> Any:
    """Both sides show the certificate and believe the authority's (default: it is its own) alone."""
    roles = {f"tls_{role}_{part}": path for role in ("client", "scheduler", "worker")
             for part, path in (("cert", certificate), ("key", key))}  # fmt: skip
    return Security(require_encryption=True, tls_ca_file=authority or certificate, **roles)
