"""A real Grid Engine: a qmaster and one execution host, wholly inside one folder, in a network of their own.

A qmaster listens at every address of its machine and believes what clients say who they are. So it gets a network
that has nothing but a loopback, and a host name to fit; clients enter it by ``run_as``. The machine's own Grid
Engine is neither seen nor touched, and several of these can run side by side.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from xml.etree import ElementTree as ET

from real.servers import install, processes
from real.servers.batch import Batch, Job

if TYPE_CHECKING:
    from collections.abc import Callable

RECORD = "sge.json"  # what runs in a folder, for whoever has to end it
CELL = "default"
HOST = "localhost"  # so is the machine called inside: any other name may stand for an address outside
PORTS = {"SGE_QMASTER_PORT": "6444", "SGE_EXECD_PORT": "6445"}  # nobody else is in that network
DAEMONS = ("sge_execd", "sge_qmaster")
SPOOL = "SGE_JOB_SPOOL_DIR"  # in the environment of jobs, and of nothing else

# Raises the loopback, names the machine, and lives for as long as somebody holds the other end of its input.
ANCHOR = f"""
import fcntl, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    asked = fcntl.ioctl(sock, 0x8913, struct.pack("16sH22x", b"lo", 0))  # SIOCGIFFLAGS, SIOCSIFFLAGS
    fcntl.ioctl(sock, 0x8914, struct.pack("16sH22x", b"lo", struct.unpack("16sH22x", asked)[1] | 1))
socket.sethostname({HOST!r})
print("ready", flush=True)
sys.stdin.read()
"""
BOOTSTRAP = """
admin_user none
default_domain none
ignore_fqdn true
spooling_method classic
spooling_lib libspoolc
spooling_params {spool}
binary_path {programs}
qmaster_spool_dir {folder}/spool/qmaster
security_mode none
listener_threads 2
worker_threads 2
scheduler_threads 1
"""
EXECUTION_HOST = """
hostname {host}
load_scaling NONE
complex_values NONE
user_lists NONE
xuser_lists NONE
projects NONE
xprojects NONE
usage_scaling NONE
report_variables NONE
"""
# The defaults let root run no jobs, start one every 15 seconds, write accounts late and send mail.
CONFIGURATION = {
    "execd_spool_dir": "{folder}/spool/execd",
    "mailer": "/bin/true",
    "administrator_mail": "none",
    "min_uid": "0",
    "min_gid": "0",
    "load_report_time": "0:0:5",
    "reporting_params": "accounting=true reporting=false flush_time=00:00:01 joblog=false sharelog=00:00:00",
}
SCHEDULE = {"schedule_interval": "0:0:1", "flush_submit_sec": "1", "flush_finish_sec": "1"}
QUEUES = {  # as its own queues are called at many sites
    "all.q": {"slots": "8"},
    "short.q": {"slots": "8", "h_rt": "0:1:0"},
}
QUEUE = {
    "hostlist": HOST,
    "load_thresholds": "NONE",  # the machine is as busy as the tests make it
    "shell": "/bin/bash",
    "pe_list": "smp",
    "tmpdir": "{folder}/tmp",
}
SITE = """
inherits = "sge"
description = "the Grid Engine that the tests have started"
[network]
address = "loopback"
[job]
queue = "all.q"
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
    """Why no Grid Engine can be started here; empty if one can."""
    if not (install.grid_engine_prefix() / "usr/lib/gridengine/sge_qmaster").exists():
        return "no Grid Engine; where Debian has it: make system"
    if _exit([str(install.grid_engine_prefix() / "usr/lib/gridengine/sge_qmaster"), "-help"]) == 127:
        return "the Grid Engine that was unpacked does not run here: libraries are missing"
    if os.geteuid() != 0 or _exit(["unshare", "--net", "--uts", "--", sys.executable, "-c", ANCHOR]):
        return "a Grid Engine in a network of its own needs root and the right to make one"
    return ""


def _exit(argv: list[str]) -> int:
    """The exit code of a program that has nothing to read: 127 is the loader's, or that there is none."""
    try:
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
        ).returncode
    except (OSError, subprocess.TimeoutExpired):
        return 127


class Sge(Batch):
    """A Grid Engine that runs; see ``Batch`` for what can be asked of it."""

    kind: ClassVar[str] = "sge"
    ways: ClassVar[tuple[str, ...]] = ("qdel", "kill")
    enforces_memory = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.share = install.grid_engine_prefix() / "usr/share/gridengine"
        self.programs = install.grid_engine_prefix() / "usr/lib/gridengine"
        path = f"{self.programs}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"
        self.env = {**os.environ, **PORTS, "SGE_ROOT": str(folder), "SGE_CELL": CELL, "PATH": path}
        self.site_file = folder / "testsge.toml"
        self.daemons: dict[str, int] = {}
        self._children: list[subprocess.Popen[str]] = []
        self._enter()
        self._write()

    def _enter(self) -> None:
        """Make the network; ``run_as`` is the way into it."""
        argv = ["unshare", "--net", "--uts", "--", sys.executable, "-c", ANCHOR]
        anchor = subprocess.Popen(
            argv,
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._keep("anchor", anchor)
        if anchor.stdout is None or anchor.stdout.readline() != "ready\n":
            raise RuntimeError("no network of its own for Grid Engine")
        spaces = f"/proc/{anchor.pid}/ns"
        self.run_as = ["nsenter", f"--net={spaces}/net", f"--uts={spaces}/uts", "--"]

    def _keep(self, name: str, child: subprocess.Popen[str]) -> None:
        """Write down that a process is ours."""
        self._children.append(child)
        self.daemons[name] = child.pid
        (self.folder / RECORD).write_text(json.dumps({"daemons": self.daemons}))

    def _write(self) -> None:
        common = self.folder / CELL / "common"
        for path in (common, self.folder / "spool/qmaster/job_scripts", self.folder / "spool/execd"):
            path.mkdir(parents=True)
        for name in ("log", "tmp"):
            (self.folder / name).mkdir()
        spool = f"{common};{self.folder}/spool/qmaster"
        text = BOOTSTRAP.format(folder=self.folder, programs=self.programs, spool=spool)
        (common / "bootstrap").write_text(text.lstrip())
        (common / "act_qmaster").write_text(HOST + "\n")
        self.site_file.write_text(SITE)
        self.command("spoolinit", "classic", "libspoolc", spool, "init")
        defaults = (self.share / "default-configuration").read_text()
        found = self._file("configuration", self._changed(defaults, CONFIGURATION))
        resources = self.share / "util/resources"
        spooled = {
            "configuration": found, "complexes": resources / "centry", "usersets": resources / "usersets",
            "pes": resources / "pe", "managers": "root",
        }  # fmt: skip
        for what, where in spooled.items():
            self.command("spooldefaults.bin", what, str(where))

    def _file(self, name: str, text: str) -> str:
        path = self.folder / "log" / name
        path.write_text(text)
        return str(path)

    def _changed(self, text: str, changes: dict[str, str]) -> str:
        """Settings, one a line, some of them others."""
        lines = []
        for line in text.replace("\\\n", " ").splitlines():
            name = line.split(maxsplit=1)[0] if line.strip() else ""
            lines.append(f"{name} {changes[name].format(folder=self.folder)}" if name in changes else line)
        return "\n".join(lines) + "\n"

    def start(self) -> Sge:
        """Start the daemons and wait for the execution host; RuntimeError with the end of the logs."""
        self.spawn("sge_qmaster")
        self._until(lambda: self.command("qconf", "-sh", check=False).strip() == HOST, "sge_qmaster")
        host = self._file("host", EXECUTION_HOST.format(host=HOST).lstrip())
        self.command("qconf", "-Ae", host)
        self.command("qconf", "-as", HOST)
        schedule = self._changed(self.command("qconf", "-ssconf"), SCHEDULE)
        self.command("qconf", "-Msconf", self._file("schedule", schedule))
        template = self.command("qconf", "-sq")
        for name, own in QUEUES.items():
            text = self._changed(template, {"qname": name, **QUEUE, **own})
            self.command("qconf", "-Aq", self._file(name, text))
        self.spawn("sge_execd")
        self._until(self._ready, "sge_execd")
        return self

    def _ready(self) -> bool:
        """Whether the execution host has reported its memory."""
        rows = [line.split() for line in self.command("qhost", check=False).splitlines()]
        return any(row[0] == HOST and row[7] != "-" for row in rows if len(row) > 7)

    def spawn(self, name: str) -> None:
        """Start one daemon, and write down that it is ours."""
        # A job gets all that the execution host has in its environment: no more than at a machine's start.
        kept = {name: value for name, value in self.env.items() if name.startswith("SGE_")}
        env = {**kept, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SGE_ND": "1"}
        with (self.folder / "log" / f"{name}.out").open("ab") as out:
            child = subprocess.Popen(
                [*self.run_as, str(self.programs / name)], env=env, cwd=self.folder, text=True,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self._keep(name, child)

    def _until(self, ready: Callable[[], object], name: str) -> None:
        dead = lambda: not processes.alive(self.daemons[name])  # noqa: E731
        if processes.wait_for(lambda: dead() or ready(), 40) and not dead():
            return
        logs = [*self.folder.glob("log/*.out"), *self.folder.glob("spool/**/messages")]
        tails = [
            f"{log.name}: {line}"
            for log in logs
            for line in log.read_text(errors="replace").splitlines()[-4:]
        ]
        self.stop()
        raise RuntimeError("Grid Engine did not come up:\n" + "\n".join(tails))

    def queue(self) -> list[Job]:
        """Every job that is not over."""
        rows = ET.fromstring(self.asked("qstat", "-u", "*", "-xml")).iter("job_list")
        return [
            Job(
                row.findtext("JB_job_number", ""), row.findtext("JB_name", ""),
                _state(row.findtext("state", "")), row.findtext("state", ""), row.findtext("queue_name", ""),
            )
            for row in rows
        ]  # fmt: skip

    def account(self, job: str) -> dict[str, str]:
        """What is written down of a job that has ended; empty while that is not."""
        said = self.command("qacct", "-j", job, check=False)
        pairs = (line.split(maxsplit=1) for line in said.splitlines())
        found = {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}
        return found if "jobnumber" in found else {}  # before the first job of all it says so

    def take_away(self, job: Job, way: str) -> None:
        """``qdel`` or ``kill``, which nobody has told Grid Engine of."""
        if way == "qdel":
            self.command("qdel", job.id)
            return
        found = [pid for pid in self.job_processes() if processes.environment(pid).get("JOB_ID") == job.id]
        processes.end(processes.family(found), signal.SIGKILL)

    def job_processes(self) -> list[int]:
        """Processes started by this cell's host for jobs."""
        spool = f"{self.folder}/"
        return processes.family(processes.with_environment(SPOOL, lambda value: value.startswith(spool)))

    def clear(self) -> None:
        """Remove everything; wait until nothing is left."""
        self.command("qdel", "-u", "*", check=False)
        if not processes.wait_for(lambda: not self.queue(), 15, every=0.3):
            self.command("qdel", "-f", "-u", "*", check=False)
            processes.wait_for(lambda: not self.queue(), 10, every=0.3)
        processes.end(self.job_processes(), signal.SIGKILL)

    def mend(self) -> None:
        """Take queues out of the error state that a job which could not start leaves them in."""
        self.command("qmod", "-cq", "*", check=False)

    def fresh(self, name: str) -> Path:
        """A new folder for a test."""
        path = self.folder / "work" / f"{name}-{time.monotonic_ns() % 10**9}"
        path.mkdir(parents=True)
        return path

    def stop(self) -> None:
        """End jobs and daemons."""
        if processes.alive(self.daemons.get("sge_qmaster", 0)):
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired, ET.ParseError):
                self.clear()
        for child in self._children:
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        end(self.folder)
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(2)


def _state(letters: str) -> str:
    if "d" in letters:
        return "ending"
    if "h" in letters or "E" in letters:
        return "held"
    return "pending" if "w" in letters else "running"


def end(folder: Path) -> None:
    """End the Grid Engine of a folder by what is written there; a number that is another's by now is left alone."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return
    inside = processes.with_environment("SGE_ROOT", lambda value: value == str(folder))
    ours = set(record["daemons"].values()) & set(inside)
    shepherds = {pid for pid in inside if processes.command(pid) in ("sge_shepherd", *DAEMONS)}
    jobs = set(processes.with_environment(SPOOL, lambda value: value.startswith(f"{folder}/")))
    # By force: the qmaster takes ten seconds to put away what nobody will read.
    processes.end(processes.family(ours | shepherds | jobs), signal.SIGKILL)
    shutil.rmtree(folder / "spool", ignore_errors=True)
