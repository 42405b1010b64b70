"""job.sub: the submit description for HTCondor.

Only its language: names, strings, expressions, what is ours and what a profile may change. Environment and
arguments never go through it, since ``job.sh`` carries them.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from executors.batch import allowed
from executors.batch.allowed import ACCOUNT, CORES, DISK, IMAGE, MEMORY, QUEUE, WALLTIME

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from executors.batch.spec import JobSpec
    from sites.profile import Scalar

SPOOL = "-spool"
FETCHED_WITHIN = 600  # seconds
MARK = "CoffeaScaleout"  # the attribute by which the jobs of a run are found and removed
COMMAND = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}", re.ASCII)
ATTRIBUTE = re.compile(r"(?:\+|MY\.)([A-Za-z_][A-Za-z0-9_]{0,127})", re.ASCII | re.IGNORECASE)
# What the text says already, and where it is said; anything else in a profile would be a second opinion.
OURS = {
    **dict.fromkeys(("executable", "arguments", "arguments2", "args"), "the runner itself"),
    **dict.fromkeys(("log", "output", "error", "input", "initialdir", "batch_name"), "the runner itself"),
    **dict.fromkeys(("environment", "environment2", "env"), "env (--env)"),
    "getenv": "env (--env); the whole environment in a job could be read by others",
    **dict.fromkeys(
        ("queue", "include", "if", "elif", "else", "endif", "use", "warning"), "nobody: this is no directive"
    ),
    "request_cpus": CORES,
    "request_memory": MEMORY,
    "request_disk": DISK,
    **dict.fromkeys(
        ("transfer_input_files", "transfer_executable", "should_transfer_files"), "the runner itself"
    ),
    "x509userproxy": "proxy.path",
    "leave_in_queue": "the runner itself",
}
OURS_IN_THE_JOB = frozenset(
    {"cmd", "args", "arguments", "env", "environment", "iwd", "in", "out", "err", "userlog", "requestcpus",
     "requestmemory", "requestdisk", "jobbatchname", MARK.lower(), f"{MARK}Walltime".lower()}
)  # fmt: skip


def submit_text(spec: JobSpec) -> str:
    """The whole of job.sub but for its last line, ``queue N``: the submit command says how many."""
    given = dict(_directives(spec))
    names = {key.lower() for key in given}
    ours = [f"{key} = {value}" for key, value in _defaults(spec) if key.lower() not in names]
    fixed = [f"{key} = {value}" for key, value in _fixed(spec)]
    theirs = [f"{key} = {value}" for key, value in given.items()]
    return "\n".join(["# Written by coffea-scaleout.", *fixed, *ours, *theirs, ""])


def _fixed(spec: JobSpec) -> Iterator[tuple[str, str]]:
    name = allowed.job_name("name", spec.name)
    logs = allowed.path("the log folder", spec.logs)
    yield "executable", "job.sh"
    yield "batch_name", name
    yield f"MY.{MARK}", f'"{name}"'
    yield "output", f"{logs}/$(ClusterId).$(ProcId).out"
    yield "error", f"{logs}/$(ClusterId).$(ProcId).err"
    yield "log", f"{logs}/$(ClusterId).log"
    yield "getenv", "False"
    # Unset means "if needed": with a common file system domain nothing would be carried, and nobody told.
    yield "should_transfer_files", "YES"
    if spec.transfer:
        yield "transfer_input_files", ", ".join(_carried(spec))
    # A spooled job's own output comes back only while it is in the queue, and only when it is asked for.
    kept = f"JobStatus == 4 && time() - CompletionDate < {FETCHED_WITHIN}"
    yield "leave_in_queue", kept if SPOOL in spec.submit_options else "False"
    yield from _requests(spec)
    if spec.proxy is not None:
        yield "x509userproxy", allowed.path("proxy.path", spec.proxy)


def _carried(spec: JobSpec) -> Iterator[str]:
    """The files that go along; all arrive in one folder, so no two may have the same name."""
    names = {"job.sh"}
    for one in spec.transfer:
        if one.name in names:
            raise allowed.refused(
                "a file to carry", str(one), "another file of the same name goes with the job"
            )
        names.add(one.name)
        yield allowed.path("a file to carry", one)


def _requests(spec: JobSpec) -> Iterator[tuple[str, str]]:
    yield "request_cpus", str(allowed.whole(CORES, spec.cores))
    if spec.memory is not None:
        yield (
            "request_memory",
            str(math.ceil(allowed.whole(MEMORY, spec.memory) / 2**20)),
        )
    if spec.disk is not None:
        yield "request_disk", str(math.ceil(allowed.whole(DISK, spec.disk) / 2**10))


def _defaults(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """What a profile may say otherwise."""
    yield "universe", "vanilla"
    # Output and error come back also from a job that fails. No other file does, and none is waited for: a
    # listed file that is missing would put the job on hold.
    yield "when_to_transfer_output", "ON_EXIT"
    yield "transfer_output_files", '""'
    if spec.shared and SPOOL not in spec.submit_options:
        # A job that is removed or held brings nothing back otherwise.
        yield "stream_output", "True"
        yield "stream_error", "True"
    yield "notification", "Never"
    if spec.proxy is not None:
        yield "use_x509userproxy", "True"
    if spec.walltime is not None and spec.walltime_directive is None:
        limit = allowed.seconds(WALLTIME, spec.walltime)
        # The name of the attribute is what the reason for the removal will say.
        yield f"MY.{MARK}Walltime", str(limit)
        yield "periodic_remove", f"JobStatus == 2 && time() - EnteredCurrentStatus > {MARK}Walltime"


def _directives(spec: JobSpec) -> Iterator[tuple[str, str]]:
    for key, given in spec.directives.items():
        if given != "":
            yield _directive(allowed.directive(key), key, given)
    for field, given, own in _named(spec):
        if own is None:
            raise allowed.refused(field, given, "HTCondor has no queues, nor has this site a word for one")
        if own != "":  # the site is not to be told
            yield _directive(allowed.directive_of(field), own, given, literal=True)


def _named(spec: JobSpec) -> Iterator[tuple[str, str | int, str | None]]:
    """What is said by a site's own words, or by HTCondor's."""
    if spec.queue is not None:
        yield QUEUE, allowed.word(QUEUE, spec.queue), spec.queue_directive
    if spec.account is not None:
        own = "accounting_group" if spec.account_directive is None else spec.account_directive
        yield ACCOUNT, allowed.word(ACCOUNT, spec.account), own
    if spec.image is not None:
        own = "container_image" if spec.image_directive is None else spec.image_directive
        yield IMAGE, allowed.word(IMAGE, spec.image), own
    if spec.walltime is not None and spec.walltime_directive is not None:
        yield WALLTIME, allowed.seconds(WALLTIME, spec.walltime), spec.walltime_directive


def _directive(field: str, key: object, given: Scalar, *, literal: bool = False) -> tuple[str, str]:
    attribute = ATTRIBUTE.fullmatch(key) if isinstance(key, str) else None
    if attribute is not None:
        _not_ours(field, attribute[1], {})
        return f"MY.{attribute[1]}", _attribute(field, given, literal=literal)
    if not isinstance(key, str) or not COMMAND.fullmatch(key):
        raise allowed.refused(
            field, key, "a submit command's name, or +Name or MY.Name for an attribute of the job"
        )
    _not_ours(field, key, OURS)
    return key, allowed.expression(field, given) if isinstance(given, str) else _number(field, given)


def _not_ours(field: str, name: str, ours: Mapping[str, str]) -> None:
    """What is set already; condor_submit takes most attributes of a job also by their own names."""
    told = ours.get(name.lower())
    if told is not None or name.lower() in OURS_IN_THE_JOB:
        raise allowed.refused(field, name, f"set by {told or 'the runner itself'}")


def _attribute(field: str, given: Scalar, *, literal: bool) -> str:
    """A value in the job: strings get their quotes here, except an expression, which begins with ``=``."""
    if not isinstance(given, str):
        return _number(field, given)
    text = allowed.expression(field, given)
    if text.startswith("=") and not literal:
        return allowed.expression(field, text[1:].strip())
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if '"' in text or "\\" in text:
        raise allowed.refused(field, given, "a string without quotes and backslashes in it")
    return f'"{text}"'


def _number(field: str, given: Scalar) -> str:
    if isinstance(given, bool):
        return "True" if given else "False"
    if isinstance(given, float) and not math.isfinite(given):
        raise allowed.refused(field, given, "a finite number")
    return repr(given)
