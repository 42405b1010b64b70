"""The true limit, whoever sets it: trees of files that stand for machines, and real limits where possible."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import executors
from executors.errors import UsageError
from executors.settings import resolve
from executors.where import where
from executors.work import limits, processes
from executors.work.limits import RUNNER, Limit, available, choice, cores, memory_limit, share, workers_for

GB, MB = 1 << 30, 1 << 20
ROOT = Path(__file__).parents[2]
V1_UNLIMITED = 9223372036854771712
V1 = "40 30 0:30 {inside} {point} rw,relatime shared:9 - cgroup cgroup rw,memory\n"
V1_CPU = "41 30 0:31 {inside} {point} rw - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "42 30 0:32 {inside} {point} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
ROOT_MOUNT = "22 1 254:0 / / rw,relatime - ext4 /dev/root rw\n"


@pytest.fixture(autouse=True)
def no_limits_of_the_shell(monkeypatch):
    monkeypatch.setattr(limits, "_shell", lambda: iter(()))


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setattr(processes, "resident", lambda: (100 * MB, 50 * MB))
    return 100 * MB


class Machine:
    """A tree of files below a folder, as a kernel shows them."""

    def __init__(self, root):
        self.root = root
        self.put("proc/meminfo", f"MemTotal: {64 << 20} kB\nMemFree: 1 kB\nMemAvailable: {60 << 20} kB\n")
        self.put("proc/self/mountinfo", ROOT_MOUNT)

    def put(self, path, content):
        path = self.root / path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")

    def says(self, groups, mounts):
        self.put("proc/self/cgroup", groups)
        self.put("proc/self/mountinfo", ROOT_MOUNT + mounts)

    def limit(self, **env):
        found = memory_limit(self.root, env)
        return found.bytes, found.source


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def v2(machine, path="/", inside="/", point="/sys/fs/cgroup"):
    machine.says(f"0::{path}", V2.format(inside=inside, point=point))
    return point


def v1(machine, path="/", inside="/", point="/sys/fs/cgroup/memory"):
    machine.says(f"5:memory:{path}\n3:cpu,cpuacct:/\n0::/", V1.format(inside=inside, point=point))
    return point


# -- control groups ---------------------------------------------------------------------------------


def test_without_groups_the_machine_is_the_limit(machine):
    assert machine.limit() == (64 * GB, "the machine")
    machine.put("proc/self/cgroup", "0::/")
    assert machine.limit() == (64 * GB, "the machine")


def test_a_group_of_version_2(machine):
    top = v2(machine, "/user.slice/user-7.slice/session.scope")
    machine.put(f"{top}/user.slice/user-7.slice/session.scope/memory.max", "max")
    machine.put(f"{top}/user.slice/user-7.slice/memory.max", 4 * GB)
    machine.put(f"{top}/user.slice/memory.max", 8 * GB)
    assert machine.limit() == (4 * GB, "control group memory.max")


def test_where_the_kernel_slows_down_is_a_limit(machine):
    top = v2(machine, "/job")
    machine.put(f"{top}/job/memory.max", 4 * GB)
    machine.put(f"{top}/job/memory.high", 3 * GB)
    assert machine.limit() == (3 * GB, "control group memory.high")


def test_a_group_of_version_1(machine):
    top = v1(machine, "/slurm/uid_7/job_12/step_0")
    machine.put(f"{top}/memory.limit_in_bytes", V1_UNLIMITED)
    machine.put(f"{top}/slurm/uid_7/job_12/memory.limit_in_bytes", 2 * GB)
    machine.put(f"{top}/slurm/uid_7/job_12/step_0/memory.limit_in_bytes", V1_UNLIMITED)
    assert machine.limit() == (2 * GB, "control group memory.limit_in_bytes")


def test_no_limit_in_version_1_is_none(machine):
    top = v1(machine)
    machine.put(f"{top}/memory.limit_in_bytes", V1_UNLIMITED)
    machine.put(f"{top}/memory.stat", f"cache 5\nhierarchical_memory_limit {V1_UNLIMITED}")
    assert machine.limit() == (64 * GB, "the machine")


def test_a_limit_above_what_a_container_sees(machine):
    top = v1(machine, "/docker/abc", inside="/docker/abc")
    machine.put(f"{top}/memory.limit_in_bytes", V1_UNLIMITED)
    machine.put(f"{top}/memory.stat", f"cache 5\nhierarchical_memory_limit {3 * GB}")
    assert machine.limit() == (3 * GB, "control group")


@pytest.mark.parametrize(
    ("path", "inside", "where"),
    [
        pytest.param("/", "/", "", id="name space of its own"),
        pytest.param("/docker/abc", "/docker/abc", "", id="the host's path, the mount shows it"),
        pytest.param("/docker/abc/inner", "/docker/abc", "/inner", id="a group of its own within"),
        pytest.param("/docker/abc", "/docker/abcdef", "", id="the mount shows another"),
        pytest.param("/../x", "/", "", id="outside of the name space"),
        pytest.param("/../x", "/..", "", id="the mount as well"),
        pytest.param("/gone/away", "/", "", id="a folder that is not seen"),
    ],
)
@pytest.mark.parametrize("version", [v1, v2])
def test_paths_of_containers(machine, version, path, inside, where):
    top = version(machine, path, inside)
    file = "memory.limit_in_bytes" if version is v1 else "memory.max"
    machine.put(f"{top}{where}/{file}", GB)
    assert machine.limit()[0] == GB


def test_the_hierarchy_above_a_mount_is_not_read(machine):
    v2(machine, "/../x", point="/sys/fs/cgroup/unified")
    machine.put("/sys/fs/cgroup/memory.max", GB)
    machine.put("/sys/fs/cgroup/x/memory.max", GB)
    machine.put("/sys/fs/cgroup/unified/memory.max", "max")
    assert machine.limit()[0] == 64 * GB


def test_both_versions_at_once(machine):
    machine.says(
        "5:memory:/a\n0::/b",
        V1.format(inside="/", point="/sys/fs/cgroup/memory")
        + V2.format(inside="/", point="/sys/fs/cgroup/unified"),
    )
    machine.put("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", 3 * GB)
    machine.put("/sys/fs/cgroup/unified/b/memory.max", 2 * GB)
    assert machine.limit()[0] == 2 * GB


def test_a_mount_point_with_a_space(machine):
    v2(machine, "/", point="/sys/control\\040groups")
    machine.put("/sys/control groups/memory.max", GB)
    assert machine.limit()[0] == GB


def test_nonsense_is_no_limit(machine):
    top = v2(machine)
    machine.put(f"{top}/memory.max", "-1")
    machine.put("proc/self/cgroup", "::\n\n0::/\nwhat is this")
    machine.put("proc/self/mountinfo", "1 2 3\n - \n - cgroup2\n")
    assert machine.limit() == (64 * GB, "the machine")
    machine.put("proc/meminfo", "nothing")
    assert machine.limit() == (limits.UNLIMITED, "no limit is known")


# -- schedulers and the shell -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"SLURM_MEM_PER_NODE": "2048"}, 2 * GB),
        ({"SLURM_MEM_PER_NODE": "0"}, 64 * GB),
        ({"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_ON_NODE": "4"}, 2 * GB),
        ({"SLURM_MEM_PER_CPU": "512"}, 64 * GB),
        ({"SLURM_MEM_PER_NODE": "much"}, 64 * GB),
    ],
)
def test_slurm_says_what_a_job_may_use(machine, env, expected):
    assert machine.limit(SLURM_JOB_ID="1", **env)[0] == expected
    assert machine.limit(**env)[0] == 64 * GB  # a variable left over from a job that is gone


def test_the_least_counts_wherever_it_is_said(machine):
    top = v2(machine)
    machine.put(f"{top}/memory.max", GB)
    assert machine.limit(SLURM_JOB_ID="1", SLURM_MEM_PER_NODE="4096")[0] == GB
    assert machine.limit(SLURM_JOB_ID="1", SLURM_MEM_PER_NODE="512") == (GB // 2, "SLURM_MEM_PER_NODE")


def test_htcondors_ads(machine):
    machine.put("scratch/.machine.ad", "Cpus = 4\nMemory = 2304\nTotalMemory = 9999\n")
    machine.put("scratch/.job.ad", 'RequestMemory = 2048\nCmd = "Memory = 1"\nRequestCpus = 4\n')
    env = {"_CONDOR_MACHINE_AD": "/scratch/.machine.ad", "_CONDOR_JOB_AD": "/scratch/.job.ad"}
    assert machine.limit(**env) == (2 * GB, "HTCondor's RequestMemory")
    machine.put("scratch/.job.ad", "RequestMemory = ifthenelse(MemoryUsage =!= undefined, MemoryUsage, 1)\n")
    assert machine.limit(**env) == (2304 * MB, "HTCondor's Memory")
    assert machine.limit(_CONDOR_MACHINE_AD="/gone")[0] == 64 * GB


def test_a_limit_of_the_shell_is_for_each_process():
    code = """
import resource
from executors.work import limits
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
print(*limits.memory_limit()[:3], limits.share(1000).bytes)
resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 3 << 30))
print(*limits.memory_limit()[:3], 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    address, data = [line.split() for line in done.stdout.splitlines()]
    assert address[:3] == [str(3 << 30), "RLIMIT_AS", "False"]
    assert data[:3] == [str(1 << 30), "RLIMIT_DATA", "False"]


def own_group():
    """The folder of this process's own group of memory, where groups may be made in it."""
    for group in limits.groups(Path("/"), "memory"):
        file = "memory.limit_in_bytes" if group.version == 1 else "memory.max"
        if os.access(group.folders[0], os.W_OK) and (group.folders[0] / file).exists():
            return group.folders[0], file
    return pytest.skip("no control group of memory in which this user may make another (needs root)")


def test_a_real_group():
    above, file = own_group()
    group = above / f"coffea-scaleout-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        (group / file).write_text(str(300 * MB))
        code = """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
from executors.work import limits
kept = b"x" * (50 << 20)
print(*limits.memory_limit(), limits.available(), limits.workers_for(1 << 30))
"""
        done = subprocess.run(
            [sys.executable, "-c", code, str(group)],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        said = done.stdout.replace("control group", "").split()
        assert said[0] == str(300 * MB)
        assert said[1:3] == [file, "True"]
        assert 50 * MB < int(said[3]) < 150 * MB
        assert 200 * MB < int(said[4]) <= 300 * MB
        assert said[5] == "1"
    finally:
        group.rmdir()


# -- what is free -----------------------------------------------------------------------------------


def test_what_others_leave(machine, own):
    assert available(machine.root, {}) == 60 * GB + own
    top = v2(machine, "/job")
    machine.put(f"{top}/job/memory.max", 4 * GB)
    machine.put(f"{top}/job/memory.current", 3 * GB)
    machine.put(f"{top}/job/memory.stat", f"anon 7\nfile {GB}\nshmem {GB // 4}")
    assert available(machine.root, {}) == 4 * GB - (3 * GB - GB + GB // 4 - own)
    machine.put(f"{top}/job/memory.current", 9 * GB)
    assert available(machine.root, {}) == 0


def test_what_others_leave_in_version_1(machine, own):
    top = v1(machine, "/job")
    machine.put(f"{top}/job/memory.limit_in_bytes", 4 * GB)
    machine.put(f"{top}/job/memory.usage_in_bytes", 3 * GB)
    machine.put(f"{top}/job/memory.stat", f"total_inactive_file {GB}\ntotal_active_file {GB // 2}")
    assert available(machine.root, {}) == 4 * GB - (3 * GB // 2 - own)


def test_a_limit_of_each_process_is_not_divided(monkeypatch, machine, own):
    monkeypatch.setattr(limits, "_shell", lambda: iter([Limit(4 * GB, "RLIMIT_AS", False, GB)]))
    assert available(machine.root, {}) == 3 * GB
    assert share(4, machine.root, {}) == Limit(3 * GB, "RLIMIT_AS", False)
    assert share(64, machine.root, {}) == Limit((int(0.85 * 64 * GB) - RUNNER) // 64, "the machine", False)
    monkeypatch.setattr(limits, "_shell", lambda: iter([Limit(GB, "RLIMIT_AS", False, 2 * GB)]))
    assert share(4, machine.root, {}).bytes == 0


# -- how many workers -------------------------------------------------------------------------------


@pytest.fixture
def sixteen(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))


@pytest.mark.usefixtures("own", "sixteen")
def test_as_many_workers_as_cores_and_memory_allow(machine):
    assert workers_for(root=machine.root, env={}) == 16
    assert workers_for(8 * GB, machine.root, {}) == int(0.85 * 64 * GB - RUNNER) // (8 * GB) == 6
    assert workers_for(100 * GB, machine.root, {}) == 1
    assert workers_for(0, machine.root, {}) == 16
    assert choice(2 * GB, machine.root, {}, promised=8 * GB) == (
        4, "2.1 GB each in 8.6 GB of memory (--memory), with 16 cores"
    )  # fmt: skip


@pytest.mark.usefixtures("own", "sixteen")
def test_what_each_process_may_use_does_not_divide_among_workers(monkeypatch, machine):
    monkeypatch.setattr(limits, "_shell", lambda: iter([Limit(2 * GB, "RLIMIT_AS", False)]))
    assert workers_for(GB, machine.root, {}) == 16


@pytest.mark.usefixtures("own", "sixteen")
def test_what_others_use_is_not_given_to_workers(machine):
    machine.put(
        "proc/meminfo", f"MemTotal: {64 << 20} kB\nSwapFree: {99 << 20} kB\nMemAvailable: {10 << 20} kB\n"
    )
    assert workers_for(GB, machine.root, {}) == 9
    assert "10.0 GB" not in choice(GB, machine.root, {}).why  # the runner's own part is taken off
    assert "(the machine)" in choice(GB, machine.root, {}).why


@pytest.mark.usefixtures("own", "sixteen")
def test_a_share_of_the_cores(machine):
    assert cores(machine.root, {}) == 16
    assert cores(machine.root, {"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "4"}) == 4
    assert cores(machine.root, {"SLURM_CPUS_ON_NODE": "4"}) == 16
    top = v2(machine, "/job")
    machine.put(f"{top}/job/cpu.max", "max 100000")
    assert cores(machine.root, {}) == 16
    machine.put(f"{top}/cpu.max", "250000 100000")
    assert cores(machine.root, {}) == 2
    machine.put(f"{top}/cpu.max", "50000 100000")
    assert cores(machine.root, {}) == 1
    machine.put("ad", "Cpus = 1\n")
    assert cores(machine.root, {"_CONDOR_MACHINE_AD": "/ad"}) == 1


@pytest.mark.usefixtures("sixteen")
def test_a_share_of_the_cores_in_version_1(machine):
    machine.says("4:cpu,cpuacct:/docker/a", V1_CPU.format(inside="/docker/a", point="/sys/fs/cgroup/cpu"))
    machine.put("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    machine.put("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1")
    assert cores(machine.root, {}) == 16
    machine.put("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "300000")
    assert cores(machine.root, {}) == 3


def test_this_machine_has_limits():
    limit = memory_limit()
    assert 0 < limit.bytes <= os.sysconf("SC_PHYS_PAGES") * resource.getpagesize()
    assert 0 < available() <= limit.bytes
    assert 1 <= workers_for() <= cores()


# -- '-j auto' --------------------------------------------------------------------------------------


def asked(**options):
    return where(resolve(**options).settings)


@pytest.mark.usefixtures("sixteen")
def test_auto_is_as_many_as_fit_and_says_why(monkeypatch):
    given = []

    def fitting(need, promised=None):
        given.append((need, promised))
        return limits.Choice(5, "as it were")

    monkeypatch.setattr(limits, "choice", fitting)
    spot = asked(executor="futures/local", workers="auto")
    assert (spot.workers, spot.slots) == (5, 5)
    assert "-j auto: 5 workers, as it were" in spot.why
    assert asked(executor="futures/local", workers="auto", memory="8GiB").worker_memory(4) is not None
    assert [promised is not None for _, promised in given] == [False, True]
    assert where(resolve(executor="futures/local", workers="auto").settings, need=7).workers == 5
    assert given[-1] == (7, None)
    assert "auto" not in asked(executor="iterative", workers="auto").why
    assert "auto" not in asked(executor="futures/local").why
    assert asked(executor="futures/local", workers=7).workers == 7


def test_auto_at_a_batch_site_is_the_cores_of_a_job():
    spot = asked(executor="dask/slurm", workers="auto", cores=6)
    assert spot.workers == 6
    assert "-j auto: 6 workers, one for each core of a job" in spot.why
    assert spot.site.job.workers is None
    assert asked(executor="dask/slurm", workers=2).workers == 2


@pytest.mark.parametrize("word", ["some", "0", "-1", "1.5", "AUTO "])
def test_what_is_no_number_of_workers(word):
    with pytest.raises(UsageError, match="--workers"):
        resolve(cli={"workers": word})


def test_auto_wherever_options_are_given(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('workers = "auto"\n')
    for resolved in (
        resolve(cli={"workers": "auto"}),
        resolve(config_file=file),
        resolve(env={"COFFEA_SCALEOUT_WORKERS": "auto"}),
        resolve(cli={"set": ["workers=auto"]}),
        resolve(workers="auto"),
    ):
        assert resolved.settings.workers == "auto"


def test_open_takes_auto():
    with executors.open("futures", workers="auto") as pool:
        assert pool.submit(os.getpid).result(60) != os.getpid()
