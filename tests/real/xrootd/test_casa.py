"""coffea-casa whole: its profile, a Dask scheduler that is not ours, and a real XCache named by the environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from real.servers import dask as facility
from real.servers import session
from real.xrootd.conftest import PATIENCE, ROOT, SIZES

import executors

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

NAMES = "root://xrootd-cms.invalid//store/"  # asking it for anything would fail
SCRIPT = """
import json, sys
import executors
from coffea import processor
from coffea.nanoevents import BaseSchema

class Asks(processor.ProcessorABC):
    def process(self, events):
        import XRootD.client as client

        told = client.EnvGetInt("RequestTimeout"), client.EnvGetInt("StreamErrorWindow")
        return {"n": len(events), "names": {events.metadata["filename"]}, "told": {told}}

    def postprocess(self, accumulator):
        return accumulator

on, site_file, names = sys.argv[1], sys.argv[2], sys.argv[3:]
with executors.for_coffea(on, site_file=site_file, workers=2, status=False, retries=int(names.pop())) as executor:
    run = processor.Runner(executor=executor, schema=BaseSchema, chunksize=200, xrootdtimeout=5, metadata_cache={})
    items = list(run.preprocess({"dy": names}, treename="Events"))
    out = run.run(items, Asks())
    retried = sorted({one.step for one in executor.report.retried})
print(json.dumps({
    "n": out["out"]["n"], "names": sorted(out["out"]["names"]), "told": sorted(out["out"]["told"]),
    "kept": out["processed"] == set(items), "retried": retried,
}))
"""


@pytest.fixture(scope="module")
def casa(clean):
    """A scheduler and workers of somebody else."""
    with session.folder() as folder:
        one = facility.Facility(folder)
        try:
            yield one.start()
        finally:
            one.stop()


@pytest.fixture
def cached(farm, made):
    """An origin, its cache, and the names under which the whole federation knows the files."""
    origin = farm.origin()
    for path in made.files:
        origin.put(path, path.name)
    return origin, farm.cache(origin), [NAMES + path.name for path in made.files]


def environment(cache):
    """What a session there has: where the cache is."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XRD_", "XCACHE_", "COFFEA_", "DASK_"))}
    return kept | {"XCACHE_HOST": "127.0.0.1", "XCACHE_PORT": str(cache.port)}


def near(casa, folder):
    """The profile of casa, but for the address of the scheduler and how long is waited."""
    file = folder / "nearcasa.toml"
    file.write_text(
        f'inherits = "casa"\n[dask]\naddress = "{casa.address}"\ntls_ca = "{casa.certificate}"\n'
        f'tls_cert = "{casa.certificate}"\ntls_key = "{casa.key}"\n[limits]\nstart = "60s"\n{PATIENCE}'
    )
    return file


def told(argv, folder, cache):
    done = subprocess.run(
        [sys.executable, *map(str, argv)], cwd=folder, env=environment(cache), capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_casa_whole(casa, cached, made, tmp_path):
    """The command twice, the second time without the origin."""
    origin, cache, names = cached
    (tmp_path / "fs.json").write_text(json.dumps({"dy": {"files": dict.fromkeys(names, "Events")}}))
    command = [
        ROOT / "runner.py", "--wf", f"{ROOT / 'tests' / 'analyses.py'}:Sum", "--json", "fs.json", "--chunk", 200,
        "--executor", "dask/casa", "--outputdir", "out", "--cache", tmp_path / "cache",
    ]  # fmt: skip
    # Under its own name: a site's profile of one's own may carry the name of a built-in one.
    file = near(casa, tmp_path).rename(tmp_path / "casa.toml")
    command += ["--site-file", file]
    for more in ((), ("--overwrite",)):
        code, out = told([*command, *more], tmp_path, cache)
        assert code == 0, out
        assert executors.digest(executors.load(tmp_path / "out" / "hist_Sum_fs")) == made.digest
        manifest = json.loads((tmp_path / "out" / "hist_Sum_fs" / "manifest.json").read_text())
        assert manifest["datasets"]["dy"]["events_counted"] == sum(SIZES)
        origin.stop()
    cache.stop()
    code, out = told([*command, "--overwrite", "--retries", "0"], tmp_path, cache)
    assert code == 3, "the cache was not used after all"
    assert casa.state()["tasks"] == 0


ENGINES = ["iterative", "futures", "dask", "parsl"]
QUICK = [
    pytest.param(one, marks=pytest.mark.full) if one in ("iterative", "dask") else one for one in ENGINES
]


@pytest.mark.parametrize("engine", [*QUICK, "casa"])
def test_coffeas_own_runner(request, cached, engine, tmp_path):
    """Through the cache, on every kind of worker; each knows how long to wait; files keep their names."""
    origin, cache, names = cached
    (tmp_path / "script.py").write_text(SCRIPT)
    if engine == "casa":
        on, file = "dask/nearcasa", near(request.getfixturevalue("casa"), tmp_path)
    else:
        on, file = f"{engine}/here", tmp_path / "here.toml"
        listed = json.dumps(ENGINES)
        file.write_text(f'inherits = "local"\nengines = {listed}\n[urls]\ncache = "xcache"\n{PATIENCE}')
    for _ in range(2):
        code, out = told(["script.py", on, file, *names, 0], tmp_path, cache)
        assert code == 0, out
        said = json.loads(out.splitlines()[-1])
        assert said == {
            "n": sum(SIZES),
            "names": sorted(names),
            "told": [[3, 0]],
            "kept": True,
            "retried": [],
        }
        origin.stop()
    cache.stop()
    code, out = told(["script.py", on, file, *names, 0], tmp_path, cache)
    assert code == 1
    assert f"read as root://127.0.0.1:{cache.port}//store/" in out
    assert names[0] in out
