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


# HTCondor: JobStatus 5, HoldReasonCode; the codes of its manual, "Job ClassAd Attributes".
HELD_SPOOLING = 16  # input files are on their way to the schedd: no trouble
CONDOR_HOLDS: dict[int, Meaning] = {
    1: Meaning("held by its owner", "condor_release lets it run", "removed"),
    3: Meaning("held by a rule of the job or site"),
    4: Meaning("its credential is not valid", "renew it: voms-proxy-init, or kinit"),
    5: Meaning("it used up its run time", "--walltime", "walltime"),
    6: Meaning("the job could not be started on the node", "the container image or the script is not there"),
    7: Meaning("its standard input is missing"),
    8: Meaning("its output cannot be opened", "the log folder must exist on the node: --logs"),
    9: Meaning("its standard error cannot be opened", "the log folder must exist on the node: --logs"),
    10: Meaning("its log cannot be opened", "the log folder must be writable: --logs"),
    11: Meaning("its folder cannot be entered", "submit from a folder that this site's nodes see"),
    12: Meaning("its output could not be brought back", "quota and space where the logs lie"),
    13: Meaning("an input file is missing or could not be sent"),
    14: Meaning("the input files could not be sent"),
    15: Meaning("submitted on hold", "condor_release lets it run"),
    21: Meaning("put on hold by the node"),
    22: Meaning("its folder cannot be entered", "submit from a folder that this site's nodes see"),
    26: Meaning("held by a rule of the site"),
    32: Meaning("its files are larger than the site sends", "fewer or smaller files to transfer"),
    33: Meaning("it was not allowed to leave output that large", "--disk"),
    34: Meaning("it used more memory than requested", MEMORY, "memory"),
    35: Meaning("its container image cannot be used", "--image"),
    44: Meaning("it filled more disk than requested", "--disk"),
    45: Meaning("it ran longer than allowed", "--walltime", "walltime"),
    46: Meaning("it ran longer than allowed", "--walltime", "walltime"),
    47: Meaning("a command of its setup failed"),
    48: Meaning("its container does not start", "--image"),
}
CONDOR_SUBCODES: dict[tuple[int, int], Meaning] = {
    (3, 34): Meaning("it used more memory than requested", MEMORY, "memory"),
    (13, 2): Meaning("an input file is missing", "the file must be there until the job has started"),
    (12, 2): Meaning("an output file that it should bring back is missing"),
    (21, 102): Meaning("it used more memory than requested", MEMORY, "memory"),
    (26, 34): Meaning("it used more memory than requested", MEMORY, "memory"),
}
# Sites use code 3 or 26 with words of their own.
IN_WORDS: tuple[tuple[re.Pattern[str], Meaning], ...] = (
    (re.compile(r"memory", re.IGNORECASE), Meaning("it used more memory than requested", MEMORY, "memory")),
    (
        re.compile(r"wall ?time|run ?time|max ?runtime|time limit|duration|too long", re.IGNORECASE),
        Meaning("it ran longer than allowed", "--walltime", "walltime"),
    ),
    (re.compile(r"\bdisk\b", re.IGNORECASE), Meaning("it filled more disk than requested", "--disk")),
)


def condor_hold(code: int, subcode: int, said: str) -> Meaning:
    """Why HTCondor holds a job."""
    exact = CONDOR_SUBCODES.get((code, subcode))
    if exact is not None:
        return exact
    if code in (3, 21, 26):
        return in_words(said, CONDOR_HOLDS[code])
    return CONDOR_HOLDS.get(code, Meaning(f"held with code {code}/{subcode}"))


def in_words(said: str, otherwise: Meaning) -> Meaning:
    """The meaning of a site's own words."""
    return next((meaning for pattern, meaning in IN_WORDS if pattern.search(said)), otherwise)


# Slurm: the Reason column of squeue for a pending job; job_reason_codes of its manual.
_TOO_LONG = Meaning("it asks for more time than the partition gives", "--walltime or --queue", hopeless=True)
SLURM_PENDING: dict[str, Meaning] = {
    "None": Meaning("not looked at yet"),
    "Resources": Meaning("waits for free nodes"),
    "Priority": Meaning("others come first"),
    "BeginTime": Meaning("waits for its begin time, as after a lost node"),
    "Cleaning": Meaning("its last run is being cleaned up"),
    "Licenses": Meaning("waits for a licence"),
    "Reservation": Meaning("waits for its reservation"),
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
    "PartitionDown": Meaning("the partition is down", "--queue, or wait for the site"),
    "PartitionInactive": Meaning("the partition takes no jobs", "--queue, or wait for the site"),
    "NodeDown": Meaning("its node is down", "wait for the site"),
    "ReqNodeNotAvail": Meaning("nodes that it needs are down or reserved", "often a maintenance: sinfo -R"),
    "JobHeldUser": Meaning("held by its owner", "scontrol release lets it run", "removed"),
    "JobHeldAdmin": Meaning("held by the site", "ask the site's support", "removed"),
    "job requeued in held state": Meaning("requeued and held by its owner", "", "removed"),
    "launch failed requeued held": Meaning("its node could not start it", "ask the site's support", "node"),
}
# By how the code begins: limits exist for each of CPU, Mem, Node, Jobs, GRES and more.
SLURM_FAMILIES: tuple[tuple[re.Pattern[str], Meaning], ...] = (
    (
        re.compile(r"(QOS|Assoc)Max\w*Per(Job|Node)"),
        Meaning("it asks for more than one job may", "--cores, --memory or --walltime", hopeless=True),
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
    "REVOKED": Meaning("it was removed", "", "removed"),
    "FAILED": Meaning("it ended with an error", "", "exit"),
    "COMPLETED": Meaning("it ended by itself"),
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
    return EXITS.get(code, otherwise if code else Meaning("it ended by itself"))


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
    (re.compile(r"parse error|unrecognized option|invalid option", re.IGNORECASE), "--directive"),
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
