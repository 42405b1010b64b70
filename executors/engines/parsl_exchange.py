"""Parsl's high-throughput executor, opened for the workers of batch jobs: where it listens, with which keys.

It runs without Parsl's data-flow kernel: no block of workers is ever asked for, nothing is retried, and no
signal handler or exit hook of Parsl is installed. What becomes of tasks and jobs is in ``parsl_remote``.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import parsl
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

from executors.engines.parsl_task import run_kept
from executors.errors import EngineError
from sites.ports import address, pick

if TYPE_CHECKING:
    from concurrent.futures import Future

    from sites.profile import SiteProfile

HEARTBEAT = 5  # seconds between signs of life of a job's manager
# So long without one, and its tasks are lost: they run elsewhere within half a minute. Less would take a
# login node that stood still for a moment for the death of every job: signs that wait unread do not count.
SILENCE = 25
IDLE = 100  # milliseconds between looks of Parsl's loops at nothing; what comes wakes them
ANSWER_LIMIT = 60.0  # seconds for the interchange to answer a question
MARGIN, MARGIN_PART = 600.0, 0.2  # no new task so long before the walltime, at most that part of it
ANY_PORT = (49152, 65536)  # pyzmq's own range, for which it lets the system choose
LAST_WORDS = 2000
INTERCHANGE = "parsl.executors.high_throughput.interchange"
SECRET = re.compile(r"^(\s*secret-key\s*=\s*).*$", re.MULTILINE)


class Exchange:
    """Takes calls from many threads, and knows which managers are connected."""

    def __init__(self, site: SiteProfile, workers: int, folder: Path) -> None:
        os.umask(0o077)  # Parsl leaves its key files to it
        folder.mkdir(mode=0o700)
        self.address = address(site.network.address)
        self._lock = threading.Lock()
        self._executor = HighThroughputExecutor(
            label="htex",
            address=self.address,
            provider=LocalProvider(init_blocks=0, min_blocks=0, max_blocks=0),
            interchange_launch_cmd=[sys.executable, "-P", "-m", INTERCHANGE],
            worker_port_range=_worker_ports(site, self.address),
            interchange_port_range=ANY_PORT,
            max_workers_per_node=workers,
            cores_per_worker=1e-6,  # the number of workers is the caller's to choose, not the machine's
            prefetch_capacity=0,
            poll_period=IDLE,
            heartbeat_period=HEARTBEAT,
            heartbeat_threshold=SILENCE,
            drain_period=_drain(site.resources.walltime),
            block_error_handler=False,
            encrypted=True,
        )
        self._executor.run_id = folder.name
        self._executor.run_dir = str(folder)
        self._executor.log_config = None
        self._start()

    def _start(self) -> None:
        # Parsl would wait two minutes for an interchange that is dead already.
        starting = _Starting(self._executor)
        starting.start()
        while starting.is_alive():
            starting.join(0.1)
            process = self._executor.interchange_proc
            if process is not None and process.poll() is not None:
                self._refuse(f"it ended with {process.returncode}")
        if starting.error is not None:
            self._refuse(f"{type(starting.error).__name__}: {starting.error}")

    def _refuse(self, why: str) -> None:
        said = " / ".join(self.last_words().splitlines()[-3:])
        text = f"Parsl's interchange did not start at {self.address}: {why}"
        raise EngineError(f"{text} ({said})" if said else text)

    def last_words(self) -> str:
        """The end of the interchange's log, which vanishes with its folder."""
        with contextlib.suppress(OSError):
            log = Path(self._executor.logdir) / "interchange.log"
            return log.read_text(errors="replace")[-LAST_WORDS:]
        return ""

    @property
    def port(self) -> int:
        """Where the workers connect."""
        return int(self._executor.worker_port)

    @property
    def failure(self) -> Exception | None:
        """Why Parsl takes no more calls."""
        error: Exception | None = self._executor.executor_exception
        return error

    def manager_words(self) -> list[str]:
        """The arguments of the program that a job runs, as Parsl wrote them."""
        return shlex.split(str(self._executor.launch_cmd).replace("{block_id}", "0"))[1:]

    def versions(self) -> dict[str, str]:
        """What a job's Python must have too: another one would end the interchange by connecting."""
        return {
            "parsl": str(parsl.__version__),
            "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        }

    def submit(self, blob: bytes, stale: tuple[str, ...] = ()) -> Future[Any]:
        """Have a call made by any free worker; neither Parsl's counter nor its socket may be shared."""
        with self._lock:
            future: Future[Any] = self._executor.submit(run_kept, {}, blob, stale)
        return future

    def managers(self) -> list[dict[str, Any]]:
        """Every connected manager, as the interchange describes it."""
        found: list[dict[str, Any]] = self._executor.command_client.run("MANAGERS", timeout_s=ANSWER_LIMIT)
        return found

    def hold(self, manager: str) -> None:
        """Give this manager no more calls."""
        self._executor.command_client.run(["HOLD_MANAGER", manager], timeout_s=ANSWER_LIMIT)

    def close(self) -> None:
        """End the interchange; managers end when they no longer hear it."""
        self._executor.shutdown()

    def wait(self) -> int:
        """The interchange's exit code, once it has ended."""
        process = self._executor.interchange_proc
        return int(process.wait()) if process is not None else 0

    def worker_keys(self, folder: Path) -> list[Path]:
        """What a worker needs to connect, as files in a new folder, without the interchange's own secret.

        Parsl reads the interchange's key file for the public half alone, and refuses one without a secret.
        """
        folder.mkdir(mode=0o700)
        keys = Path(self._executor.cert_dir)
        client = (keys / "client.key_secret").read_text(encoding="utf-8")
        secret = SECRET.search(client)
        if secret is None:
            raise EngineError(f"Parsl wrote a key file without a secret: {keys / 'client.key_secret'}")
        server = SECRET.sub(
            lambda _: secret.group(), (keys / "server.key_secret").read_text(encoding="utf-8")
        )
        found = [folder / "client.key_secret", folder / "server.key_secret"]
        for path, text in zip(found, (client, server), strict=True):
            path.touch(mode=0o600)
            path.write_text(text, encoding="utf-8")
        return found


class _Starting(threading.Thread):
    """Parsl's start, which may wait for what never comes."""

    def __init__(self, executor: HighThroughputExecutor) -> None:
        super().__init__(name="parsl-start", daemon=True)
        self._executor = executor
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._executor.start()
        except Exception as error:  # noqa: BLE001 - whatever Parsl raises, the runner must learn it
            self.error = error


def _worker_ports(site: SiteProfile, host: str) -> tuple[int, int]:
    """The range in which the interchange may listen, its end excluded; SiteError if all of it is taken."""
    span = site.ports.scheduler
    if span is None:
        return ANY_PORT
    first = pick(span, host, hint=site.ports.hint or "")
    return (first, span[1] + 1)


def _drain(walltime: float | None) -> int | None:
    """When a job takes no more tasks, so that its walltime ends none; None without a walltime."""
    if walltime is None:
        return None
    return max(1, int(walltime - min(MARGIN, MARGIN_PART * walltime)))
