"""The keeper: a small process that forks the workers, sees how each one ends, and leaves none behind.

It is the parent (and sub-reaper) of everything an engine starts, so it can end all of it, tasks' own
children included, when the runner closes the socket or dies by ``kill -9``; it runs no user code and is
therefore never blocked by it. Run by its path; only the standard library may enter above the fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import os
import pickle
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
import types
from pathlib import Path
from typing import Any, NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
STOPPED_LIMIT = 5.0  # seconds; shorter stops are a batch system's suspend and resume
END_LIMIT = 10.0
FAREWELL_LIMIT = 20.0
FAREWELL_PAUSE = 1.0  # a submission that was under way when its process was killed is in the queue by then
WEIGHT = "executors.engines.weight"
ADOPTED_EVERY = 0.2
LAST_LINES = 4096  # bytes of a log
SHARED = Path("/dev/shm")  # noqa: S108 - where the C library has them
SEMAPHORE = re.compile(rb"(\d+) +/dev/shm/sem\.")
libc = ctypes.CDLL(None)


class Ward:
    """One child: its ticket, and why it was killed if it was."""

    def __init__(self, ticket: int, log: str) -> None:
        self.ticket = ticket
        self.log = log
        self.why = ""
        self.stopped = 0.0
        self.weight = 0  # bytes, when it was last looked at


class Keeper:
    """The loop: requests in, deaths out."""

    def __init__(self, control: socket.socket, runner: int) -> None:
        self.control = control
        self.wards: dict[int, Ward] = {}
        self.memory: int | None = None
        self.farewell: list[list[str]] = []
        self.sweep = ""
        self.wake, self.woken = socket.socketpair()
        self.wake.setblocking(False)
        self.woken.setblocking(False)
        self.parent = runner
        self.runner = _pidfd(runner)
        self.adopted: dict[int, list[int]] = {}
        self.adopted_seen = 0.0
        self.scale: Any = None
        self.kills: Any = None

    def start(self) -> bool:
        """Take the setup from standard input; False when the runner was gone before it was complete.

        What can be imported before the rest is known comes first: the runner may have other work meanwhile.
        """
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            early = pickle.load(sys.stdin.buffer)
            sys.path[:] = early["path"]
            self._preload(early["preload"])
            setup = pickle.load(sys.stdin.buffer)
        except (EOFError, pickle.UnpicklingError):
            return False
        if setup["log"]:
            _log_to(setup["log"])
        if setup["env"] is not None:
            os.environ.clear()
            os.environ.update(setup["env"])
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        sys.path[:] = setup["path"]
        self.memory = setup["memory"]
        self.farewell, self.sweep = setup["farewell"], setup["sweep"]
        self._preload([WEIGHT, *setup["preload"]])
        weight = importlib.import_module(WEIGHT)
        self.scale, self.kills = weight.Scale(), weight.Kills()
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake.fileno(), warn_on_full_buffer=False)
        return True

    def _preload(self, names: list[str]) -> None:
        # An import may take seconds or hang on a file system: the runner's end must still be noticed.
        signal.signal(signal.SIGALRM, lambda *_: None if os.getppid() == self.parent else os._exit(0))
        signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
        for name in names:
            try:
                importlib.import_module(name)
            except Exception:  # noqa: BLE001 - the worker's edge: the task that needs it will say it better
                traceback.print_exc()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def loop(self) -> None:
        """Serve until the runner closes its end or is gone."""
        poller = select.poll()
        for fd in (self.control.fileno(), self.woken.fileno(), self.runner):
            if fd >= 0:
                poller.register(fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll(self._pause())}
            if self.runner in ready or os.getppid() != self.parent:
                return
            if self.woken.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    self.woken.recv(4096)
            if self.control.fileno() in ready and not self._request():
                return
            self._bury()
            self._check()

    def _pause(self) -> int | None:
        if self.memory is not None and self.wards:
            return int(1000 * self.scale.pause(len(self.wards)))
        return 500 if self.runner < 0 or any(ward.stopped for ward in self.wards.values()) else None

    def _message(self) -> tuple[dict[str, Any] | None, list[int]]:
        try:
            data, fds, _, _ = socket.recv_fds(self.control, 1 << 20, 4)
        except OSError:
            return None, []
        return (pickle.loads(data) if data else None), fds

    def _request(self) -> bool:
        request, fds = self._message()
        if request is None:
            return False
        if "kill" in request:
            self._kill(request["kill"], request["why"])
        else:
            self._spawn(request, fds[0])
        return True

    def _spawn(self, request: dict[str, Any], fd: int) -> None:
        self._bury()  # what the kernel has killed until now belongs to the dead
        self.kills.forget()
        keeper = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(fd)
            self._tell(request["ticket"], None, f"cannot be started: {error.strerror}", 0)
            return
        if not pid:
            self._become(request, fd, keeper)
        os.close(fd)
        self.wards[pid] = Ward(request["ticket"], request["log"])

    def _become(self, request: dict[str, Any], fd: int, keeper: int) -> NoReturn:
        code = 70
        try:
            signal.set_wakeup_fd(-1)
            for sock in (self.control, self.wake, self.woken):
                sock.close()
            if self.runner >= 0:
                os.close(self.runner)
            os.set_inheritable(fd, False)
            _settle_in(request["log"], keeper, request["score"])
            module, _, function = request["target"].partition(":")
            getattr(importlib.import_module(module), function)(socket.socket(fileno=fd))
            code = 0
        except BaseException:  # noqa: BLE001 - the worker's edge
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(code)

    def _kill(self, ticket: int, why: str) -> None:
        for pid, ward in self.wards.items():
            if ward.ticket == ticket:
                ward.why = ward.why or why
                _kill_group(pid)

    def _bury(self) -> None:
        while True:
            try:
                seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if seen is None:
                return
            if seen.si_code in (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED):
                self._bury_one(seen.si_pid)
            else:
                os.waitid(os.P_PID, seen.si_pid, os.WSTOPPED | os.WNOHANG)
                if seen.si_pid in self.wards:
                    self.wards[seen.si_pid].stopped = time.monotonic()

    def _bury_one(self, pid: int) -> None:
        ward = self.wards.pop(pid, None)
        if ward is not None:
            # Before the wait, while the number still belongs to the dead: its group cannot be another's.
            _kill_group(pid)
            for orphan in _children():
                if orphan not in self.wards and _session(orphan) == pid:
                    _kill(orphan)
        _, status, usage = os.wait4(pid, 0)
        if ward is not None:
            code = os.waitstatus_to_exitcode(status)
            self.scale.forget(pid)
            # The first is this process's own since the last chunk began, the second has its children too.
            peak = max(usage.ru_maxrss * 1024, ward.weight)
            self._tell(ward.ticket, code, ward.why or self._reason(code, peak, ward.log), peak)

    def _reason(self, code: int, peak: int, log: str) -> str:
        if code == -signal.SIGKILL and (self.kills.one_more() or self._probably(peak)):
            return "memory"  # the kernel killed for memory since the last look, and this one died by its hand
        if code == -signal.SIGABRT and _refused_memory(log):
            return "memory"
        return "signal" if code < 0 else "exit"

    def _probably(self, peak: int) -> bool:
        """Whether one that was killed, where the kernel counts nothing, was as large as it may be."""
        return not self.kills.readable and self.memory is not None and peak >= 0.9 * self.memory

    def _check(self) -> None:
        now = time.monotonic()
        adopted = self._adopted() if self.memory is not None else {}
        for pid, ward in self.wards.items():
            if self.memory is not None and not ward.why:
                ward.weight = self.scale.weigh(pid, self.memory, adopted.get(pid, ()))
                if ward.weight > self.memory:
                    ward.why = "memory"
                    _kill_group(pid)
            if ward.stopped and _state(pid) != "T":
                ward.stopped = 0.0
            elif ward.stopped and now - ward.stopped > STOPPED_LIMIT:
                ward.why = ward.why or "stopped"
                _kill_group(pid)

    def _adopted(self) -> dict[int, list[int]]:
        """What tasks have started whose own parents are gone, by the worker in whose session it is."""
        now = time.monotonic()
        if now - self.adopted_seen > ADOPTED_EVERY:
            self.adopted_seen, self.adopted = now, {}
            for pid in _listed_children() or ():
                if pid not in self.wards:
                    self.adopted.setdefault(_session(pid), []).append(pid)
        return self.adopted

    def _tell(self, ticket: int, code: int | None, why: str, peak: int) -> None:
        with contextlib.suppress(OSError):
            self.control.send(pickle.dumps((ticket, code, why, peak)))

    def end(self) -> None:
        """Kill every descendant, adopted ones included, and remove the private folder."""
        semaphores = _semaphores()
        deadline = time.monotonic() + END_LIMIT
        while time.monotonic() < deadline:
            for pid in self.wards:
                _kill_group(pid)
            for pid in _children():
                _kill(pid)
            self.wards.clear()  # after the first wait below the numbers are no longer theirs
            if not _reap():
                break
            time.sleep(0.002)
        for path in semaphores:
            with contextlib.suppress(OSError):
                path.unlink()
        self._say_farewell()
        if self.sweep:
            shutil.rmtree(self.sweep, ignore_errors=True)

    def _say_farewell(self) -> None:
        """Remove from batch queues what the dead have left there: nobody else may be alive to do it."""
        if not self.farewell:
            return
        under_way = bool(self.sweep) and any(Path(self.sweep).rglob("submitting"))
        for turn in (0, 1) if under_way else (0,):
            time.sleep(FAREWELL_PAUSE * turn)
            for command in self.farewell:
                try:
                    subprocess.run(command, stdin=subprocess.DEVNULL, timeout=FAREWELL_LIMIT, check=False)  # noqa: S603
                except (OSError, subprocess.TimeoutExpired):
                    traceback.print_exc()


def _reap() -> bool:
    while True:
        try:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                return True
        except ChildProcessError:
            return False


def _refused_memory(log: str) -> bool:
    """Whether a worker that aborted said that it got no memory, as compiled code does that cannot raise."""
    with contextlib.suppress(OSError), open(log, "rb") as file:  # noqa: PTH123
        file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_LINES))
        said = file.read()
        return b"std::bad_alloc" in said or b"MemoryError" in said
    return False


def _log_to(path: str) -> None:
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _settle_in(log: str, keeper: int, score: int) -> None:
    os.setsid()
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != keeper:
        os._exit(113)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # A handler that does nothing, not SIG_IGN: a program that a task starts gets the default back.
    signal.signal(signal.SIGINT, lambda *_: None)
    with contextlib.suppress(OSError):
        # The kernel takes a worker before what serves all of them, and that before the runner.
        Path("/proc/self/oom_score_adj").write_text(str(score))
    _log_to(log)
    sys.stdout = open(1, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    faulthandler.enable(file=2)
    # What a task calls __main__ must not be the keeper.
    sys.modules["_keeper"], sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    sys.argv = [""]
    if "numpy.random" in sys.modules:  # else every fork would draw the same numbers
        sys.modules["numpy.random"].seed()


def _pidfd(runner: int) -> int:
    try:
        return os.pidfd_open(runner)
    except OSError:  # a kernel before 5.3, or a container that forbids it: the loop looks at the parent
        return -1


def _kill(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    _kill(pid)  # it may not have made its group yet


def _listed_children() -> list[int] | None:
    me = os.getpid()
    try:
        return [int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()]
    except OSError:  # a kernel without that file
        return None


def _children() -> list[int]:
    me, listed = os.getpid(), _listed_children()
    if listed is not None:
        return listed
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _parent(pid) == me]  # noqa: PTH208


def _semaphores() -> list[Path]:
    """Those with a name that descendants have from multiprocessing: who is killed does not unlink them."""
    parents = {pid: _parent(pid) for pid in map(int, filter(str.isdigit, os.listdir("/proc")))}  # noqa: PTH208
    family: set[int] = set()
    more = {os.getpid()}
    while more:
        family |= more
        more = {pid for pid, parent in parents.items() if parent in family} - family
    numbers: set[int] = set()
    for pid in family:
        with contextlib.suppress(OSError):
            numbers.update(map(int, SEMAPHORE.findall(Path(f"/proc/{pid}/maps").read_bytes())))
    # By their numbers: who made one knows it by the name that it had before it was whole.
    return [path for path in SHARED.glob("sem.mp-*") if _number(path) in numbers] if numbers else []


def _number(path: Path) -> int:
    try:
        return path.lstat().st_ino
    except OSError:
        return 0


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ["", "0"]


def _state(pid: int) -> str:
    return _stat(pid)[0].upper()


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def main() -> None:
    """``keeper.py FD PID MARK``: control socket, runner's number, a word that nothing else has."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    keeper = Keeper(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
    try:
        # It may have died before the descriptor above was made, and the number may be another's by now.
        if os.getppid() == keeper.parent and keeper.start():
            keeper.loop()
    finally:
        keeper.end()


if __name__ == "__main__":
    main()
