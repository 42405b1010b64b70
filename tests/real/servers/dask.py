"""A Dask scheduler with workers as a facility runs them: TLS, nannies, and none of this project's code.

Started by Dask's own command lines in a process tree of its own; what a run does to it can be asked here.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from real.servers import certificates, processes, python

RECORD = "dask.json"
ASK = """
import asyncio, json, sys
from distributed import Client
from distributed.security import Security

address, ca, cert, key = sys.argv[1:5]
security = Security(tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key, require_encryption=True)
with Client(address, security=security) as client:
    def state(dask_scheduler):
        return {
            "tasks": len(dask_scheduler.tasks), "clients": len(dask_scheduler.clients) - 2,
            "plugins": sorted(dask_scheduler.plugins), "handlers": len(dask_scheduler.stream_handlers),
            "modules": sorted(name for name in __import__("sys").modules if name.split(".")[0] == "executors"),
            "workers": sorted(dask_scheduler.workers),
        }
    def theirs():
        import os, sys
        return os.getpid(), sorted(n for n in sys.modules if n.split(".")[0] == "executors"), list(sys.path)
    said = client.run_on_scheduler(state)
    said["processes"] = {worker: answer for worker, answer in client.run(theirs).items()}
    said["works"] = client.submit(sum, [1, 2, 3], pure=False).result(30)
    print(json.dumps(said))
"""


class Facility:
    """A scheduler and two workers that belong to somebody else."""

    def __init__(self, folder: Path, workers: int = 2) -> None:
        self.folder = folder
        self.python = python.without_project(folder / "env")
        self.certificate, self.key = certificates.self_signed(folder)
        self.port = processes.free_ports(1)
        self.address = f"tls://127.0.0.1:{self.port}"
        self.workers = workers
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> Facility:
        """Start both; TimeoutError if no worker comes."""
        files = [
            f"--tls-ca-file={self.certificate}",
            f"--tls-cert={self.certificate}",
            f"--tls-key={self.key}",
        ]
        scheduler = ["--host", "127.0.0.1", "--protocol", "tls", "--port", str(self.port), "--no-dashboard"]
        self._spawn("scheduler", "distributed.cli.dask_scheduler", *files, *scheduler)
        worker = [
            self.address, "--host", "127.0.0.1", "--nworkers", str(self.workers), "--nthreads", "1",
            "--memory-limit", "2GiB", "--no-dashboard", "--local-directory", str(self.folder / "scratch"),
        ]  # fmt: skip
        self._spawn("workers", "distributed.cli.dask_worker", *files, *worker)
        (self.folder / RECORD).write_text(json.dumps([one.pid for one in self._processes]))
        if not processes.wait_for(self.ready, 60, every=1):
            raise TimeoutError((self.folder / "workers.log").read_text()[-2000:])
        return self

    def _spawn(self, name: str, module: str, *argv: str) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DASK_"))}
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    [str(self.python), "-m", module, *argv], cwd=self.folder,
                    # Dask gives its processes titles, which would be written over what they are found by.
                    env=env | {"FACILITY": str(self.folder), "SPT_NOENV": "1"},
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                )
            )  # fmt: skip

    def ready(self) -> bool:
        """Whether all workers are there."""
        try:
            return len(self.state()["workers"]) == self.workers
        except (subprocess.SubprocessError, ValueError):
            return False

    def state(self) -> dict:
        """What scheduler and workers know, asked as any user of the facility may."""
        argv = [
            sys.executable,
            "-c",
            ASK,
            self.address,
            *map(str, (self.certificate, self.certificate, self.key)),
        ]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True, cwd=self.folder)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def alive(self) -> bool:
        """Whether neither of its processes has ended."""
        return all(one.poll() is None for one in self._processes)

    def end_scheduler(self) -> None:
        """Kill the scheduler alone."""
        self._processes[0].kill()
        self._processes[0].wait(10)

    def stop(self) -> None:
        """End all of it."""
        processes.end(mine := self.processes())
        for one in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.wait(5)
        if left := [pid for pid in mine if processes.alive(pid)]:
            raise RuntimeError(f"still there: {left}")

    def processes(self) -> list[int]:
        """Scheduler, nannies and workers."""
        found = processes.with_environment("FACILITY", lambda value: value == str(self.folder))
        started = [one.pid for one in self._processes if one.poll() is None]
        return sorted({*found, *started})


def end(folder: Path) -> None:
    """End what a dead session left in a folder."""
    if (folder / RECORD).exists():
        processes.end(processes.with_environment("FACILITY", lambda value: value == str(folder)))
