"""HTCondor through its command line: one cluster a submission, one condor_q for all jobs.

No Python bindings: not every version of them gets along with every schedd; a site's own commands do.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from executors.batch.holds import HELD_SPOOLING, condor_hold, in_words
from executors.batch.reasons import Meaning as _Meaning
from executors.batch.reasons import exit_words, is_transient, refusal_advice
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
    from collections.abc import Iterator, Mapping, Sequence

    from executors.batch.spec import JobSpec

_STEP = re.compile(r"\[\d+\]", re.ASCII)
# What a condition is about, and the option by which it changes.
_MENDS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"memory", re.IGNORECASE), "--memory"),
    (re.compile(r"cpus", re.IGNORECASE), "--cores"),
    (re.compile(r"disk", re.IGNORECASE), "--disk"),
    (re.compile(r"container|\bHasSIF|docker|singularity|apptainer", re.IGNORECASE), "--image"),
    (re.compile(r"filesystemdomain", re.IGNORECASE), "--shared-store no"),
)
_LIST = re.compile(r"^\[", re.MULTILINE)
ATTRIBUTE = "CoffeaScaleout"  # of every job: its unique name
ASKED = (
    "ClusterId,ProcId,JobStatus,HoldReasonCode,HoldReasonSubCode,HoldReason,"
    "ExitCode,ExitBySignal,ExitSignal,RemoveReason"
)
IDLE, RUNNING, REMOVED, COMPLETED, HELD, TRANSFERRING, SUSPENDED = 1, 2, 3, 4, 5, 6, 7
SCAN_LIMIT = 20_000  # records of the history: a job that just left is among the last
SERVERS = ("-name", "-pool", "-remote")  # options of condor_submit that name the schedd


class Condor:
    """HTCondor: ids are ``cluster.proc``."""

    name = "condor"

    def __init__(self, options: tuple[str, ...] = ()) -> None:
        self._server = _server(options)
        self._spools = not {"-spool", "-remote"}.isdisjoint(options)

    def submit(self, spec: JobSpec, count: int) -> list[str]:
        """One cluster of ``count`` jobs."""
        write_text(self.name, spec)
        argv = ["condor_submit", "-terse", *spec.submit_options, "job.sub"]
        answer = submitting([*argv, "-queue", str(checked_count(count))], spec)
        if answer.code:
            said = answer.complaint
            raise refused(answer, "HTCondor", is_transient(said), refusal_advice(said))
        return [one for line in answer.out.splitlines() for one in _range(line)]

    def query(self, name: str, ids: Sequence[str]) -> dict[str, JobState]:
        """condor_q for all; condor_history once for those that left."""
        answer = ask(["condor_q", *self._server, "-json", "-attributes", ASKED, "-constraint", _with(name)])
        if answer.code:
            raise CommandError(f"condor_q failed: {answer.complaint}")
        found = {state.id: state for state in map(_state, _records(answer.out))}
        missing = [one for one in ids if one not in found]
        if missing:
            found |= {one: JobState(one, "gone") for one in missing} | self._history(name, missing)
        return found

    def _history(self, name: str, missing: Sequence[str]) -> dict[str, JobState]:
        # As exact as it goes: the search ends with the last that is wanted, else it reads the whole history.
        procs: dict[str, list[str]] = {}
        for one in missing:
            procs.setdefault(one.partition(".")[0], []).append(one.partition(".")[2])
        these = [f"(ClusterId == {c} && member(ProcId, {{{', '.join(p)}}}))" for c, p in procs.items()]
        wanted = f"{_with(name)} && ({' || '.join(these)})"
        bounds = ["-limit", str(len(missing)), "-scanlimit", str(SCAN_LIMIT)]
        argv = ["condor_history", *self._server, "-json", "-attributes", ASKED, *bounds]
        try:
            answer = ask([*argv, "-constraint", wanted], timeout=30.0)
            records = list(_records(answer.out)) if not answer.code else []
        except CommandError:
            return {}  # a schedd may keep no history or forbid it: such jobs are just gone
        return {state.id: state for state in map(_ended, records) if state.id in set(missing)}

    def cancel(self, ids: Sequence[str]) -> None:
        """condor_rm of these."""
        if ids:
            ask(["condor_rm", *self._server, *ids])

    def fetch(self, ids: Sequence[str]) -> None:
        """Logs of jobs that were spooled lie with the schedd until they are asked for; then those jobs go."""
        if self._spools and ids:
            ask(["condor_transfer_data", *self._server, *ids])
            ask(["condor_rm", *self._server, *ids])

    def cancel_argv(self, name: str) -> list[str]:
        """condor_rm by the attribute that every job carries."""
        return ["condor_rm", *self._server, "-constraint", _with(name)]

    def cancel_named(self, name: str) -> None:
        """Remove every job of this name; none is no error."""
        ask(self.cancel_argv(name))

    def why_pending(self, ids: Sequence[str]) -> str:
        """The verdict of condor_q -better-analyze, which may take a while."""
        answer = ask(["condor_q", *self._server, "-better-analyze", ids[0]], timeout=30.0) if ids else None
        if answer is None or answer.code:
            return ""
        return _verdict(answer.out)


def _verdict(text: str) -> str:
    """What condor_q -better-analyze found: conditions that no slot fulfils, else how many slots do what."""
    steps = re.findall(r"^(\[\d+\])\s+(\d+)\s+(.+?)\s*$", text, re.MULTILINE)
    never = [condition for _, matched, condition in steps if not int(matched)]
    alone = [condition for condition in never if not _STEP.search(condition)]
    if never:
        # Else each of them is fulfilled somewhere, and not all at one place: the first that never are.
        said = " nor ".join(alone) or _spelt(never[0], {number: condition for number, _, condition in steps})
        return clean(f"no machine has {said} ({_mends(said)})", 300)
    counted = re.findall(r"^\s+([1-9]\d* (?:are|reject|match)\b.*?)\s*$", text, re.MULTILINE)
    return clean("of the machines " + ", ".join(counted), 300) if counted else ""


def _spelt(condition: str, steps: Mapping[str, str]) -> str:
    """A condition with the others that it is made of in place of their numbers."""
    for _ in steps:
        condition = _STEP.sub(lambda found: steps.get(found[0], found[0]), condition)
    return condition


def _mends(condition: str) -> str:
    named = [option for pattern, option in _MENDS if pattern.search(condition)]
    return ", ".join(named) or "requirements, of the profile or by --directive"


def _server(options: Sequence[str]) -> list[str]:
    found: list[str] = []
    for at, word in enumerate(options[:-1]):
        if word in SERVERS:
            found += ["-name" if word == "-remote" else word, options[at + 1]]
    return found


def _with(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", name, re.ASCII):
        raise CommandError(f"{name!r} is no name for jobs")
    return f'{ATTRIBUTE} == "{name}"'


def _range(line: str) -> list[str]:
    """``12.0 - 12.4`` as ids."""
    match = re.fullmatch(r"\s*(\d+)\.(\d+)\s*-\s*(\d+)\.(\d+)\s*", line, re.ASCII)
    if match is None or match[1] != match[3]:
        return []
    return [f"{match[1]}.{proc}" for proc in range(int(match[2]), int(match[4]) + 1)]


def _records(text: str) -> Iterator[dict[str, Any]]:
    """The records of one answer: none for an empty queue, one list after the other from several schedds."""
    decoder, at = json.JSONDecoder(), 0
    while (begin := _LIST.search(text, at)) is not None:
        at = begin.start()
        try:
            found, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise CommandError(f"the answer of HTCondor cannot be read: {clean(text[at:], 120)}") from error
        yield from (one for one in found if isinstance(one, dict) and "ClusterId" in one and "ProcId" in one)


def _state(record: dict[str, Any]) -> JobState:
    """A job that is in the queue."""
    one, status = f"{record['ClusterId']}.{record['ProcId']}", record.get("JobStatus")
    if status == HELD:
        return _held(one, record)
    if status == IDLE:
        return JobState(one, "pending", "idle", "waits for a slot")
    if status in (RUNNING, SUSPENDED):
        return JobState(one, "running")
    if status == COMPLETED:  # some schedds keep finished jobs
        return _ended(record)
    if status in (REMOVED, TRANSFERRING):
        return JobState(
            one, "ending", _text(record.get("RemoveReason")), fate="removed" if status == REMOVED else ""
        )
    return JobState(one, "pending", f"status {status}")


def _held(one: str, record: dict[str, Any]) -> JobState:
    code, subcode = _int(record.get("HoldReasonCode")), _int(record.get("HoldReasonSubCode"))
    if code == HELD_SPOOLING:
        return JobState(one, "pending", "spooling", "its input files are on their way")
    said = _text(record.get("HoldReason"))
    meaning = condor_hold(code, subcode, said)
    return JobState(
        one, "held", meaning.words, f"held {code}/{subcode}: {meaning.sentence(said)}", meaning.fate
    )


def _ended(record: dict[str, Any]) -> JobState:
    """A job that left the queue."""
    one = f"{record['ClusterId']}.{record['ProcId']}"
    if record.get("JobStatus") == REMOVED:
        return _removed(one, record)
    if record.get("JobStatus") == HELD:
        return _held(one, record)
    code = -_int(record.get("ExitSignal")) if record.get("ExitBySignal") is True else record.get("ExitCode")
    code = code if isinstance(code, int) else None
    meaning = exit_words(code)
    return JobState(one, "failed" if code else "done", meaning.words, meaning.sentence(), meaning.fate, code)


def _removed(one: str, record: dict[str, Any]) -> JobState:
    said = _text(record.get("RemoveReason"))
    held = _text(record.get("HoldReason"))
    by_hand = said.startswith("via condor_rm")
    meaning = _Meaning("it was removed", "", "removed")
    if not by_hand:  # a rule of the site: over its time or memory
        meaning = in_words(said, meaning)
    elif held and _int(record.get("HoldReasonCode")):
        meaning = condor_hold(_int(record.get("HoldReasonCode")), _int(record.get("HoldReasonSubCode")), held)
        meaning = meaning if meaning.fate else _Meaning(meaning.words, meaning.advice, "removed")
    return JobState(
        one, "failed", meaning.words, meaning.sentence(held if held and by_hand else said), meaning.fate
    )


def _text(value: object) -> str:
    return clean(value, 300) if isinstance(value, str) else ""


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0
