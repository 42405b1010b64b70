"""A real HTCondor pool: master, collector, negotiator, schedd and startd in one folder, on loopback.

Root may not submit jobs: where root runs the tests, the pool and its clients are those of an ordinary user. With
``private_tmp`` the daemons stay root's and give each job a /tmp of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

from real.servers import install, processes, python
from real.servers.batch import Batch, Job

RECORD = "condor.json"
STATES = {1: "pending", 2: "running", 3: "ending", 4: "ending", 5: "held", 6: "running", 7: "held"}

# What a machine of its own would have from its packages, and where its state is.
PLACES = """
RELEASE_DIR = {prefix}/usr
BIN = $(RELEASE_DIR)/bin
SBIN = $(RELEASE_DIR)/sbin
LIBEXEC = $(RELEASE_DIR)/libexec/condor
LIB = $(RELEASE_DIR)/lib/condor
SHARE = $(RELEASE_DIR)/share/condor
LOCAL_DIR = {folder}
LOG = $(LOCAL_DIR)/log
SPOOL = $(LOCAL_DIR)/spool
EXECUTE = $(LOCAL_DIR)/execute
LOCK = $(LOCAL_DIR)/lock
RUN = $(LOCAL_DIR)/run
CRED_STORE_DIR = $(LOCAL_DIR)/cred
DAEMON_LIST = MASTER COLLECTOR NEGOTIATOR SCHEDD STARTD
"""
# Loopback only; every connection authenticated, signed and encrypted; no name service is asked.
NETWORK = """
CONDOR_HOST = 127.0.0.1
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = False
COLLECTOR_HOST = 127.0.0.1:{port}
USE_SHARED_PORT = True
SHARED_PORT_PORT = {port}
NO_DNS = True
DEFAULT_DOMAIN_NAME = localdomain
ENABLE_IPV6 = False
UID_DOMAIN = localdomain
FILESYSTEM_DOMAIN = localdomain
TRUST_UID_DOMAIN = True
SEC_DEFAULT_AUTHENTICATION = REQUIRED
SEC_DEFAULT_INTEGRITY = REQUIRED
SEC_DEFAULT_ENCRYPTION = REQUIRED
SEC_DEFAULT_AUTHENTICATION_METHODS = FS, IDTOKENS
SEC_PASSWORD_DIRECTORY = $(LOCAL_DIR)/passwords.d
SEC_TOKEN_SYSTEM_DIRECTORY = $(LOCAL_DIR)/tokens
SEC_TOKEN_DIRECTORY = $(LOCAL_DIR)/tokens
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = *@$(UID_DOMAIN)
ALLOW_NEGOTIATOR = *@$(UID_DOMAIN)
ALLOW_ADMINISTRATOR = *@$(UID_DOMAIN)
"""
# One slot that is cut as asked for. It may declare more than the machine has: tests' jobs are small.
SLOT = """
NUM_CPUS = {cpus}
MEMORY = {memory}
NUM_SLOTS = 1
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = True
START = True
SUSPEND = False
CONTINUE = True
PREEMPT = False
KILL = False
RUNBENCHMARKS = 0
"""
# The defaults take a minute and more for each step; a starter whose shadow is gone would keep its slot for 40.
PACE = """
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_MIN_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
SCHEDD_INTERVAL = 2
SCHEDD_MIN_INTERVAL = 1
JOB_START_DELAY = 0
UPDATE_INTERVAL = 5
POLLING_INTERVAL = 5
STARTER_UPDATE_INTERVAL = 3
STARTER_INITIAL_UPDATE_INTERVAL = 1
SHADOW_QUEUE_UPDATE_INTERVAL = 3
PERIODIC_EXPR_INTERVAL = 2
PERIODIC_EXPR_TIMESLICE = 1
JOB_DEFAULT_LEASE_DURATION = 60
MachineMaxVacateTime = 5
KILLING_TIMEOUT = 5
SHUTDOWN_GRACEFUL_TIMEOUT = 10
"""
# Memory is measured by the procd alone. A master of root's would rewrite the host's sysctl values, and hide /tmp.
HOST = """
USE_PROCD = True
PROCD_MAX_SNAPSHOT_INTERVAL = 2
BASE_CGROUP =
DISCARD_SESSION_KEYRING_ON_STARTUP = False
ENABLE_KERNEL_TUNING = False
KERNEL_TUNING_LOG =
LINUX_KERNEL_TUNING_SCRIPT =
MAX_DEFAULT_LOG = 20 Mb
MOUNT_UNDER_SCRATCH =
"""
# What sites add by rules of their own: a queue that has to exist, and jobs that end when their time is over.
RULES = """
SUBMIT_REQUIREMENT_NAMES = $(SUBMIT_REQUIREMENT_NAMES) QUEUE
SUBMIT_REQUIREMENT_QUEUE = TestQueue is undefined || TestQueue == "main"
SUBMIT_REQUIREMENT_QUEUE_REASON = strcat("there is no queue ", string(TestQueue))
SYSTEM_PERIODIC_REMOVE = JobStatus == 2 && MaxRuntime isnt undefined && (time() - JobCurrentStartDate) > MaxRuntime
SYSTEM_PERIODIC_REMOVE_REASON = strcat("over MaxRuntime ", string(MaxRuntime))
"""
# Seen by the daemons and their jobs alone: an interpreter that everybody can read, and no checkout of ours.
MOUNTS = """
set -e
mount --bind {base} {folder}/python/base
mount --bind {site} {folder}/python/site
mount -t tmpfs -o mode=755 none {checkout}
exec {master} -f
"""
PRIVATE_TMP = "MOUNT_UNDER_SCRATCH = /tmp, /var/tmp\n"
HOLD_FOR_MEMORY = "use POLICY : HOLD_IF_MEMORY_EXCEEDED\n"
SITE = """
inherits = "condor"
description = "the HTCondor pool that the tests have started"
[network]
address = "loopback"
[job]
queue = "main"
queue_directive = "+TestQueue"
[resources]
cores = 1
memory = "1500MB"
disk = "200MB"
walltime = "20m"
[limits]
polls_per_minute = 60
start = "60s"
death = "10s"
"""


def missing() -> str:
    """Why no pool can be started here; empty if one can."""
    if not (install.condor_prefix() / "usr/sbin/condor_master").exists():
        return "no condor_master; on Debian: make system"
    if os.geteuid() == 0 and not install.has_user():
        return f"root cannot submit jobs and there is no user {install.USER}: make system"
    return ""


def can_hide_tmp() -> bool:
    """Whether daemons of root's can give a job a /tmp of its own (not in an unprivileged container)."""
    argv = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    with contextlib.suppress(OSError):
        return os.geteuid() == 0 and subprocess.run(argv, capture_output=True, check=False).returncode == 0
    return False


class Condor(Batch):
    """A pool that runs; see ``Batch`` for what can be asked of it."""

    kind: ClassVar[str] = "condor"
    ways: ClassVar[tuple[str, ...]] = ("condor_rm", "condor_hold", "condor_vacate_job", "node", "kill")

    def __init__(
        self,
        folder: Path,
        *,
        private_tmp: bool = False,
        rules: str = RULES,
        cpus: int = 8,
        memory: int = 16_000,
    ) -> None:
        self.folder = folder
        self.prefix = install.condor_prefix()
        self.user = install.USER if os.geteuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        self.private_tmp = private_tmp
        self.home = folder / "home"
        self.conf = folder / "condor_config"
        self.run_as = as_user(self.user)
        tools = f"{self.prefix}/usr/bin:{self.prefix}/usr/sbin"
        self.env = {
            **os.environ, "CONDOR_CONFIG": str(self.conf), "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": str(self.home), "USER": self.user, "LOGNAME": self.user,
        }  # fmt: skip
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"):
            self.env.pop(name, None)  # root's, where that user may not write
        self.site_file = folder / "testcondor.toml"
        self.python = Path(install.PYTHON)  # what a job can run
        self._master: subprocess.Popen[bytes] | None = None
        self._write(rules, cpus, memory)

    @property
    def enforces_memory(self) -> bool:
        """Whether a job above its request is put on hold."""
        return True

    def _write(self, rules: str, cpus: int, memory: int) -> None:
        port = processes.free_ports(1)
        parts = [PLACES, NETWORK, SLOT, PACE, HOST, HOLD_FOR_MEMORY]
        values = {"prefix": self.prefix, "folder": self.folder, "port": port, "cpus": cpus, "memory": memory}
        text = "".join(part.format(**values) if "{" in part else part for part in parts)
        owner = self.user
        if self.private_tmp:
            daemon = pwd.getpwnam("daemon")
            text += f"{PRIVATE_TMP}CONDOR_IDS = {daemon.pw_uid}.{daemon.pw_gid}\n"
            owner = "daemon"
        self.conf.write_text(text + rules)
        self.site_file.write_text(SITE)
        modes = {"log": 0o755, "spool": 0o755, "execute": 0o755, "run": 0o755, "lock": 0o1777}
        modes |= {"cred": 0o700, "tokens": 0o700, "passwords.d": 0o700}
        for name, mode in modes.items():
            (self.folder / name).mkdir()
            (self.folder / name).chmod(mode)
            if not (self.private_tmp and mode == 0o700):  # these stay root's, as its daemons want them
                give(self.folder / name, owner)
        for name in ("home", "work"):
            (self.folder / name).mkdir()
            give(self.folder / name, self.user)
        if self.private_tmp:
            place = self.folder / "python"
            for name in ("base", "site"):
                (place / name).mkdir(parents=True)
            self.python = python.without_project(place / "env", place / "base", place / "site")

    def start(self) -> Condor:
        """Start the daemons and wait for slot and queue; RuntimeError with the end of the log."""
        # Their environment is handed on to jobs: nothing of ours may be in it.
        env = {"HOME": str(self.home), "LANG": "C", "CONDOR_CONFIG": str(self.conf)}
        env["PATH"] = (
            f"{self.prefix}/usr/bin:{self.prefix}/usr/sbin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        )
        argv = [*self.run_as, str(self.prefix / "usr/sbin/condor_master"), "-f"]
        if self.private_tmp:
            names = {"base": python.base(), "site": python.packages(), "checkout": install.ROOT}
            script = MOUNTS.format(**names, folder=self.folder, master=argv[-2])
            argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        with (self.folder / "master.out").open("ab") as out:
            self._master = subprocess.Popen(
                argv, env=env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        (self.folder / RECORD).write_text(json.dumps({"master": self._master.pid}))
        if not processes.wait_for(lambda: self._master.poll() is not None or self._ready(), 40, every=0.3):
            self._give_up("the pool did not come up")
        if self._master.poll() is not None:
            self._give_up("condor_master ended")
        return self

    def _ready(self) -> bool:
        try:
            return bool(self.command("condor_status", "-af", "Name", timeout=10)) and self.queue() == []
        except (RuntimeError, subprocess.TimeoutExpired):
            return False

    def _give_up(self, why: str) -> None:
        log = self.folder / "log/MasterLog"
        tail = log.read_text(errors="replace").splitlines()[-15:] if log.exists() else []
        tail += (self.folder / "master.out").read_text(errors="replace").splitlines()[-5:]
        self.stop()
        raise RuntimeError("\n".join([f"{why}:", *tail]))

    def queue(self) -> list[Job]:
        """Every job that is not over."""
        names = "ClusterId,ProcId,JobStatus,JobBatchName,HoldReason,RemoteHost"
        said = self.asked("condor_q", "-allusers", "-json", "-attributes", names)
        jobs = json.loads(said) if said.strip() else []  # an empty queue is nothing at all, not []
        return [
            Job(
                f"{ad['ClusterId']}.{ad['ProcId']}", ad.get("JobBatchName", ""), STATES.get(ad["JobStatus"], "ending"),
                ad.get("HoldReason") or "", ad.get("RemoteHost") or "",
            )
            for ad in jobs
        ]  # fmt: skip

    def show(self, job: str) -> dict[str, object]:
        """What queue or history know of a job."""
        for tool in ("condor_q", "condor_history"):
            said = self.command(tool, "-json", job)
            if said.strip() and (ads := json.loads(said)):
                return dict(ads[0])
        return {}

    def take_away(self, job: Job, way: str) -> None:
        """``condor_rm``, ``condor_hold``, ``condor_vacate_job``, ``node`` (the starter dies) or ``kill``."""
        if way.startswith("condor_"):
            self.command(way, job.id, check=False)
            return
        found = processes.family(pid for pid in self.job_processes() if self._job_of(pid) == job.id)
        if way == "kill":
            processes.end(found, signal.SIGKILL)
            return
        starters = {
            above
            for pid in found
            for above in _ancestors(pid)
            if processes.command(above) == "condor_starter"
        }
        processes.send(starters, signal.SIGKILL)

    def _job_of(self, pid: int) -> str:
        ad = Path(processes.environment(pid).get("_CONDOR_JOB_AD", ""))
        with contextlib.suppress(OSError):
            pairs = dict(line.split(" = ", 1) for line in ad.read_text().splitlines() if " = " in line)
            return f"{pairs['ClusterId']}.{pairs['ProcId']}"
        return ""

    def job_processes(self) -> list[int]:
        """Processes that have a scratch folder of this pool."""
        execute = f"{self.folder}/execute/"
        return processes.with_environment("_CONDOR_SCRATCH_DIR", lambda value: value.startswith(execute))

    def clear(self) -> None:
        """Remove everything; wait until nothing is left."""
        self.command("condor_rm", "-all", check=False)
        if not processes.wait_for(lambda: not self.queue(), 15, every=0.3):
            self.command("condor_rm", "-all", "-forcex", check=False)
            processes.wait_for(lambda: not self.queue(), 10, every=0.3)
        processes.wait_for(lambda: not self.job_processes(), 10)
        processes.end(self.job_processes(), signal.SIGKILL)

    def mend(self) -> None:
        """Nothing: a pool's parts start each other again."""

    def fresh(self, name: str) -> Path:
        """A new folder for a test, the user's own."""
        path = self.folder / "work" / f"{name}-{time.monotonic_ns() % 10**9}"
        path.mkdir()
        give(path, self.user)
        return path

    def stop(self) -> None:
        """End daemons and jobs."""
        end(self.folder)
        if self._master is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._master.wait(5)


def end(folder: Path) -> None:
    """End the pool of a folder by what is written there; a number that is another's by now is left alone."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return
    if record["master"] in _daemons(folder):
        processes.send([record["master"]], signal.SIGQUIT)  # fast: it ends the daemons, these their jobs
        processes.wait_for(lambda: not _daemons(folder), 15)
    execute = f"{folder}/execute/"
    jobs = processes.with_environment("_CONDOR_SCRATCH_DIR", lambda value: value.startswith(execute))
    processes.end([*_daemons(folder), *jobs], signal.SIGKILL)


def _daemons(folder: Path) -> list[int]:
    """Its daemons. A client has the same configuration in its environment, but another program."""
    conf = str(folder / "condor_config")
    found = processes.with_environment("CONDOR_CONFIG", lambda value: value == conf)
    return [pid for pid in found if _is_daemon(pid)]


def _is_daemon(pid: int) -> bool:
    with contextlib.suppress(OSError):
        program = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
        return "/usr/sbin/condor_" in program or "/usr/libexec/condor/" in program
    return False


def _ancestors(pid: int) -> list[int]:
    found = []
    while (pid := processes.parent(pid)) > 1:
        found.append(pid)
    return found


def give(path: Path, user: str) -> None:
    """Make a folder another user's, where we may."""
    if os.geteuid() == 0:
        shutil.chown(path, user, pwd.getpwnam(user).pw_gid)


def as_user(user: str) -> list[str]:
    """What goes before a command so that it runs as a user; nothing where we are that user.

    A checkout or an interpreter may lie below a folder that is closed to others, as a temporary clone does: then
    the right to read everything is handed on.
    """
    if os.geteuid() != 0 or user == "root":
        return []
    who = pwd.getpwnam(user)
    plain = ["setpriv", f"--reuid={who.pw_uid}", f"--regid={who.pw_gid}", "--clear-groups"]
    for right in ("", "dac_read_search", "dac_override"):
        # The securebit lets also access() succeed, with which shells look before they start something.
        more = (
            [f"--inh-caps=+{right}", f"--ambient-caps=+{right}", "--securebits=+no_setuid_fixup"]
            if right
            else []
        )
        if _can([*plain, *more, install.PYTHON, "-c", _PROBE, str(install.ROOT / "runner.py"), sys.version]):
            return plain + more
    raise RuntimeError(f"the user {user} cannot read {install.ROOT}: clone to a folder that others may enter")


# What a job does: a Python that starts another one. One that cannot find its own library takes the system's, if it fits.
_PROBE = """
import json, subprocess, sys
open(sys.argv[1])
subprocess.run([sys.executable, '-c', 'import json'], check=True)
sys.exit(sys.version != sys.argv[2])
"""


def _can(argv: list[str]) -> bool:
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0
