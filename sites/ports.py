"""Ports and addresses that a run opens: picked as they will be bound, and who holds one that is taken.

Everything is looked up on this machine. What listens, connects or knows an engine may not enter.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from executors.errors import SiteError, UsageError
from sites.finding import user_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

Ports: TypeAlias = tuple[int, int]

PROC = Path("/proc")
LISTENS, TIME_WAIT = "0A", "06"  # states in /proc/net/tcp
ANYWHERE = ("0" * 8, "0" * 32)
LONGEST = 90  # characters of a command line that is shown
RUNS = ("runner.py", "coffea-scaleout")  # by these names a run of this program is started


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a port, as far as this user may see it."""

    port: int
    uid: int | None = None
    pid: int | None = None  # None: another user's, whose processes cannot be looked into
    command: str = ""
    folder: str = ""
    run: bool = False  # it is a run of this program

    @property
    def mine(self) -> bool:
        """Whether it belongs to this user."""
        return self.uid == os.getuid()

    def __str__(self) -> str:
        if self.uid is None:
            return "by whom cannot be seen from here"
        owner = "you" if self.mine else f"user {user_name(self.uid)}"
        if self.pid is None:
            return f"by a process of {owner}, which cannot be looked into"
        what = f"another run, pid {self.pid}" if self.run else f"pid {self.pid}"
        where = f" in {self.folder}" if self.folder else ""
        return f"by {what} of {owner} ({self.command or 'no command line'}){where}"

    @property
    def mend(self) -> str:
        """What to do about it."""
        if not self.mine or self.pid is None:
            return "use another machine of the site"
        if self.pid == os.getpid():
            return "close the engine that this process opened before"
        return f"wait until it ends, or end it: kill {self.pid}"


def pick(span: Ports | None, host: str, *, skip: Collection[int] = (), hint: str = "") -> int:
    """The first port of the range that can be bound at this address; else a SiteError that says who holds it.

    Between this answer and the binding another process may come first: then ask again with ``skip``, or raise
    ``refusal``. ``hint`` is the site's own advice, such as another machine to log in to.
    """
    if span is None:
        return _free(host)
    for port in range(span[0], span[1] + 1):
        if port not in skip and can_bind(port, host):
            return port
    raise refusal(span, host, hint)


def can_bind(port: int, host: str) -> bool:
    """Whether a server could listen there now; an address that was just released is free.

    SiteError if it can never be: the address is not of this machine, or the port is reserved.
    """
    with closing(_socket(host)) as probe:
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise _impossible(error, port, host) from error
    return True


def refusal(span: Ports, host: str, hint: str = "") -> SiteError:
    """The error for a range without a free port: the holder of the first, and what to do."""
    first, last = span
    found = holder(first, host)
    many = f"the {last - first + 1} ports from {first} to {last} are all taken"
    what = f"port {first} is taken" if first == last else f"{many}; {first}"
    what = f"{what} on {host}: held {found}"
    mend = "; ".join(one for one in (found.mend, hint) if one)
    told = f"{what}. {mend[:1].upper()}{mend[1:]}"
    return SiteError(told, port=first, pid=found.pid, what=what, mend=mend)


def holder(port: int, host: str = "") -> Holder:
    """Who holds a port of this machine; all unknown where nothing can be seen."""
    rows = sorted(_rows(port, host), key=lambda row: row[0] != LISTENS)
    for _, uid, inode in rows:
        pid = _owner(inode)
        if pid is not None:
            return _described(port, uid, pid)
    return Holder(port, rows[0][1] if rows else None)


def address(spec: str) -> str:
    """One address of this machine to bind to, for a profile's ``network.address``.

    ``hostname``, ``fqdn``, ``loopback``, ``interface:NAME``, or a name or address itself.
    """
    if spec == "loopback":
        return "127.0.0.1"
    if spec.startswith("interface:"):
        return _of_interface(spec.removeprefix("interface:"))
    name = {"hostname": socket.gethostname, "fqdn": socket.getfqdn}.get(spec, lambda: spec)()
    with suppress(ValueError):
        return _own(str(ipaddress.ip_address(name)), spec)
    return _own(_resolved(name, spec), spec)


def interfaces() -> dict[str, list[str]]:
    """The network interfaces of this machine that are up, with their addresses."""
    import psutil  # 20 ms that a start without a site need not pay

    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    kinds = (socket.AF_INET, socket.AF_INET6)
    found = {
        name: [one.address for one in sorted(given, key=lambda one: one.family) if one.family in kinds]
        for name, given in psutil.net_if_addrs().items()
    }
    return {name: given for name, given in sorted(found.items()) if given and name in up}


def parted(span: Ports, parts: int) -> list[Ports]:
    """A range cut into ranges that do not overlap, one for each that shares a machine."""
    size = (span[1] - span[0] + 1) // parts if parts > 0 else 0
    if size < 1:
        raise UsageError(f"{parts} do not fit the ports from {span[0]} to {span[1]}: use fewer workers a job")
    return [(span[0] + index * size, span[0] + (index + 1) * size - 1) for index in range(parts)]


def _socket(host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Dask's and Parsl's servers do
    return made


def _free(host: str) -> int:
    with closing(_socket(host)) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise _impossible(error, 0, host) from error
        return int(probe.getsockname()[1])


def _impossible(error: OSError, port: int, host: str) -> SiteError:
    if error.errno == errno.EADDRNOTAVAIL:
        why = "that address is not of this machine. Set network.address to one of " + _list_interfaces()
    elif error.errno in (errno.EACCES, errno.EPERM):
        why = "this user may not. Ports below 1024 are reserved: set ports.scheduler to others"
    else:
        why = f"{error.strerror or error}. Look at network.address and ports.scheduler of the site"
    return SiteError(f"nothing can listen on {host} port {port}: {why}", port=port)


def _resolved(name: str, spec: str) -> str:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SiteError(
            f"network.address is {spec!r}, but the name {name[:100]!r} has no address: {error}. "
            f"Set it to one of {_list_interfaces()}"
        ) from error
    given = sorted(found, key=lambda one: one[0] != socket.AF_INET)  # IPv4 first: every node has it
    far = [str(one[4][0]) for one in given if not ipaddress.ip_address(one[4][0]).is_loopback]
    if not far and spec != "localhost":
        raise SiteError(
            f"network.address is {spec!r}, but {name!r} is {given[0][4][0]}: only this machine reaches it. "
            f"Set it to one of {_list_interfaces()}"
        )
    return far[0] if far else str(given[0][4][0])


def _own(found: str, spec: str) -> str:
    if ipaddress.ip_address(found).is_unspecified:
        raise UsageError(f"network.address {spec!r} means every interface: name one of {_list_interfaces()}")
    _free(found)  # raises where the address is another machine's, as behind an alias
    return found


def _of_interface(name: str) -> str:
    known = interfaces()
    if name not in known:
        raise SiteError(f"there is no network interface {name!r} that is up; there are {_list_interfaces()}")
    return known[name][0]


def _list_interfaces() -> str:
    shown = [f"interface:{name} ({given[0]})" for name, given in interfaces().items()]
    return ", ".join(shown[:8]) or "nothing: no interface is up"


def _rows(port: int, host: str) -> Iterator[tuple[str, int, str]]:
    """State, user and inode of each socket on the port."""
    wanted = {*ANYWHERE, _hexed(host)} if host else set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (PROC / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for words in map(str.split, lines):
            at, _, number = words[1].partition(":")
            if int(number, 16) == port and words[3] != TIME_WAIT and (not wanted or at in wanted):
                yield words[3], int(words[7]), words[9]


def _hexed(host: str) -> str:
    """An address as the kernel prints it: words of four bytes, each in the machine's order."""
    try:
        packed = ipaddress.ip_address(host).packed
    except ValueError:
        return host
    return "".join(packed[at : at + 4][::-1].hex() for at in range(0, len(packed), 4)).upper()


def _owner(inode: str) -> int | None:
    target = f"socket:[{inode}]"
    for process in PROC.glob("[0-9]*"):
        with suppress(OSError):  # it ended, or belongs to somebody else
            if any(str(one.readlink()) == target for one in (process / "fd").iterdir()):
                return int(process.name)
    return None


def _described(port: int, uid: int, pid: int) -> Holder:
    """The holder, or the run above it: the process that listens is a child that nobody has heard of."""
    at: int | None = pid
    for _ in range(6):
        if at is None or at <= 1:
            break
        words = _words(at)
        script = _script(words)
        if script is not None:
            return Holder(port, uid, at, _shown(words, script), _folder(at), run=at != os.getpid())
        at = _parent(at)
    return Holder(port, uid, pid, _shown(_words(pid)), _folder(pid))


def _words(pid: int) -> list[str]:
    try:
        raw = (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return []
    return raw.decode("utf-8", "replace").rstrip("\0").split("\0")


def _script(words: list[str]) -> int | None:
    """Where in a command line our program stands: first, or behind an interpreter and its options."""
    return next((at for at, word in enumerate(words[:6]) if _name(word) in RUNS), None)


def _name(word: str) -> str:
    return word.rpartition("/")[2]


def _shown(words: list[str], script: int = 1) -> str:
    """A command line for people; where it is long, without the folders of the program and its script."""
    line = " ".join(words)
    if len(line) > LONGEST:
        line = " ".join(_name(word) if at <= script else word for at, word in enumerate(words))
    shown = "".join(char if char.isprintable() else "?" for char in line.strip())
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def _folder(pid: int) -> str:
    try:
        return str((PROC / str(pid) / "cwd").readlink())
    except OSError:
        return ""


def _parent(pid: int) -> int | None:
    try:
        status = (PROC / str(pid) / "status").read_text()
    except OSError:
        return None
    found = re.search(r"^PPid:\s*(\d+)", status, re.MULTILINE)
    return int(found[1]) if found else None
