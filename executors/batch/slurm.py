"""Slurm through its command line: one array a submission, one squeue for all jobs.

squeue shows ended jobs too for some minutes (MinJobAge); accounting is asked only for those it forgot.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from executors.batch.reasons import (
    SLURM_FATES,
    Meaning,
    exit_words,
    is_transient,
    refusal_advice,
    slurm_pending,
)
from executors.batch.schedulers import (
    CommandError,
    JobState,
    ask,
    checked_count,
    clean,
    refused,
    submitting,
    write_text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from executors.batch.schedulers import Answer, Phase
    from executors.batch.spec import JobSpec

# Fixed widths: separators of one's own need a Slurm of 2021. The last may hold blanks.
COLUMNS = (
    ("JobArrayID", 32),
    ("JobID", 24),
    ("State", 24),
    ("exit_code", 16),
    ("restartcnt", 8),
    ("Reason", 200),
)
HELD = {"REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
PENDING = {"PENDING", "REQUEUED", "REQUEUE_FED"}
RUNNING = {
    "RUNNING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "POWER_UP_NODE", "EXPEDITING",
}  # fmt: skip
ENDING = {"COMPLETING", "STAGE_OUT", "UPDATE_DB"}
SERVERS = ("-M", "--clusters")
# sbatch takes SBATCH_* above what the job's text says; these alone may fill what the text leaves open.
LEFT_OPEN = ("SBATCH_QOS", "SBATCH_RESERVATION", "SBATCH_CLUSTERS", "SBATCH_CONSTRAINT", "SBATCH_WCKEY")


class Slurm:
    """Slurm: ids are ``12`` or, in an array, ``12_3``; the alias is then the task's own SLURM_JOB_ID."""

    name = "slurm"

    def __init__(self, options: tuple[str, ...] = ()) -> None:
        self._server = _server(options)
        self._arrays = True
        self._accounting = True

    def submit(self, spec: JobSpec, count: int) -> list[str]:
        """An array of ``count`` jobs; one job at a time where arrays are not allowed."""
        write_text(self.name, spec)
        if checked_count(count) > 1 and self._arrays:
            answer = self._sbatch(spec, ["--array", f"0-{count - 1}"])
            if not answer.code:
                return [f"{_id(answer)}_{task}" for task in range(count)]
            self._arrays = "array" not in answer.complaint.lower()
        if count == 1 or not self._arrays:
            answer = self._sbatch(spec, [])
            if not answer.code:
                return [_id(answer)]
        said = answer.complaint.replace("sbatch: error: ", "").replace("Batch job submission failed: ", "")
        raise refused(answer._replace(err=said), "Slurm", is_transient(said), refusal_advice(said))

    def _sbatch(self, spec: JobSpec, more: list[str]) -> Answer:
        argv = ["sbatch", "--parsable", *more, *spec.submit_options, "job.sh"]
        return submitting(argv, spec, env=_submit_env(spec, os.environ))

    def query(self, name: str, ids: Sequence[str]) -> dict[str, JobState]:
        """One squeue for all, ended ones included; sacct once for those it forgot, where there is one."""
        form = ",".join(f"{column}:{width}" for column, width in COLUMNS)
        argv = ["squeue", *self._server, "--noheader", "--array", "--states=all", *_mine(name), "-O", form]
        answer = ask(argv, env=_query_env(os.environ))
        if answer.code:
            raise CommandError(f"squeue failed: {answer.complaint.replace('slurm_load_jobs error: ', '')}")
        found = {one.id: one for line in answer.out.splitlines() if (one := _row(line)) is not None}
        missing = [one for one in ids if one not in found]
        if missing:
            found |= {one: JobState(one, "gone") for one in missing} | self._accounted(missing)
        return found

    def _accounted(self, missing: Sequence[str]) -> dict[str, JobState]:
        if not self._accounting:
            return {}
        argv = ["sacct", *self._server, "-X", "-n", "-P", "-o", "JobID,JobIDRaw,State,ExitCode", "-j"]
        try:
            answer = ask([*argv, ",".join(missing)], timeout=20.0)
        except CommandError:
            answer = None
        if answer is None or answer.code:
            self._accounting = False  # no slurmdbd here: asking again would only take time
            return {}
        rows = (line.split("|") for line in answer.out.splitlines())
        states = [_state(row[0], row[1], row[2], row[3], "") for row in rows if len(row) >= 4]
        return {one.id: one for one in states if one.id in set(missing)}

    def cancel(self, ids: Sequence[str]) -> None:
        """Remove these by scancel."""
        if ids:
            ask(["scancel", "--quiet", *self._server, *ids], env=_query_env(os.environ))

    def fetch(self, ids: Sequence[str]) -> None:
        """Nothing: the nodes write the logs where they belong."""

    def cancel_argv(self, name: str) -> list[str]:
        """By scancel and the name; only one's own jobs."""
        return ["scancel", "--quiet", *self._server, *_mine(name)]

    def cancel_named(self, name: str) -> None:
        """Remove every job of this name; none is no error."""
        ask(self.cancel_argv(name), env=_query_env(os.environ))

    def why_pending(self, ids: Sequence[str]) -> str:
        """When Slurm thinks that the first will start."""
        answer = (
            ask(["squeue", *self._server, "--noheader", "--start", "-j", ids[0], "-o", "%S"]) if ids else None
        )
        start = clean(answer.out, 40) if answer is not None and not answer.code else ""
        return f"expected to start {start}" if re.match(r"\d{4}-\d\d-\d\dT", start) else ""


def _mine(name: str) -> list[str]:
    return [f"--user={os.getuid()}", f"--name={name}"]


def _server(options: Sequence[str]) -> list[str]:
    found = [word for word in options if word.startswith("--clusters=")]
    for at, word in enumerate(options[:-1]):
        if word in SERVERS:
            found.append(f"--clusters={options[at + 1]}")
    return found


def _submit_env(spec: JobSpec, env: Mapping[str, str]) -> dict[str, str]:
    """Without what would overrule the job's text, and without the marks of a job one may be in."""
    open_ = {*LEFT_OPEN}
    if spec.queue is None:
        open_.add("SBATCH_PARTITION")
    if spec.account is None:
        open_.add("SBATCH_ACCOUNT")
    kept = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_CONF_SERVER"}
    return {
        key: value
        for key, value in env.items()
        if not key.startswith(("SBATCH_", "SLURM_", "SLURMD_")) or key in open_ | kept
    }


def _query_env(env: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in env.items() if not key.startswith(("SQUEUE_", "SCANCEL_"))}


def _id(answer: Answer) -> str:
    """``12`` or ``12;cluster``; site wrappers may print before it."""
    lines = [line.strip().partition(";")[0] for line in answer.out.splitlines()]
    found = [line for line in lines if re.fullmatch(r"\d+", line, re.ASCII)]
    if not found:
        raise CommandError(f"sbatch said no job id: {answer.complaint or 'nothing at all'}")
    return found[-1]


def _row(line: str) -> JobState | None:
    parts, at = [], 0
    for _, width in COLUMNS:
        parts.append(line[at : at + width].strip())
        at += width
    if not re.fullmatch(r"\d+(_\d+)?", parts[0], re.ASCII):
        return None
    one, raw, state, code, restarts, reason = parts
    if state in PENDING and reason == "BeginTime" and restarts not in ("", "0"):
        # Slurm lets it wait for two minutes and more; another job may start at once.
        says = "requeued: its node was lost, or somebody requeued it"
        return JobState(one, "held", "requeued", says, "removed", alias=raw if raw != one else "")
    return _state(one, raw, state, code, reason)


def _state(one: str, raw: str, state: str, code: str, reason: str) -> JobState:
    # A state may say more: "CANCELLED by 1000", "CANCELLED+".
    word = (state.split() or [""])[0].rstrip("+")
    alias = raw if raw != one else ""
    reason = clean(reason, 120)
    if word in HELD or (word in PENDING and ("held" in reason.lower() or reason.startswith("JobHold"))):
        meaning = slurm_pending(reason)
        return JobState(
            one, "held", meaning.words, f"held: {meaning.sentence(reason)}", meaning.fate, alias=alias
        )
    if word in PENDING:
        meaning = slurm_pending(reason)
        says = meaning.sentence(reason)
        return JobState(
            one, "pending", "" if reason == "None" else reason, says, alias="", hopeless=meaning.hopeless
        )
    if word in RUNNING or word in ENDING:
        return JobState(one, "running" if word in RUNNING else "ending", alias=alias)
    return _over(one, alias, word, _exit(code), reason)


def _over(one: str, alias: str, word: str, code: int | None, reason: str) -> JobState:
    meaning = SLURM_FATES.get(word, Meaning(f"its state is {word or 'unknown'}"))
    if word == "FAILED" and code:
        meaning = exit_words(code)
    phase: Phase = "done" if word == "COMPLETED" else "failed"
    said = "" if reason in ("None", "NonZeroExitCode") or word == "CANCELLED" else reason
    return JobState(one, phase, meaning.words, meaning.sentence(said), meaning.fate, code, alias)


def _exit(code: str) -> int | None:
    """``7:0``, ``0:9`` (sacct) or a status as wait() has it (squeue before 24.05)."""
    first, colon, second = code.partition(":")
    if not first.isdecimal() or (colon and not second.isdecimal()):
        return None
    if colon:
        return -int(second) if int(second) and not int(first) else int(first)
    status = int(first)
    return -(status & 0x7F) if status & 0x7F else status >> 8
