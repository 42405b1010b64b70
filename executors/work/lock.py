"""One runner a directory: a lock that names who holds it, heals itself, and needs no ``flock``.

Locks are numbered. The highest number counts; a dead one is overtaken by making the next, which only one
can. A released lock leaves its number behind, so that a number is never used twice.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.errors import LockedError

if TYPE_CHECKING:
    from collections.abc import Iterator

BEAT = 5.0
SILENCE = 60.0  # of a holder on another machine, as seen from here, before it counts as dead


def _start_time(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; None if there is none (a zombie is none)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _own() -> dict[str, Any]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": _start_time(os.getpid()),
        "boot": _boot(),
        "user": user,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


class Lock:
    """A held lock; its file's time is renewed while it is held."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._renew, name="lock", daemon=True)
        self._beat.start()

    def _renew(self) -> None:
        while not self._stop.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        """Let it go; the number stays taken."""
        self._stop.set()
        self._beat.join()
        with contextlib.suppress(OSError):
            temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
            temporary.write_text("{}")
            temporary.replace(self.path)


@contextlib.contextmanager
def hold(folder: Path, wait: float = 0.0) -> Iterator[Lock]:
    """Hold the folder's lock, or raise ``LockedError`` naming who does."""
    folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + wait
    lock = None
    while lock is None:
        number, holder = _highest(folder)
        if holder is not None and not _dead(folder, number, holder):
            if time.monotonic() >= until:
                raise LockedError(_held_message(folder, holder), holder=holder)
            time.sleep(0.05)
            continue
        lock = _take(folder, number + 1)
    try:
        yield lock
    finally:
        lock.release()


def _held_message(folder: Path, holder: dict[str, Any]) -> str:
    who = f"{holder.get('user', 'somebody')} on {holder.get('host')} (process {holder.get('pid')}, since {holder.get('since')})"
    return (
        f"{folder} is in use by {who}: two runners on one directory would do everything twice. "
        f"Wait for it, stop it (kill {holder.get('pid')}), or choose another --outputdir"
    )


def _highest(folder: Path) -> tuple[int, dict[str, Any] | None]:
    """The highest lock number and who holds it, None if nobody."""
    numbers = [int(p.name.removeprefix("lock.")) for p in folder.glob("lock.*") if p.name[5:].isdecimal()]
    if not numbers:
        return 0, None
    number = max(numbers)
    try:
        content = json.loads((folder / f"lock.{number}").read_text())
    except FileNotFoundError:
        return _highest(folder)
    except (OSError, ValueError):
        # Not written by `_take` as it stands, or unreadable: its age decides.
        content = {"host": "?", "pid": "?"}
    return number, content or None


def _dead(folder: Path, number: int, holder: dict[str, Any]) -> bool:
    """Whether a holder is certainly gone: its process on this machine, or its silence elsewhere."""
    if holder.get("host") == socket.gethostname():
        if holder.get("boot") not in ("", _boot()):
            return True
        pid = holder.get("pid")
        return not isinstance(pid, int) or _start_time(pid) != holder.get("start")
    return _silent(folder / f"lock.{number}")


def _silent(path: Path) -> bool:
    """Whether a lock of another machine is not renewed. Only changes count: clocks may disagree."""
    try:
        first = path.stat().st_mtime_ns
        if abs(time.time_ns() - first) < SILENCE * 1e9:
            return False
        # Old by our clock, which may be wrong: watch it for three beats.
        time.sleep(3 * BEAT)
        return path.stat().st_mtime_ns == first
    except FileNotFoundError:
        return True


def _take(folder: Path, number: int) -> Lock | None:
    """Make the lock of that number, or None if somebody else was quicker."""
    path = folder / f"lock.{number}"
    temporary = folder / f".lock.{secrets.token_hex(6)}"
    temporary.write_text(json.dumps(_own()))
    try:
        os.link(temporary, path)
    except FileExistsError:
        return None
    except OSError:
        # No hard links here: exclusive creation is the next best, its content follows at once.
        try:
            with path.open("x") as out:
                out.write(json.dumps(_own()))
        except FileExistsError:
            return None
    finally:
        temporary.unlink(missing_ok=True)
    if _highest(folder)[0] != number:
        # Chosen from a listing that was old: others have taken and left higher numbers meanwhile.
        path.unlink(missing_ok=True)
        return None
    for old in folder.glob("lock.*"):
        if old.name[5:].isdecimal() and int(old.name[5:]) < number:
            old.unlink(missing_ok=True)
    return Lock(path)


def holder(folder: Path) -> str | None:
    """Who holds the folder's lock now, in words; None if nobody."""
    number, content = _highest(folder)
    if content is None or (content.get("host") == socket.gethostname() and _dead(folder, number, content)):
        return None
    return f"{content.get('user')} on {content.get('host')}, process {content.get('pid')}, since {content.get('since')}"
