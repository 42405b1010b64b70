"""What a user at a site runs first: ``check``, ``check --canary`` and ``selftest``, on real batch systems."""

from __future__ import annotations

import json
import re
import sys

import pytest
from real.lab import ROOT
from real.test_suite import PLACES

pytestmark = [
    pytest.mark.parametrize("lab", PLACES, indirect=True, ids=lambda place: f"{place[1]}/{place[0]}"),
    pytest.mark.timeout(300),
]


def command(lab, verb, *more):
    return [
        sys.executable, str(ROOT / "runner.py"), verb, "--executor", lab.on, "--site-file",
        str(lab.batch.site_file), *more,
    ]  # fmt: skip


@pytest.mark.quick_at(("slurm", "parsl"), ("condor", "dask"))
def test_check_with_a_canary(lab):
    code, out = lab.run(command(lab, "check", "--canary", "--as-json"))
    assert code == 0, out
    found = json.loads(out[out.index("{") :])
    assert found["ok"]
    names = {each["name"] for each in found["checks"] if each["ok"]}
    assert {"scheduler", "canary"} <= names, found
    lab.nothing_left(30)


def test_selftest(lab):
    code, out = lab.run(command(lab, "selftest", "-s", "2", "-q"))
    assert code == 0, out
    assert "ok: every event once, every bit equal" in out
    assert "first result after" in out
    assert "100 of 100, 40,000 of 40,000 events" in out
    assert "2 jobs of 1 worker," in out
    version = {"slurm": r"slurm: slurm\S* \d+\.\d+", "condor": r"condor: CondorVersion: \d+\.\d+"}[
        lab.batch.kind
    ]
    assert re.search(version, out), out
    lab.nothing_left(30)


@pytest.mark.quick_at(("slurm", "dask"), ("condor", "parsl"))
def test_selftest_of_what_cannot_work(lab):
    code, out = lab.run(command(lab, "selftest", "-q", "--queue", "nosuch", "--no-check"))
    assert code == 4, out
    assert "nosuch" in out
    assert "Traceback" not in out
    lab.nothing_left(30)
