"""Inside the host of the engine ``dask`` with a scheduler that runs already: a client of it, nothing more.

Neither scheduler nor workers are ours: they survive us, nothing is installed there, and nothing stays. A
worker with several threads makes as many calls at once, each in a process of its own (``dask_lodging``).
Dask may run a call again whose worker is lost; nothing is counted twice by that, as the store says.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import pickle
import platform
import socket
import threading
import time
import urllib.parse
import uuid
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import dask
import distributed
from distributed.security import Security

from executors.batch import parcel
from executors.engines import dask_lodging
from executors.engines.base import WorkerDied
from executors.engines.call import pack_call, unpack_death
from executors.engines.host import say
from executors.errors import EngineError, SiteError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from executors.engines.pool import Slot
    from sites.profile import SiteProfile

ENCRYPTED = ("tls://", "wss://")
SCHEMES = ("tls", "wss", "tcp", "ws")
CONNECT_WAIT = 30.0
PROBE_WAIT = 10.0
LOOK = 5.0
RESULT_WAIT = 300.0
LEAVE_WAIT = 5.0
REFUSALS = 3
STALE = 100  # names that travel with each call; those before them have ended long ago
IDLE = 20.0  # seconds a process of ours outlives its last call: a killed runner leaves nothing for long
# What shapes results: equal here and there, or no comparison with another run holds.
PACKAGES = ("coffea", "uproot", "awkward", "hist", "boost-histogram")


def build(setup: dict[str, Any]) -> Callable[[int], Slot]:
    """Connect with the scheduler that the site names."""
    return Foreign(setup)


class ByValue:
    """A function that needs none of our modules where it arrives, not even on the scheduler, which unpickles.

    Dask pickles by reference whatever can be; an object that says itself how it is rebuilt is not asked.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        cloudpickle.register_pickle_by_value(dask_lodging)
        try:
            self._data: bytes = cloudpickle.dumps(function)
        finally:
            cloudpickle.unregister_pickle_by_value(dask_lodging)

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self._data,)

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Never here: what arrives is the function itself."""
        raise NotImplementedError


class Foreign:
    """The client, and what all slots share; calling it makes one more slot."""

    def __init__(self, setup: dict[str, Any], address: str = "", guard: Any = None) -> None:
        """``address``: of a scheduler that is not the site's own; ``guard``: how it is spoken with."""
        site: SiteProfile = setup["site"]
        self.address = address or _address(site, insecure=setup["insecure"])
        self.token: str = setup["name"]
        self.kit = _kit(setup)
        self.lodge = ByValue(dask_lodging.call)
        self.failure: SiteError | None = None
        self._patience = site.limits.start
        self._lock, self._counting = threading.Lock(), threading.Lock()
        self._refusals = 0
        self._fits = False
        self.stale: deque[str] = deque(maxlen=STALE)  # guests that are to make no more calls
        dask.config.set(
            {
                "distributed.admin.large-graph-warning-threshold": "1TB",
                "distributed.comm.require-encryption": not setup["insecure"],
                "temporary-directory": setup["private"],
            }
        )
        self.client = _connected(self.address, guard or _security(site, self.address))
        threading.Thread(target=self._watch, name="workers", daemon=True).start()

    def __call__(self, index: int) -> Slot:  # noqa: ARG002 - all are alike
        """A slot."""
        return ForeignSlot(self)

    def check(self) -> None:
        """Return once there is a worker and all speak our Python; else raise why not."""
        with self._lock:
            began = time.monotonic()
            while not self._fits:
                self.raise_failure()
                if self._threads():
                    self._compare()
                    self._prove()
                    self._fits = True
                elif time.monotonic() - began > self._patience:
                    raise self.fail(self.silence())
                else:
                    time.sleep(1.0)
        self.raise_failure()

    def silence(self) -> str:
        """What is said when no worker came."""
        return (
            f"the scheduler at {self.address} had no worker for {self._patience:.0f} s: "
            "see its dashboard, or ask who runs it"
        )

    def raise_failure(self) -> None:
        """Raise what makes it senseless to go on, if anything does."""
        if self.failure is not None:
            raise self.failure

    def fail(self, text: str) -> SiteError:
        """Remember and return what makes it senseless to go on."""
        self.failure = self.failure or EngineError(text)
        return self.failure

    def _threads(self) -> int:
        identity = self.client.sync(self.client.scheduler.identity, n_workers=0)
        return int(identity["total_threads"])

    def _compare(self) -> None:
        versions = self.client.get_versions()
        here = _minor(platform.python_version())
        theirs = {"the scheduler": versions["scheduler"], **versions["workers"]}
        for who, found in theirs.items():
            there = _minor(str(found["host"]["python"]))
            if there != here:
                raise self.fail(
                    f"Python is {here} here and {there} at {who} of {self.address}: functions cannot travel "
                    f"between them; start the runner with Python {there}"
                )

    def _prove(self) -> None:
        """Have a call made that does nothing: what will never work is said before there is work."""
        for _ in range(REFUSALS):
            try:
                ForeignSlot(self).call(pack_call(abs, (1,), {}))
            except WorkerDied as death:
                last = death
            else:
                return
        raise self.fail(f"the workers of {self.address} cannot work for this run: {last}")

    def _watch(self) -> None:
        """Say how many workers there are, and notice when the scheduler is gone."""
        before = -1
        while self.client.status == "running":
            try:
                threads = self._threads()
            except (OSError, TimeoutError, RuntimeError):
                time.sleep(LOOK)
                continue
            if threads != before:
                self.counted(threads)
                before = threads
            time.sleep(LOOK)
        self.fail(
            f"the scheduler at {self.address} is gone; when it is back, the same command goes on from here"
        )

    def counted(self, threads: int) -> None:
        """So many calls can be made at once from now on."""
        say("status", f"{threads} worker{'' if threads == 1 else 's'} at {self.address}")

    def refused(self, text: str) -> None:
        """A worker cannot make our calls; when that is the rule, none ever will."""
        with self._counting:
            self._refusals += 1
            if self._refusals >= REFUSALS:
                self.fail(text)

    def served(self) -> None:
        """A worker has made a call."""
        self._refusals = 0

    def leave(self) -> None:
        """Take back what was sent there: idle processes, and with the client every future and key."""
        with contextlib.suppress(Exception):  # whatever is not reached goes by itself after a while
            self.client.sync(self._see_off, callback_timeout=LEAVE_WAIT)
        with contextlib.suppress(Exception):
            self.client.close(timeout=LEAVE_WAIT)

    async def _see_off(self) -> None:
        await self.client.run(ByValue(dask_lodging.leave), self.token, on_error="ignore")


class ForeignSlot:
    """One call at a time through the scheduler, on whichever worker it chooses."""

    def __init__(self, cluster: Foreign) -> None:
        self._cluster = cluster
        self._future: Any = None
        self.worker = ""

    def ready(self) -> None:
        """Return once there is a worker that suits; EngineError if there will be none."""
        self._cluster.check()

    def call(self, blob: bytes) -> bytes | bytearray:
        """The outcome of one call; WorkerDied if the process that made it did not live to give it."""
        kit, where = None, None
        while True:
            word, what, name = self._asked(blob, kit, where)
            if word != "need":
                break
            kit, where = self._cluster.kit, [what]
        if word == "outcome":
            self.worker = name
            self._cluster.served()
            outcome: bytes = what
            return outcome
        if word == "died":
            self._cluster.served()
            raise unpack_death(what)
        if word == "failed":
            self._cluster.refused(what)
        raise WorkerDied.of(f"lost: {what}")

    def _asked(self, blob: bytes, kit: Any, where: list[str] | None) -> tuple[str, Any, str]:
        client, awake = self._cluster.client, threading.Event()
        try:
            self._future = future = client.submit(
                self._cluster.lodge,
                self._cluster.token,
                blob,
                kit,
                tuple(self._cluster.stale),
                key=f"call-{uuid.uuid4().hex}",
                workers=where,
                allow_other_workers=where is not None,
                pure=False,
                retries=0,
            )
            future.add_done_callback(lambda _: awake.set())
            while not awake.wait(LOOK):
                if self._cluster.failure is not None:
                    return "lost", str(self._cluster.failure), ""
                if future.status == "lost" or client.status != "running":
                    return "lost", f"the scheduler at {self._cluster.address} is gone", ""
            answer: tuple[str, Any, str] = future.result(timeout=RESULT_WAIT)
        except Exception as error:  # noqa: BLE001 - whatever Dask says, the call has no outcome
            return "lost", f"{type(error).__name__}: {error}", ""
        return answer

    def renew(self, worker: str) -> None:
        """Have whichever call finds that process first start another instead."""
        self._cluster.stale.append(worker)

    def kill(self, why: str) -> None:  # noqa: ARG002 - the runner remembers why
        """Cancel the call: the process that makes it is ended by the worker's own thread."""
        if self._future is not None:
            self._future.cancel(force=True)

    def close(self) -> None:
        """Nothing is held."""


def _address(site: SiteProfile, *, insecure: bool) -> str:
    address = os.path.expandvars(site.dask.address or "")
    if not address:
        raise UsageError(
            f"the site {site.name!r} needs a Dask scheduler: --scheduler-address tls://HOST:PORT"
        )
    if "://" not in address:
        address = f"tls://{address}"
    if not _possible(address):
        raise UsageError(
            f"{address[:100]!r} is not the address of a Dask scheduler: --scheduler-address tls://HOST:PORT, "
            "as its Client or dashboard shows it"
        )
    if not address.startswith(ENCRYPTED) and not insecure:
        raise UsageError(
            f"the scheduler at {address} is not encrypted: whoever reaches it runs code as you and reads "
            "what you send. Use its tls:// address; if it has none and you accept that: --insecure"
        )
    return address


def _possible(address: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(address)
        return parts.scheme in SCHEMES and bool(parts.hostname) and bool(parts.port) and not parts.path
    except ValueError:  # a port that is none
        return False


def _security(site: SiteProfile, address: str) -> Any:
    """The site's certificates; without any, what Dask's own configuration says."""
    if not address.startswith(ENCRYPTED):
        return Security(require_encryption=False)
    given = site.dask
    certificate = given.tls_cert or given.tls_key
    if given.tls_ca is None or certificate is None:
        return Security()
    files = {
        "tls_ca_file": given.tls_ca,
        "tls_client_cert": certificate,
        "tls_client_key": given.tls_key or certificate,
    }
    places = {name: Path(os.path.expandvars(file)).expanduser() for name, file in files.items()}
    for place in places.values():
        if not os.access(place, os.R_OK):
            raise SiteError(
                f"the certificate {place} of the site {site.name!r} cannot be read: ls -l {place}"
            )
    return Security(require_encryption=True, **{name: str(place) for name, place in places.items()})


def _connected(address: str, guard: Any) -> Any:
    host, _, port = address.partition("://")[2].rpartition(":")
    try:
        if port.isdecimal():  # Dask would try again and again where nobody listens
            socket.create_connection((host.strip("[]"), int(port)), PROBE_WAIT).close()
        return distributed.Client(
            address, security=guard, set_as_default=False, direct_to_workers=False, timeout=CONNECT_WAIT
        )
    except (OSError, TimeoutError, TypeError, ValueError, RuntimeError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise EngineError(
            f"no connection with the Dask scheduler at {address} ({why}): is it running, and are the "
            "certificates its own? (dask.tls_ca, dask.tls_cert, dask.tls_key of the site)"
        ) from error


def _kit(setup: dict[str, Any]) -> dict[str, Any]:
    """What a guest is made from: the same for each."""
    needs = {"python": _minor(platform.python_version())}
    if any(one.startswith("executors.coffea") for one in setup["preload"]):
        for name in PACKAGES:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                needs[name] = importlib.metadata.version(name)
    settings = {
        "pilot": "executors.engines.guest:main",
        "outfit": "outfit.pickle",
        "needs": needs,
        "env": dict(setup["env"]),
        "preload": list(setup["preload"]),
        "idle": IDLE,
    }
    if setup["memory"]:
        settings["memory"] = setup["memory"]
    files = {
        "parcel.pyz": parcel.build(Path(setup["private"])).read_bytes(),
        "outfit.pickle": setup["outfit"],
    }
    return {"settings": settings, "files": files}


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
