"""Grid Engine through its command line: one qstat for all jobs, one qacct for those that left.

Jobs are found by their whole name, which only qstat's XML has: its columns cut it to ten characters.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from executors.batch.reasons import Meaning, exit_words, is_transient, refusal_advice
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

    from executors.batch.spec import JobSpec

OVER_LIMIT = 37  # of "failed": the master ended it over h_rt, h_cpu or h_vmem


class Sge:
    """Grid Engine: ids are numbers."""

    name = "sge"

    def __init__(self, options: tuple[str, ...] = ()) -> None:
        del options  # one cell, named by SGE_CELL

    def submit(self, spec: JobSpec, count: int) -> list[str]:
        """One job: its log is named by its number, and arrays need other names."""
        checked_count(count)
        write_text(self.name, spec)
        answer = submitting(["qsub", "-terse", *spec.submit_options, "job.sh"], spec)
        found = re.findall(r"^(\d+)$", answer.out, re.ASCII | re.MULTILINE)
        if answer.code or not found:
            said = answer.complaint
            raise refused(answer, "Grid Engine", is_transient(said), refusal_advice(said))
        return [found[-1]]

    def query(self, name: str, ids: Sequence[str]) -> dict[str, JobState]:
        """The XML of qstat; qacct by name for those that left."""
        answer = ask(["qstat", "-u", user(), "-xml"])
        if answer.code:
            raise CommandError(f"qstat failed: {answer.complaint}")
        found = {one.id: one for one in self._jobs(answer.out, name)}
        missing = [one for one in ids if one not in found]
        if missing:
            ended = self._ended(name)
            found |= {one: ended.get(one, JobState(one, "gone")) for one in missing}
        return found

    def _jobs(self, text: str, name: str) -> list[JobState]:
        try:
            root = ET.fromstring(text)  # noqa: S314 (the site's own command)
        except ET.ParseError as error:
            raise CommandError(f"the answer of qstat cannot be read: {clean(text, 120)}") from error
        jobs = [one for one in root.iter("job_list") if one.findtext("JB_name") == name]
        return [self._state(one.findtext("JB_job_number") or "", one.findtext("state") or "") for one in jobs]

    def _state(self, one: str, state: str) -> JobState:
        if "E" in state:
            said = self._why_held(one)
            return JobState(one, "held", "error state", f"held in state {state}: {said}".rstrip(": "))
        if "h" in state:
            return JobState(
                one, "held", "on hold", "held by its owner or the site (qrls lets it run)", "removed"
            )
        if "d" in state:
            return JobState(one, "ending", "being removed", fate="removed")
        if "w" in state:
            return JobState(one, "pending", says="waits for a free slot")
        return JobState(one, "running")

    def _why_held(self, one: str) -> str:
        try:
            answer = ask(["qstat", "-j", one], timeout=20.0)
        except CommandError:
            return ""
        return clean("; ".join(re.findall(r"^error reason\s+\d+:\s*(.+)$", answer.out, re.MULTILINE)), 300)

    def _ended(self, name: str) -> dict[str, JobState]:
        try:
            answer = ask(["qacct", "-j", name], timeout=30.0)
        except CommandError:
            return {}  # an execution host may hold the accounting file to itself
        records = re.split(r"^=+$", answer.out, flags=re.MULTILINE) if not answer.code else []
        states = (_accounted(dict(re.findall(r"^(\w+)\s+(.+?)\s*$", one, re.MULTILINE))) for one in records)
        return {state.id: state for state in states if state.id}

    def cancel(self, ids: Sequence[str]) -> None:
        """Remove these by qdel."""
        if ids:
            ask(["qdel", *ids])

    def fetch(self, ids: Sequence[str]) -> None:
        """Nothing: the nodes write the logs where they belong."""

    def cancel_argv(self, name: str) -> list[str]:
        """By qdel, which takes names too."""
        return ["qdel", name]

    def cancel_named(self, name: str) -> None:
        """Remove every job of this name; none is no error."""
        ask(self.cancel_argv(name))

    def why_pending(self, ids: Sequence[str]) -> str:
        """What the scheduler said of the first one, where the site lets it."""
        answer = ask(["qstat", "-j", ids[0]], timeout=20.0) if ids else None
        found = re.search(r"^scheduling info:\s*(.+)$", answer.out, re.MULTILINE) if answer else None
        return clean(found[1], 300) if found else ""


def _accounted(record: dict[str, str]) -> JobState:
    one, failed = record.get("jobnumber", ""), _number(record.get("failed", ""))
    code = _number(record.get("exit_status", ""))
    code = 128 - code if code is not None and 128 < code < 160 else code
    if failed == OVER_LIMIT:
        meaning = Meaning("it was ended over a limit of time or memory", "--walltime, --memory", "walltime")
    elif failed and not code:
        said = clean(record.get("failed", ""), 120)
        return JobState(one, "failed", f"it failed: {said}", f"it failed: {said}", "node", code)
    else:
        meaning = exit_words(code)
    return JobState(
        one, "failed" if code or failed else "done", meaning.words, meaning.sentence(), meaning.fate, code
    )


def _number(text: str) -> int | None:
    match = re.match(r"-?\d+", text, re.ASCII)
    return int(match[0]) if match else None
