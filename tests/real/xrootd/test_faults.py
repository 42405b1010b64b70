"""Servers that hang, die, lie or were never there: seconds, not minutes; and the same command finishes the job."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from real.xrootd.conftest import ROOT, SIZES
from real.xrootd.farm import free_port

pytestmark = pytest.mark.real

EVENTS = sum(SIZES)
PATIENCE = 3  # seconds for one answer, as the site of these tests says
SLOW = ("--wf-arg", "pause=0.15", "--task-seconds", "0.2")


def serve(farm, made):
    origin = farm.origin()
    return origin, [origin.put(path, path.name) for path in made.files]


def test_a_server_that_hangs_from_the_start(farm, made, runs):
    origin, urls = serve(farm, made)
    runs.fileset(urls)
    origin.hang()
    done = runs("--retries", "1")
    assert done.code == 3, done.text
    assert done.seconds < 2 * (PATIENCE + 1) + 1 + 15, "the profile's time-outs bound the wait"
    assert "could not be opened" in done.text
    origin.wake()
    done = runs()
    assert done.code == 0, done.text
    assert runs.digest() == made.digest


def test_many_files_of_a_server_that_hangs_cost_no_more_than_a_few(farm, made, runs):
    origin = farm.origin()
    url = origin.put(made.files[0], "a.root").removesuffix("a.root")
    good, _ = serve(farm, made)
    runs.fileset([*(f"{url}{i}.root" for i in range(200)), good.put(made.files[1], "good.root")])
    origin.hang()
    done = runs("--retries", "0", "--allow-missing-files", "200")
    assert done.code == 0, done.text
    assert done.seconds < 3 * (PATIENCE + 1) + 15, "200 files with 16 readers would take 13 times as long"
    assert runs.manifest()["datasets"]["dy"]["events_counted"] == SIZES[1]
    origin.wake()


@pytest.mark.parametrize(
    "engine", ["futures", *(pytest.param(one, marks=pytest.mark.full) for one in ("dask", "parsl"))]
)
def test_a_server_that_hangs_and_wakes_in_the_middle(farm, made, runs, engine):
    origin, urls = serve(farm, made)
    runs.fileset(urls)
    process = runs.start(*SLOW, engine=engine)
    runs.until(lambda: runs.counted() > 1, "the first results")
    origin.hang()
    text = ""
    try:
        process.communicate(timeout=2 * PATIENCE)
    except subprocess.TimeoutExpired:
        origin.wake()
        text, _ = process.communicate(timeout=80)
    assert process.returncode == 0, text
    assert runs.digest() == made.digest


def test_a_server_that_stays_hung_ends_the_run_and_not_the_job(farm, made, runs):
    origin, urls = serve(farm, made)
    runs.fileset(urls)
    process = runs.start(*SLOW, "--retries", "1")
    runs.until(lambda: runs.counted() > 1, "the first results")
    origin.hang()
    text, _ = process.communicate(timeout=90)
    assert process.returncode == 3, text
    origin.wake()
    done = runs(*SLOW)
    assert done.code == 0, done.text
    assert runs.digest() == made.digest


@pytest.mark.parametrize("back", [pytest.param("at once", marks=pytest.mark.full), "later"])
def test_a_server_that_is_killed_in_the_middle(farm, made, runs, back):
    origin, urls = serve(farm, made)
    runs.fileset(urls)
    process = runs.start(*SLOW, "--retries", "10" if back == "at once" else "0")
    runs.until(lambda: runs.counted() > 1, "the first results")
    origin.kill()
    if back == "at once":
        origin.start()
        text, _ = process.communicate(timeout=90)
        assert process.returncode == 0, text
    else:
        text, _ = process.communicate(timeout=90)
        assert process.returncode == 3, text
        assert "Traceback" not in text
        origin.start()
        assert runs(*SLOW).code == 0
    assert runs.digest() == made.digest


def test_a_file_cut_short_on_the_server(farm, made, runs):
    origin, urls = serve(farm, made)
    runs.fileset(urls)
    path = origin.data / "store" / made.files[2].name
    os.truncate(path, path.stat().st_size * 3 // 4)
    done = runs()
    assert done.code == 3, done.text
    lost = runs.manifest()["failures"]
    assert {one["file"] for one in lost} == {urls[2]}
    assert {one["kind"] for one in lost} == {"input, bad"}
    counted = runs.manifest()["datasets"]["dy"]["events_counted"]
    assert EVENTS - SIZES[2] <= counted < EVENTS
    origin.put(made.files[2], made.files[2].name)
    assert runs().code == 0
    assert runs.digest() == made.digest


def test_a_file_that_is_not_there_is_listed(farm, made, runs):
    origin, urls = serve(farm, made)
    runs.fileset([*urls, f"{origin.url}/store/nowhere.root"])
    done = runs("--retries", "1")
    assert done.code == 3, done.text
    assert f"{origin.url}/store/nowhere.root" in done.text
    assert "no such file" in done.text
    assert runs.manifest()["datasets"]["dy"]["events_counted"] == EVENTS
    assert runs("--allow-missing-files", "1", "--retries", "0").code == 0
    assert runs.digest() == made.digest


def test_a_port_where_nobody_listens(made, runs):
    runs.fileset([f"root://127.0.0.1:{free_port()}//store/{path.name}" for path in made.files])
    done = runs("--retries", "1")
    assert done.code == 3, done.text
    assert done.seconds < 20
    assert "Connection error" in done.text


def test_a_server_that_does_not_exist(made, runs):
    runs.fileset(["root://nowhere.invalid//store/a.root"])
    done = runs("--retries", "0")
    assert done.code == 3, done.text
    assert done.seconds < 20


AGAIN = """
import os, sys
from executors.coffea.count import count
from executors.coffea.xrootd import settle
from sites.profile import XRootD
from sites.urls import xrootd_env
import farm

settle(xrootd_env(XRootD(2, 1, 3, 2, 1), os.environ))
def tries(url):
    try:
        return count(url, timeout=3).entries
    except OSError as error:
        return "OSError"
read, other = sys.argv[1:]
print(tries(read), flush=True)
input()  # the server is killed
print(tries(read), tries(other), flush=True)
input()  # the server is back
print(tries(read), tries(other), flush=True)
input()  # the server is gone for good, which only the second file's reader finds out
tries(other)
"""


def test_one_process_reads_on_from_a_server_that_was_away(farm, made):
    """By itself the client would refuse it for half an hour, and give out the broken handle again."""
    origin, urls = serve(farm, made)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "real" / "xrootd")])
    env = {k: v for k, v in os.environ.items() if not k.startswith("XRD_")} | {"PYTHONPATH": path}
    pipe = subprocess.PIPE
    reader = subprocess.Popen(
        [sys.executable, "-c", AGAIN, *urls[:2]], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env
    )

    def line(word="\n"):
        reader.stdin.write(word)
        reader.stdin.flush()
        return reader.stdout.readline().split()

    try:
        assert reader.stdout.readline().split() == [str(SIZES[0])]
        origin.kill()
        assert line() == ["OSError", "OSError"]
        origin.start()
        assert line() == [str(SIZES[0]), str(SIZES[1])]
        origin.kill()
        _, errors = reader.communicate("\n", timeout=30)
        assert errors == "", "nothing is said at the end of handles that cannot be closed"
    finally:
        reader.kill()
        reader.communicate()
