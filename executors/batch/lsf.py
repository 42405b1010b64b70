"""LSF through its command line: one bjobs for all jobs, ended ones included as long as LSF remembers them."""

from __future__ import annotations

import re
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
    write_text,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from executors.batch.spec import JobSpec

FIELDS = "jobid stat exit_code exit_reason pend_reason delimiter='^'"
ENDS: dict[str, Meaning] = {
    "TERM_MEMLIMIT": Meaning("it used more memory than requested", MEMORY, "memory"),
    "TERM_SWAP": Meaning("it used more memory than requested", MEMORY, "memory"),
    "TERM_RUNLIMIT": Meaning("its walltime was over", "--walltime", "walltime"),
    "TERM_CPULIMIT": Meaning("it used more processor time than allowed", "--walltime", "walltime"),
    "TERM_DEADLINE": Meaning("its deadline was over", "--walltime", "walltime"),
    "TERM_OWNER": Meaning("it was removed", "", "removed"),
    "TERM_ADMIN": Meaning("it was removed by the site", "", "removed"),
    "TERM_FORCE_OWNER": Meaning("it was removed", "", "removed"),
    "TERM_FORCE_ADMIN": Meaning("it was removed by the site", "", "removed"),
    "TERM_BUCKET_KILL": Meaning("it was removed", "", "removed"),
    "TERM_REMOVE_HUNG_JOB": Meaning("it was removed, for it hung", "", "removed"),
    **dict.fromkeys(("TERM_REQUEUE_OWNER", "TERM_REQUEUE_ADMIN"), Meaning("it was put back", "", "removed")),
    **dict.fromkeys(
        ("TERM_LOAD", "TERM_WINDOW", "TERM_MC_RECALL", "TERM_RC_RECLAIM"),
        Meaning("its node was wanted for others", "", "removed"),
    ),
    **dict.fromkeys(
        ("TERM_PROCESSLIMIT", "TERM_THREADLIMIT"),
        Meaning("it had more processes than allowed", "fewer workers a job: -j"),
    ),
    "TERM_CWD_NOTEXIST": Meaning("its folder is not there on the node", "--outputdir, one that nodes see"),
    "TERM_PRE_EXEC_FAIL": Meaning("its node could not be prepared", "ask the site's support", "node"),
    "TERM_PREEMPT": Meaning("it had to make room for others", "", "removed"),
    "TERM_UNKNOWN": Meaning("its node was lost", "", "node"),
    "TERM_ZOMBIE": Meaning("its node was lost", "", "node"),
}


class Lsf:
    """LSF: ids are numbers."""

    name = "lsf"

    def __init__(self, options: tuple[str, ...] = ()) -> None:
        del options  # one cluster, that of the environment

    def submit(self, spec: JobSpec, count: int) -> list[str]:
        """One job; bsub reads the directives from its input."""
        checked_count(count)
        write_text(self.name, spec)
        answer = submitting(["bsub", *spec.submit_options], spec, stdin=spec.folder / "job.sh")
        found = re.search(r"^Job <(\d+)> is submitted", answer.out, re.ASCII | re.MULTILINE)
        if answer.code or found is None:
            said = answer.complaint
            raise refused(answer, "LSF", is_transient(said), refusal_advice(said))
        return [found[1]]

    def query(self, name: str, ids: Sequence[str]) -> dict[str, JobState]:
        """One bjobs, by name."""
        answer = ask(["bjobs", "-a", "-noheader", "-J", name, "-o", FIELDS])
        if answer.code and not re.search(r"is not found|no .*job found", answer.err, re.IGNORECASE):
            raise CommandError(f"bjobs failed: {answer.complaint}")
        rows = [line.split("^") for line in answer.out.splitlines()]
        states = [_state(row) for row in rows if len(row) >= 5 and row[0].strip().isdecimal()]
        return {one: JobState(one, "gone") for one in ids} | {one.id: one for one in states}

    def cancel(self, ids: Sequence[str]) -> None:
        """Remove these by bkill."""
        if ids:
            ask(["bkill", *ids])

    def fetch(self, ids: Sequence[str]) -> None:
        """Nothing: the nodes write the logs where they belong."""

    def cancel_argv(self, name: str) -> list[str]:
        """By bkill: 0 is every job of that name."""
        return ["bkill", "-J", name, "0"]

    def cancel_named(self, name: str) -> None:
        """Remove every job of this name; none is no error."""
        ask(self.cancel_argv(name))

    def why_pending(self, ids: Sequence[str]) -> str:
        """Nothing more than the state shows."""
        del ids
        return ""


def _state(row: list[str]) -> JobState:
    one, stat, code, reason = (part.strip() for part in row[:4])
    why = clean("^".join(row[4:]).strip(" -"), 200)
    if stat == "PSUSP":
        return JobState(
            one,
            "held",
            "on hold",
            f"held: {why or 'by its owner or the site'}",
            "removed",
        )
    if stat in ("PEND", "WAIT", "PROV"):
        return JobState(one, "pending", "", why or "waits for a free slot")
    if stat in ("RUN", "USUSP", "SSUSP"):
        return JobState(one, "running")
    if stat in ("UNKWN", "ZOMBI"):
        return JobState(one, "ending", "its node does not answer", "its node does not answer", "node")
    return _ended(one, stat, int(code) if code.isdecimal() else None, clean(reason, 200))


def _ended(one: str, stat: str, code: int | None, reason: str) -> JobState:
    code = 128 - code if code is not None and 128 < code < 160 else code
    meaning = ENDS.get(reason.partition(":")[0].strip(" -"))
    if meaning is None:
        meaning = exit_words(code if stat == "EXIT" else 0)
    return JobState(
        one, "failed" if stat == "EXIT" else "done", meaning.words, meaning.sentence(), meaning.fate, code
    )
