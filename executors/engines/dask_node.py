"""What the keeper of a batch job forks for the engine ``dask``: the workers, and one courier.

The courier speaks for the pilot with the scheduler: brings it obituaries, takes its orders, and ends when it
cannot be reached, which ends the job. The only module of the node's side that imports Dask.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
from distributed.core import rpc

from executors.engines.call import DIED, FAILED, KILL, OUTCOME, READY, pack_error, put_on, receive, send
from executors.engines.dask_parts import CONFIG, QuietWorker, security

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

RETRY = 1.0
ORDERS_WAIT = 60.0  # seconds in which the scheduler may have an order for us
ANSWER_WAIT = 30.0


def work(sock: socket.socket) -> None:
    """A worker's process: the outfit, then the worker until its scheduler is gone."""
    first = receive(sock)
    if first is None:
        return
    setup = pickle.loads(first.body)
    _hush(setup)
    try:
        put_on(Path(setup["outfit"]).read_bytes())
    except BaseException as error:  # noqa: BLE001 - the worker's edge: the runner must learn why
        send(sock, FAILED, pack_error(error))
        return
    asyncio.run(_work(sock, setup))


def _hush(setup: dict[str, Any]) -> None:
    """Dask's settings, and its log without what is said of every worker: a log is for the user's lines."""
    dask.config.set(CONFIG | {"temporary-directory": setup["local"]})
    logging.getLogger("distributed").setLevel(logging.WARNING)


async def _work(sock: socket.socket, setup: dict[str, Any]) -> None:
    path = list(sys.path)
    async with QuietWorker(
        setup["scheduler"],
        host=own_address(setup["scheduler"]),
        port=setup["ports"],
        nthreads=1,
        memory_limit=0,
        name=setup["name"],
        local_directory=setup["local"],
        security=security(*setup["keys"]),
        dashboard=False,
        death_timeout=setup["patience"],
    ) as worker:
        sys.path[:] = path  # Dask puts the worker's folder first
        send(sock, READY, worker.address.encode())
        await worker.finished()


def own_address(scheduler: str) -> str:
    """The one address of this machine from which the scheduler is reached: nothing listens on any other."""
    host, _, port = scheduler.partition("://")[2].rpartition(":")
    host = host.strip("[]")
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(kind, socket.SOCK_DGRAM) as probe:  # nothing is sent
        probe.connect((host, int(port)))
        return str(probe.getsockname()[0])


def carry(sock: socket.socket) -> None:
    """The courier's process: the pilot's words to the scheduler, its orders to the pilot."""
    first = receive(sock)
    if first is None:
        return
    setup = pickle.loads(first.body)
    _hush(setup)
    asyncio.run(_carry(sock, setup))


async def _carry(sock: socket.socket, setup: dict[str, Any]) -> None:
    words: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    listening = loop.run_in_executor(
        None, _listen, sock, lambda said: loop.call_soon_threadsafe(words.put_nowait, said)
    )
    duties = {
        asyncio.ensure_future(one)
        for one in (_take_orders(sock, setup), _bring(sock, words, setup), listening)
    }
    await asyncio.wait(duties, return_when=asyncio.FIRST_COMPLETED)
    sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that listens
    for one in duties:
        one.cancel()


def _listen(sock: socket.socket, tell: Callable[[dict[str, Any]], object]) -> None:
    while (frame := receive(sock)) is not None:
        tell(pickle.loads(frame.body))


async def _take_orders(sock: socket.socket, setup: dict[str, Any]) -> None:
    """Ask for orders again and again; give up when the scheduler has been away for as long as it may."""
    since, contact, why = time.monotonic(), False, ""
    while contact or time.monotonic() - since < setup["patience"]:
        wait = ORDERS_WAIT if contact else 0.0
        question = _ask(setup, "orders", job=setup["job"], wait=wait)
        try:
            orders = await asyncio.wait_for(question, wait + min(setup["patience"], ANSWER_WAIT))
        except Exception as error:  # noqa: BLE001 - the worker's edge: whatever it is, time decides
            why = f"{type(error).__name__}: {error}"
            if contact:
                since, contact = time.monotonic(), False
                send(sock, DIED)
            await asyncio.sleep(RETRY)
            continue
        if not contact:
            contact = True
            send(sock, READY)
        for name in orders:
            send(sock, KILL, name.encode())
    send(sock, FAILED, why.encode())


async def _bring(sock: socket.socket, words: asyncio.Queue[dict[str, Any]], setup: dict[str, Any]) -> None:
    while True:
        said = await words.get()
        limit = time.monotonic() + setup["patience"]
        while time.monotonic() < limit:
            try:
                await asyncio.wait_for(_ask(setup, **said), ANSWER_WAIT)
            except Exception:  # noqa: BLE001 - the worker's edge: said again, and no harm if never
                await asyncio.sleep(RETRY)
            else:
                break
        send(sock, OUTCOME)


async def _ask(setup: dict[str, Any], op: str, **words: Any) -> Any:
    given = security(*setup["keys"]).get_connection_args("worker")
    async with rpc(setup["scheduler"], connection_args=given) as scheduler:
        answer: Awaitable[Any] = getattr(scheduler, op)(**words)
        return await answer
