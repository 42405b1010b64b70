"""Grid Engine through its command line: one qstat for all jobs, one qacct for those that left.

Jobs are found by their whole name, which only qstat's XML has: its columns cut it to ten characters. One that
left is accounted for some seconds later, and no account says that it was removed: only the queue shows that.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from executors.batch.reasons import is_transient, refusal_advice, sge_end
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

ACCOUNTED = 25.0  # seconds until a job that left is written down: 15, if the site leaves flush_time alone
NOTHING = re.compile(r"no messages available|turned off", re.IGNORECASE)
STAMP = re.compile(r"^\d\S+ \S+ \[\d+:\d+\]: ")


class Sge:
    """Grid Engine: ids are numbers."""

    name = "sge"

    def __init__(self, options: tuple[str, ...] = ()) -> None:
        del options  # one cell, named by SGE_CELL
        self._left: dict[str, float] = {}  # since when a job is missing from the queue
        self._removed: set[str] = set()  # seen while they were being removed
        self._accounts = True  # whether qacct answers

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
        self._removed |= {one.id for one in found.values() if one.fate == "removed"}
        missing = [one for one in ids if one not in found]
        return found | self._gone(name, missing) if missing else found

    def _gone(self, name: str, missing: Sequence[str]) -> dict[str, JobState]:
        """What became of jobs that are not in the queue, as far as it is known yet."""
        now, found, ended = time.monotonic(), {}, self._ended(name)
        for one in missing:
            since = self._left.setdefault(one, now)
            if one in self._removed:
                found[one] = JobState(one, "failed", "it was removed", "it was removed", "removed")
            elif one in ended:
                found[one] = ended[one]
            elif self._accounts and now - since < ACCOUNTED:
                found[one] = JobState(one, "ending", "not accounted for yet")
            else:
                found[one] = JobState(one, "gone")
        return found

    def _jobs(self, text: str, name: str) -> list[JobState]:
        try:
            root = ET.fromstring(text)  # noqa: S314 (the site's own command)
        except ET.ParseError as error:
            raise CommandError(f"the answer of qstat cannot be read: {clean(text, 120)}") from error
        jobs = [one for one in root.iter("job_list") if one.findtext("JB_name") == name]
        return [self._state(one.findtext("JB_job_number") or "", one.findtext("state") or "") for one in jobs]

    def _state(self, one: str, state: str) -> JobState:
        """By the letters of qstat's manual, several at once: hr runs on, dhr is being removed."""
        if "d" in state:
            return JobState(one, "ending", "being removed", fate="removed")
        if "E" in state:
            said = self._why_held(one)
            return JobState(one, "held", "error state", f"held in state {state}: {said}".rstrip(": "))
        if "h" in state and "q" in state:
            return JobState(one, "held", "on hold", "held by its owner or the site", "removed")
        if "q" in state:
            return JobState(one, "pending", says="waits for a free slot")
        return JobState(one, "running")

    def _why_held(self, one: str) -> str:
        try:
            answer = ask(["qstat", "-j", one], timeout=20.0)
        except CommandError:
            return ""
        reasons = re.findall(r"^error reason\s+\d+:\s*(.+)$", answer.out, re.MULTILINE)
        return clean("; ".join(STAMP.sub("", reason) for reason in reasons), 300)

    def _ended(self, name: str) -> dict[str, JobState]:
        if not self._accounts:
            return {}
        try:
            answer = ask(["qacct", "-j", name], timeout=30.0)
        except CommandError:
            self._accounts = False  # a file of years, or one that only the master sees
            return {}
        if answer.code:
            self._accounts = "not found" in answer.complaint
            return {}
        records = re.split(r"^=+$", answer.out, flags=re.MULTILINE)
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
        found = (
            re.search(r"^scheduling info:(.*(?:\n[ \t].*)*)", answer.out, re.MULTILINE) if answer else None
        )
        lines = [line.strip() for line in found[1].splitlines()] if found else []
        return clean("; ".join(line for line in lines if line and not NOTHING.search(line)), 300)


def _accounted(record: dict[str, str]) -> JobState:
    one, failed = record.get("jobnumber", ""), _number(record.get("failed", "")) or 0
    code = _number(record.get("exit_status", ""))
    code = 128 - code if code is not None and 128 < code < 160 else code
    said, category = clean(record.get("failed", ""), 120), record.get("category", "")
    meaning = sge_end(failed, said, code, category, _number(record.get("ru_wallclock", "")))
    phase: Phase = "failed" if code or failed else "done"
    return JobState(one, phase, meaning.words, meaning.sentence(), meaning.fate, code)


def _number(text: str) -> int | None:
    match = re.match(r"-?\d+", text, re.ASCII)
    return int(match[0]) if match else None
