"""Addresses as a site reads them: the cache's rule, prefixes, mounts, kinds; what the XRootD client is told."""

import json
import os
import string
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import pytest
from data import make_fileset
from hypothesis import given, settings
from hypothesis import strategies as st

from executors import addresses
from executors.errors import FilesetError, SiteError
from executors.running import execute
from executors.settings import resolve
from executors.work.report import Silent
from sites.profile import SiteProfile, Urls, XRootD
from sites.urls import as_read, is_xrootd, mapping, server_of, xrootd_env

PLUGIN = {"XRD_PLUGINCONFDIR": "/etc/xrdcl"}
CASA = SiteProfile(name="casa", urls=Urls(cache="$XCACHE_HOST"))


def site(**urls):
    if "rewrite" in urls:
        urls["rewrite"] = MappingProxyType(urls["rewrite"])
    return SiteProfile(name="here", urls=Urls(**urls))


@pytest.mark.parametrize(
    "url",
    [
        "root://xrootd-cms.infn.it/store/a.root",
        "root://xrootd-cms.infn.it//store/a.root",
        "root://xrootd-cms.infn.it///store/a.root",
        "root://xrootd-cms.infn.it:1194//store/a.root",
        "root://maite.iihe.ac.be/store/a.root",
        "root://u@h:1//store/a.root",
        "root://[::1]:1094//store/a.root",
        "ROOT://H//store/a.root",
        "xroot://h//store/a.root",
        "roots://h//store/a.root",
        "root://eoscms.cern.ch//eos/cms/store/a.root",
        "root://eoscms.cern.ch/eos/cms/store/a.root",
        "root://xcache//store/a.root",
        "root://xcache/store/a.root",
        "root://XCache:1094//store/a.root",
    ],
)
def test_at_casa_every_store_path_comes_through_the_cache(url):
    assert as_read(url, CASA, PLUGIN) == "root://xcache//store/a.root"
    assert as_read(f"{url}?x=1&y=a//b", CASA, PLUGIN) == "root://xcache//store/a.root?x=1&y=a//b"


@pytest.mark.parametrize(
    "url",
    [
        "/eos/cms/store/a.root",
        "/store/a.root",
        "a.root",
        "data:/store/a.root",
        "https://h//store/a.root",
        "root://eosuser.cern.ch//eos/user/a/store/a.root",
        "root://eospublic.cern.ch//eos/opendata/cms/a.root",
        "root://h//storefront/a.root",
        "root://h//eos/cms/storefront/a.root",
        "root://h//a/store/b.root",
        "root://c//root://o//store/a.root",
        "root://c/root://o//store/a.root?x=1",
        "root://xcache.af.uchicago.edu//store/a.root",
        "root://red-xcache1.unl.edu:1094//store/a.root",
        "root://h//store/../eos/user/a/b.root",
        "root://h//eos/cms/store/x/../../../user/a/b.root",
        "file:///store/a.root",
        "root://h//store",
        "root://h",
    ],
)
def test_at_casa_the_rest_is_left_alone(url):
    assert as_read(url, CASA, PLUGIN) == url


@pytest.mark.parametrize(
    "name",
    [
        "a b.root",
        "a%20b.root",
        "é.root",
        "a.root#x",
        "a//b.root",
        "./a.root",
        "a.root:Events",
        "*.root",
        "a..b.root",
        "",
    ],
)
def test_names_below_store_are_left_as_they_are(name):
    """What they mean is for who reads them; two spellings are never made one here."""
    assert as_read(f"root://h:1//store/{name}", CASA, PLUGIN) == f"root://xcache//store/{name}"
    here = site(rewrite={"root://h:1//store/": "/mnt/"})
    assert as_read(f"root://h:1//store/{name}", here, {}) == f"/mnt/{name}"


def test_servers_by_number():
    here = site(
        cache="[2001:db8::1]:1094", rewrite={"root://[2001:db8::2]//": "root://[2001:db8::3]:1095//data/"}
    )
    assert as_read("root://[2001:DB8::7]:2//store/a", here, {}) == "root://[2001:db8::1]:1094//store/a"
    assert as_read("root://[2001:db8::1]//store/a", here, {}) == "root://[2001:db8::1]:1094//store/a"
    assert as_read("root://u@[2001:DB8::2]:1094//x/a", here, {}) == "root://[2001:db8::3]:1095//data/x/a"


@pytest.mark.parametrize(
    ("cache", "env", "server"),
    [
        ("$XCACHE_HOST", {"XRD_PLUGIN": "p.so", "XCACHE_HOST": "c"}, "xcache"),
        ("xcache", {"XRD_PLUGINCONFDIR": "/p"}, "xcache"),
        ("xcache", {"XCACHE_HOST": "c.example"}, "c.example"),
        ("$XCACHE_HOST", {"XCACHE_HOST": "c.example"}, "c.example"),
        ("$XCACHE_HOST", {"XCACHE_HOST": "c.example", "XCACHE_PORT": "1095"}, "c.example:1095"),
        ("${XCACHE_HOST}", {"XCACHE_HOST": "c.example", "XCACHE_PORT": "1095"}, "c.example:1095"),
        ("$XCACHE_HOST", {"XCACHE_HOST": "c.example:7", "XCACHE_PORT": "1095"}, "c.example:7"),
        ("$XCACHE_HOST", {"XCACHE_HOST": "[::1]", "XCACHE_PORT": "1095"}, "[::1]:1095"),
        ("127.0.0.1:2345", {}, "127.0.0.1:2345"),
        ("127.0.0.1:2345", {"XCACHE_PORT": "1", "XRD_PLUGIN": "p"}, "127.0.0.1:2345"),
        ("$MY_CACHE:${MY_PORT}", {"MY_CACHE": "m", "MY_PORT": "9"}, "m:9"),
    ],
)
def test_which_cache(cache, env, server):
    assert as_read("root://h//store/a", site(cache=cache), env) == f"root://{server}//store/a"


@pytest.mark.parametrize(
    ("cache", "env", "named"),
    [
        ("$XCACHE_HOST", {}, "export XCACHE_HOST=HOST[:PORT], or XRD_PLUGINCONFDIR"),
        ("xcache", {"XCACHE_HOST": ""}, "export XCACHE_HOST=HOST[:PORT]"),
        ("$MY_CACHE:1094", {}, "export MY_CACHE=HOST;"),
    ],
)
def test_a_cache_that_nobody_names(cache, env, named):
    with pytest.raises(SiteError) as error:
        as_read("root://h//store/a", site(cache=cache), env)
    assert named in error.value.message
    assert "'here'" in error.value.message
    # Who reads nothing through it needs none.
    assert as_read("/data/a.root", site(cache=cache), env) == "/data/a.root"


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("root://o//eos/opendata/a", "root://c:1//root://o//eos/opendata/a"),
        ("root://o:77/store/a?x=1", "root://c:1//root://o:77//store/a?x=1"),
        ("root://c:1//store/a", "root://c:1//store/a"),
        ("root://c:1//root://o//store/a", "root://c:1//root://o//store/a"),
        ("root://eosuser.cern.ch//eos/user/a/b", "root://eosuser.cern.ch//eos/user/a/b"),
        ("root://eoshome-a.cern.ch//eos/home-a/b", "root://eoshome-a.cern.ch//eos/home-a/b"),
        ("/data/a", "/data/a"),
    ],
)
def test_a_cache_that_is_told_the_origin(url, read):
    assert as_read(url, site(cache="c:1", cache_form="prefix"), {}) == read


RULES = {
    "root://eosuser.cern.ch//eos/": "/eos/",
    "root://eosuser.cern.ch//eos/user/z/": "/scratch/z",
    "root://xrootd-cms.infn.it/": "root://xrootd-cms.infn.it//cache",
    "root://old.example": "root://new.example:1095//data/",
    "/eos/uscms": "root://cmseos.fnal.gov/",
    "https://h/a/": "https://h/b/",
    "root://chain//": "root://old.example//",
}


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("root://eosuser.cern.ch//eos/user/a/b.root", "/eos/user/a/b.root"),
        ("root://eosuser.cern.ch:1094/eos/user/a/b.root?authz=x", "/eos/user/a/b.root"),
        ("xroot://me@EOSUSER.cern.ch//eos/a", "/eos/a"),
        ("root://eosuser.cern.ch:1095//eos/a", "root://eosuser.cern.ch:1095//eos/a"),
        ("root://eosuser.cern.ch//eos/user/z/b.root", "/scratch/z/b.root"),
        ("root://eosuser.cern.ch//eosuser/b.root", "root://eosuser.cern.ch//eosuser/b.root"),
        ("root://xrootd-cms.infn.it//store/a", "root://xrootd-cms.infn.it//cache/store/a"),
        ("root://old.example/x/y?q", "root://new.example:1095//data/x/y?q"),
        ("root://old.example.org/x/y", "root://old.example.org/x/y"),
        ("/eos/uscms/store/a", "root://cmseos.fnal.gov//store/a"),
        ("/eos/uscmsx/a", "/eos/uscmsx/a"),
        ("/eos/other/a", "/eos/other/a"),
        ("https://h/a/x?t=1", "https://h/b/x?t=1"),
        ("root://chain//f", "root://new.example:1095//data/f"),
        ("root://c//root://old.example//x", "root://c//root://old.example//x"),
    ],
)
def test_prefixes_and_mounts(url, read):
    assert as_read(url, site(rewrite=RULES), {}) == read
    assert as_read(read, site(rewrite=RULES), {}) == read


def test_prefixes_come_before_the_cache_and_never_after():
    rules = {"/eos/cms": "root://eoscms.cern.ch//eos/cms", "root://c//": "root://elsewhere//"}
    here = site(rewrite=rules, cache="c")
    assert as_read("/eos/cms/store/a", here, {}) == "root://c//store/a"
    assert as_read("root://c//store/a", here, {}) == "root://c//store/a"


def test_rules_that_go_in_a_circle_are_named():
    here = site(rewrite={"root://a//": "root://b//", "root://b//": "root://a//"})
    with pytest.raises(FilesetError, match=r"in a circle .*root://a// = root://b//"):
        as_read("root://a//x", here, {})
    assert as_read("root://c//x", here, {}) == "root://c//x"


@pytest.mark.parametrize(
    ("schemes", "url", "said"),
    [
        (("file", "root"), "https://h/a.root", "https:// addresses cannot be read at the site 'here'"),
        (("root",), "/data/a.root", "local files cannot be read at the site 'here'; there: root"),
        (("file",), "XROOT://h//a", "root:// addresses"),
        (("file", "root", "roots"), "roots://h//a", "write root://"),
        (("file", "root"), "root:///store/a", "no server is named: write root://HOST//store/a"),
    ],
)
def test_what_a_site_cannot_read_is_said_by_name(schemes, url, said):
    with pytest.raises(FilesetError) as error:
        as_read(url, site(schemes=schemes), {})
    assert url in error.value.message
    assert said in error.value.message


def test_a_mount_makes_an_address_a_local_file():
    here = site(schemes=("file",), rewrite={"root://e//eos/": "/eos/"})
    assert as_read("root://e//eos/a", here, {}) == "/eos/a"
    only_root = site(schemes=("root",), rewrite={"/eos/": "root://e//eos/"})
    assert as_read("/eos/a", only_root, {}) == "root://e//eos/a"


def test_readers_know_one_scheme_only():
    assert as_read("xroot://Host:1094//a", site(), {}) == "root://Host:1094//a"
    assert as_read("root://Host:1094/a", site(), {}) == "root://Host:1094/a"


def test_mapping_holds_only_what_differs():
    files = [("/a", "/a"), ("root://h//store/b", "root://h//store/b?authz=T"), ("root://h//c", "root://h//c")]
    assert mapping(files, site(), {}) == {"root://h//store/b": "root://h//store/b?authz=T"}
    assert mapping(files, site(cache="c"), {}) == {"root://h//store/b": "root://c//store/b?authz=T"}


def test_servers():
    assert server_of("root://u@Host:1//a") == "host:1"
    assert server_of("/a/b") is None
    assert is_xrootd("xroots://h//a")
    assert not is_xrootd("https://h//a")


def test_the_clients_time_outs():
    values = xrootd_env(
        XRootD(connection_window=7, request_timeout=20), {"XRD_STREAMTIMEOUT": "99", "X": "1"}
    )
    assert values["XRD_CONNECTIONWINDOW"] == "7"
    assert values["XRD_REQUESTTIMEOUT"] == "20"
    assert values["XRD_STREAMTIMEOUT"] == "99", "the user's own wins"
    assert all(name.startswith("XRD_") and value.isdecimal() for name, value in values.items())


SETTLED = """
import XRootD.client as client
from executors.coffea.analysis import CoffeaAnalysis
from executors.work.model import FileSlice

told = {"XRD_STREAMERRORWINDOW": "0", "XRD_REQUESTTIMEOUT": "9", "XRD_STREAMTIMEOUT": "5", "XRD_X": "no number"}
analysis = CoffeaAnalysis(len, {"d": {}}, client=told, timeout=1)
piece = FileSlice(0, "a.root", "Events", "", 1, 0, ((0, 1),), url="root://nowhere.invalid//a.root")
try:
    with analysis.open("d", piece):
        pass
except OSError:
    print(*(client.EnvGetInt(name) for name in ("StreamErrorWindow", "RequestTimeout", "StreamTimeout")))
"""


def test_a_client_that_is_loaded_already_is_told_too_and_the_users_own_wins():
    """As in workers that a site has started itself, and in notebooks."""
    pytest.importorskip("XRootD")
    env = {k: v for k, v in os.environ.items() if not k.startswith("XRD_")} | {"XRD_STREAMTIMEOUT": "77"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SETTLED],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["0", "9", "77"], done.stderr


# -- whatever is given ------------------------------------------------------------------------------

HOSTS = st.sampled_from(["h", "H:1094", "u@h", "xcache", "c:1", "c", "eosuser.cern.ch", "[::1]:1094", ""])
PATHS = st.lists(st.sampled_from(["/", "store", "eos", "cms", "user", "a.root", ":", "root:", "?", "x=1"]))
URLS = st.one_of(
    st.builds(
        lambda scheme, host, path: f"{scheme}://{host}/{''.join(path)}",
        st.sampled_from(["root", "xroot", "roots", "ROOT", "https", "file", "s3"]),
        HOSTS,
        PATHS,
    ),
    st.text(),
    st.text(alphabet="/:?@ro t" + string.ascii_letters),
)
SITES = st.builds(
    lambda cache, form, rewrite: site(cache=cache, cache_form=form, rewrite=rewrite),
    st.sampled_from([None, "c:1", "xcache", "$XCACHE_HOST"]),
    st.sampled_from(["direct", "prefix"]),
    st.dictionaries(
        URLS | st.sampled_from(list(RULES)), URLS | st.sampled_from(list(RULES.values())), max_size=3
    ),
)
ENVIRONMENTS = st.sampled_from([PLUGIN, {"XCACHE_HOST": "c", "XCACHE_PORT": "1"}])


@settings(max_examples=600, deadline=None)
@given(URLS, SITES, ENVIRONMENTS)
def test_once_read_always_so(url, here, env):
    try:
        read = as_read(url, here, env)
    except FilesetError as error:
        assert url[:20] in error.message
        return
    assert as_read(read, here, env) == read


def test_a_rule_that_makes_an_address_without_a_server_is_refused():
    with pytest.raises(FilesetError, match=r"urls\.rewrite makes root:////x/a of it, which names no server"):
        as_read("root://h//a", site(rewrite={"root://h/": "root:///x/"}), {})


# -- names without what only says who asks ----------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "public"),
    [
        ("root://h//a?authz=Bearer%20SECRET", "root://h//a"),
        ("root://h//a?x=1&authz=SECRET&y=2", "root://h//a?x=1&y=2"),
        ("root://u:SECRET@h:1//a?x=1", "root://u@h:1//a?x=1"),
        ("root://u@h//a", "root://u@h//a"),
        ("https://h/a?X-Amz-Date=1&X-Amz-Signature=SECRET&v=2", "https://h/a?v=2"),
        ("https://h/a?access_token=SECRET", "https://h/a"),
        ("https://h/a?sig=SECRET&sv=1", "https://h/a?sv=1"),
        ("root://h//a?x=1", "root://h//a?x=1"),
        ("root://c//root://o//a?authz=SECRET", "root://c//root://o//a"),
        ("/data/a?authz=1", "/data/a?authz=1"),
        ("/data/a@b://c?authz=1", "/data/a@b://c?authz=1"),
    ],
)
def test_names_of_files_hold_no_secret(given_, public):
    assert addresses.public(given_) == public
    assert addresses.public(public) == public
    if given_.startswith(("root", "https")):
        plain = public.replace("u@", "")
        assert addresses.identity(given_) == addresses.identity(plain)


LEAKS = """
from analyses import Sum

class Leaks(Sum):
    def fault(self, events):
        raise ValueError("no answer of https://h/corrections.json?authz=CANARYcanary")
"""


def test_what_an_analysis_says_is_written_without_tokens(tmp_path):
    (tmp_path / "leaks.py").write_text(LEAKS)
    (tmp_path / "fs.json").write_text(json.dumps(make_fileset(tmp_path / "data", {"dy": [50]})))
    asked = resolve(
        wf=f"{tmp_path / 'leaks.py'}:Leaks", json=str(tmp_path / "fs.json"), executor="iterative",
        outputdir=tmp_path / "out", cache=tmp_path / "cache",
    ).settings  # fmt: skip
    assert execute(asked).exit_code == 1
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"journal.jsonl", "failed.json"} <= {path.name for path in written}
    # The analysis itself travels as it is, its own text in it.
    told = [path for path in written if path.parent.name != "job"]
    assert not [path for path in told if b"CANARYcanary" in path.read_bytes()]


@settings(max_examples=300, deadline=None)
@given(st.text() | URLS)
def test_any_text_has_a_public_form(text):
    assert addresses.public(addresses.public(text)) == addresses.public(text)


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def message(self, level, text):
        self.said.append((level, text))


@pytest.mark.parametrize(
    ("others", "twins"),
    [
        (["root://b.invalid//store/nano_0.root"], 1),
        (["root://a.invalid:1094/store/nano_0.root"], 0),  # another spelling: it is counted once
        (["root://b.invalid//store/nano_1.root"], 0),
        (["root://b.invalid//store/nano_0.root", "root://c.invalid//store/nano_0.root"], 2),
    ],
)
def test_one_file_under_two_names_is_said(tmp_path, others, twins):
    """Two servers of one file, or one cache for both: all names stay, and nothing is counted twice in silence."""
    make_fileset(tmp_path / "data", {"dy": [50, 50]})
    mounts = "".join(f'"root://{s}.invalid//store/" = "{tmp_path}/data/dy/"\n' for s in "abc")
    (tmp_path / "near.toml").write_text(
        f'inherits = "local"\nengines = ["iterative"]\n[urls.rewrite]\n{mounts}'
    )
    names = ["root://a.invalid//store/nano_0.root", *others]
    (tmp_path / "fs.json").write_text(json.dumps({"dy": names, "tt": names[:1]}))
    asked = resolve(
        wf=f"{Path(__file__).parents[1] / 'analyses.py'}:Sum", json=str(tmp_path / "fs.json"),
        executor="iterative/near", site_file=str(tmp_path / "near.toml"), outputdir=tmp_path / "out",
        cache=tmp_path / "cache",
    ).settings  # fmt: skip
    heard = Heard()
    assert execute(asked, observer=heard).exit_code == 0
    said = [text for level, text in heard.said if level == "warning" and "are the same file" in text]
    assert len(said) == (twins > 0)
    if twins:
        assert said[0].startswith(f"dataset 'dy': {names[0]} and {names[1]} are the same file")
        assert (f"({twins} such files)" in said[0]) == (twins > 1)


def test_a_fileset_for_coffeas_own_runner(monkeypatch):
    import executors

    monkeypatch.setenv("XCACHE_HOST", "cache.example")
    for name in ("XRD_PLUGIN", "XRD_PLUGINCONFDIR"):
        monkeypatch.delenv(name, raising=False)
    fileset = {
        "plain": ["root://x//store/a.root", "/local/b.root"],
        "coffea": {"files": {"root://y:1094//store/c.root": "Events"}, "metadata": {"year": 2022}},
        "list": {"files": ["root://x//store/d.root"], "treename": "T"},
    }
    kept = repr(fileset)
    assert executors.as_read(fileset, on="dask/casa") == {
        "plain": ["root://cache.example//store/a.root", "/local/b.root"],
        "coffea": {"files": {"root://cache.example//store/c.root": "Events"}, "metadata": {"year": 2022}},
        "list": {"files": ["root://cache.example//store/d.root"], "treename": "T"},
    }
    assert repr(fileset) == kept
    assert executors.as_read(fileset, on="futures") == fileset
