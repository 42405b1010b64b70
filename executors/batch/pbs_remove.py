"""``pbs_remove.py NAME``: remove every PBS job of this name that is one's own.

Run by its path, also when everything else of the run is dead: only the standard library may enter.
"""

from __future__ import annotations

import getpass
import subprocess
import sys


def main(name: str) -> int:
    """Ask qselect, give the answer to qdel."""
    found = run(["qselect", "-u", getpass.getuser(), "-N", name])
    ids = found.stdout.decode(errors="replace").split()
    return found.returncode or (run(["qdel", *ids]).returncode if ids else 0)


def run(argv: list[str]) -> subprocess.CompletedProcess[bytes]:
    """One command, its answer kept, its complaints on our own error output."""
    return subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=60, check=False)  # noqa: S603


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
