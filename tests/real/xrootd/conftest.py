"""Fixtures over real XRootD servers: ``farm`` starts them, ``runs`` runs the command over their files.

Each test has servers of its own: a client remembers what it has seen of one, and a cache never forgets a file.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from data import make_fileset
from real.xrootd import farm as servers

import executors
from executors.running import execute
from executors.settings import resolve

ROOT = Path(__file__).parents[3]
PREFIX = "csx-"
SIZES = (900, 700, 500, 400)
# A site as the machine here, but with little patience.
PATIENCE = """
[xrootd]
connection_window = 2
connection_retry = 2
request_timeout = 3
stream_timeout = 2
timeout_resolution = 1
"""


@pytest.fixture(scope="session")
def able():
    """Skips, or fails where everything has to be there, if no server can be started."""
    if why := servers.missing():
        if os.environ.get("CI"):
            pytest.fail(f"CI is set, so this has to be there: {why}", pytrace=False)
        pytest.skip(why)
    _sweep()


def _sweep():
    """End the servers of test sessions that were killed, and remove their folders."""
    for folder in Path("/tmp").glob(f"{PREFIX}*"):
        try:
            owner = int((folder / "owner").read_text())
            mine = folder.stat().st_uid == os.getuid()
        except (OSError, ValueError):
            continue
        if not mine or psutil.pid_exists(owner):
            continue
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if words[:1] == ["xrootd"] and any(word.startswith(f"{folder}/") for word in words):
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def farm(able):
    """Real servers on loopback; all are gone afterwards."""
    # Not pytest's own folder: its name is too long for a server's sockets, and nobody else may enter it.
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
    (folder / "owner").write_text(str(os.getpid()))
    folder.chmod(0o755)
    with servers.Farm(folder) as started:
        yield started
    shutil.rmtree(folder, ignore_errors=True)


class Made(NamedTuple):
    """Some files, and the digest of what the analysis makes of them when all goes well."""

    files: list[Path]
    digest: str


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Files on this machine, and the reference: an undisturbed run over them, one call after another."""
    folder = tmp_path_factory.mktemp("made")
    fileset = make_fileset(folder / "data", {"dy": SIZES}, seed=5, cluster=200)
    execute(_settings(folder, fileset, executor="iterative"))
    files = [Path(path) for path in fileset["dy"]["files"]]
    return Made(files, executors.digest(executors.load(folder / "hist_Sum_fs")))


def _settings(folder, fileset, **options):
    (folder / "fs.json").write_text(json.dumps(fileset))
    wf = f"{ROOT / 'tests' / 'analyses.py'}:Sum"
    return resolve(
        wf=wf, json=str(folder / "fs.json"), chunk=200, outputdir=folder, cache=folder / "cache", **options
    ).settings


class Done(NamedTuple):
    """How a run ended."""

    code: int
    text: str  # all it said
    seconds: float


class Runs:
    """The command as users type it, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dir = folder / "out" / "hist_Sum_fs"
        self.site("here", "")

    def site(self, name: str, text: str) -> None:
        """Write a site's profile; ``name`` is the one that is used from now on."""
        self._name, self._file = name, self.folder / f"{name}.toml"
        self._file.write_text(f'inherits = "local"\nengines = ["futures", "dask", "parsl"]\n{text}{PATIENCE}')

    def fileset(self, urls, metadata=None) -> None:
        """What is to be read."""
        content = {"dy": {"files": dict.fromkeys(urls, "Events"), "metadata": metadata or {}}}
        (self.folder / "fs.json").write_text(json.dumps(content))

    def command(self, *options: str, verb: str = "", engine: str = "futures") -> list[str]:
        """The words of the command."""
        said = {
            "--wf": f"{ROOT / 'tests' / 'analyses.py'}:Sum",
            "--json": self.folder / "fs.json",
            "--executor": f"{engine}/{self._name}",
            "--site-file": self._file,
            "--outputdir": self.folder / "out",
            "--cache": self.folder / "cache",
            "--chunk": 200,
            "-j": 2,
        }
        words = [str(word) for pair in said.items() for word in pair]
        return [sys.executable, str(ROOT / "runner.py"), *([verb] if verb else []), *words, *options]

    def start(self, *options: str, **how: str) -> subprocess.Popen[str]:
        """Begin a run."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("XRD_", "XCACHE_", "COFFEA_"))}
        (self.folder / "out").mkdir(exist_ok=True)
        return subprocess.Popen(
            self.command(*options, **how),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env=env,
        )

    def __call__(self, *options: str, **how: str) -> Done:
        """A whole run."""
        began = time.monotonic()
        process = self.start(*options, **how)
        try:
            text, _ = process.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            text, _ = process.communicate()
            pytest.fail(f"the run did not end: {text[-3000:]}")
        return Done(process.returncode, text, time.monotonic() - began)

    def digest(self) -> str:
        """Of the merged result."""
        return executors.digest(executors.load(self.dir))

    def manifest(self):
        """The account of the run."""
        return json.loads((self.dir / "manifest.json").read_text())

    def until(self, test, what: str, seconds: float = 40) -> None:
        """Wait for something to become true."""
        end = time.monotonic() + seconds
        while not test():
            if time.monotonic() > end:
                pytest.fail(f"waited {seconds} s in vain: {what}")
            time.sleep(0.02)

    def counted(self) -> int:
        """How many results are stored."""
        return len(list((self.dir / "store").glob("**/*.part")))


@pytest.fixture
def runs(tmp_path):
    """The command, in this test's folder."""
    return Runs(tmp_path)
