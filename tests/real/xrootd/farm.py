"""Real XRootD servers on loopback: origins and caches, each a process of its own, ended by its number.

Started by root they run as the package's user (xrootd refuses root), who therefore must be able to pass every
folder above. Names of folders are short: the servers make sockets below them.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

USER = "xrootd"
LONGEST = 99  # of the path of a server's socket
# What a cache's own client is told: else an origin that is gone blocks its readers for minutes.
IMPATIENT = {
    "XRD_CONNECTIONWINDOW": "2",
    "XRD_CONNECTIONRETRY": "1",
    "XRD_REQUESTTIMEOUT": "4",
    "XRD_STREAMTIMEOUT": "3",
    "XRD_TIMEOUTRESOLUTION": "1",
    "XRD_STREAMERRORWINDOW": "0",
}
ORIGIN = """
all.adminpath {admin}
all.pidpath {admin}
xrd.network nodnr
xrd.sched mint 4 maxt 32
all.export /store
oss.localroot {data}
xrootd.async off
"""
CACHE = """
all.adminpath {admin}
all.pidpath {admin}
xrd.network nodnr
xrd.sched mint 4 maxt 32
all.export /store
oss.localroot {data}
ofs.osslib libXrdPss.so
pss.cachelib libXrdPfc.so
pss.origin {origin}
pfc.ram 1g
pfc.blocksize 128k
pfc.prefetch 0
pfc.diskusage 0.95 0.98
"""


def missing() -> str | None:
    """Why no server can be started here; None if one can."""
    if shutil.which("xrootd") is None:
        return "no xrootd; on Debian: apt-get install xrootd-server xrootd-server-plugins xrootd-plugins"
    if os.geteuid() == 0:
        try:
            pwd.getpwnam(USER)
        except KeyError:
            return f"xrootd refuses root, and there is no user {USER!r} to run it as"
    return None


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Server:
    """One xrootd process; what it serves is below ``data``."""

    def __init__(self, folder: Path, text: str, env: dict[str, str] | None = None, **about: object) -> None:
        self.folder, self.port, self._env = folder, free_port(), env or {}
        self.data, admin = folder / "data", folder / "adm"
        if len(f"{admin}/x/.xrd/") > LONGEST:
            raise ValueError(f"too long a path for a server's sockets: {admin}")
        for path in (folder, self.data, self.data / "store", admin):
            path.mkdir(exist_ok=True)
        # The server closes its admin folder, and each above that its user owns, to everybody else.
        for path in (self.data, self.data / "store", admin):
            own(path)
        self._config = folder / "x.cfg"
        self._config.write_text(text.format(admin=admin, data=self.data, **about))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of its root."""
        return f"root://127.0.0.1:{self.port}/"

    def put(self, source: Path, name: str) -> str:
        """Serve a copy of a file as /store/NAME; its address."""
        target = self.data / "store" / name
        shutil.copyfile(source, target)
        own(target)
        return f"{self.url}/store/{name}"

    def start(self) -> Server:
        """Start it, on the port it had before if it had one, and wait until it answers."""
        command = ["xrootd", "-c", str(self._config), "-n", "x", "-p", str(self.port), "-I", "v4"]
        command += ["-R", USER] if os.geteuid() == 0 else []
        env = {name: value for name, value in os.environ.items() if not name.startswith("XRD_")}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=env | self._env,
                start_new_session=True,
            )
        until = time.monotonic() + 20
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise RuntimeError(f"xrootd does not start: {self.log()[-2000:]}")
            time.sleep(0.02)
        return self

    def log(self) -> str:
        """What it has said."""
        return (self.folder / "log").read_text(errors="replace")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.5):
            return True
        return False

    def hang(self) -> None:
        """Let it answer no more, while the kernel still takes connections for it."""
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.stop(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it and wait until it is gone."""
        if self._process is None:
            return
        self.wake()  # who is stopped sees no SIGTERM
        self._signal(number)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


class Farm:
    """Servers below one folder; leaving it ends them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._servers: list[Server] = []

    def origin(self) -> Server:
        """A server of files."""
        return self._add(ORIGIN).start()

    def cache(self, origin: Server) -> Server:
        """A real XCache in front of an origin."""
        return self._add(CACHE, IMPATIENT, origin=f"127.0.0.1:{origin.port}").start()

    def _add(self, text: str, env: dict[str, str] | None = None, **about: object) -> Server:
        server = Server(self.folder / f"s{len(self._servers)}", text, env, **about)
        self._servers.append(server)
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for server in reversed(self._servers):
            server.stop()


def own(path: Path) -> None:
    """Give a path to the user that the servers run as."""
    if os.geteuid() == 0:
        user = pwd.getpwnam(USER)
        os.chown(path, user.pw_uid, user.pw_gid)
