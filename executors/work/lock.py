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

from executors.errors import LockedError, SiteError
from executors.work.store import make_folder, ours

if TYPE_CHECKING:
    from collections.abc import Iterator

BEAT = 5.0
UNREADABLE: dict[str, Any] = {"host": "?", "pid": "?"}
SILENCE = 60.0  # of a holder on another machine, as seen from here, before it counts as dead


def _start_time(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; None if it cannot be seen (a zombie is none)."""
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


def _seen() -> str:
    """Which processes can be seen from here: a container on this machine sees others than its host."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _gone(pid: Any, start: Any) -> bool:
    """Whether no process of this number that began then is alive on this machine."""
    if not isinstance(pid, int) or pid <= 0:
        return True
    began = _start_time(pid)
    if began is not None:
        return bool(began != start)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        # Another user's, in a system that hides those: its silence decides.
        return False
    return True  # a zombie


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
        "seen": _seen(),
        "user": user,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


class Lock:
    """A held lock; its file's time is renewed while it is held."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = threading.Event()  # somebody took this process for dead: it must write no more
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._renew, name="lock", daemon=True)
        self._beat.start()

    def _renew(self) -> None:
        while not self._stop.wait(BEAT):
            try:
                os.utime(self.path)
            except FileNotFoundError:
                self.lost.set()
            except OSError:
                continue  # a file system that is away for a while

    def release(self) -> None:
        """Let it go; the number stays taken."""
        self._stop.set()
        self._beat.join()
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        try:
            if self.path.exists():
                _write(temporary, "{}")
                temporary.replace(self.path)
        except OSError:
            # On a full disk the file itself goes: a number that is used twice is a lesser risk than a lock
            # that only this process's end would free.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
                self.path.unlink()


@contextlib.contextmanager
def hold(folder: Path, wait: float = 0.0, lost: threading.Event | None = None) -> Iterator[Lock]:
    """Hold the folder's lock, or raise ``LockedError`` naming who does; overtaken, it sets ``lost``."""
    try:
        make_folder(folder)
        lock = _acquire(folder, time.monotonic() + wait)
    except OSError as error:
        raise SiteError(
            f"{folder} cannot be locked: {error.strerror or error}", folder=str(folder)
        ) from error
    if lost is not None:
        lock.lost = lost
    try:
        yield lock
    finally:
        lock.release()


def _acquire(folder: Path, until: float) -> Lock:
    while True:
        number, holder = _highest(folder)
        if holder is not None and not _dead(folder, number, holder):
            if time.monotonic() >= until:
                raise LockedError(_held_message(folder, number, holder), holder=holder)
            time.sleep(0.05)
            continue
        lock = _take(folder, number + 1)
        if lock is not None:
            return lock


def _held_message(folder: Path, number: int, holder: dict[str, Any]) -> str:
    if holder is UNREADABLE:
        return (
            f"{folder} may be in use: {folder / f'lock.{number}'} cannot be read. Is no other runner at work "
            f"there, remove that file; it counts as left behind when it is older than {SILENCE:g} s"
        )
    who = f"{_named(holder)} (process {holder.get('pid')}, since {holder.get('since')})"
    return (
        f"{folder} is in use by {who}: two runners on one directory would do everything twice. "
        f"Wait for it, stop it (kill {holder.get('pid')}), or choose another --outputdir"
    )


def _highest(folder: Path) -> tuple[int, dict[str, Any] | None]:
    """The highest lock number and who holds it, None if nobody."""
    for _ in range(200):
        number = max(_numbers(folder), default=0)
        if not number:
            return 0, None
        try:
            content = json.loads((folder / f"lock.{number}").read_bytes())
        except FileNotFoundError:
            # Overtaken between the two; or a network file system still lists what is gone.
            time.sleep(0.005)
            continue
        except (OSError, ValueError):
            # Not written by `_take` as it stands, or unreadable: its age decides.
            return number, UNREADABLE
        return number, (content or None) if isinstance(content, dict) else UNREADABLE
    return number, UNREADABLE


def _numbers(folder: Path) -> list[int]:
    names = (p.name.removeprefix("lock.") for p in folder.glob("lock.*"))
    return [int(n) for n in names if n.isascii() and n.isdecimal() and n == str(int(n))]


def _dead(folder: Path, number: int, holder: dict[str, Any]) -> bool:
    """Whether a holder is certainly gone: its process on this machine, or its silence elsewhere."""
    if holder.get("host") == socket.gethostname():
        if holder.get("boot") not in ("", _boot()):
            return True
        if holder.get("seen", _seen()) == _seen() and _gone(holder.get("pid"), holder.get("start")):
            return True
    return _silent(folder / f"lock.{number}")


def _silent(path: Path) -> bool:
    """Whether a lock of another machine is not renewed. Only changes count: clocks may disagree."""
    try:
        first = _renewed(path)
        if abs(time.time_ns() - first) < SILENCE * 1e9:
            return False
        # Old by our clock, which may be wrong: watch it for three beats.
        time.sleep(3 * BEAT)
        return _renewed(path) == first
    except FileNotFoundError:
        return True


def _renewed(path: Path) -> int:
    with contextlib.suppress(PermissionError):
        # Opening makes a network file system ask its server; a mere look may be a minute old.
        os.close(os.open(path, os.O_RDONLY))
    return path.stat().st_mtime_ns


def _write(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8", opener=ours) as file:
        file.write(text)


def _take(folder: Path, number: int) -> Lock | None:
    """Make the lock of that number, or None if somebody else was quicker."""
    path = folder / f"lock.{number}"
    temporary = folder / f".lock.{secrets.token_hex(6)}"
    try:
        _write(temporary, json.dumps(_own()))
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
        except OSError:
            path.unlink(missing_ok=True)
            raise
    finally:
        temporary.unlink(missing_ok=True)
    numbers = _numbers(folder)
    if max(numbers, default=0) != number:
        # Chosen from a listing that was old: others have taken and left higher numbers meanwhile.
        path.unlink(missing_ok=True)
        return None
    for old in numbers:
        if old < number:
            (folder / f"lock.{old}").unlink(missing_ok=True)
    _sweep(folder)
    return Lock(path)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left of their tries; not what another is trying just now."""
    for path in folder.glob(".lock.*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 10 * SILENCE:
                path.unlink()


def holder(folder: Path) -> str | None:
    """Who holds the folder's lock now, in words; None if nobody."""
    number, content = _highest(folder)
    if content is None or (content.get("host") == socket.gethostname() and _dead(folder, number, content)):
        return None
    if content is UNREADABLE:
        return f"somebody: {folder / f'lock.{number}'} cannot be read"
    return f"{_named(content)}, process {content.get('pid')}, since {content.get('since')}"


def _named(holder: dict[str, Any]) -> str:
    return f"{holder.get('user', 'somebody')} on {holder.get('host')}"
