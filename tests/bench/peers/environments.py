"""Environments of their own for the peers, below ``build/peers``: what this project runs in is never touched.

What pip has installed is noted beside each, and an environment is made anew only when what is asked for changes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PLACE = ROOT / "build" / "peers"


@dataclass(frozen=True)
class Peer:
    """What is installed, what has to be importable afterwards, and whose versions are shown."""

    name: str
    packages: tuple[str, ...]
    module: str
    shown: tuple[str, ...]

    @property
    def python(self) -> Path:
        return PLACE / self.name / "bin" / "python"


class Absent(Exception):
    """A peer that could not be installed, with what pip or the import said."""


PEERS = (
    Peer("coffea", ("coffea",), "coffea.processor", ("coffea", "uproot", "awkward", "numpy")),
    # It pins a coffea that needs numpy 1, which pyarrow's newest refuses; zstandard opens files of that compression.
    Peer(
        "pocket-coffea",
        ("pocket-coffea", "pyarrow<20", "zstandard"),
        "pocket_coffea.scripts.runner",
        ("pocket-coffea", "coffea", "uproot", "awkward", "numpy"),
    ),
)


def ready(peer: Peer) -> str:
    """Install a peer if it is not there; its versions."""
    folder = PLACE / peer.name
    stamp = folder / "installed.json"
    wanted = json.dumps([sys.version, *peer.packages])
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"· installing {' '.join(peer.packages)} into build/peers/{peer.name}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        _call([sys.executable, "-m", "venv", str(folder)])
        _call([str(peer.python), "-m", "pip", "install", "-q", "--retries", "10", *peer.packages])
        _call([str(peer.python), "-c", f"import {peer.module}"])
        stamp.write_text(wanted)
    return versions(peer.python, peer.shown)


def versions(python: Path, packages: tuple[str, ...]) -> str:
    """What is installed, in one line."""
    code = (
        "import sys, importlib.metadata as m; print(', '.join(f'{p} {m.version(p)}' for p in sys.argv[1:]))"
    )
    return _call([str(python), "-c", code, *packages]).strip()


def _call(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode:
        raise Absent((done.stderr.strip() or done.stdout.strip())[-1500:])
    return done.stdout
