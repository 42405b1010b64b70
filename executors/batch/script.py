"""job.sh: what runs on the node, the same for all batch systems but for the directives on its top.

Every value stands in single quotes; setup lines are evaluated one by one, so that a line with an open quote
breaks itself alone. What a batch system's directives look like may not enter.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from executors.batch import allowed
from executors.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from executors.batch.spec import JobSpec

SETUP_FAILED = 78  # EX_CONFIG of sysexits.h
NOT_FOUND = 127

# Jobs of HTCondor have no PATH, HOME or USER; bash makes itself a PATH which it does not export.
START = """\
umask 077
cs_stop() { printf 'coffea-scaleout: %s\\n' "$2" >&2; exit "$1"; }
case "$(declare -p PATH 2>&1)" in 'declare -x '*) ;; *) export PATH=/usr/local/bin:/usr/bin:/bin ;; esac
[ -n "${USER:-}" ] || { USER="$(id -un 2>&1)" || USER="$(id -u)"; export USER; }
[ -n "${HOME:-}" ] || { unset HOME; HOME=~; export HOME; }
"""
GREETING = """\
cs_job="${SLURM_JOB_ID:-${PBS_JOBID:-${LSB_JOBID:-${JOB_ID:-}}}}"
printf 'coffea-scaleout: on %s%s\\n' "${HOSTNAME:-a node}" "${cs_job:+, job $cs_job}" >&2
"""


def quoted(text: str) -> str:
    """One word for the shell, whatever is in it."""
    return "'" + text.replace("'", "'\\''") + "'"


def script(scheduler: str, spec: JobSpec, directives: Sequence[str] = ()) -> str:
    """The whole of job.sh."""
    name = allowed.job_name("name", spec.name)
    head = ["#!/bin/bash", *directives, f"# Written by coffea-scaleout for its jobs {name}.", ""]
    body = [
        *_place(scheduler, spec),
        *GREETING.splitlines(),
        *_environment(scheduler, spec),
        *_setup(spec),
        *_command(scheduler, spec),
    ]
    return "\n".join([*head, *START.splitlines(), *body, ""])


def exports(scheduler: str, spec: JobSpec) -> str:
    """The job's environment alone, for a shell that runs something else."""
    return "".join(f"{line}\n" for line in _environment(scheduler, replace(spec, scratch=None)))


def _place(scheduler: str, spec: JobSpec) -> Iterator[str]:
    """Where the job begins: HTCondor has a folder of its own for each, the others a shared one."""
    if scheduler == "condor":
        return
    if not spec.shared:
        raise UsageError(
            f"{scheduler} carries no files to its nodes: it needs a folder that they share with the runner "
            "(shares_store = true); HTCondor does without"
        )
    folder = allowed.path("the run's folder", spec.folder)
    missing = quoted(f"this node does not see the folder {folder}")
    yield f"cd -- {quoted(folder)} || cs_stop {SETUP_FAILED} {missing}"
    if scheduler == "pbs":  # it has no file names with the job's number in them
        logs = quoted(allowed.path("the log folder", spec.logs))
        yield f'exec >>{logs}/"${{PBS_JOBID:-job}}".out 2>>{logs}/"${{PBS_JOBID:-job}}".err'


def _environment(scheduler: str, spec: JobSpec) -> Iterator[str]:
    for name, value in spec.env.items():
        checked = allowed.variable("env (--env)", name)
        yield f"export {checked}={quoted(allowed.value(f'env.{checked} (--env)', value))}"
    if spec.proxy is not None:
        proxy = allowed.path("proxy.path", spec.proxy)
        if (
            scheduler != "condor" and "X509_USER_PROXY" not in spec.env
        ):  # HTCondor delegates it, and says where
            yield f"export X509_USER_PROXY={quoted(proxy)}"
    if spec.scratch is not None:
        yield from _scratch(allowed.scratch("job.scratch", spec.scratch))


def _scratch(given: str) -> Iterator[str]:
    """TMPDIR there; ``$NAME`` is the node's own, and may be missing but for TMPDIR itself."""
    for name in re.findall(r"\$([A-Z_][A-Z0-9_]*)", given):
        if name != "TMPDIR":
            missing = quoted(f"${name} of job.scratch is not set on this node")
            yield f'[ -n "${{{name}:-}}" ] || cs_stop {SETUP_FAILED} {missing}'
    folder = re.sub(r"\$([A-Z_][A-Z0-9_]*)", r"${\1}", given)
    yield f'export TMPDIR="{folder.replace("${TMPDIR}", "${TMPDIR:-/tmp}")}"'
    yield f'mkdir -p -- "$TMPDIR" || cs_stop {SETUP_FAILED} "the scratch folder $TMPDIR cannot be made"'


def _setup(spec: JobSpec) -> Iterator[str]:
    for number, line in enumerate(spec.setup, 1):
        text = allowed.line(f"job.setup[{number}] (--worker-setup)", line)
        says = f'"setup line {number} failed (exit code $?): "{quoted(text)}'
        yield f"eval -- {quoted(text)} || cs_stop {SETUP_FAILED} {says}"


def _command(scheduler: str, spec: JobSpec) -> Iterator[str]:
    if not spec.command or not spec.command[0] or spec.command[0].startswith("-"):
        raise allowed.refused("command", spec.command, "a program and its arguments")
    words = [quoted(allowed.value(f"command[{at}]", word)) for at, word in enumerate(spec.command)]
    if spec.image is not None and spec.image_directive is None and scheduler != "condor":
        image = quoted(allowed.word(allowed.IMAGE, spec.image))
        missing = "'neither apptainer nor singularity is on this node'"
        yield f"cs_run=$(command -v apptainer || command -v singularity) || cs_stop {NOT_FOUND} {missing}"
        yield f'exec "$cs_run" exec {image} {" ".join(words)}'
        return
    missing = f'{words[0]}" is not there or cannot be run on ${{HOSTNAME:-this node}} (job.python)"'
    yield f"command -v -- {words[0]} >/dev/null || cs_stop {NOT_FOUND} {missing}"
    yield f"exec {' '.join(words)}"
