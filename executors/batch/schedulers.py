"""What a batch system is to this project: submit equal jobs, ask for all of them at once, remove them.

The protocol, the state of a job, and the one door through which commands are run. What a single system is
called and answers stands in its own module; who decides when to ask or submit is the crew.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pwd
import signal
import subprocess
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

from executors.errors import SiteError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from executors.batch.spec import JobSpec

Phase: TypeAlias = Literal["pending", "running", "held", "ending", "done", "failed", "gone"]
Fate: TypeAlias = Literal["", "memory", "walltime", "removed", "node", "exit"]

ANSWER_LIMIT = 64 << 20  # bytes of one command's answer; 10,000 jobs of HTCondor are 5 MB
SUBMIT_PATIENCE = 120.0  # seconds: with -spool all files travel within it
PATIENCE = 60.0  # seconds for one command: a busy scheduler answers late, a broken one never
SYSTEMS: Mapping[str, str] = {
    "condor": "executors.batch.condor:Condor",
    "lsf": "executors.batch.lsf:Lsf",
    "pbs": "executors.batch.pbs:Pbs",
    "sge": "executors.batch.sge:Sge",
    "slurm": "executors.batch.slurm:Slurm",
}


@dataclass(frozen=True, slots=True)
class JobState:
    """What a batch system says of one job, in our words."""

    id: str
    phase: Phase
    reason: str = ""  # a few words: why it waits, is held or ended
    says: str = ""  # the whole sentence for people, with what mends it
    fate: Fate = ""  # of a job that is held or has ended
    exit: int | None = None  # exit code; -N for a signal
    alias: str = ""  # how the job calls itself where that differs: a task of a Slurm array
    hopeless: bool = False  # pending, and never starts as it is

    @property
    def live(self) -> bool:
        """Whether it runs or will by itself."""
        return self.phase in ("pending", "running")

    @property
    def ended(self) -> bool:
        """Whether nothing more will be heard of it."""
        return self.phase in ("done", "failed", "gone")


class SubmissionError(SiteError):
    """A batch system did not take jobs: its own words, and whether trying again can help."""

    @property
    def transient(self) -> bool:
        """Whether the same submission may be taken later."""
        return bool(self.about.get("transient"))


class CommandError(SiteError):
    """A command of the batch system is absent, does not answer or answers what cannot be read."""


class Answer(NamedTuple):
    """What one command gave back."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """Its error output, else its output, on one line."""
        return clean(self.err.strip() or self.out.strip())


class Scheduler(Protocol):
    """A batch system. Every method runs a bounded number of commands, whatever the number of jobs."""

    name: str

    def submit(self, spec: JobSpec, count: int) -> list[str]:
        """Up to ``count`` equal jobs by one submission, from ``spec.folder``; the ids of those submitted."""
        ...

    def query(self, name: str, ids: Sequence[str]) -> dict[str, JobState]:
        """Every job of this name that is known, and of ``ids`` at least "gone"."""
        ...

    def cancel(self, ids: Sequence[str]) -> None:
        """Remove these jobs; those that are gone already do not matter."""
        ...

    def fetch(self, ids: Sequence[str]) -> None:
        """Bring back the logs of jobs that ended, where that has to be asked for."""
        ...

    def cancel_argv(self, name: str) -> list[str]:
        """The command that removes every job of this name: needs PATH and the environment alone."""
        ...

    def cancel_named(self, name: str) -> None:
        """Run that command."""
        ...

    def why_pending(self, ids: Sequence[str]) -> str:
        """What more the system can say of why the first of these jobs waits; "" for nothing."""
        ...


def scheduler_of(name: str, options: Sequence[str] = ()) -> Scheduler:
    """The batch system of this name. ``options``: a site's submit options; what chooses a server is kept."""
    if name not in SYSTEMS:
        raise UnknownNameError.of("batch system", name, SYSTEMS)
    module, _, kind = SYSTEMS[name].partition(":")
    made: Scheduler = getattr(importlib.import_module(module), kind)(tuple(options))
    return made


def ask(
    argv: Sequence[str],
    timeout: float = PATIENCE,
    *,
    folder: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: Path | None = None,
) -> Answer:
    """Run one command without a shell in bounded time; CommandError if it is not there or hangs."""
    # Files and not pipes: what the command leaves behind may hold a pipe open for ever.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, _input(stdin) as given:
        try:
            process = subprocess.Popen(  # noqa: S603 (a list of words, each of them ours or checked)
                list(argv),
                stdin=given,
                stdout=out,
                stderr=err,
                cwd=folder,
                env={**(os.environ if env is None else env), "LC_ALL": "C"},
                start_new_session=True,
            )
        except OSError as error:
            raise CommandError(_absent(argv[0], error), command=argv[0]) from error
        code = _waited(process, timeout)
        return Answer(code, _tail_less(out), _tail_less(err))


def _input(path: Path | None) -> IO[bytes]:
    return Path(os.devnull if path is None else path).open("rb")


def _waited(process: subprocess.Popen[bytes], timeout: float) -> int:
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        name = str(process.args[0]) if isinstance(process.args, list) else ""
        text = f"{name} gave no answer within {timeout:.0f} s: the batch system is busy or unreachable"
        raise CommandError(text, command=name, late=True) from None
    finally:
        if process.poll() is None:
            # Bounded, since a process that hangs in a dead file system does not even hear this.
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(5.0)


def _absent(command: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return (
            f"{command} is not here: run on a submit node of the site, or put the batch system's commands on "
            f"PATH (try: command -v {command})"
        )
    return f"{command} cannot be run: {error.strerror}"


def _tail_less(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(ANSWER_LIMIT).decode(errors="replace")


def clean(text: str, limit: int = 600) -> str:
    """Foreign text for one line of ours: no control or direction characters, bounded."""
    kept = "".join(" " if c in "\n\r\t" else c for c in text[: 8 * limit] if c in "\n\r\t" or _plain(c))
    words = " ".join(kept.split())
    return words if len(words) <= limit else words[: limit - 1] + "…"


def _plain(char: str) -> bool:
    return unicodedata.category(char)[0] != "C"


def write_text(scheduler: str, spec: JobSpec) -> None:
    """Put the submit text of this job into its folder, readable by its owner alone."""
    from executors.batch.render import render

    for name, text in render(scheduler, spec).items():
        path = spec.folder / name
        if _holds(path, text):
            continue
        part = path.with_name(f".{name}.part")
        mode = 0o700 if name.endswith(".sh") else 0o600
        try:
            part.unlink(missing_ok=True)
            with os.fdopen(
                os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8"
            ) as file:
                file.write(text)
            part.replace(path)
        except OSError as error:
            raise SiteError(f"submit text cannot be written: {path}: {error.strerror}") from error


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        return False


def refused(answer: Answer, system: str, transient: bool, advice: str = "") -> SubmissionError:
    """The error for a submission that was not taken."""
    said = answer.complaint or f"exit code {answer.code} and no message"
    text = f"{system} did not take the jobs: {said}{f' ({advice})' if advice else ''}"
    return SubmissionError(text, transient=transient, said=said)


def submitting(
    argv: Sequence[str],
    spec: JobSpec,
    *,
    env: Mapping[str, str] | None = None,
    stdin: Path | None = None,
) -> Answer:
    """Run a submit command in the spec's folder. One that hangs may have worked: look before trying again."""
    try:
        return ask(argv, SUBMIT_PATIENCE, folder=spec.folder, env=env, stdin=stdin)
    except CommandError as error:
        raise SubmissionError(error.message, transient=bool(error.about.get("late"))) from error


def user() -> str:
    """The name that the batch system knows one by."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container without a passwd entry
        return str(os.getuid())


def checked_count(count: int) -> int:
    """How many jobs one submission is for."""
    if count < 1:
        raise UsageError(f"a submission is for 1 job or more, not {count}")
    return count
