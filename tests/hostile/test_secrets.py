"""Tokens and passwords of a user in the environment, in addresses, in options and in error texts of a run.

Afterwards the whole run directory, what was printed, and every command line of the machine are searched.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import uproot

RUNNER = Path(__file__).parents[2] / "runner.py"
WORD = "canary"  # in every secret
ANALYSIS = """
import os
from pathlib import Path

class Leaky:
    def __init__(self, my_token):
        self.my_token = my_token

    def process(self, events):
        print("what a user prints to look for an error:", os.environ["BEARER_TOKEN"])
        for one in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                said = one.read_bytes()
            except OSError:
                continue
            if b"canary" in said:
                raise RuntimeError(f"in a command line: {said[:80]}")
        token, password = os.environ["BEARER_TOKEN"], os.environ["FOO_PASSWORD"]
        raise ValueError(f"refused: Authorization: Bearer {token} and MY_PASSWORD={password}")

    def postprocess(self, total):
        return total
"""
CONFIG = """
wf_arg = {my_token = "canary-argument"}
env = {FOO_PASSWORD = "canary-variable"}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "ana.py").write_text(ANALYSIS)
    (tmp_path / "run.toml").write_text(CONFIG)
    with uproot.recreate(tmp_path / "x.root") as file:
        file["Events"] = {"x": np.arange(1000.0)}
    nowhere = "https://user:canary-pass@127.0.0.1:1/x.root?authz=Bearer%20canary-signed"
    files = {str(tmp_path / "x.root"): "Events", nowhere: "Events"}
    (tmp_path / "files.json").write_text(json.dumps({"a": {"files": files}}))
    return tmp_path


@pytest.mark.parametrize(
    "engine", ["futures", "dask/local", pytest.param("parsl/local", marks=pytest.mark.full)]
)
def test_nothing_of_it_is_written_or_said(engine, folder):
    env = {**os.environ, "BEARER_TOKEN": "eyJcanaryA.eyJcanaryB.canaryC"}
    words = ["--wf", "ana.py:Leaky", "--json", "files.json", "--config", "run.toml", "--executor", engine]
    words += ["-j", "1", "--schema", "BaseSchema", "--skipbadfiles", "--retries", "0"]
    argv = [sys.executable, str(RUNNER), *words, "--outputdir", "out"]
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert "refused: Authorization: Bearer [hidden] and MY_PASSWORD=[hidden]" in done.stdout + done.stderr
    assert WORD not in done.stdout + done.stderr
    (run,) = (folder / "out").iterdir()
    for path in run.rglob("*"):
        if path.is_dir() or WORD.encode() not in path.read_bytes():
            continue
        # The pickle that workers need, and what the user's own code has printed: for nobody else to read.
        assert path.parent.name == "job" or path.name.startswith("printed-"), path
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["workflow_arguments"] == {"my_token": "[hidden]"}
    assert json.loads((run / "failed.json").read_text())
    for line in (run / "journal.jsonl").read_text().splitlines():
        assert not line or json.loads(line.partition(" ")[2])


@pytest.mark.parametrize("look", ["--dry-run", "--show-config"])
def test_nothing_of_it_is_shown(look, folder):
    words = [
        "--wf",
        "ana.py:Leaky",
        "--json",
        "files.json",
        "--config",
        "run.toml",
        "--executor",
        "dask/slurm",
    ]
    words += [
        "--skipbadfiles",
        "--directive=--comment=MY_SECRET=canary-comment",
        "--env",
        "AUTH=Bearer canary-123",
    ]
    words += ["--worker-setup", "export API_KEY=canary-setup", look, "--outputdir", "out"]
    argv = [sys.executable, str(RUNNER), *words]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, 3), done.stderr  # a file cannot be opened
    assert "MY_SECRET=[hidden]" in done.stdout
    assert WORD not in done.stdout + done.stderr
