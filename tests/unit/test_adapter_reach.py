"""coffea's Runner at a site that reads files elsewhere: opened there, called as the user called them."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import uproot
from coffea import processor
from coffea.nanoevents import BaseSchema
from coffea.processor import IterativeExecutor, Runner
from data import make_fileset

import executors
from executors.errors import FilesetError, IncompleteError, SiteError

NAMES = "root://xrootd-cms.invalid//store/"  # asking it for anything would fail


class Names(processor.ProcessorABC):
    """What an analysis sees of its input."""

    def process(self, events):
        about = events.metadata
        return {
            "n": len(events),
            "sum": float(events["MET_pt"].to_numpy().sum()),
            "names": {about["filename"]},
            "uuids": {about["fileuuid"]},
        }

    def postprocess(self, accumulator):
        return accumulator


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Files in a folder that a site knows as a mount; the fileset that names a server instead."""
    folder = tmp_path_factory.mktemp("mount")
    made = make_fileset(folder / "data", {"dy": [300, 200], "tt": [70]})
    (folder / "near.toml").write_text(
        f'inherits = "local"\nengines = ["iterative", "futures"]\n[urls]\nrewrite = {{ "{NAMES}" = "{folder / "data"}/" }}\n'
        "[xrootd]\nrequest_timeout = 7\n"
    )
    named = {
        dataset: {
            "files": {NAMES + str(Path(f).relative_to(folder / "data")): "Events" for f in about["files"]}
        }
        for dataset, about in made.items()
    }
    return folder / "near.toml", named, {d: list(about["files"]) for d, about in made.items()}


def runner(executor, **fields):
    return Runner(
        **{"executor": executor, "schema": BaseSchema, "chunksize": 90, "metadata_cache": {}} | fields
    )


def executor(here, engine="futures", **options):
    return executors.for_coffea(f"{engine}/near", site_file=here[0], workers=2, status=False, **options)


@pytest.mark.parametrize("engine", ["iterative", "futures"])
@pytest.mark.parametrize("compression", [1, None])
def test_files_are_read_elsewhere_and_keep_their_names(here, engine, compression):
    _, named, real = here
    every = {name for about in named.values() for name in about["files"]}
    with executor(here, engine) as on, warnings.catch_warnings():
        warnings.simplefilter("error")
        run = runner(on, savemetrics=True, processor_compression=compression)
        items = list(run.preprocess(named))
        out = run.run(items, Names())
        assert {item.filename for item in items} == every
        assert out["processed"] == set(items)
        assert on.report.complete
    there = runner(IterativeExecutor(status=False), savemetrics=True).run(real, Names(), treename="Events")
    assert out["out"]["names"] == every
    assert {k: out["out"][k] for k in ("n", "uuids")} == {k: there["out"][k] for k in ("n", "uuids")}
    assert out["out"]["sum"] == pytest.approx(there["out"]["sum"])
    assert {k: out["metrics"][k] for k in ("entries", "bytesread")} == {
        k: there["metrics"][k] for k in ("entries", "bytesread")
    }


def test_what_coffea_remembers_is_the_same_at_every_site(here, tmp_path):
    """Its metadata cache and its checkpoints are found by name."""
    _, named, _ = here
    cache, points = {}, processor.SimpleCheckpointer(str(tmp_path / "points"))
    with executor(here) as on:
        out = runner(on, metadata_cache=cache, checkpointer=points)(named, processor_instance=Names())
    assert {item.filename for item in cache} == out["names"]
    # Nothing is opened any more, so these names need not lead anywhere.
    again = runner(IterativeExecutor(status=False), metadata_cache=cache, checkpointer=points)
    assert again(named, processor_instance=Names())["n"] == out["n"] == 570


def test_a_reader_of_the_users_own_stays(here, tmp_path):
    class Mine(uproot.source.fsspec.FSSpecSource):
        def __init__(self, path, **options):
            assert path.startswith("/"), path
            super().__init__(path, **options)
            with opened.open("a") as log:
                log.write(f"{path}\n")

    opened = tmp_path / "opened"
    _, named, _ = here
    with executor(here, "iterative") as on:
        out = runner(on).run(named, Names(), uproot_options={"handler": Mine, "timeout": 3})
    assert out["out"]["n"] == 570
    assert len(opened.read_text().splitlines()) == 3 + 6


def test_a_failure_names_the_file_and_where_it_was_read(here):
    _, named, real = here
    wrong = {
        "dy": {"files": dict.fromkeys([*named["dy"]["files"], f"{NAMES}none.root?authz=SECRET"], "Events")}
    }
    with executor(here, retries=0) as on, pytest.raises(IncompleteError) as caught:
        runner(on)(wrong, processor_instance=Names())
    said = str(caught.value)
    place = Path(real["dy"][0]).parents[1]
    assert f"{NAMES}none.root" in said
    assert f"(read as {place}/none.root)" in said
    with executor(here, retries=0) as on, pytest.warns(UserWarning, match="1 of 3 files skipped"):
        assert runner(on, skipbadfiles=True)(wrong, processor_instance=Names())["n"] == 500


def test_addresses_that_are_mapped_already_stay(here):
    site, named, _ = here
    given = executors.as_read(named, on="futures/near", site_file=site)
    with executor(here) as on:
        assert runner(on)(given, processor_instance=Names())["n"] == 570


def test_a_runner_with_ways_of_its_own_is_told_and_left_alone(here):
    class Other(Runner):
        @staticmethod
        def metadata_fetcher_root(timeout, align, options, item):
            seen.append(item.filename)
            return Runner.metadata_fetcher_root(timeout, align, options, item)

    seen = []
    site, named, _ = here
    about = {"executor": executor(here, "iterative", retries=0), "schema": BaseSchema, "metadata_cache": {}}
    with pytest.warns(UserWarning, match=r"executors\.as_read\(fileset, on='iterative/near'\)"):
        with pytest.raises(IncompleteError):
            Other(**about)(named, processor_instance=Names())
    assert all(name.startswith(NAMES) for name in seen)
    mapped = executors.as_read(named, on="iterative/near", site_file=site)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Other(**about)(mapped, processor_instance=Names())["n"] == 570


def test_what_the_site_cannot_read_is_said_before_anything_starts(here, monkeypatch, tmp_path):
    for name in ("XRD_PLUGIN", "XRD_PLUGINCONFDIR", "XCACHE_HOST"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "c.toml").write_text(
        'inherits = "local"\nengines = ["iterative", "futures"]\n[urls]\ncache = "xcache"\n'
    )
    on = executors.for_coffea("futures/c", site_file=tmp_path / "c.toml", status=False)
    with on, pytest.raises(SiteError, match="export XCACHE_HOST=HOST"):
        runner(on)(here[1], processor_instance=Names())
    assert not on.session.is_open
    with executor(here) as other, pytest.raises(FilesetError, match="write root://"):
        runner(other)({"dy": ["roots://h//a.root"]}, processor_instance=Names(), treename="Events")


def test_where_nothing_is_mapped_any_name_passes_as_with_coffea(tmp_path):
    (made,) = make_fileset(tmp_path, {"dy": [40]})["dy"]["files"]
    odd = tmp_path / "a b:c.root"
    shutil.copyfile(made, odd)
    with executors.for_coffea("futures", workers=1, status=False) as on:
        out = runner(on)({"dy": [str(odd), f"simplecache::file://{made}"]}, Names(), treename="Events")
    assert out["n"] == 80


QUICK = {"XRD_CONNECTIONWINDOW": "1", "XRD_CONNECTIONRETRY": "1", "XRD_TIMEOUTRESOLUTION": "1"}


def test_the_client_is_told_the_sites_time_outs(here, monkeypatch):
    from executors.coffea import adapter_reach, xrootd

    told, forgotten = [], []
    monkeypatch.setattr(xrootd, "forget", forgotten.append)
    monkeypatch.setattr(adapter_reach, "settle", lambda values: told.append(values) or xrootd.settle(QUICK))
    monkeypatch.delenv("XRD_REQUESTTIMEOUT", raising=False)
    with executor(here, "iterative", retries=0) as on, pytest.raises(IncompleteError):
        runner(on, xrootdtimeout=1)({"dy": ["root://127.0.0.1:1//a.root"]}, Names(), treename="Events")
    assert forgotten == ["root://127.0.0.1:1//a.root"], "a second try would be given the broken handle"
    assert told
    assert {values["XRD_REQUESTTIMEOUT"] for values in told} == {"7"}
