"""Asks one program of the site one question, within a bounded time. What the answer means is not known."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MOST = 1_000_000  # characters of an answer that are read


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program said; ``code`` is None where it did not end in time or could not be started."""

    code: int | None
    text: str  # its output
    complaint: str  # its error output
    seconds: float
    slow: bool = False

    @property
    def good(self) -> bool:
        """Whether it ended well."""
        return self.code == 0

    @property
    def why(self) -> str:
        """The last line it complained with, short and printable."""
        lines = [line.strip() for line in (self.complaint or self.text).splitlines() if line.strip()]
        shown = "".join(char for char in (lines[-1] if lines else "") if char.isprintable())
        if self.slow:
            return f"no answer within {self.seconds:.0f} s"
        return shown[:200] or f"exit code {self.code}"


def ask(
    command: Sequence[str],
    timeout: float = 5.0,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Answer:
    """Run a program without a shell, without input and without colours or translations, and wait for it."""
    start = time.monotonic()
    if shutil.which(command[0]) is None:
        return Answer(None, "", f"{command[0]} is not here", 0.0)
    try:
        process = subprocess.Popen(  # noqa: S603
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C", **(env or {})},
            start_new_session=True,  # a wrapper's child is ended with it
        )
    except OSError as error:
        return Answer(None, "", f"{command[0]} cannot be started: {error.strerror}", 0.0)
    try:
        text, complaint = process.communicate(timeout=timeout)
        slow = False
    except subprocess.TimeoutExpired:
        text, complaint, slow = *_end(process), True
    spent = time.monotonic() - start
    code = None if slow else process.returncode
    return Answer(code, _shown(text), _shown(complaint), spent, slow)


def _end(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        return process.communicate(timeout=1.0)
    except subprocess.TimeoutExpired:  # something left the group and keeps the pipe: it is not waited for
        return b"", b""


def _shown(raw: bytes) -> str:
    return raw[:MOST].decode("utf-8", "replace")
