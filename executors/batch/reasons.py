"""What batch systems say, in plain words with what mends it; what became of a job, from states and codes.

Tables and pure functions: nothing here runs a command or knows a crew.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from executors.batch.schedulers import Fate

MEMORY = "ask for more with --memory, or let a job do less at a time with --chunk"


class Meaning(NamedTuple):
    """One reason: words, what to do, and what it means for the job."""

    words: str
    advice: str = ""
    fate: Fate = ""
    hopeless: bool = False

    def sentence(self, said: str = "") -> str:
        """Words, the system's own message, advice."""
        tail = f": {said}" if said and said not in self.words else ""
        return f"{self.words}{tail}{f' ({self.advice})' if self.advice else ''}"


# Nothing wrong with it; where a worker had not come of it, something before the worker ended the job.
ENDED = Meaning(
    "it ended by itself",
    "with no complaint: does --worker-python, or a line of --worker-setup, end before the worker?",
)

# Slurm: the Reason column of squeue for a pending job; job_reason_codes of its manual.
_TOO_LONG = Meaning("it asks for more time than the partition gives", "--walltime or --queue", hopeless=True)
SLURM_PENDING: dict[str, Meaning] = {
    "None": Meaning("not looked at yet"),
    "SchedDefer": Meaning("not looked at yet"),
    "Resources": Meaning("waits for free nodes"),
    "Priority": Meaning("others come first"),
    "BeginTime": Meaning("waits for its begin time, as after a lost node"),
    "Cleaning": Meaning("its last run is being cleaned up"),
    "Licenses": Meaning("waits for a licence"),
    "Prolog": Meaning("its node is being prepared"),
    "JobArrayTaskLimit": Meaning("as many of its array run as may", "others of it end first"),
    "BurstBufferResources": Meaning("waits for room in the burst buffer"),
    "BurstBufferStageIn": Meaning("waits for files on their way to the burst buffer"),
    "BurstBufferOperation": Meaning("the burst buffer failed for it", "look at the bb directives"),
    "FedJobLock": Meaning("waits until the clusters agree who runs it"),
    "Reservation": Meaning("waits for its reservation"),
    "RequiresReservation": Meaning(
        "the partition takes jobs of a reservation only",
        "--queue or --directive reservation=NAME",
        hopeless=True,
    ),
    "ReservationDeleted": Meaning(
        "its reservation is gone", "without --directive reservation=NAME", hopeless=True
    ),
    "Dependency": Meaning("waits for another job"),
    "DependencyNeverSatisfied": Meaning("waits for a job that failed", hopeless=True),
    "PartitionTimeLimit": _TOO_LONG,
    "AssocMaxWallDurationPerJobLimit": _TOO_LONG,
    "QOSMaxWallDurationPerJobLimit": _TOO_LONG,
    "PartitionNodeLimit": Meaning(
        "it asks for more than the partition has", "--cores, --memory or --queue", hopeless=True
    ),
    "PartitionConfig": Meaning(
        "it asks for more than the partition gives", "--cores, --memory, --walltime or --queue", hopeless=True
    ),
    "BadConstraints": Meaning(
        "no node fits what it asks for", "--cores, --memory, --directive constraint=", hopeless=True
    ),
    "AccountNotAllowed": Meaning(
        "the account may not use the partition", "--account or --queue", hopeless=True
    ),
    "QOSNotAllowed": Meaning("the QOS may not be used there", "--directive qos=NAME", hopeless=True),
    "InvalidAccount": Meaning("the account does not exist", "--account", hopeless=True),
    "InvalidQOS": Meaning("the QOS does not exist", "--directive qos=NAME", hopeless=True),
    "AccountingPolicy": Meaning("a limit of the account is reached", "wait, or another --account"),
    "InactiveLimit": Meaning("the site's limit of inactivity was reached", "ask the site's support"),
    "DeadLine": Meaning("it cannot be done by its deadline", "--walltime", hopeless=True),
    "PartitionDown": Meaning("the partition is down", "--queue, or wait for the site"),
    "PartitionInactive": Meaning("the partition takes no jobs", "--queue, or wait for the site"),
    "NodeDown": Meaning("its node is down", "wait for the site"),
    "FrontEndDown": Meaning("the machine that starts jobs is down", "wait for the site"),
    "SystemFailure": Meaning("a node or Slurm itself failed", "wait for the site"),
    "Nodes required for job are DOWN": Meaning(
        "nodes that it needs are down or kept for others", "wait, or --queue: sinfo -R"
    ),
    "ReqNodeNotAvail": Meaning("nodes that it needs are down or reserved", "often a maintenance: sinfo -R"),
    "JobHeldUser": Meaning("held by its owner", "", "removed"),
    "JobHeldAdmin": Meaning("held by the site", "ask the site's support", "removed"),
    "JobHoldMaxRequeue": Meaning("held, for it was begun too often", "ask the site's support", "node"),
    "job requeued in held state": Meaning("requeued and held by its owner", "", "removed"),
    "PrologFailed": Meaning("its node could not be prepared", "ask the site's support", "node"),
    "launch failed requeued held": Meaning("its node could not start it", "ask the site's support", "node"),
}
# By how the code begins: limits exist for each of CPU, Mem, Node, Jobs, GRES and more.
SLURM_FAMILIES: tuple[tuple[re.Pattern[str], Meaning], ...] = (
    (
        re.compile(r"(QOS|Assoc)Max\w*Per(Job|Node)"),
        Meaning("it asks for more than one job may", "--cores, --memory or --walltime", hopeless=True),
    ),
    (
        re.compile(r"(QOS|Assoc)Grp(?!\w*Run)\w*Minutes"),
        Meaning("the time that was granted is used up", "another --account or --directive qos=NAME: sshare"),
    ),
    (
        re.compile(r"Max\w+PerAccount"),
        Meaning("a limit of the account is reached", "wait, or another --account"),
    ),
    (
        re.compile(r"MaxMemPerLimit"),
        Meaning("it asks for more memory than allowed", "--memory", hopeless=True),
    ),
    (
        re.compile(r"QOSMin|AssocMin"),
        Meaning("it asks for less than a job must", "--cores or --memory", hopeless=True),
    ),
    (
        re.compile(r"QOS(Max|Grp|Job|Resource|Usage|Time)"),
        Meaning("a limit of the QOS is reached", "wait, or another --directive qos=NAME"),
    ),
    (re.compile(r"Assoc"), Meaning("a limit of the account is reached", "wait, or another --account")),
)
SLURM_FATES: dict[str, Meaning] = {
    "OUT_OF_MEMORY": Meaning("it used more memory than requested", MEMORY, "memory"),
    "TIMEOUT": Meaning("its walltime was over", "--walltime", "walltime"),
    "DEADLINE": Meaning("its deadline was over", "--walltime", "walltime"),
    "NODE_FAIL": Meaning("its node was lost", "", "node"),
    "BOOT_FAIL": Meaning("its node did not start", "", "node"),
    "LAUNCH_FAILED": Meaning("its node could not start it", "", "node"),
    "RECONFIG_FAIL": Meaning("its node could not be set up", "", "node"),
    "PREEMPTED": Meaning("it had to make room for others", "", "removed"),
    "CANCELLED": Meaning("it was removed", "", "removed"),
    "REVOKED": Meaning("another cluster runs it instead", "", "removed"),
    "FAILED": Meaning("it ended with an error", "", "exit"),
    "COMPLETED": ENDED,
}


def slurm_pending(reason: str) -> Meaning:
    """Why a job of Slurm waits."""
    code = reason.split(",", maxsplit=1)[0].strip("() ").replace("_", " ")
    found = SLURM_PENDING.get(code)
    if found is not None:
        return found
    families = (meaning for pattern, meaning in SLURM_FAMILIES if pattern.match(code))
    return next(families, Meaning("waits"))


EXITS: dict[int, Meaning] = {
    126: Meaning("a program could not be run", "is it executable, and made for the node's system?", "exit"),
    127: Meaning(
        "a program was not found on the node",
        "the workers' Python must exist there: --worker-python, --worker-setup or --ship-env",
        "exit",
    ),
    -4: Meaning("a program is not made for the node's processor (SIGILL)", "", "exit"),
    -9: Meaning("it was killed (SIGKILL)", "often for memory: --memory", "exit"),
    -15: Meaning("it was ended (SIGTERM)", "", "removed"),
}


def exit_words(code: int | None) -> Meaning:
    """What an exit code says; -N stands for signal N."""
    if code is None:
        return Meaning("it ended")
    if 128 < code < 160:  # a shell's way to say that its program died of a signal
        code = 128 - code
    otherwise = Meaning(
        f"it died of signal {-code}" if code < 0 else f"it ended with exit code {code}", "", "exit"
    )
    return EXITS.get(code, otherwise if code else ENDED)


# Grid Engine: "failed" of its accounts, see sge_status(5); with 100 it ran, and the exit code says more.
SGE_OVER_LIMIT, SGE_RAN = 37, 100
_SGE_CLOCK = re.compile(r"\bh_rt=(\d+)")
_SGE_MEMORY = re.compile(r"\b[hs]_(vmem|rss|data)=")


def sge_end(failed: int, said: str, code: int | None, category: str, seconds: int | None) -> Meaning:
    """What a job of Grid Engine ended of; ``category``: what it had asked for."""
    if failed == SGE_OVER_LIMIT:  # of time or memory: it does not say which
        clock = _SGE_CLOCK.search(category)
        early = clock is not None and seconds is not None and seconds < int(clock[1])
        if _SGE_MEMORY.search(category) and (clock is None or early):
            return Meaning("it used more memory than requested", MEMORY, "memory")
        words = "it was ended over a limit of time or memory"
        return Meaning(words, "--walltime, --memory", "walltime")
    if failed == SGE_RAN and code == -9:
        # A kernel short of memory kills a worker, and its pilot tells; whole jobs are killed by qdel.
        return Meaning("it was killed (SIGKILL), as qdel does", "", "removed")
    if failed and not code:
        return Meaning(f"it failed: {said}", "", "node")
    return exit_words(code)


# What the batch system itself writes into a job's log; the first that fits counts.
_LOG_FATES: tuple[tuple[re.Pattern[str], Meaning], ...] = (
    (
        re.compile(r"oom[-_ ]kill|exceeded memory limit|Exceeded job memory|TERM_MEMLIMIT", re.IGNORECASE),
        Meaning("it used more memory than requested", MEMORY, "memory"),
    ),
    (
        re.compile(r"DUE TO TIME LIMIT|TERM_RUNLIMIT|walltime \d+ exceeded limit"),
        Meaning("its walltime was over", "--walltime", "walltime"),
    ),
    (re.compile(r"DUE TO NODE FAILURE"), Meaning("its node was lost", "", "node")),
    (re.compile(r"DUE TO PREEMPTION"), Meaning("it had to make room for others", "", "removed")),
    (re.compile(r"CANCELLED AT "), Meaning("it was removed", "", "removed")),
)


def fate_of_log(lines: list[str]) -> Meaning | None:
    """What the batch system wrote into a job's log, where its state says less."""
    marks = [line for line in lines if "slurmstepd" in line or "PBS:" in line or "TERM_" in line]
    found = (meaning for pattern, meaning in _LOG_FATES if any(map(pattern.search, marks)))
    return next(found, None)


# What is refused now and may be taken later, of any system.
_TRANSIENT = re.compile(
    r"timed? ?out|try again|temporarily (unable|disabled|unavailable)|connection (refused|reset)"
    r"|unable to (contact|reach|connect|send|initialize commlib)|cannot (contact|connect to)"
    r"|failed to connect|transport endpoint|communication (failure|error)|not responding|end of file"
    r"|find address of (local )?schedd|schedd.*(busy|overloaded)|exceed(ed)? MAX_JOBS"
    r"|MaxSubmitJob|submit jobs? limit|maximum number of jobs|too many jobs|jobs are allowed per user",
    re.IGNORECASE,
)
_REFUSALS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"parse error|unrecognized option|invalid option|mutually exclusive", re.IGNORECASE),
        "--directive",
    ),
    (re.compile(r"feature specification", re.IGNORECASE), "--directive=--constraint=NAME; sinfo -o '%P %f'"),
    (re.compile(r"reservation is invalid", re.IGNORECASE), "scontrol show reservation"),
    (re.compile(r"violates accounting/QOS", re.IGNORECASE), "--cores, --memory, --walltime or --account"),
    (re.compile(r"\bQOS\b", re.IGNORECASE), "--directive=--qos=NAME; sacctmgr show assoc format=account,qos"),
    (
        re.compile(r"invalid partition|(unknown|no such) queue|queue .*not exist|JobFlavour", re.IGNORECASE),
        "--queue",
    ),
    (re.compile(r"time limit|walltime|run ?time|h_rt", re.IGNORECASE), "--walltime"),
    (re.compile(r"account|project", re.IGNORECASE), "--account"),
    (
        re.compile(r"parallel environment", re.IGNORECASE),
        "--directive 'pe=NAME CORES'; qconf -spl lists them",
    ),
    (re.compile(r"unknown resource", re.IGNORECASE), "--directive; qconf -sc lists them"),
    (re.compile(r"memory|node configuration is not available", re.IGNORECASE), "--memory, --cores"),
    (re.compile(r"processors|cpus?\b|cores", re.IGNORECASE), "--cores"),
    (
        re.compile(r"proxy|x509|credential|token", re.IGNORECASE),
        "renew the credential: voms-proxy-init, kinit",
    ),
    (
        re.compile(r"not allowed to own jobs|cannot allocate a cluster id", re.IGNORECASE),
        "root may not submit there: run as a plain user",
    ),
)


def is_transient(said: str) -> bool:
    """Whether a refusal may be over later."""
    return _TRANSIENT.search(said) is not None


def refusal_advice(said: str) -> str:
    """What mends a refusal, as an option."""
    return next((advice for pattern, advice in _REFUSALS if pattern.search(said)), "")
