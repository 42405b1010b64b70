"""Servers that answer nobody: after so many files in a row, the rest of their files need not wait as long.

For one pass over many files; the next pass asks again. Only text and counts: nothing is opened here.
"""

from __future__ import annotations

import re
from collections import Counter
from threading import Lock

# With many readers at once, one slow data server behind a redirector does not lose so many in a row.
MOST = 8

_SERVER = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?]*)")
# An XRootD server gives a number, a web server a status: whoever refuses a file has answered.
_ANSWER = re.compile(r"\[3\d{3}\]|\b\d{3}, message=")


class SilentServers:
    """Counts, by server, the files in a row that got no answer; used by several threads."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._lost: Counter[str] = Counter()
        self._lock = Lock()

    def refusal(self, path: str) -> str | None:
        """Why not to ask the server of this file again now; None to go ahead."""
        server = _server(path)
        if server is None or self._lost[server] < self._most:
            return None
        return (
            f"{server} gave no answer for {self._lost[server]} files in a row, so this one was not asked for"
        )

    def heard(self, path: str, error: str | None) -> None:
        """Take note of what became of a file: no error, or which one."""
        server = _server(path)
        if server is None:
            return
        with self._lock:
            silent = error is not None and _ANSWER.search(error) is None
            self._lost[server] = self._lost[server] + 1 if silent else 0


def _server(path: str) -> str | None:
    match = _SERVER.match(path)
    return match[1].rpartition("@")[2].lower() if match else None
