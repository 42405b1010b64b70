"""The error tree: everything this project raises on purpose, each with its exit code.

::

    ExecutorsError                   one base to catch
    ├── UsageError            (2)    the command or call is wrong; nothing was started
    │   ├── UnknownNameError  (2)    no such engine, site, workflow, dataset, option value
    │   ├── FilesetError      (2)    the fileset cannot be read as one
    │   └── PlanChangedError  (2)    the directory holds a run of something else
    ├── AnalysisError         (1)    the processor raised
    ├── IncompleteError       (3)    events are missing; the same command resumes
    ├── DamagedError          (3)    a stored object is not what it says it is
    ├── SiteError             (4)    the site, its credentials or its disk stopped the run
    │   ├── EngineError       (4)    the engine cannot be opened or died
    │   └── LockedError       (4)    another runner holds the directory
    └── InterruptedRunError (130)    a signal stopped the run; the same command resumes

An exception carries what it is about as attributes; its text says what happened, where, and the
command that mends it. No other module of the project is imported here.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


class ExecutorsError(Exception):
    """Base of every error this project raises on purpose."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, **about: Any) -> None:
        super().__init__(message)
        self.message = message
        self.about = about

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross process boundaries; the default rebuilds them without their attributes.
        return (_rebuild, (type(self), self.message, self.about))


def _rebuild(kind: type[ExecutorsError], message: str, about: dict[str, Any]) -> ExecutorsError:
    return kind(message, **about)


class UsageError(ExecutorsError):
    """The command or the call is wrong; nothing was started."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not known, with the nearest ones that are."""

    @classmethod
    def of(cls, what: str, name: str, known: Iterable[str], hint: str = "") -> UnknownNameError:
        """The error for one unknown name: says what is near it, or what there is."""
        names = sorted(known)
        name = name if len(name) <= 100 else f"{name[:99]}…"
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        if near:
            tail = "did you mean " + " or ".join(repr(n) for n in near) + "?"
        elif names:
            tail = "known: " + ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
        else:
            tail = "none are known"
        return cls(f"unknown {what} {name!r}: {tail}{' ' + hint if hint else ''}", name=name, near=near)


class FilesetError(UsageError):
    """The fileset cannot be read as one."""


class PlanChangedError(UsageError):
    """The directory holds a run of another analysis, fileset or chunk size."""


class AnalysisError(ExecutorsError):
    """The processor raised, or returned what cannot be stored or merged."""

    exit_code = 1


class IncompleteError(ExecutorsError):
    """Planned events are missing from the result; the same command tries again."""

    exit_code = 3


class DamagedError(ExecutorsError):
    """A stored object is torn, flipped, swapped or foreign."""

    exit_code = 3


class SiteError(ExecutorsError):
    """The site, its credentials or its disk stopped the run."""

    exit_code = 4


class EngineError(SiteError):
    """The engine cannot be opened, or died as a whole."""


class LockedError(SiteError):
    """Another runner holds the directory."""


class InterruptedRunError(ExecutorsError):
    """A signal stopped the run; the same command resumes it."""

    exit_code = 130
