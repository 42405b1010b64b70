"""System calls that fail or kill, one after another: for tests of whatever writes files."""

from __future__ import annotations

import contextlib
import errno
import os
from concurrent.futures import Executor, Future

CALLS = (
    "open",
    "write",
    "fsync",
    "close",
    "replace",
    "rename",
    "mkdir",
    "unlink",
    "pread",
    "fstat",
    "stat",
    "scandir",
)
NUMBERS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.ESTALE, errno.EINTR)


class Inline(Executor):
    """Runs a task inside ``submit``: every call happens in a known order."""

    def submit(self, fn, /, *args, **kwargs):
        out = Future()
        try:
            out.set_result(fn(*args, **kwargs))
        except Exception as error:
            out.set_exception(error)
        return out


class Breaking:
    """Wraps the functions of ``os``: the call of number ``at`` (and ``times`` from there) does not go well.

    ``what`` is an error's number, or "kill". ``after`` lets the call happen first: it is only said to fail.
    """

    def __init__(self, at=-1, what=errno.EIO, *, after=False, times=1, calls=CALLS, watch=None):
        self.at, self.what, self.after, self.times = at, what, after, times
        self.calls, self.watch = calls, watch
        self.seen: list[str] = []

    def __enter__(self):
        self._real = {name: getattr(os, name) for name in self.calls}
        for name, real in self._real.items():
            setattr(os, name, self._wrapped(name, real))
        return self

    def __exit__(self, *exc):
        for name, real in self._real.items():
            setattr(os, name, real)

    def _wrapped(self, name, real):
        def call(*args, **kwargs):
            number = len(self.seen)
            self.seen.append(name)
            if not self.at <= number < self.at + self.times or self.at < 0:
                return real(*args, **kwargs)
            # A file that "cannot be closed" is closed all the same, as Linux does it.
            if self.after or name == "close":
                with contextlib.suppress(OSError):
                    done = real(*args, **kwargs)
                    if name == "open":
                        self._real["close"](done)
            if self.what == "kill":
                os._exit(9)
            raise OSError(self.what, os.strerror(self.what))

        return call
