"""Inside the host of the engine ``dask``, and inside its workers: the only module that imports Dask.

Each lane owns one Dask worker and sends its tasks to that one alone, so a death concerns exactly one task;
Dask itself never retries, steals, queues or replaces. What the runner sees is in ``host``.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import dask
import distributed

from executors.engines.base import WorkerDied
from executors.engines.call import FAILED, READY, pack_error, put_on, receive, send
from executors.engines.dask_call import LostError, outcome_of
from executors.engines.dask_parts import CONFIG, QuietScheduler, QuietWorker, security
from executors.engines.futures import WorkerSlot
from executors.engines.host import serve_host
from executors.engines.nursery import Nursery
from executors.engines.tls import make_certificate

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from executors.engines.pool import Slot

LOOPBACK = "127.0.0.1"


def serve(trunk: socket.socket) -> None:
    """The host's process."""
    serve_host(trunk, _build)


def _build(setup: dict[str, Any]) -> Callable[[int], Slot]:
    """The way to workers that the site has: on this machine, of another's cluster, or in batch jobs."""
    site = setup["site"]
    if site.scheduler is None:
        return _build_here(setup)
    if site.scheduler == "existing":
        from executors.engines import dask_foreign

        return dask_foreign.build(setup)
    if site.dask.cluster is not None:
        from executors.engines import dask_cluster

        return dask_cluster.build(setup)
    from executors.engines import dask_remote

    return dask_remote.build(setup)


def _build_here(setup: dict[str, Any]) -> Callable[[int], Slot]:
    private, logs = Path(setup["private"]), Path(setup["logs"])
    nursery = Nursery(
        logs, memory=setup["memory"], preload=("executors.engines.dask_host", *setup["preload"])
    )
    certificate, key = make_certificate(private / "keys")
    dask.config.set(CONFIG | {"temporary-directory": str(private)})
    guard = security(str(certificate), str(key))
    scheduler = {"host": LOOPBACK, "port": 0, "protocol": "tls", "dashboard": False, "security": guard}
    cluster = distributed.SpecCluster(
        workers={},
        scheduler={"cls": QuietScheduler, "options": scheduler},
        security=guard,
        silence_logs=False,
    )
    address = cluster.scheduler.address
    client = distributed.Client(address, security=guard, set_as_default=False, direct_to_workers=False)
    worker = {
        "scheduler": address,
        "keys": (str(certificate), str(key)),
        "local": str(private),
        "outfit": setup["outfit"],
    }
    return lambda index: DaskSlot(nursery, index, pickle.dumps(worker), client)


class DaskSlot(WorkerSlot):
    """A Dask worker of its own: started and replaced like any worker, but called through Dask."""

    target: ClassVar[str] = "executors.engines.dask_host:work"

    def __init__(self, nursery: Nursery, index: int, outfit: bytes, client: Any) -> None:
        super().__init__(nursery, index, outfit)
        self._client = client
        self._awake = threading.Event()

    def call(self, blob: bytes) -> bytes | bytearray:
        """The outcome of one call on this slot's own worker."""
        self.ready()
        child = self._child
        if child is None:
            raise WorkerDied.of("lost")
        child.on_death(self._awake.set)
        try:
            return outcome_of(
                self._client, self.greeting.decode(), blob, awake=self._awake, alive=lambda: child.alive
            )
        except LostError as lost:
            raise self._bury(str(lost)) from lost
        finally:
            child.off_death(self._awake.set)


def work(sock: socket.socket) -> None:
    """A Dask worker's process: the outfit, then the worker until its scheduler or runner is gone."""
    first = receive(sock)
    if first is None:
        return
    setup = pickle.loads(first.body)
    try:
        put_on(setup["outfit"])
    except BaseException as error:  # noqa: BLE001 - the worker's edge: the runner must learn why
        send(sock, FAILED, pack_error(error))
        return
    dask.config.set(CONFIG | {"temporary-directory": setup["local"]})
    asyncio.run(_work(sock, setup))


async def _work(sock: socket.socket, setup: dict[str, Any]) -> None:
    path = list(sys.path)
    async with QuietWorker(
        setup["scheduler"],
        host=LOOPBACK,
        nthreads=1,
        memory_limit=0,
        name=uuid.uuid4().hex,
        local_directory=setup["local"],
        security=security(*setup["keys"]),
        dashboard=False,
        death_timeout=60,
    ) as worker:
        sys.path[:] = path  # Dask puts the worker's folder first
        send(sock, READY, worker.address.encode())
        await worker.finished()
