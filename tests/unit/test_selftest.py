"""``selftest`` on this machine: the table that people paste, and what it says when a site refuses."""

from __future__ import annotations

import os

import pytest

from executors import selftest
from executors.errors import SiteError
from executors.settings import resolve
from executors.show import Progress


def tried(tmp_path, executor="futures"):
    settings = resolve(executor=executor, outputdir=tmp_path, workers=2).settings
    with Progress(quiet=True) as progress:
        return selftest.selftest(settings, observer=progress)


def test_the_table(tmp_path):
    found = tried(tmp_path)
    assert found.exit_code == 0, found.text
    assert found.data["result"] == "ok: every event once, every bit equal"
    assert found.data["chunks"] == "100 of 100, 40,000 of 40,000 events"
    assert found.data["executor"] == "futures/local (this machine)"
    assert found.data["asked"] == "2 workers"
    assert found.data["workers"] in ("1 worker on 1 host", "2 workers on 1 host")
    width = len("first result after")
    assert all(line[width : width + 2] == "  " for line in found.text.splitlines())
    assert os.listdir(tmp_path) == []


def test_a_site_that_refuses(tmp_path, monkeypatch):
    real = selftest.execute

    def refused(settings, **more):
        if settings.executor != "iterative":
            raise SiteError("sbatch: error: no such partition (--queue)")
        return real(settings, **more)

    monkeypatch.setattr(selftest, "execute", refused)
    found = tried(tmp_path)
    assert found.exit_code == 4
    assert found.data["result"] == "FAILED: sbatch: error: no such partition (--queue)"
    assert "versions" in found.data
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("program", "says", "shown"),
    [
        ("sinfo", "slurm 22.05.8", "slurm: slurm 22.05.8"),
        (
            "condor_version",
            "$CondorVersion: 23.9.6 2026-07-12 $\n$Platform",
            "condor: CondorVersion: 23.9.6 2026-07-12",
        ),
        ("sinfo", "", "slurm"),
    ],
)
def test_the_version_of_a_batch_system(tmp_path, monkeypatch, program, says, shown):
    path = tmp_path / program
    path.write_text(f"#!/bin/sh\nprintf '%s' '{says}'\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert selftest._scheduler(shown.partition(":")[0]) == shown
    monkeypatch.setenv("PATH", "/nonexistent")
    assert selftest._scheduler("slurm") == "slurm"
    assert selftest._scheduler(None) == "this machine"
