"""The runner itself: killed at random moments until done, stopped by signals, two on one directory."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from data import KINDS, corrupt, make_fileset

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
ALL = ("iterative", "futures", "dask/local", "parsl/local")
POOLS = ALL[1:]
STARTS = {"iterative": 1.0, "futures": 1.2, "dask/local": 3.0, "parsl/local": 6.0}


@pytest.fixture
def work(tmp_path):
    return Work(tmp_path)


class Work:
    """A folder with data, and the command that runs over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = f"test-{os.getpid()}-{random.randrange(1 << 40)}"

    def data(self, **sizes):
        fileset = make_fileset(self.folder / "data", sizes, seed=7)
        (self.folder / "fs.json").write_text(json.dumps(fileset))
        return fileset

    def command(self, on, *more, wf="Sum", out="out"):
        return [
            sys.executable, str(ROOT / "runner.py"), "--wf", f"{TESTS / 'analyses.py'}:{wf}", "--json", "fs.json",
            "--executor", on, "-j", "2", "--chunk", "50", "--outputdir", out, "--cache", "cache", *more,
        ]  # fmt: skip

    def start(self, command, **more):
        env = {**os.environ, "TEST_TOKEN": self.token, "PYTHONPATH": str(TESTS)}
        return subprocess.Popen(
            command, cwd=self.folder, env=env, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more,
        )  # fmt: skip

    def run(self, command, timeout=200):
        process = self.start(command)
        try:
            out, _ = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return process.returncode, out

    def manifest(self, out="out", wf="Sum"):
        return json.loads((self.folder / out / f"hist_{wf}_fs" / "manifest.json").read_text())

    def left(self):
        """Processes that this test's runners started and that still live."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get("TEST_TOKEN") == self.token:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def nothing_left(self, within=10.0):
        until = time.monotonic() + within
        while (left := self.left()) and time.monotonic() < until:
            time.sleep(0.1)
        listening = [c.laddr for p in left for c in p.net_connections() if c.status == "LISTEN"]
        assert not left, f"{left} still there, listening on {listening}"


def accounted(manifest, planned):
    assert manifest["complete"]
    assert manifest["events_planned"] == manifest["events_counted"] == planned


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("on", POOLS)
def test_killed_until_done(on, work, scale):
    """The same command finishes the job, however often the runner is killed."""
    kills = scale(8 if on == "futures" else 3, 500 if on == "futures" else 50)
    chunks = scale(160, 1000)
    work.data(dy=[chunks * 25] * 2)
    code, out = work.run(work.command("iterative", out="truth"))
    assert code == 0, out
    command = work.command(on, "--wf-arg", "pause=0.02", "--task-seconds", "0.2", "--fsize", "1")
    rng = random.Random(on)
    done = 0
    while done < kills:
        process = work.start(command)
        try:
            process.communicate(timeout=rng.uniform(0.2, STARTS[on] + 2.5))
            # Finished before all kills were spent: begin anew, so that every kill counts.
            assert process.returncode == 0
            shutil.rmtree(work.folder / "out")
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            done += 1
            if done % scale(4, 25) == 0 or done == kills:
                work.nothing_left()
    code, out = work.run(command)
    assert code == 0, out
    accounted(work.manifest(), chunks * 50)
    assert work.manifest()["digest"] == work.manifest("truth")["digest"]
    work.nothing_left()


@pytest.mark.parametrize("on", ALL)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_in_order(on, number, work):
    if number == signal.SIGHUP and on in ("dask/local", "parsl/local"):
        number = signal.SIGTERM  # the same handler; the slow engines are tried with two signals only
    work.data(dy=[4000])
    command = work.command(on, "--wf-arg", "pause=0.2")
    process = work.start(command)
    log = work.folder / "out" / "hist_Sum_fs" / "journal.jsonl"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (log.exists() and '"task"' in log.read_text()):
        time.sleep(0.1)
    began = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert time.monotonic() - began < 10
    assert "same command" in out
    assert "Traceback" not in out
    found = work.manifest()
    assert 0 < found["events_counted"] < 4000
    work.nothing_left()
    code, out = work.run(work.command(on, "--wf-arg", "pause=0.2", "--limit", "2"))
    assert code == 2, "another plan is refused"


def test_two_runners(work, scale):
    """Two commands at once: one works, the other says who does, or finds it done."""
    work.data(dy=[600])
    for i in range(scale(5, 100)):
        command = work.command("futures", "--wf-arg", "pause=0.01", out=f"out{i}")
        pair = [work.start(command) for _ in range(2)]
        outs = [p.communicate(timeout=100)[0] for p in pair]
        codes = sorted(p.returncode for p in pair)
        assert codes in ([0, 4], [0, 0]), outs
        if codes == [0, 4]:
            assert any("is in use by" in out for out in outs)
        accounted(work.manifest(f"out{i}"), 600)
    work.nothing_left()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("on", ["futures", "dask/local", "parsl/local"])
def test_bad_inputs_among_good_ones(on, work, scale):
    """Every bad file is found and named, every good one counted, in the end the bad ones are mended."""
    kinds = [kind for kind in KINDS if kind != "changed"]  # a good file, as long as no plan knows another
    bad = scale(2 if on == "futures" else 1, 90 if on == "futures" else 2) * len(kinds)
    fileset = work.data(dy=[60] * (3 * bad // 2))
    paths = list(fileset["dy"]["files"])
    code, out = work.run(work.command("iterative", out="truth"))
    assert code == 0, out
    good = {path: Path(path).read_bytes() for path in paths[:bad]}
    for i, path in enumerate(paths[:bad]):
        corrupt(kinds[i % len(kinds)], path)
    planned = 60 * len(paths)
    command = work.command(on, "--retries", "1")
    code, out = work.run(command)
    assert code == 3, out
    missing = json.loads((work.folder / "out/hist_Sum_fs/failed.json").read_text())
    assert set(missing["dy"]["files"]) == set(paths[:bad])
    code, out = work.run([*command, "--skipbadfiles"])
    assert code == 3, out
    assert "failed.json" in out
    found = work.manifest()
    assert found["events_counted"] == planned - 60 * bad
    code, out = work.run(
        [*command, "--skipbadfiles", "--allow-missing", "100000", "--allow-missing-files", "1000"]
    )
    assert code == 0, out
    for path, data in good.items():
        if Path(path).is_dir():
            Path(path).rmdir()
        Path(path).write_bytes(data)
    code, out = work.run(command)
    assert code == 0, out
    accounted(work.manifest(), planned)
    assert work.manifest()["digest"] == work.manifest("truth")["digest"]


def test_what_failed_can_be_run_again(work):
    fileset = work.data(dy=[500, 500])
    path = list(fileset["dy"]["files"])[0]
    good = Path(path).read_bytes()
    corrupt("flipped", path)
    code, out = work.run(work.command("iterative", "--retries", "0"))
    assert code == 3, out
    Path(path).write_bytes(good)
    failed = work.folder / "out/hist_Sum_fs/failed.json"
    code, out = work.run([*work.command("iterative"), "--json", str(failed)])
    assert code == 0, out
    manifest = json.loads((work.folder / "out/hist_Sum_failed/manifest.json").read_text())
    assert manifest["events_counted"] == 500


def test_changed_code_is_noticed(work):
    work.data(dy=[500])
    module, helper = work.folder / "ana.py", work.folder / "cuts.py"
    helper.write_text("CUT = 1\n")
    module.write_text("import cuts\ndef count(events):\n    return {'n': len(events) * cuts.CUT}\n")
    command = [a if not a.endswith(":Sum") else "ana.py:count" for a in work.command("futures")]
    assert work.run(command)[0] == 0
    helper.write_text("CUT = 2\n")
    code, out = work.run(command)
    assert (code, "cuts" in out) == (2, True), out
    assert work.run([*command, "--overwrite"])[0] == 0
    code, out = work.run(
        [sys.executable, str(ROOT / "runner.py"), "inspect", "out/hist_count_fs/hist_count_fs.coffea"]
    )
    assert "1000" in out
