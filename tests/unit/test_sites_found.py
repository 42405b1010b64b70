"""Where profiles come from: which one wins, which ones are refused, and how a machine's site is found."""

import json
import os
import random
import string
import sys
from importlib.metadata import EntryPoint

import pytest

from executors import registry, site_words
from executors.errors import UnknownNameError, UsageError
from sites import detect, find
from sites.profile import FOLDER, Layer, load

MINE = 'inherits = "slurm"\ndescription = "mine"\n[job]\nqueue = "mine"\n'


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """A folder of the run and a folder of the user, both empty."""
    run, home = tmp_path / "run", tmp_path / "config" / "coffea-scaleout" / "sites"
    run.mkdir()
    home.mkdir(parents=True)
    monkeypatch.chdir(run)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return run, home


def put(path, text, mode=0o644):
    path.write_text(text)
    path.chmod(mode)
    return path


def test_later_places_win(places, tmp_path):
    run, home = places
    put(home / "mine.toml", MINE.replace('"mine"', '"home"'))
    assert find.find("mine").profile.job.queue == "home"
    put(run / "mine.site.toml", MINE.replace('"mine"', '"run"'))
    assert find.find("mine").profile.job.queue == "run"
    given = put(tmp_path / "mine.toml", MINE.replace('"mine"', '"given"'))
    assert find.find("mine", given).profile.job.queue == "given"
    assert "mine" in find.names(find.layers())


def test_a_toml_file_that_is_no_site_file_is_left_alone(places):
    run, _ = places
    put(run / "run.toml", "nonsense = 1")
    assert "run" not in find.names(find.layers())


def test_without_a_folder_of_ones_own(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert find.user_folder(os.environ) == tmp_path / ".config" / "coffea-scaleout" / "sites"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")  # has to be ignored, says its specification
    assert find.user_folder(os.environ) == tmp_path / ".config" / "coffea-scaleout" / "sites"
    monkeypatch.delenv("HOME")
    assert "slurm" in find.names(find.layers())


def test_origins_name_the_file(places):
    _, home = places
    put(home / "mine.toml", MINE)
    found = find.find("mine")
    assert found.origins["job.queue"] == "~/config/coffea-scaleout/sites/mine.toml"
    assert found.origins["scheduler"] == "sites/slurm.toml"
    assert found.origins["resources.memory"] == "sites/_batch.toml"
    assert found.inherits == ("slurm", "_batch")


def test_a_file_may_begin_with_what_it_hides_and_that_is_said(places):
    _, home = places
    put(home / "lxplus.toml", 'inherits = "lxplus"\n[resources]\nmemory = "3GB"\n')
    found = find.find("lxplus")
    assert found.profile.resources.memory == 3 * 10**9
    assert found.profile.detect.hostname == ("lxplus*.cern.ch",)
    assert found.profile.job.queue == "workday"
    assert found.hides == FOLDER / "lxplus.toml"
    placed = registry.place("dask/lxplus")
    assert "not" in placed.warnings[0]
    assert str(FOLDER / "lxplus.toml") in placed.warnings[0]
    assert placed.site.resources.memory == 3 * 10**9
    assert "hides" in site_words.listed()
    assert "hides" in site_words.shown("lxplus")


def test_who_inherits_a_hidden_name_gets_the_one_that_wins(places):
    _, home = places
    put(home / "slurm.toml", 'inherits = "slurm"\n[job]\nqueue = "ours"\n')
    assert find.find("psi").profile.job.queue == "standard"
    assert find.find("uf").profile.job.queue == "ours"


def test_what_speaks_of_one_site_is_not_inherited(places):
    run, _ = places
    put(run / "near.site.toml", 'inherits = "lxplus"\n')
    near = find.find("near").profile
    assert near.detect.hostname == ()
    assert near.old_names == ()
    assert near.description == ""
    assert near.fixed == find.find("lxplus").profile.fixed
    assert near.notes == find.find("lxplus").profile.notes


def test_doubts_are_inherited_until_the_key_is_set(places):
    run, _ = places
    put(run / "a.site.toml", 'inherits = "psi"\nunverified = ["job.queue"]\n')
    assert find.find("a").profile.unverified == ("job.scratch", "job.queues", "ports", "job.queue")
    put(
        run / "b.site.toml",
        'inherits = "psi"\n[job]\nscratch = "/tmp"\nqueues = { a = "1h" }\nqueue = "a"\n[resources]\nwalltime = "1h"\n[ports]\nworker = 7\n',
    )
    assert find.find("b").profile.unverified == ()


def test_an_empty_text_takes_back_what_is_inherited(places):
    run, _ = places
    put(run / "a.site.toml", 'inherits = "psi"\n[job]\nqueue = ""\n[resources]\nwalltime = ""\n')
    found = find.find("a").profile
    assert (found.job.queue, found.resources.walltime) == (None, None)


@pytest.mark.parametrize("mode", [0o664, 0o666, 0o646, 0o622])
def test_a_file_that_others_can_write_is_refused(places, mode):
    run, home = places
    for path in (home / "mine.toml", run / "mine.site.toml"):
        put(path, MINE, mode)
        with pytest.raises(UsageError, match=r"chmod go-w .*mine"):
            find.find("mine")
        path.chmod(0o644)
        assert find.find("mine").profile.job.queue == "mine"
        path.unlink()


def test_a_base_that_others_can_write_is_refused_as_well(places):
    run, home = places
    put(home / "base.toml", MINE, 0o666)
    put(run / "heir.site.toml", 'inherits = "base"\n')
    with pytest.raises(UsageError, match=r"chmod go-w .*base"):
        find.find("heir")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_another_user_is_refused(places, tmp_path):
    run, _ = places
    path = put(run / "mine.site.toml", MINE)
    os.chown(path, 12345, 12345)
    with pytest.raises(UsageError, match=r"another user \(id 12345\).* cp "):
        find.find("mine")
    link = tmp_path / "linked.toml"
    link.symlink_to(path)
    with pytest.raises(UsageError, match="another user"):
        find.find("linked", link)


def test_no_ordinary_file_is_refused_and_nothing_hangs(places):
    run, _ = places
    os.mkfifo(run / "pipe.site.toml")
    with pytest.raises(UsageError, match="no ordinary file"):
        find.find("pipe")
    (run / "folder.site.toml").mkdir()
    with pytest.raises(UsageError, match="ordinary|directory"):
        find.find("folder")
    (run / "gone.site.toml").symlink_to("nowhere")
    with pytest.raises(UsageError, match="cannot be read"):
        find.find("gone")


def test_too_large_or_too_deep_is_refused(places):
    run, _ = places
    put(run / "big.site.toml", "#" * 1_000_001)
    with pytest.raises(UsageError, match="1 MB"):
        find.find("big")
    put(run / "deep.site.toml", "notes = " + "[" * 100_000)
    with pytest.raises(UsageError, match="TOML"):
        find.find("deep")


def test_a_file_that_cannot_be_used_is_listed_with_the_reason_and_stops_nobody(places):
    run, _ = places
    put(run / "bad.site.toml", "nonsense = 1")
    put(run / "auto.site.toml", MINE)
    text = site_words.listed()
    assert "nonsense" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "dask/slurm" in registry.names()
    assert registry.split("dask/slurm") == ("dask", "slurm")
    assert registry.split("auto")
    assert "auto" not in find.names(find.layers())


def test_a_file_whose_name_cannot_be_a_sites_is_said(places):
    run, home = places
    put(home / "MyCluster.toml", MINE)
    put(run / "auto.site.toml", MINE)
    put(run / "Other.site.toml", MINE)
    put(run / "plain.toml", MINE)
    said = " ".join(site_words.listed().split())
    for name in ("MyCluster.toml", "Other.site.toml"):
        assert f"{name} is left out: a site's name has small letters" in said
    assert "auto.site.toml is left out: a site's name cannot be 'auto'" in said
    for ask in (lambda: find.find("mycluster"), lambda: registry.place("dask/mycluster")):
        with pytest.raises(UnknownNameError, match=r"MyCluster\.toml is left out"):
            ask()
    for ask in (lambda: find.find("plain"), lambda: registry.place("dask/plain")):
        with pytest.raises(UnknownNameError, match=r"--site-file plain\.toml, or call it plain\.site\.toml"):
            ask()
    with pytest.raises(UnknownNameError) as caught:
        find.find("nothing")
    assert "left out" not in caught.value.message
    put(run / "me.site.toml", 'inherits = "me"\n')
    with pytest.raises(UsageError, match=r"me\.site\.toml: it inherits its own name, and no other site"):
        find.find("me")


def test_a_profile_that_no_engine_can_use_is_said(places):
    run, _ = places
    put(run / "bare.site.toml", "[resources]\ncores = 2\n")
    put(run / "odd.site.toml", 'inherits = "local"\nengines = ["dsk"]\n')
    found = {row["name"]: row for row in json.loads(site_words.listed(as_json=True))["sites"]}
    assert (found["bare"]["usable"], "engines = [" in found["bare"]["why"]) == (False, True)
    assert (found["odd"]["usable"], "did you mean 'dask'" in found["odd"]["why"]) == (False, True)
    with pytest.raises(UsageError, match=r'names none: engines = \["dask"\]'):
        registry.place("dask/bare")


@pytest.mark.parametrize("name", ["My Site.toml", "UPPER.toml", "auto.toml", "x.txt", ".toml", "-x.toml"])
def test_a_site_file_has_a_name_that_can_be_typed(tmp_path, name):
    with pytest.raises(UsageError, match="--site-file"):
        find.find("x", put(tmp_path / name, MINE))


def test_a_site_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        find.find("x", tmp_path / "x.toml")


def test_a_site_file_of_either_ending(tmp_path):
    assert find.find("a", put(tmp_path / "a.toml", MINE)).profile.name == "a"
    assert find.find("a", put(tmp_path / "a.site.toml", MINE)).profile.name == "a"
    placed = registry.place("dask/slurm/a", site_file=tmp_path / "a.toml", overrides={"job.queue": "q"})
    assert placed.site.job.queue == "q"
    assert "mine" in site_words.shown("a", site_file=tmp_path / "a.toml")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that brings sites, by its folder or by a function."""
    folder = tmp_path / "packages" / "brings_sites"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(
        "from pathlib import Path\nHERE = str(Path(__file__).parent)\n"
        "def folder():\n    return HERE\ndef broken():\n    raise RuntimeError('no folder today')\n"
    )
    put(folder / "theirs.toml", MINE)
    put(folder / "slurm.toml", MINE)
    monkeypatch.syspath_prepend(str(folder.parent))

    def register(target):
        points = [EntryPoint("x", target, find.GROUP)]
        monkeypatch.setattr(find, "entry_points", lambda group: points)

    yield register
    sys.modules.pop("brings_sites", None)


@pytest.mark.parametrize("target", ["brings_sites", "brings_sites:folder", "brings_sites:HERE"])
def test_a_package_brings_sites_but_takes_over_none(package, target):
    package(target)
    found = find.find("theirs")
    assert found.profile.job.queue == "mine"
    assert "theirs" in site_words.listed()
    assert find.find("slurm").hides is None
    assert find.find("slurm").profile.job.queue is None


@pytest.mark.parametrize(
    "target", ["not_there_at_all", "brings_sites:broken", "brings_sites:nothing", "json"]
)
def test_a_package_that_fails_stops_nobody(package, target):
    package(target)
    assert find.find("slurm").profile.name == "slurm"
    if target != "json":
        assert len(find.troubles(find.layers())) == 1
        assert "entry point x" in site_words.listed()


# -- which site a machine belongs to ----------------------------------------------------------------

HOSTS = {
    "lxplus812.cern.ch": "lxplus", "LXPLUS9.CERN.CH": "lxplus", "lxplus812.cern.ch.": "lxplus",
    "cmslpc-el9-heavy01.fnal.gov": "lpc", "naf-cms14.desy.de": "naf", "naf-cms-el7.desy.de": "naf",
    "max-display.desy.de": "maxwell", "login23-1.hpc.itc.rwth-aachen.de": "claix",
    "n23m0133.hpc.itc.rwth-aachen.de": "claix", "lx3a17.physik.rwth-aachen.de": "rwth", "t3ui02.psi.ch": "psi",
    "brux20.hep.brown.edu": "brux", "login006.oscar.ccv.brown.edu": "oscar", "submit06.mit.edu": "mit",
    "login01.af.uchicago.edu": "uchicago", "attsub03.sdcc.bnl.gov": "bnl", "earth.crc.nd.edu": "nd",
    "laptop": None, "lxplus": None, "lxplus.cern.ch.evil.org": None, "t3ui.psi.ch": None, "": None,
    "mylxplus1.cern.ch": None, "lxplus*.cern.ch": "lxplus",
}  # fmt: skip


@pytest.mark.parametrize(("host", "site"), HOSTS.items())
def test_hosts(host, site):
    found = detect.detect(host, exists=lambda _: False)
    assert (found.site if found else None) == site
    if found:
        assert host in found.why


def test_markers():
    found = detect.detect("pod-1234", exists=lambda path: path == "/etc/cmsaf-secrets/ca.pem")
    assert found == detect.Detected("casa", "/etc/cmsaf-secrets/ca.pem is there")


def test_the_closest_pattern_wins_and_ones_own_before_all(tmp_path):
    def layer(label, trusted=True, **patterns):
        files = {}
        for name, pattern in patterns.items():
            files[name] = put(
                tmp_path / f"{name}.toml", f'engines = ["dask"]\n[detect]\nhostname = "{pattern}"\n'
            )
        return Layer(label, files, trusted)

    among = [layer("one", wide="*.x.org", close="login*.x.org", other="*.y.org")]
    found = detect.detect("login1.x.org", lambda _: False, among)
    assert (found.site, found.others) == ("close", ("wide",))
    among.append(layer("yours", trusted=False, own="*.org"))
    assert detect.detect("login1.x.org", lambda _: False, among).site == "own"


def test_the_name_service_is_not_waited_for(monkeypatch):
    import threading

    gate = threading.Event()
    monkeypatch.setattr(detect, "PATIENCE", 0.05)
    monkeypatch.setattr(detect.socket, "gethostname", lambda: "short")
    monkeypatch.setattr(detect.socket, "getfqdn", lambda name: gate.wait(20) and "never")
    assert detect.full_hostname() == "short"
    gate.set()
    monkeypatch.setattr(detect.socket, "getfqdn", lambda name: "short.cern.ch")
    assert detect.full_hostname() in ("short", "short.cern.ch")
    monkeypatch.setattr(detect.socket, "gethostname", lambda: "a.b.c")
    assert detect.full_hostname() == "a.b.c"


def at(monkeypatch, host):
    monkeypatch.setattr(detect, "full_hostname", lambda: host)
    monkeypatch.setattr("executors.naming.full_hostname", lambda: host)


def test_auto_says_what_it_chose_and_why(monkeypatch):
    at(monkeypatch, "lxplus812.cern.ch")
    placed = registry.place("auto")
    assert (placed.kind, placed.site.name, placed.warnings) == ("dask", "lxplus", ())
    assert "lxplus*.cern.ch" in placed.why
    assert registry.place("parsl/auto").name == "parsl/lxplus"
    assert registry.place("futures/auto").site.scheduler is None
    at(monkeypatch, "naf-cms14.desy.de")
    assert registry.place("auto").name == "parsl/naf"


def test_auto_where_nothing_is_known(monkeypatch):
    at(monkeypatch, "laptop")
    placed = registry.place("auto")
    assert (placed.name, placed.site.scheduler) == ("futures/local", None)
    assert "laptop" in placed.warnings[0]
    assert registry.place("dask/auto").name == "dask/local"


def test_auto_never_submits_where_no_engine_runs(monkeypatch):
    at(monkeypatch, "login.uscms.org")
    with pytest.raises(UsageError, match="no engine runs"):
        registry.place("auto")
    at(monkeypatch, "purdue-af-12")
    assert registry.place("auto").name == "futures/purdue"
    with pytest.raises(UsageError, match="Gateway"):
        registry.place("dask/auto")


def test_a_generic_name_at_a_known_site_is_remarked(monkeypatch):
    at(monkeypatch, "lxplus812.cern.ch")
    assert "dask/lxplus" in registry.place("dask/condor").warnings[0]
    assert registry.place("dask/brux").warnings == ()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("lxplus", "dask/lxplus"),
        ("dask/lxpuls", "lxplus"),
        ("dask/condor/brx", "brux"),
        ("dask/cndor/brux", "condor"),
        ("dask/slurm/brux", "there: condor"),
        ("dask/brux/condor", "dask/condor/brux"),
        ("futures/slurm", "there: dask/slurm, parsl/slurm"),
        ("parsl/casa", "there: dask/casa"),
        ("dask/ospool", "work alone"),
        ("x/auto", "dask/auto"),
        ("dask/x/auto", "auto"),
        ("auto/lxplus", "lxplus"),
        ("dask/a/b/c", "unknown executor"),
        ("dask//lxplus", "unknown scheduler ''"),
        ("dask/_batch", "unknown site"),
        ("dask/../local", "unknown scheduler"),
        ("parsl/existing/uchicago", "the engine is dask"),
        ("condor_standalone", "dask/condor"),
    ],
)
def test_a_name_that_means_nothing_says_what_is_near(name, says):
    with pytest.raises(UsageError) as caught:
        registry.place(name)
    assert says in caught.value.message


def test_unknown_names_are_unknown_names():
    with pytest.raises(UnknownNameError):
        registry.place("dask/nowhere")


def test_a_base_is_no_site():
    with pytest.raises(UnknownNameError):
        load("_batch", find.layers())


def test_what_a_site_needs_is_asked_for_only_where_jobs_run(monkeypatch):
    monkeypatch.delenv("COFFEA_IMAGE_FULL", raising=False)
    with pytest.raises(UsageError, match=r"--image .*COFFEA_IMAGE_FULL"):
        registry.place("dask/lpc")
    assert registry.place("futures/lpc").site.scheduler is None
    monkeypatch.setenv("COFFEA_IMAGE_FULL", "/cvmfs/x")
    placed = registry.place("dask/lpc")
    assert placed.site.job.image == "/cvmfs/x"
    assert placed.origins["job.image"] == "env COFFEA_IMAGE_FULL"
    with pytest.raises(UsageError, match="--scheduler-address"):
        registry.place("dask/swan")
    assert (
        registry.place("dask/swan", overrides={"dask.address": "tls://a:1"}).site.dask.address == "tls://a:1"
    )


@pytest.mark.parametrize(
    "text",
    [
        "fixed" + ".a" * 5000 + " = 1",
        "a" * 900_000 + " = 1",
        'description = "' + "a" * 900_000 + '\\u0007"',
        "resources = " + "{a = " * 50 + "1" + "}" * 50,
        'detect = { hostname = ["' + "x" * 100_000 + '\\u0000"] }',
        "\ufefflimits = { jobs = -1 }",
    ],
)
def test_hostile_files_are_refused_in_short(places, text):
    run, _ = places
    put(run / "bad.site.toml", text)
    with pytest.raises(UsageError) as caught:
        find.find("bad")
    assert len(caught.value.message) < 2000
    assert caught.value.message.isprintable()


def test_profiles_with_a_few_wrong_letters_load_or_are_refused(places):
    run, _ = places
    chance = random.Random(7)
    good = (FOLDER / "lxplus.toml").read_text()
    for _ in range(150):
        text = list(good)
        for _ in range(chance.randint(1, 5)):
            text[chance.randrange(len(text))] = chance.choice(string.printable)
        put(run / "odd.site.toml", "".join(text))
        try:
            found = find.find("odd")
        except UsageError as error:
            assert len(error.message) < 2000
            continue
        assert found.profile.name == "odd"
