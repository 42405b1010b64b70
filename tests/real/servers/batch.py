"""What every real batch system of the tests can do, so that one suite serves them all.

Only plain data and the promises live here; commands of one batch system do not.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from real.servers import processes


@dataclass(frozen=True)
class Job:
    """One job as its batch system's own commands show it."""

    id: str
    name: str
    state: str  # pending, running, held, ending
    reason: str = ""
    node: str = ""


class Batch:
    """A batch system that runs. ``env`` is what its clients need; ``run_as`` goes before a client's command."""

    kind: ClassVar[str]
    ways: ClassVar[tuple[str, ...]]  # how a running job can be taken away behind the runner's back

    env: dict[str, str]
    run_as: list[str]
    site_file: Path

    def command(self, *argv: str, timeout: float = 30.0, check: bool = True) -> str:
        """What a client command says."""
        done = subprocess.run(
            [*self.run_as, *argv], env=self.env, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def asked(self, *argv: str) -> str:
        """The same for a question, asked once more where it fails: on a busy machine a daemon may be late."""
        try:
            return self.command(*argv)
        except (RuntimeError, subprocess.TimeoutExpired):
            time.sleep(1)
            return self.command(*argv)

    def queue(self) -> list[Job]:
        """Every job that is not over."""
        raise NotImplementedError

    def running(self) -> list[Job]:
        """The jobs that run."""
        return [job for job in self.queue() if job.state == "running"]

    def take_away(self, job: Job, way: str) -> None:
        """Take a job from its run, in one of ``ways``; a broken node is mended at once."""
        raise NotImplementedError

    def clear(self) -> None:
        """Remove every job, and wait until the queue is empty."""
        raise NotImplementedError

    def job_processes(self) -> list[int]:
        """Every process that belongs to a job."""
        raise NotImplementedError

    def empty(self, within: float = 60.0) -> bool:
        """Whether the queue is empty and no process of a job is left, now or within the time."""
        return processes.wait_for(lambda: not self.queue() and not self.job_processes(), within, every=0.3)

    def fresh(self, name: str) -> Path:
        """A new folder that clients may write to and jobs can see."""
        raise NotImplementedError

    def stop(self) -> None:
        """End all of it."""
        raise NotImplementedError
