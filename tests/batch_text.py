"""Submit text read back: by the batch system's own parser where it is installed, and by running job.sh.

``condor_submit -dry-run`` and ``sbatch -v --test-only`` tell what they understood without any daemon.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from real.servers.install import condor_prefix

PREFIXES = {"slurm": "#SBATCH ", "sge": "#$ ", "pbs": "#PBS ", "lsf": "#BSUB "}
CONDOR_CONFIG = """RELEASE_DIR = {release}
LOCAL_DIR = {folder}
LOG = {folder}
SPOOL = {folder}
COLLECTOR_HOST = 127.0.0.1:1
NETWORK_INTERFACE = 127.0.0.1
ENABLE_IPV6 = False
NO_DNS = True
DEFAULT_DOMAIN_NAME = localdomain
"""
SLURM_CONF = """ClusterName=none
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=1
AuthType=auth/none
MessageTimeout=1
"""
STUB = """#!/bin/sh
printf '%s\\0' "$@" > "$CS_TOLD.args"
env -0 > "$CS_TOLD.env"
"""


def condor_submit():
    """The program, if there is one."""
    inside = condor_prefix() / "usr/bin/condor_submit"
    return shutil.which("condor_submit") or (str(inside) if inside.exists() else None)


def directives(scheduler, text):
    """The words of each directive, as far as the batch system reads: Grid Engine to the script's end, others to a command."""
    found = []
    for line in text.split("\n"):
        if not line.startswith("#") and line and scheduler != "sge":
            break
        if line.startswith(PREFIXES[scheduler]):
            found.append(shlex.split(line.removeprefix(PREFIXES[scheduler])))
    return found


class Condor:
    """condor_submit's own reading of a submit file."""

    def __init__(self, folder):
        self.program = condor_submit()
        self.folder = Path(folder)
        config = self.folder / "condor_config"
        config.write_text(
            CONDOR_CONFIG.format(release=Path(self.program).resolve().parents[1], folder=self.folder)
        )
        self.env = {"CONDOR_CONFIG": str(config), "PATH": "/usr/bin:/bin", "HOME": str(self.folder)}

    def read(self, files, unknown=False):
        """The job's attributes as text, by their lower-case names; AssertionError if refused or not understood."""
        for name, text in files.items():
            (self.folder / name).write_text(text)
        ad = self.folder / "job.ad"
        ad.unlink(missing_ok=True)
        argv = [self.program, "-dry-run", str(ad), "job.sub", "-queue", "1"]
        done = subprocess.run(argv, cwd=self.folder, env=self.env, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        ignored = [line for line in done.stderr.decode().splitlines() if "was unused" in line]
        assert unknown or not ignored, ignored
        rows = (line.split("=", 1) for line in ad.read_text().splitlines() if "=" in line)
        return {key.lower(): value for key, value in rows}


class Slurm:
    """sbatch's own reading of a script."""

    def __init__(self, folder):
        self.folder = Path(folder)
        (self.folder / "slurm.conf").write_text(SLURM_CONF)
        self.env = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": os.environ["PATH"]}

    def read(self, files, unknown=False):
        """Option -> value as sbatch lists them; AssertionError if it refuses them before it asks the cluster."""
        for name, text in files.items():
            (self.folder / name).write_text(text)
        argv = ["sbatch", "-v", "--test-only", "job.sh"]
        done = subprocess.run(argv, cwd=self.folder, env=self.env, capture_output=True, timeout=60)
        said = done.stderr.decode(errors="replace")
        if unknown and "unrecognized option" in said:
            return None
        assert "Unable to contact slurm controller" in said, said
        assert "Unrecognized" not in said, said
        rows = re.findall(r"^sbatch: (\S+) *: (.*)$", said, re.MULTILINE)
        return dict(rows)


def stub(folder):
    """A program that writes down its arguments and its environment."""
    path = Path(folder) / "stub"
    path.write_text(STUB)
    path.chmod(0o755)
    return path


def run(script, folder, env=None):
    """(exit code, stderr, arguments, environment) of job.sh, the last two None if the stub did not run."""
    told = Path(folder) / "told"
    for end in (".args", ".env"):
        told.with_suffix(end).unlink(missing_ok=True)
    path = Path(folder) / "job.sh"
    path.write_text(script)
    given = {"CS_TOLD": str(told), **(env or {})}
    done = subprocess.run(["/bin/bash", str(path)], cwd=folder, env=given, capture_output=True, timeout=60)
    if not told.with_suffix(".env").exists():
        return done.returncode, done.stderr.decode(errors="replace"), None, None
    args = told.with_suffix(".args").read_bytes().decode().split("\0")[:-1]
    rows = told.with_suffix(".env").read_bytes().decode().split("\0")[:-1]
    return (
        done.returncode,
        done.stderr.decode(errors="replace"),
        args,
        dict(row.split("=", 1) for row in rows),
    )
