"""The place for one test: data, the runner's command line at one batch system, and what is left afterwards.

Commands run as the batch system's user, in a folder of that user, as a person would type them. What a test asks
of the batch system itself, it asks ``lab.batch``.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import make_fileset
from real.servers import processes
from real.servers.condor import give

if TYPE_CHECKING:
    from real.servers.batch import Batch

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
WORKFLOWS = Path(__file__).with_name("workflows.py")


class Lab:
    """One test's folder at one batch system, for one engine."""

    def __init__(self, batch: Batch, engine: str, name: str, folder: Path | None = None) -> None:
        self.batch, self.engine = batch, engine
        self.folder = folder or batch.fresh(name)
        self.site_file = batch.site_file
        self.token = f"real-{os.getpid()}-{random.randrange(1 << 40)}"
        self.started: list[subprocess.Popen[str]] = []

    @property
    def on(self) -> str:
        """The executor's name."""
        return f"{self.engine}/{self.site_file.stem}"

    def data(self, at: Path | None = None, **sizes: list[int]) -> dict[str, Any]:
        """Files of so many events for each dataset, and the fileset."""
        fileset = make_fileset((at or self.folder) / "data", sizes, seed=7)
        (self.folder / "fs.json").write_text(json.dumps(fileset))
        return fileset

    def command(
        self, *more: str, wf: str = "Sum", jobs: int = 2, workers: int = 1, out: str = "out", on: str = ""
    ) -> list[str]:
        """The command of a run. ``on`` an engine of this machine: without the batch system."""
        place = (
            ["-j", "2"] if on else ["--site-file", str(self.site_file), "-s", str(jobs), "-j", str(workers)]
        )
        return [
            sys.executable, str(ROOT / "runner.py"), "--wf", f"{WORKFLOWS}:{wf}", "--json", "fs.json",
            "--executor", on or self.on, *place, "--chunk", "50", "--outputdir", out, "--cache", "cache", *more,
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Of whatever runs for this test."""
        kept = {name: value for name, value in self.batch.env.items() if name != "CI"}
        return {**kept, "TEST_TOKEN": self.token, "PYTHONPATH": str(TESTS)}

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        """Start a command as the batch system's user; in a session of its own, as in a terminal of its own."""
        process = subprocess.Popen(
            [*self.batch.run_as, *command], cwd=self.folder, env=self.environment(), text=True,
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, command: list[str], timeout: float = 240) -> tuple[int, str]:
        """Exit code and all that was said."""
        process = self.start(command)
        try:
            out, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            raise AssertionError(
                f"still running after {timeout:.0f} s; queue: {self.batch.queue()}\n{out}"
            ) from None
        return process.returncode, out

    def script(self, text: str, *argv: str, timeout: float = 120) -> tuple[int, str]:
        """The same for a few lines of Python."""
        return self.run([sys.executable, "-c", text, *argv], timeout)

    def truth(self, wf: str = "Sum", *more: str) -> str:
        """The digest of the same run on this machine, one after the other."""
        code, out = self.run(self.command(*more, wf=wf, out="truth", on="iterative"))
        assert code == 0, out
        return str(self.manifest("truth", wf)["digest"])

    def rundir(self, out: str = "out", wf: str = "Sum") -> Path:
        """Where a run keeps its things."""
        return self.folder / out / f"hist_{wf}_fs"

    def manifest(self, out: str = "out", wf: str = "Sum") -> dict[str, Any]:
        """What a run says of itself."""
        return dict(json.loads((self.rundir(out, wf) / "manifest.json").read_text()))

    def journal(self, event: str, out: str = "out", wf: str = "Sum") -> int:
        """How many such lines the journal has."""
        path = self.rundir(out, wf) / "journal.jsonl"
        return path.read_text(errors="replace").count(f'"event":"{event}"') if path.exists() else 0

    def troubles(self, wf: str = "Sum") -> str:
        """What the journal says of failures, the last ones."""
        path = self.rundir(wf=wf) / "journal.jsonl"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return "\n".join([line[:600] for line in lines if '"event":"fail' in line][-25:])

    def until(self, what: Any, process: subprocess.Popen[str], within: float = 90) -> None:
        """Wait for something while a command runs; what it said, if it ended or that did not come."""
        ended = lambda: process.poll() is not None  # noqa: E731
        if processes.wait_for(lambda: ended() or what(), within) and not ended():
            return
        process.kill()
        out, _ = process.communicate()
        raise AssertionError(
            f"{'ended' if ended() else 'waited in vain'}; queue: {self.batch.queue()}\n{out}"
        )

    def until_working(self, process: subprocess.Popen[str], tasks: int = 1, **where: str) -> None:
        """Wait until so many tasks are done."""
        self.until(lambda: self.journal("task", **where) >= tasks, process)

    def left(self) -> list[int]:
        """Processes of this test that still live, on this machine and on the nodes."""
        return sorted({*self.here(), *self.batch.job_processes()})

    def here(self) -> list[int]:
        """Those that were started here, not by the batch system."""
        mine = processes.with_environment("TEST_TOKEN", lambda value: value == self.token)
        mine += processes.within(str(self.folder))
        return sorted(set(processes.family(mine)) - set(self.batch.job_processes()))

    def nothing_left(self, within: float = 60.0) -> None:
        """No process, no job: the promise of every exit."""
        began = time.monotonic()
        processes.wait_for(lambda: not self.left() and not self.batch.queue(), within, every=0.2)
        left = {}
        for pid in self.left():
            with contextlib.suppress(OSError):  # gone by now
                left[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")[:200]
        assert not left, f"still there after {time.monotonic() - began:.0f} s: {left}"
        assert not self.batch.queue(), self.batch.queue()

    def finish(self) -> None:
        """After the test: nothing may be left, unless it failed with its command still running."""
        if all(process.poll() is not None for process in self.started):
            self.nothing_left()

    def close(self) -> None:
        """End what the test has started, whatever became of it."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        processes.wait_for(lambda: not self.here(), 20)
        processes.end(self.here())

    def own(self, path: Path) -> Path:
        """Give a file to the user as whom commands run."""
        give(path, getattr(self.batch, "user", "root"))
        return path


def accounted(manifest: dict[str, Any], planned: int) -> None:
    """Every event once."""
    assert manifest["complete"]
    assert manifest["events_planned"] == manifest["events_counted"] == planned
