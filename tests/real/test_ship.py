"""An environment that travels: nodes whose Python has no packages and which see nothing of ours.

The pool's jobs have a /tmp of their own and no checkout; their Python is the system's. The archive is made once
for the module, so the first test is the slow one.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from real.lab import ROOT, Lab, accounted
from real.servers import processes

pytestmark = pytest.mark.timeout(600)
BARE = Path("/usr/bin/python3")
ASKS = "import sys, sysconfig; print(*sys.version_info[:2], sysconfig.get_config_var('SOABI'))"
NEARER = """
[network]
address = "loopback"
[resources]
disk = "200MB"
[limits]
polls_per_minute = 60
start = "300s"
death = "10s"
"""


def kind_of(python):
    """Minor version and binary interface."""
    return subprocess.run([python, "-c", ASKS], capture_output=True, text=True, check=False).stdout


def bare():
    """The system's Python, if it is of this one's kind and has nothing that a run needs."""
    if not BARE.exists() or kind_of(BARE) != kind_of(sys.executable):
        pytest.skip(f"{BARE} is not of the kind of {sys.executable}")
    if subprocess.run([BARE, "-c", "import numpy"], capture_output=True, check=False).returncode == 0:
        pytest.skip(f"{BARE} has packages")
    return BARE


@pytest.fixture(scope="module")
def far_pool(pool):
    """Jobs see no file of the runner's."""
    one = pool(private_tmp=True)
    text = f'inherits = "condor"\nshares_store = false\n{NEARER}'
    (one.folder / "farpool.toml").write_text(text)
    return one


@pytest.fixture
def far(far_pool):
    place = Lab(far_pool, "dask", "ship")
    place.site_file = far_pool.folder / "farpool.toml"
    try:
        yield place
        place.nothing_left()
        node = far_pool.folder / "execute"
        # HTCondor has a gigabyte to remove.
        assert processes.wait_for(lambda: not list(node.glob("dir_*")), 60), "something was left on a node"
    finally:
        place.close()
        far_pool.clear()


def archives(lab):
    return sorted((Path(lab.batch.env["HOME"]) / ".cache/coffea-scaleout").glob("env-*.tar.gz"))


@pytest.mark.parametrize("engine", ["dask", pytest.param("parsl", marks=pytest.mark.full)])
def test_packages_travel(far, engine):
    """A Python without any package counts the same."""
    far.engine = engine
    far.data(dy=[2500] * 2)
    shipped = ["--ship-env", "venv", "--worker-python", str(bare())]
    unseen = ["--wf-arg", f"unseen={ROOT / 'runner.py'}"]
    began = time.monotonic()
    code, out = far.run(far.command(*shipped, *unseen, wf="Far", workers=2), timeout=400)
    assert code == 0, out
    print(f"{far.on}: {time.monotonic() - began:.0f} s\n{out}")
    accounted(far.manifest(wf="Far"), 5000)
    far.run(far.command(out="truth", on="iterative"))
    assert far.manifest(wf="Far")["digest"] == far.manifest("truth")["digest"]
    (kept,) = archives(far)
    assert kept.stat().st_mode & 0o777 == 0o600
    assert "MB" in out, "how large it is"
    assert "--disk" in out, "the jobs ask for too little disk, and it was not said"


def pythons():
    """Other interpreters of this machine, by minor version; one that only links to this one is none."""
    found = [*Path("/usr/bin").glob("python3.*[0-9]"), *Path(sys.base_prefix).parent.glob("3.*/bin/python3")]
    kinds = {one: kind_of(one).split() for one in found}
    return {
        int(kind[1]): str(one) for one, kind in kinds.items() if kind and kind[1] != str(sys.version_info[1])
    }


@pytest.mark.full
@pytest.mark.parametrize("lab", [("condor", "dask")], indirect=True, ids=["dask"])
@pytest.mark.parametrize("age", ["older", "newer"])
def test_another_python(lab, age):
    """A node's Python of another minor version: both are named, and what to do."""
    others = {minor: one for minor, one in pythons().items() if (minor < 11) == (age == "older")}
    if not others:
        pytest.skip(f"no {age} Python here")
    minor, python = min(others.items())
    lab.data(dy=[500])
    code, out = lab.run(lab.command("--ship-env", "venv", "--worker-python", python), timeout=200)
    assert code == 4, out
    assert f"3.{minor}" in out, out
    assert f"3.{11 if age == 'older' else sys.version_info[1]}" in out, out
    assert "--worker-python" in out
    assert "Traceback" not in out


@pytest.mark.full
def test_torn_on_the_way(far):
    """An archive that is not whole: said once, by its name."""
    far.data(dy=[500])
    if not archives(far):
        far.run(far.command("--ship-env", "venv", "--worker-python", str(bare())), timeout=400)
    (kept,) = archives(far)
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    try:
        command = far.command("--ship-env", "venv", "--worker-python", str(bare()), out="torn")
        code, out = far.run(command, timeout=200)
    finally:
        kept.unlink()
    assert code == 4, out
    assert kept.name in out, out
    assert "Traceback" not in out


@pytest.mark.full
@pytest.mark.parametrize("lab", [("slurm", "dask"), ("slurm", "parsl")], indirect=True, ids=["dask", "parsl"])
def test_from_a_shared_folder(lab, monkeypatch):
    """Nodes that share the run's folder read the archive there."""
    monkeypatch.setitem(lab.batch.env, "XDG_CACHE_HOME", str(lab.folder / "kept"))
    lab.data(dy=[2500] * 2)
    truth = lab.truth()
    python = str(bare())
    code, out = lab.run(lab.command("--ship-env", "venv", "--worker-python", python, workers=2), timeout=400)
    assert code == 0, out
    accounted(lab.manifest(), 5000)
    assert lab.manifest()["digest"] == truth


def test_a_container_needs_an_image(far):
    far.data(dy=[500])
    code, out = far.run(far.command("--ship-env", "container", "--no-check"), timeout=60)
    assert code == 2, out
    assert "--image" in out
    assert "Traceback" not in out
