"""A real Slurm: munged, slurmctld and two virtual nodes, wholly inside one folder, on loopback.

Nothing in /etc is read or written, so it can run beside the machine's own Slurm. Memory limits are enforced by
cgroups where a tree of version 1 can be written, else only looked at by Slurm itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from real.servers import processes
from real.servers.batch import Batch, Job

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
CGROUP = Path("/sys/fs/cgroup")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"
RECORD = "slurm.json"  # what runs in a folder, for whoever has to end it
STATES = {"PENDING": "pending", "RUNNING": "running", "COMPLETING": "ending", "SUSPENDED": "held"}

# The defaults schedule every few seconds to minutes; and without EnforcePartLimits an impossible job waits for ever.
CONF = """
ClusterName={tag}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/{tracking}
{enforce}
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=100000,bf_interval=2
EnforcePartLimits=ALL
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=3
OverTimeLimit=0
CompleteWait=0
MinJobAge=300
InactiveLimit=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
PlugStackConfig={folder}/plugstack.conf
MailProg=/bin/true
NodeName={tag}n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cpus} Sockets=1 \
CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=01:00:00 DefMemPerCPU=500 State=UP
PartitionName=short Nodes=ALL MaxTime=00:01:00 DefaultTime=00:01:00 DefMemPerCPU=500 State=UP
"""
CGROUP_CONF = (
    "CgroupMountpoint=/sys/fs/cgroup\nCgroupAutomount=no\nConstrainRAMSpace=yes\nConstrainSwapSpace=no\n"
)
ENFORCE = {
    "cgroup": "TaskPlugin=task/cgroup",
    "pgid": "TaskPlugin=task/none\nJobAcctGatherParams=OverMemoryKill",
}
SITE = """
inherits = "slurm"
description = "the Slurm that the tests have started"
[network]
address = "loopback"
[job]
queue = "main"
[resources]
cores = 1
memory = "1500MB"
walltime = "20m"
[limits]
polls_per_minute = 60
start = "60s"
death = "10s"
"""


def missing() -> str:
    """Why no Slurm can be started here; empty if one can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        packages = "slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge"
        return f"no {absent[0]}; on Debian: apt-get install {packages}"
    return "" if os.geteuid() == 0 else "a Slurm of one's own needs root"


def tracking() -> str:
    """How Slurm can follow the processes of a job here."""
    trees = [CGROUP / name / "tasks" for name in ("memory", "freezer")]
    return "cgroup" if all(os.access(tree, os.W_OK) for tree in trees) else "pgid"


@dataclass(frozen=True)
class Node:
    """One virtual node, to be broken and mended."""

    slurm: Slurm
    name: str

    @property
    def state(self) -> str:
        """As ``sinfo`` says it: ``idle``, ``mixed``, ``alloc*``, ``down*``."""
        return self.slurm.command("sinfo", "-h", "-N", "-p", "main", "-n", self.name, "-o", "%t").strip()

    def processes(self) -> list[int]:
        """The processes of jobs on this node."""
        jobs = set(self.slurm.job_processes())
        here = processes.with_environment("SLURMD_NODENAME", lambda value: value == self.name)
        return processes.family(jobs & set(here))

    def fail(self) -> None:
        """The node falls silent; its jobs go on, as behind a network that is cut."""
        processes.end([self._daemon()], signal.SIGKILL)

    def crash(self) -> None:
        """The node is gone with everything on it."""
        self.fail()
        self.hollow()

    def hollow(self) -> None:
        """All that runs of its jobs is gone, what Slurm has there for each of them included."""
        jobs = self.processes()
        steps = {processes.parent(pid) for pid in jobs}
        steps = {pid for pid in steps if processes.command(pid) == "slurmstepd"}
        processes.end([*steps, *jobs], signal.SIGKILL)

    def up(self) -> None:
        """Start its daemon again."""
        if not processes.alive(self._daemon()):
            self.slurm.spawn(f"slurmd-{self.name}", "slurmd", "-D", "-N", self.name)

    def drain(self) -> None:
        """No new jobs."""
        self.slurm.command("scontrol", "update", f"NodeName={self.name}", "State=DRAIN", "Reason=test")

    def resume(self) -> None:
        """Undo ``drain`` and whatever else keeps jobs away."""
        self.slurm.command("scontrol", "update", f"NodeName={self.name}", "State=RESUME")

    def _daemon(self) -> int:
        return self.slurm.daemons[f"slurmd-{self.name}"]


class Slurm(Batch):
    """A Slurm that runs; see ``Batch`` for what can be asked of it."""

    kind: ClassVar[str] = "slurm"
    ways: ClassVar[tuple[str, ...]] = ("scancel", "requeue", "hold", "node", "kill")

    def __init__(self, folder: Path, cpus: int = 4, memory: int = 8000) -> None:
        self.folder = folder
        self.tag = "cs" + folder.name[-6:].replace("_", "x").lower()
        self.nodes = {name: Node(self, self.tag + name) for name in ("n1", "n2")}
        self.tracking = tracking()
        self.conf = folder / "slurm.conf"
        self.env = {**os.environ, "SLURM_CONF": str(self.conf), "PATH": PATH}
        self.run_as: list[str] = []
        self.site_file = folder / "testslurm.toml"
        self.daemons: dict[str, int] = {}
        self._children: list[subprocess.Popen[bytes]] = []
        self._write(cpus, memory)

    @property
    def enforces_memory(self) -> bool:
        """Whether the kernel ends what exceeds a job's memory."""
        return self.tracking == "cgroup"

    def node(self, name: str) -> Node:
        """``n1`` or ``n2``."""
        return self.nodes[name]

    def _write(self, cpus: int, memory: int) -> None:
        for name in ("state", "log", "munge", *(f"spool/{node.name}" for node in self.nodes.values())):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        port = processes.free_ports(3)
        self.conf.write_text(
            CONF.format(
                tag=self.tag, host=os.uname().nodename.partition(".")[0], folder=self.folder, port=port,
                first=port + 1, last=port + 2, tracking=self.tracking, enforce=ENFORCE[self.tracking],
                cpus=cpus, memory=memory,
            )
        )  # fmt: skip
        (self.folder / "cgroup.conf").write_text(CGROUP_CONF)
        (self.folder / "plugstack.conf").write_text("")
        self.site_file.write_text(SITE)
        key = self.folder / "munge" / "key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)

    def start(self) -> Slurm:
        """Start the daemons and wait for both nodes; RuntimeError with the end of the logs."""
        munge = self.folder / "munge"
        self.spawn(
            "munged", "munged", "--foreground",
            "--force",  # it refuses a folder below one that all may write to, as /tmp
            f"--key-file={munge}/key", f"--socket={munge}/socket", f"--pid-file={munge}/pid",
            f"--log-file={self.folder}/log/munged.log", f"--seed-file={munge}/seed", "--num-threads=2",
        )  # fmt: skip
        self._until((munge / "socket").is_socket, "munged")
        self.spawn("slurmctld", "slurmctld", "-D", "-c")
        for node in self.nodes.values():
            self.spawn(f"slurmd-{node.name}", "slurmd", "-D", "-N", node.name)
        self._until(lambda: self.idle() == 2, "slurmctld")
        return self

    def idle(self) -> int:
        """How many nodes wait for work."""
        said = self.command("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N", check=False)
        return len(said.split())

    def spawn(self, name: str, *argv: str) -> None:
        """Start one daemon, and write down that it is ours."""
        log = self.folder / "log" / f"{name}.out"
        with log.open("ab") as out:
            child = subprocess.Popen(
                argv, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        self._children.append(child)
        self.daemons[name] = child.pid
        (self.folder / RECORD).write_text(json.dumps({"tag": self.tag, "daemons": self.daemons}))

    def _until(self, ready: object, name: str) -> None:
        dead = lambda: not processes.alive(self.daemons[name])  # noqa: E731
        if processes.wait_for(lambda: dead() or ready(), 40) and not dead():
            return
        logs = sorted((self.folder / "log").iterdir())
        tails = [
            f"{log.name}: {line}"
            for log in logs
            for line in log.read_text(errors="replace").splitlines()[-4:]
        ]
        self.stop()
        raise RuntimeError("Slurm did not come up:\n" + "\n".join(tails))

    def queue(self) -> list[Job]:
        """Every job that is not over, arrays task by task."""
        said = self.asked("squeue", "-h", "-r", "-o", "%i|%j|%T|%N|%r")
        rows = [line.split("|", 4) for line in said.splitlines() if line]
        jobs = [
            Job(i, name, STATES.get(state, "ending"), reason, node) for i, name, state, node, reason in rows
        ]
        return [self._held(job) for job in jobs]

    @staticmethod
    def _held(job: Job) -> Job:
        held = job.state == "pending" and "held" in job.reason.lower()
        return Job(job.id, job.name, "held", job.reason, job.node) if held else job

    def show(self, job: str) -> dict[str, str]:
        """What the controller still knows of a job, ended ones too."""
        said = self.command("scontrol", "-o", "show", "job", job)
        return dict(word.split("=", 1) for word in said.split() if "=" in word)

    def take_away(self, job: Job, way: str) -> None:
        """``scancel``, ``requeue``, ``hold`` (requeued and held), ``node`` (lost with all on it) or ``kill``."""
        if way == "scancel":
            self.command("scancel", job.id)
        elif way == "requeue":
            self.command("scontrol", "requeue", job.id, check=False)
        elif way == "hold":
            self.command("scontrol", "requeuehold", job.id, check=False)
        elif way == "kill":
            number, _, task = job.id.partition("_")
            own = (
                {"SLURM_JOB_ID": number}
                if not task
                else {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task}
            )
            found = [pid for pid in self.job_processes() if own.items() <= processes.environment(pid).items()]
            processes.end(processes.family(found), signal.SIGKILL)
        else:
            node = next(node for node in self.nodes.values() if node.name == job.node)
            node.crash()
            time.sleep(1)
            node.up()

    def job_processes(self) -> list[int]:
        """Processes started by this cluster's nodes for jobs."""
        found = processes.with_environment("SLURM_CLUSTER_NAME", lambda value: value == self.tag)
        return processes.family(found)

    def clear(self) -> None:
        """Cancel everything; wait until nothing is left."""
        for state in ("PENDING", "RUNNING"):  # in this order: else a cancelled one makes room for the next
            self.command("scancel", f"--state={state}", check=False)
        if not processes.wait_for(lambda: not self.queue(), 15, every=0.3):
            self.command("scancel", "--full", "--signal=KILL", "--state=RUNNING", check=False)
            processes.wait_for(lambda: not self.queue(), 10, every=0.3)
        processes.end(self.job_processes(), signal.SIGKILL)

    def mend(self) -> None:
        """Bring both nodes back, whatever a test did to them."""
        for node in self.nodes.values():
            node.up()
            if node.state.rstrip("*").startswith(("down", "drain")):
                with contextlib.suppress(RuntimeError):
                    node.resume()
        processes.wait_for(lambda: self.idle() == 2, 30)

    def fresh(self, name: str) -> Path:
        """A new folder for a test."""
        path = self.folder / "work" / f"{name}-{time.monotonic_ns() % 10**9}"
        path.mkdir(parents=True)
        return path

    def stop(self) -> None:
        """End jobs, daemons and what a broken node has left."""
        if processes.alive(self.daemons.get("slurmctld", 0)):
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                self.clear()
        end(self.folder)
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(2)


def end(folder: Path) -> None:
    """End the Slurm of a folder by what is written there; a number that is another's by now is left alone."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return
    conf = str(folder / "slurm.conf")
    ours = [
        pid
        for pid in reversed(record["daemons"].values())
        if processes.environment(pid).get("SLURM_CONF") == conf
    ]
    for pid in ours:  # one after the other: the nodes before the controller, munged last
        processes.end([pid])
    left = processes.with_environment("SLURM_CONF", lambda value: value == conf)
    left = [pid for pid in left if processes.command(pid) in ("slurmstepd", "slurmd", "slurmctld", "munged")]
    jobs = processes.with_environment("SLURM_CLUSTER_NAME", lambda value: value == record["tag"])
    processes.end([*left, *jobs], signal.SIGKILL)
    for top in CGROUP.glob(f"*/slurm_{record['tag']}n*"):
        _remove(top)


def _remove(cgroup: Path) -> None:
    for path in sorted(cgroup.rglob("*/"), reverse=True):
        with contextlib.suppress(OSError):
            path.rmdir()
    with contextlib.suppress(OSError):
        cgroup.rmdir()
