"""The demo, in plain lines: make events, run, kill the runner, resume, merge, account, inspect, plot.

``python -m configs.demo`` (``make demo``) works below ``demo/`` and starts afresh each time. It checks what
it tells: an event too many or too few, or a process left behind, ends it with exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import uproot

EVENTS = 1_000_000
TRIES = 3  # a machine may be done before it can be killed
OPTIONS = ["--wf", "dimuon", "--chunk", "50000", "--fsize", "2"]


class DemoError(Exception):
    """Something is not as it was promised."""


def say(text: str) -> None:
    """A line of the story."""
    print(f"\n● {text}", flush=True)


def shown(command: list[str]) -> list[str]:
    """Print a command as one would type it; the same for this Python."""
    print(f"  $ python {shlex.join(command)}", flush=True)
    return [sys.executable, *command]


def call(*command: str, expect: int = 0) -> None:
    """Run a command in front of the user."""
    code = subprocess.run(shown(list(command)), check=False).returncode  # noqa: S603 - our own words
    if code != expect:
        raise DemoError(f"exit code {code}, not {expect}")


def ask(*command: str) -> Any:
    """What a command says to a program."""
    done = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "runner.py", *command, "--as-json"], capture_output=True, text=True, check=False
    )
    if not done.stdout:
        raise DemoError(f"runner.py {shlex.join(command)} said nothing: {done.stderr}")
    return json.loads(done.stdout)


def stored(run: Path) -> int:
    """How many results lie in a run's store."""
    return sum(1 for _ in run.glob("store/*/*.part"))


def run_and_kill(command: list[str], run: Path, enough: int) -> list[psutil.Process]:
    """Start the run and kill it (-9) once some results are stored; the processes that it had."""
    runner = subprocess.Popen(shown(command))  # noqa: S603 - our own words
    family: list[psutil.Process] = []
    try:
        while runner.poll() is None and stored(run) < enough:
            time.sleep(0.01)
        if runner.poll():
            raise DemoError(f"the run ended with exit code {runner.returncode}")
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(runner.pid).children(recursive=True)
    finally:
        runner.kill()
        runner.wait()
        if sys.stderr.isatty():
            print("\x1b[?25h", file=sys.stderr)  # the killed one had no time to show the cursor again
    return family


def interrupted(command: list[str], run: Path) -> int:
    """A run killed in the middle; how many of its events are counted."""
    for _ in range(TRIES):
        family = run_and_kill(command, run, enough=4)
        _, left = psutil.wait_procs(family, timeout=10)
        if left:
            raise DemoError(f"left behind by the kill: {left}")
        so_far = ask("status", str(run))
        counted, planned = int(so_far["events_counted"]), int(so_far["events_planned"])
        if 0 < counted < planned:
            print(f"\n  kill -9 of the runner; its {len(family)} other processes are gone by themselves")
            return counted
        say("that was over before it could be killed; once more")
        shutil.rmtree(run)
    raise DemoError("this machine is too quick: python -m configs.demo --events 10000000")


def clear(folder: Path) -> None:
    """Remove what an earlier demo left, and nothing else."""
    for name in ("out", "undisturbed"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in [*folder.glob("*.root"), folder / "fileset.json", folder / "spectrum.png"]:
        path.unlink(missing_ok=True)


def check(manifest: dict[str, Any], made: dict[str, int]) -> None:
    """Compare the account of the run with what was made."""
    counted = {name: row["events_counted"] for name, row in manifest["datasets"].items()}
    if counted != made or not manifest["complete"]:
        raise DemoError(f"events made: {made}, events counted: {counted}")


def tell(folder: Path, events: int) -> None:
    """The whole story."""
    if not Path("runner.py").is_file():
        raise DemoError("there is no runner.py here: start it in the folder of the project")
    began = time.monotonic()
    fileset, run = folder / "fileset.json", folder / "out" / "hist_dimuon_fileset"
    clear(folder)
    say(f"Make {events:,} NanoAOD-like events of muon pairs: three datasets, ten files")
    call("-m", "configs.make_data", str(folder), "--events", str(events))
    content = json.loads(fileset.read_text())
    made = {
        name: sum(n for _, _, n in uproot.num_entries([f"{f}:Events" for f in dataset["files"]]))
        for name, dataset in content.items()
    }
    command = ["runner.py", *OPTIONS, "--json", str(fileset), "--executor", "futures", "-j", "2"]
    command += ["--outputdir", str(folder / "out")]

    say("Run over them on two worker processes, and kill the runner in the middle")
    counted = interrupted(command, run)
    call("runner.py", "status", str(run), expect=3)

    say(f"The same command again resumes: the {counted:,} events that are stored are not done again")
    call(*command)
    say("Once more: there is nothing left to do")
    call(*command)

    say("Merging is part of the run, and can be done again at any time with the same result")
    call("runner.py", "merge", str(run))
    say("Every stored byte is verified, and the account is in manifest.json")
    call("runner.py", "inspect", str(run))
    check(json.loads((run / "manifest.json").read_text()), made)
    print(f"  {sum(made.values()):,} events made, {sum(made.values()):,} counted, each once")

    say("An undisturbed run in a single process gives the same file, bit for bit")
    quiet = ["runner.py", *OPTIONS, "--json", str(fileset), "--executor", "iterative", "--quiet"]
    call(*quiet, "--outputdir", str(folder / "undisturbed"))
    merged = f"{run.name}.coffea"
    if (run / merged).read_bytes() != (folder / "undisturbed" / run.name / merged).read_bytes():
        raise DemoError(f"the two {merged} differ")
    print("  they are equal")

    say("The spectrum")
    call("-m", "configs.plot", str(run / merged), str(folder / "spectrum.png"))
    say(f"Done in {time.monotonic() - began:.0f} s. Look at {folder / 'spectrum.png'}, then at docs/guide.md")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--directory", type=Path, default=Path("demo"))
    parser.add_argument("--events", type=int, default=EVENTS)
    asked = parser.parse_args()
    try:
        tell(asked.directory, asked.events)
    except DemoError as error:
        print(f"\n✗ the demo failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
