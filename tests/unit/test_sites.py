"""Site profiles: data, checked, with errors that name the file, the key and what would be right."""

import contextlib
import dataclasses
import random
import string

import pytest

from executors.errors import UnknownNameError, UsageError
from sites import profile, values
from sites.profile import load_site, site_names


def write(folder, name, text):
    (folder / f"{name}.toml").write_text(text)


def test_every_shipped_site_loads():
    assert site_names() == sorted(site_names())
    assert "local" in site_names()
    for name in site_names():
        assert load_site(name).name == name


def test_local_is_this_machine():
    local = load_site("local")
    assert local.engines == ("dask", "parsl")
    assert local.shares_store
    assert local.resources.cores == 1
    assert local.scheduler is None


def test_profile_is_frozen_throughout(tmp_path):
    write(tmp_path, "one", '[directives]\n"+JobFlavour" = "workday"\n[env]\nA = "b"\n')
    site = load_site("one", tmp_path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        site.scheduler = "x"
    with pytest.raises(TypeError):
        site.directives["x"] = 1
    with pytest.raises(TypeError):
        site.env["x"] = "1"


def test_every_section_reads(tmp_path):
    resources = '[resources]\ncores = 2\nmemory = "2GB"\n'
    write(tmp_path, "base", f'scheduler = "condor"\n{resources}[env]\nA = "1"\nB = "1"\n')
    write(
        tmp_path,
        "heir",
        """
        inherits = "base"
        description = "a site"
        engines = ["dask"]
        shares_store = false
        detect = { hostname = "lxplus*.cern.ch" }
        ports = { scheduler = [8786, 8786], worker = [10000, 10100] }
        [resources]
        memory = "4GiB"
        disk = 1000
        walltime = "8h"
        [directives]
        "+JobFlavour" = "workday"
        priority = 3
        flag = true
        [urls]
        schemes = ["root"]
        rewrite = { "root://a/" = "root://b/" }
        [proxy]
        kind = "x509"
        path = "~/x"
        lifetime = "2d"
        [limits]
        jobs = 100
        submissions_per_second = 0.5
        polls_per_minute = 6
        [env]
        B = "2"
        """,
    )
    site = load_site("heir", tmp_path)
    assert site.scheduler == "condor"
    assert site.resources == profile.SiteResources(2, 4 * 2**30, 1000, 8 * 3600.0)
    assert site.ports == profile.SitePorts((8786, 8786), (10000, 10100))
    assert site.detect.hostname == ("lxplus*.cern.ch",)
    assert dict(site.directives) == {"+JobFlavour": "workday", "priority": 3, "flag": True}
    assert dict(site.urls.rewrite) == {"root://a/": "root://b/"}
    assert site.proxy.lifetime == 2 * 86400
    assert site.limits == profile.Limits(100, 0.5, 6.0)
    assert dict(site.env) == {"A": "1", "B": "2"}
    assert not site.shares_store


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("shedulers = 1", "scheduler"),
        ("inherit = 'x'", "inherits"),
        ("name = 'x'", "name"),
        ("[resources]\nmemry = 1", "resources.memory"),
        ("[resources]\nmemory = 'lots'", "resources.memory"),
        ("[resources]\nmemory = -1", "resources.memory"),
        ("[resources]\nmemory = true", "resources.memory"),
        ("[resources]\ncores = 0", "resources.cores"),
        ("[resources]\ncores = 1.5", "resources.cores"),
        ("[resources]\nwalltime = 'a day'", "resources.walltime"),
        ("[resources]\nwalltime = inf", "resources.walltime"),
        ("resources = 3", "resources"),
        ("shares_store = 'yes'", "shares_store"),
        ("engines = 'dask'", "engines"),
        ("engines = [1]", "engines"),
        ("ports = { scheduler = [2, 1] }", "ports.scheduler"),
        ("ports = { scheduler = [true, 5] }", "ports.scheduler"),
        ("ports = { worker = [1, 70000] }", "ports.worker"),
        ('[directives]\nqueue = "a\\nb"', "directives"),
        ("[directives]\nqueue = [1]", "directives"),
        ("[env]\nA = 1", "env"),
        ("inherits = 3", "inherits"),
        ("inherits = 'lokal'", "local"),
        ("a = = b", "TOML"),
    ],
)
def test_a_mistake_is_named(tmp_path, text, says):
    write(tmp_path, "local", "")
    write(tmp_path, "bad", text)
    with pytest.raises(UsageError) as caught:
        load_site("bad", tmp_path)
    assert says in str(caught.value)
    assert "bad" in str(caught.value)


def test_a_mistake_in_a_base_names_the_bases_file(tmp_path):
    write(tmp_path, "base", "[resources]\ncores = 0\n")
    write(tmp_path, "heir", "inherits = 'base'\n[resources]\ncores = 4\n")
    with pytest.raises(UsageError, match=r"base\.toml"):
        load_site("heir", tmp_path)


def test_circles_are_found(tmp_path):
    write(tmp_path, "a", "inherits = 'b'")
    write(tmp_path, "b", "inherits = 'a'")
    with pytest.raises(UsageError, match="a -> b -> a"):
        load_site("a", tmp_path)


@pytest.mark.parametrize("name", ["", "locl", "../local", "local.toml", "LOCAL", "local\n", "/etc/passwd"])
def test_unknown_sites_are_refused(name):
    with pytest.raises(UnknownNameError):
        load_site(name)


@pytest.mark.parametrize(
    ("given", "found"),
    [("2GB", 2 * 10**9), ("2 gib", 2**31), ("1.5k", 1500), ("7", 7), (7, 7), ("1TiB", 2**40)],
)
def test_sizes(given, found):
    assert values.size(given) == found


@pytest.mark.parametrize(
    "given", ["", "GB", "2XB", "2GB\n", "-2GB", "2,5GB", "٢GB", "0", 0, None, 2.5, True, "ib"]
)
def test_what_is_no_size(given):
    with pytest.raises(ValueError, match=r"a size|1 or more"):
        values.size(given)


@pytest.mark.parametrize(
    ("given", "found"), [("90s", 90), ("8h", 28800), ("1.5d", 129600), (60, 60), (0.5, 0.5)]
)
def test_spans(given, found):
    assert values.span(given) == found


@pytest.mark.parametrize("given", ["", "8", "8hours", "-1h", "0s", True, float("nan"), float("inf"), None])
def test_what_is_no_span(given):
    with pytest.raises(ValueError, match="a time"):
        values.span(given)


def test_mutated_profiles_fail_clearly_or_load(tmp_path):
    good = 'scheduler = "slurm"\nengines = ["dask"]\n[resources]\nmemory = "2GB"\n[ports]\nworker = [1, 2]\n'
    chance = random.Random(1)
    for number in range(300):
        text = list(good)
        for _ in range(chance.randint(1, 4)):
            text[chance.randrange(len(text))] = chance.choice(string.printable)
        write(tmp_path, f"m{number}", "".join(text))
        with contextlib.suppress(UsageError):  # anything else is a traceback for the user
            load_site(f"m{number}", tmp_path)
