"""Runs over ``root://`` files: straight from a real origin, and through a real XCache as at casa."""

from __future__ import annotations

import json

import pytest
from data import corrupt
from real.xrootd.conftest import SIZES

pytestmark = pytest.mark.real

EVENTS = sum(SIZES)
REDIRECTOR = "root://xrootd-cms.invalid"  # asking it for anything would fail


@pytest.mark.parametrize("engine", ["futures", "dask", "parsl"])
def test_straight_from_a_server(farm, made, runs, engine):
    origin = farm.origin()
    runs.fileset([origin.put(path, path.name) for path in made.files])
    done = runs(engine=engine)
    assert done.code == 0, done.text
    assert runs.digest() == made.digest
    assert runs.manifest()["datasets"]["dy"]["events_counted"] == EVENTS


def casa(runs, cache):
    runs.site("casalike", f'[urls]\ncache = "127.0.0.1:{cache.port}"\n')


def test_through_the_cache_and_then_without_the_origin(farm, made, runs):
    origin = farm.origin()
    cache = farm.cache(origin)
    for path in made.files:
        origin.put(path, path.name)
    names = [
        f"{REDIRECTOR}{slashes}store/{path.name}"
        for slashes, path in zip(["/", "//", "///", ":1194//"], made.files, strict=True)
    ]
    runs.fileset(names)
    casa(runs, cache)

    first = runs()
    assert first.code == 0, first.text
    assert runs.digest() == made.digest
    assert f"127.0.0.1:{cache.port}" not in (runs.dir / "plan.json").read_text()
    assert all(name in (runs.dir / "plan.json").read_text() for name in names), "files keep their names"
    assert len(list((cache.data / "store").glob("*.root"))) == len(SIZES)

    origin.stop()
    second = runs("--overwrite")
    assert second.code == 0, second.text
    assert runs.digest() == made.digest
    cache.stop()
    assert "already complete" in runs().text
    third = runs("--overwrite", "--retries", "0")
    assert third.code == 3, "the cache was not used after all"


def test_plan_and_dry_run_show_what_is_read_instead(farm, made, runs):
    origin = farm.origin()
    cache = farm.cache(origin)
    origin.put(made.files[0], "a.root")
    runs.fileset([f"{REDIRECTOR}//store/a.root", str(made.files[1])])
    casa(runs, cache)
    shown = f"{REDIRECTOR}//store/a.root → root://127.0.0.1:{cache.port}//store/a.root"
    for done in (runs(verb="plan"), runs("--dry-run")):
        assert done.code == 0, done.text
        assert shown in done.text
        assert "1 file read by another address here" in done.text
    done = runs("--as-json", "-q", verb="plan")
    files = json.loads(done.text[done.text.index("{") :])["datasets"]["dy"]["files"]
    assert [f["read_as"] for f in files] == [
        f"root://127.0.0.1:{cache.port}//store/a.root",
        str(made.files[1]),
    ]
    assert [f["entries"] for f in files] == list(SIZES[:2])


def test_a_mount_is_read_where_it_is(made, runs):
    folder = made.files[0].parent
    runs.fileset([f"root://eos.invalid//eos/mine/{path.name}" for path in made.files])
    runs.site("mounted", f'[urls]\nrewrite = {{ "root://eos.invalid//eos/mine/" = "{folder}/" }}\n')
    done = runs()
    assert done.code == 0, done.text
    assert runs.digest() == made.digest


def test_what_the_site_cannot_read_is_refused_before_anything_starts(made, runs):
    runs.site("picky", '[urls]\nschemes = ["root"]\n')
    runs.fileset([str(made.files[0])])
    done = runs()
    assert done.code == 2
    assert f"{made.files[0]}: local files cannot be read at the site 'picky'; there: root" in done.text
    assert not runs.dir.exists() or not any(runs.dir.glob("store/*"))


SECRET = "eyJhbGciOiJFUzI1NiJ9.CANARYcanaryCANARY.sigsigsig"  # made up, in the shape of a token


@pytest.mark.parametrize(
    ("fault", "code"),
    [("none", 0), ("missing", 3), ("no-tree", 3), ("flipped", 3), ("short", 3), ("gone", 3)],
)
def test_a_token_in_an_address_is_written_nowhere(farm, made, runs, fault, code):
    origin = farm.origin()
    urls = [origin.put(path, path.name) for path in made.files]
    runs.fileset([f"{url}?authz=Bearer%20{SECRET}&x=CANARY{i}" for i, url in enumerate(urls)])
    broken = origin.data / "store" / made.files[1].name
    if fault == "gone":
        origin.kill()
    elif fault != "none":
        corrupt(fault, broken)
    less = ("--retries", "0")
    only = ("--only", f"{urls[0]}?authz=Bearer%20{SECRET}", "--outputdir", str(runs.folder / "one"))
    said = [runs(*less, verb="plan"), runs(*less, *only), runs(*less, "--log-level", "debug")]
    assert said[-1].code == code, said[-1].text
    assert not [done.text for done in said if "CANARYcanary" in done.text]
    written = [path for path in runs.folder.rglob("*") if path.is_file() and path.name != "fs.json"]
    assert len(written) > 5
    assert not [path for path in written if b"CANARYcanary" in path.read_bytes()]
    if fault == "none":
        assert runs.digest() == made.digest
        # The next command brings another token, for the same files: nothing is begun anew.
        runs.fileset([f"{url}?authz=Bearer%20another&x=CANARY{i}" for i, url in enumerate(urls)])
        assert "already complete" in runs().text
