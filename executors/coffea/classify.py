"""What kind of failure an exception is, and where in the user's code it was raised.

Columns are read when the analysis first touches them, so a damaged file raises inside user code and its
type says little: the traceback says who was at work. Nothing here reads files; coffea is not imported.
"""

from __future__ import annotations

import errno
import os
import re
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from executors.errors import AnalysisError, ExecutorsError, SiteError
from executors.work.model import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType


class InputError(ExecutorsError):
    """A file is not what the plan says, or cannot be used; ``kind`` says whether that may pass."""

    exit_code = 3

    @property
    def kind(self) -> Kind:
        """Bad, unless said otherwise where it was raised."""
        return Kind(self.about.get("kind", Kind.BAD))


class MissingTreeError(InputError):
    """The file holds no such tree; ``trees`` are those that it holds."""


class ChangedFileError(InputError):
    """The file is another one than was planned: other identity, other number of entries, or cut short."""


class ColumnError(AnalysisError):
    """The analysis used a column that was not declared."""


SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
DENIED = frozenset({errno.EACCES, errno.EPERM})
# What the operating system itself says of storage and network that may be back in a minute.
TRANSIENT = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.EIO,
        errno.EMFILE,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.ENFILE,
        errno.ENOTCONN,
        errno.EPIPE,
        errno.ESHUTDOWN,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
# Remote readers say everything with one exception type; the text, with the server's number, tells.
# The first pattern that is found decides.
REMOTE_TEXT: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (re.compile(r"(?i)illegal seek|not a ROOT file|expected Chunk of length"), Kind.BAD),
    (
        re.compile(
            r"(?i)\[3010\]|auth(entication|orization)? failed|(permission|access) denied|unauthorized"
            r"|forbidden|certificate|credential|(proxy|token) (has )?expired"
        ),
        Kind.SITE,
    ),
    (re.compile(r"(?i)protocol not known|no module named|please install"), Kind.SITE),
    (re.compile(r"\[(ERROR|FATAL|30\d\d)\]|\b(404|408|429|5\d\d), message="), Kind.PASSING),
    (
        re.compile(
            r"(?i)timed? ?out|expired|connect|no such file|not found|unreachable|invalid address"
            r"|refused|reset|closed file"  # the last: a handle that broke when it was read before
        ),
        Kind.PASSING,
    ),
)

_OURS = str(Path(__file__).resolve().parents[2] / "executors") + os.sep
_HERE = str(Path(__file__).resolve().parent) + os.sep
_LIBRARY = tuple(
    {
        str(place) + os.sep
        for key in ("stdlib", "platstdlib", "purelib", "platlib")
        for place in (Path(sysconfig.get_path(key)), Path(sysconfig.get_path(key)).resolve())
    }
)
_PACKAGES = tuple(f"{os.sep}{name}-packages{os.sep}" for name in ("site", "dist"))
# Modules of ours that do nothing but read the input, and the two methods of coffea that fetch a column.
_READERS = frozenset({"count.py", "events.py", "kept.py", "reads.py", "template.py"})
_FETCH = frozenset({"extract_column", "get_column_handle"})
_MAPPING = os.path.join("coffea", "nanoevents", "mapping") + os.sep  # noqa: PTH118 - part of a file name
_FACTORY = os.path.join("coffea", "nanoevents", "factory.py")  # noqa: PTH118 - part of a file name
_LOWER = tuple(os.sep + name + os.sep for name in ("uproot", "fsspec", "fsspec_xrootd", "XRootD", "aiohttp"))
# The one function of ours that calls the analysis: what follows is the user's, until a column is fetched.
CALL = "call_analysis"


class _Step(NamedTuple):
    file: str
    name: str
    line: int


def classify(error: BaseException, path: str | None = None) -> Kind:
    """What kind of failure an exception is; ``path`` is the input that was open when it was raised.

    - An error while a column of the input is fetched, or while the input is opened, is the input's.
      Everything else that happens in or below the analysis is the user's, a correction file that cannot
      be opened included; so is a column that a file does not have, since analyses must expect that.
    - No space, no quota: the site's, wherever it happens. No memory: memory, wherever it happens.
    - What the operating system calls a passing trouble (reset, stale handle, time-out, input/output
      error) may pass in the user's own reads as well, and is tried again there too.
    - Credentials never make a file bad: a refusal is the site's, unless the file's own mode forbids it.
    """
    links = list(chain(error))
    if (kind := _anywhere(links)) is not None:
        return kind
    for link in links:
        if _while_reading(link):
            return _input(list(chain(link)), path)
    if any(isinstance(link, AnalysisError) for link in links):
        return Kind.USER
    return Kind.PASSING if any(_number(link) in TRANSIENT for link in links) else Kind.USER


def _anywhere(links: list[BaseException]) -> Kind | None:
    """The kind of what means the same wherever it is raised."""
    numbers = {_number(link) for link in links}
    if errno.ENOMEM in numbers or any(isinstance(link, MemoryError) for link in links):
        return Kind.MEMORY
    if numbers & SPACE or any(isinstance(link, SiteError) for link in links):
        return Kind.SITE
    for link in links:
        if isinstance(link, InputError):
            return link.kind
    return None


def frames(error: BaseException, packages: Iterable[str] = ()) -> tuple[str, ...]:
    """The user's own frames, innermost last: not ours, not the standard library's, no installed package's.

    ``packages`` names installed packages that count as the user's: the one that the processor comes from.
    """
    own = tuple(os.sep + name + os.sep for name in packages if name)
    last = list(chain(error))[-1]
    found: list[str] = []
    for step, frame in [*_trace(error), *(_trace(last) if last is not error else ())]:
        if _users(step.file) or (own and any(part in step.file for part in own)):
            text = f"{_short(step.file)}:{step.line} in {step.name}"
            source = _source(step, frame)
            found.append(f"{text}: {source}" if source else text)
    return tuple(dict.fromkeys(found))


def chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, and what it came from, outermost first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ if link.__cause__ is not None or link.__suppress_context__ else link.__context__


def remote(path: str) -> bool:
    """Whether a path is read through the network by a protocol, not through the file system."""
    return "://" in path and not path.startswith("file://")


def local_path(path: str) -> str:
    """The name in the file system of a path that is not remote."""
    return path.removeprefix("file://")


# --- who was at work ------------------------------------------------------------------------------


def _trace(error: BaseException) -> Iterator[tuple[_Step, FrameType]]:
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        yield _Step(code.co_filename, code.co_name, trace.tb_lineno), trace.tb_frame
        trace = trace.tb_next


def _while_reading(error: BaseException) -> bool:
    """Whether the input was being read when the exception was raised: the last frame that tells decides."""
    reading: bool | None = None
    lower = False
    for step, _ in _trace(error):
        if step.file.startswith(_HERE):
            if step.name == CALL:
                reading = False
            elif step.file[len(_HERE) :] in _READERS:
                reading = True
        elif step.name in _FETCH and _MAPPING in step.file:
            reading = True
        elif _users(step.file):
            reading = False
        elif any(part in step.file for part in _LOWER) or (
            step.name == "from_root" and _FACTORY in step.file
        ):
            lower = True
    return lower if reading is None else reading


def _users(file: str) -> bool:
    """Whether a source file is the user's own, by where it lies. Cells of a notebook are."""
    if file.startswith("<"):
        # The interpreter's own, and dataclasses' generated code; a console's or a cell's is the user's.
        return file.startswith(("<stdin>", "<ipython", "<string>", "<cell"))
    return not (file.startswith((_OURS, *_LIBRARY)) or any(part in file for part in _PACKAGES))


def _short(file: str) -> str:
    path = Path(file)
    return path.name if path.is_absolute() else file


def _source(step: _Step, frame: FrameType) -> str:
    import linecache

    return linecache.getline(step.file, step.line, frame.f_globals).strip()


# --- what is the matter with the input ------------------------------------------------------------


def _input(links: list[BaseException], path: str | None) -> Kind:
    """The kind of an error of the input: by number where there is one, by text where it is remote."""
    where = path or _named(links)
    for link in links:
        number = _number(link)
        if isinstance(link, PermissionError) or number in DENIED:
            return Kind.BAD if where and not remote(where) and forbidden_by_mode(where) else Kind.SITE
        if isinstance(link, ImportError):
            return Kind.SITE  # the reader of this protocol or compression is not installed here
        if isinstance(link, ConnectionError | TimeoutError) or number in TRANSIENT:
            return Kind.PASSING
    if where and remote(where):
        return _remote(links)
    return Kind.BAD


def _remote(links: list[BaseException]) -> Kind:
    text = "\n".join(str(link) for link in links)
    # Addresses and paths are not what went wrong, whatever words they are made of.
    text = re.sub(r"\S*/\S*", "", text)
    for pattern, kind in REMOTE_TEXT:
        if pattern.search(text):
            return kind
    # A redirector that knows no server of a file now may know one in a minute.
    return Kind.PASSING if any(isinstance(link, FileNotFoundError) for link in links) else Kind.BAD


def _named(links: list[BaseException]) -> str | None:
    for link in links:
        if isinstance(link, OSError) and isinstance(link.filename, str):
            return link.filename
        if found := re.search(r"\b[a-z][a-z0-9+.-]*://\S+", str(link)):
            return found.group()
    return None


def _number(error: BaseException) -> int | None:
    return error.errno if isinstance(error, OSError) else None


def forbidden_by_mode(path: str) -> bool:
    """Whether a local file's own mode keeps this user from reading it; else a refusal came from elsewhere.

    Elsewhere is a network file system with an expired token, or a folder above: then every file is refused
    alike, and none of them is bad.
    """
    try:
        status = Path(local_path(path)).stat()
    except OSError:
        return False
    if status.st_uid == os.geteuid():
        return not status.st_mode & 0o400
    if status.st_gid in {os.getegid(), *os.getgroups()}:
        return not status.st_mode & 0o040
    return not status.st_mode & 0o004
