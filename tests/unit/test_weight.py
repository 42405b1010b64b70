"""What processes hold of memory, and what the kernel says of those it killed: simulated trees, real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from executors.engines import weight
from executors.engines.weight import Kills, Scale, group_limit, groups, share

MB = 1 << 20
NONE = "9223372036854771712"
V1 = "36 32 0:31 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
V2 = "30 24 0:26 {top} /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
OTHER = "35 32 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"


def tree(root: Path, cgroup: str, mounts: list[str], files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text("".join(f"{line}\n" for line in mounts))
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "limit"),
    [
        # Version 1, of which a folder above allows less.
        ("4:memory:/job/step\n0::/job\n", [OTHER, V1.format(top="/")],
         {"memory/job/memory.limit_in_bytes": "500", "memory/job/step/memory.limit_in_bytes": "900"}, 500),
        ("4:memory:/job\n", [V1.format(top="/")], {"memory/job/memory.limit_in_bytes": NONE}, None),
        # A container of version 1: its own group is mounted as the top, its path is the host's.
        ("4:memory:/docker/ab\n", [V1.format(top="/docker/ab")], {"memory/memory.limit_in_bytes": "700"}, 700),
        # Below that.
        ("4:memory:/docker/ab/c\n", [V1.format(top="/docker/ab")],
         {"memory/memory.limit_in_bytes": "700", "memory/c/memory.limit_in_bytes": "600"}, 600),
        # Version 2; high throttles until nothing moves.
        ("0::/a/b\n", [V2.format(top="/")], {"a/b/memory.max": "max\n", "a/memory.max": "800\n"}, 800),
        ("0::/a\n", [V2.format(top="/")], {"a/memory.max": "800\n", "a/memory.high": "300\n"}, 300),
        # A namespace of its own; a path outside of it.
        ("0::/\n", [V2.format(top="/")], {"memory.max": "400\n"}, 400),
        ("0::/../x\n", [V2.format(top="/")], {"memory.max": "400\n"}, 400),
        # Nothing mounted, nothing there.
        ("4:memory:/job\n", [OTHER], {}, None),
        ("", [], {}, None),
    ],
)  # fmt: skip
def test_what_the_groups_allow(tmp_path, cgroup, mounts, files, limit):
    root = tree(tmp_path, cgroup, mounts, files)
    assert group_limit(root) == limit
    assert all(folder.is_relative_to(root) for folder, _ in groups(root))


def test_without_proc_nothing_is_known(tmp_path):
    assert group_limit(tmp_path) is None
    kills = Kills(tmp_path)
    assert not kills.readable
    assert not kills.one_more()


@pytest.mark.parametrize(
    ("cgroup", "mount", "name"),
    [("4:memory:/j\n", V1, "memory/j/memory.oom_control"), ("0::/j\n", V2, "j/memory.events")],
)
def test_each_kill_is_accounted_for_once(tmp_path, cgroup, mount, name):
    """The own group's count, not the machine's: others' kills are not ours."""
    root = tree(tmp_path, cgroup, [mount.format(top="/")], {name: "oom_kill 3\nmore 1\n"})
    (root / "proc/vmstat").write_text("pgfault 1\noom_kill 7\n")
    kills = Kills(root)
    assert not kills.one_more()
    (root / "proc/vmstat").write_text("oom_kill 9\n")
    assert not kills.one_more()
    (root / "sys/fs/cgroup" / name).write_text("oom_kill 5\n")
    assert [kills.one_more() for _ in range(3)] == [True, True, False]
    (root / "sys/fs/cgroup" / name).write_text("oom_kill 6\n")
    kills.forget()
    assert not kills.one_more()


def test_without_a_group_the_machines_count_has_to_do(tmp_path):
    root = tree(tmp_path, "", [], {})
    (root / "proc/vmstat").write_text("oom_kill 7\n")
    kills = Kills(root)
    (root / "proc/vmstat").write_text("oom_kill 8\n")
    assert kills.readable
    assert kills.one_more()


FILL = """
import mmap, os, sys, time
size, way = int(sys.argv[1]), sys.argv[2]
held = mmap.mmap(-1, size) if way in ("shared", "untouched") else bytearray(size)
if way == "file":
    with open(sys.argv[3], "wb") as file:
        file.write(b"x" * size)
    with open(sys.argv[3], "rb") as file:
        held = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    total = sum(held[::4096])
elif way != "untouched":
    held[::4096] = b"x" * len(held[::4096])
if way == "fork" and not os.fork():
    time.sleep(100)
print("full", flush=True)
time.sleep(100)
"""


@pytest.fixture
def filled(tmp_path):
    """``filled(bytes, way)``: a process that holds so much in one of several ways."""
    started = []

    def start(size: int, way: str) -> int:
        command = [sys.executable, "-S", "-E", "-c", FILL, str(size), way, str(tmp_path / "data")]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True))
        assert started[-1].stdout.readline() == b"full\n"
        return started[-1].pid

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize(
    ("way", "low", "high"),
    [("own", 200, 220), ("shared", 200, 220), ("untouched", 0, 20), ("file", 0, 20), ("fork", 200, 230)],
)
def test_what_counts(filled, way, low, high):
    """What has to be kept, once, whoever shares it; what can be read again does not count."""
    pid = filled(200 * MB, way)
    assert low * MB <= Scale().weigh(pid, 100 * MB) <= high * MB


def test_what_a_worker_started_counts(filled, monkeypatch):
    first, second = filled(100 * MB, "own"), filled(100 * MB, "own")
    assert Scale().weigh(first, 150 * MB, [second]) > 200 * MB
    scale = Scale()
    below = []
    monkeypatch.setattr(weight, "descendants", lambda pid: iter(below))
    assert scale.weigh(first, 150 * MB) < 120 * MB
    below.append(second)
    assert scale.weigh(first, 150 * MB) < 120 * MB, "they are not looked for each time"
    time.sleep(weight.KIN_EVERY)
    assert scale.weigh(first, 150 * MB) > 200 * MB


def test_a_process_that_is_gone_weighs_nothing():
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    assert Scale().weigh(process.pid, MB) == 0


@pytest.mark.parametrize(
    ("job", "workers", "each", "expected"),
    [(None, 4, 0, None), (1000, 1, 0, 900), (1000, 2, 50, 400), (150, 1, 0, 75), (1000, 4, 200, 125)],
)
def test_the_share_of_a_worker(job, workers, each, expected):
    assert share(job, workers, 100, each) == expected
