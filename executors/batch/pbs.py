"""PBS Pro and OpenPBS through their command line: qselect finds the jobs by name, one qstat shows all."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from executors.batch.reasons import MEMORY, Meaning, exit_words, is_transient, refusal_advice
from executors.batch.schedulers import (
    CommandError,
    JobState,
    ask,
    checked_count,
    clean,
    refused,
    submitting,
    user,
    write_text,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from executors.batch.schedulers import Phase
    from executors.batch.spec import JobSpec

REMOVE = Path(__file__).with_name("pbs_remove.py")
PHASES: dict[str, Phase] = {
    "Q": "pending", "W": "pending", "T": "pending", "R": "running", "S": "running", "U": "running",
    "B": "running", "M": "pending", "H": "held", "E": "ending", "F": "done", "X": "done", "C": "done",
}  # fmt: skip
# Exit_status below zero: what the server or the node did to it (pbs_error.h).
SERVER_ENDS: dict[int, Meaning] = {
    -26: Meaning("it used more memory than requested", MEMORY, "memory"),
    -27: Meaning("it used more memory than requested", MEMORY, "memory"),
    -28: Meaning("it used more processor time than requested", "--walltime", "walltime"),
    -29: Meaning("its walltime was over", "--walltime", "walltime"),
}


class Pbs:
    """PBS: ids are ``12.server``."""

    name = "pbs"

    def __init__(self, options: tuple[str, ...] = ()) -> None:
        del options  # the server is that of PBS_DEFAULT or of the queue

    def submit(self, spec: JobSpec, count: int) -> list[str]:
        """One job: arrays would need other names for their logs."""
        checked_count(count)
        write_text(self.name, spec)
        answer = submitting(["qsub", *spec.submit_options, "job.sh"], spec)
        found = re.findall(r"^(\d+(?:\.[\w.-]+)?)$", answer.out, re.ASCII | re.MULTILINE)
        if answer.code or not found:
            said = answer.complaint.removeprefix("qsub: ")
            raise refused(answer._replace(err=said), "PBS", is_transient(said), refusal_advice(said))
        return [found[-1]]

    def query(self, name: str, ids: Sequence[str]) -> dict[str, JobState]:
        """Two commands: qselect by name, qstat for what it found and for ``ids``."""
        named = ask(["qselect", "-x", "-u", user(), "-N", name])
        if named.code:
            raise CommandError(f"qselect failed: {named.complaint}")
        every = list(dict.fromkeys([*named.out.split(), *ids]))
        if not every:
            return {}
        answer = ask(["qstat", "-x", "-f", *every])
        found = {state.id: state for state in map(_state, _records(answer.out))}
        if answer.code and not found and "unknown job" not in answer.err.lower():
            raise CommandError(f"qstat failed: {answer.complaint}")
        return {one: JobState(one, "gone") for one in every} | found

    def cancel(self, ids: Sequence[str]) -> None:
        """Remove these by qdel."""
        if ids:
            ask(["qdel", *ids])

    def fetch(self, ids: Sequence[str]) -> None:
        """Nothing: the nodes write the logs where they belong."""

    def cancel_argv(self, name: str) -> list[str]:
        """A script that asks qselect and gives the ids to qdel, which knows no names."""
        return [sys.executable, "-I", str(REMOVE), name]

    def cancel_named(self, name: str) -> None:
        """Remove every job of this name; none is no error."""
        ask(self.cancel_argv(name))

    def why_pending(self, ids: Sequence[str]) -> str:
        """Nothing more than the comment that the state shows."""
        del ids
        return ""


def _records(text: str) -> list[dict[str, str]]:
    """``Job Id: 12.server`` and ``name = value`` lines, long values broken by a newline and a tab."""
    out: list[dict[str, str]] = []
    for line in text.replace("\n\t", "").splitlines():
        if line.startswith("Job Id:"):
            out.append({"id": line.partition(":")[2].strip()})
        elif out and " = " in line:
            key, _, value = line.strip().partition(" = ")
            out[-1][key] = value
    return out


def _state(record: dict[str, str]) -> JobState:
    one, comment = record["id"], clean(record.get("comment", ""), 200)
    phase = PHASES.get(record.get("job_state", ""), "pending")
    if phase == "done":
        return _ended(one, record)
    if phase == "held":
        says = f"held: {comment or record.get('Hold_Types', '')}"
        return JobState(one, "held", comment or "on hold", says, "removed")
    if phase == "pending":
        never = "can never run" in comment.lower()
        advice = " (--cores, --memory, --walltime or --queue)" if never else ""
        return JobState(one, phase, "", f"{comment or 'waits for free nodes'}{advice}", hopeless=never)
    return JobState(one, phase)


def _ended(one: str, record: dict[str, str]) -> JobState:
    text = record.get("Exit_status", "")
    status = int(text) if re.fullmatch(r"-?\d{1,6}", text, re.ASCII) else None
    if status is None:  # removed before it ran
        return JobState(one, "failed", "it was removed", "it was removed", "removed")
    code = -(status % 128) if status > 256 else status
    meaning = SERVER_ENDS.get(status) or exit_words(code)
    return JobState(
        one, "failed" if status else "done", meaning.words, meaning.sentence(), meaning.fate, code
    )
