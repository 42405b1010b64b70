"""Every profile that comes with the program: it loads, says where its values are from, and can be used."""

import ast
import dataclasses
import json
import pickle
import re
import tomllib
from pathlib import Path

import pytest

from executors import registry, site_words
from executors.errors import UsageError
from sites import find, overrides, schema, values
from sites.json_schema import json_schema
from sites.profile import FOLDER, built_in, load, load_site, site_names

ROOT = Path(__file__).resolve().parents[2]
NAMES = site_names()
WANTED = [
    "local",
    "condor",
    "slurm",
    "sge",
    "pbs",
    "lsf",
    "lpc",
    "lxplus",
    "casa",
    "naf",
    "naf_lite",
    "maxwell",
    "rwth",
    "claix",
    "psi",
    "brux",
    "oscar",
    "rubin",
    "swan",
    "infn",
    "purdue",
    "purdue_slurm",
    "eaf",
    "uchicago",
    "bnl",
    "ospool",
    "cmsconnect",
    "mit",
    "nd",
    "uf",
]


def toml(name):
    return tomllib.loads((FOLDER / f"{name}.toml").read_text())


def test_the_sites_are_there():
    assert sorted(WANTED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_is_whole(name):
    found = load(name, [built_in()])
    site = found.profile
    assert site.description
    assert set(site.engines) <= set(registry.engine_names())
    assert bool(site.engines) or site.unusable
    assert pickle.loads(pickle.dumps(site)) == site
    assert hash(site) == hash(load(name, [built_in()]).profile)
    for key in [*site.unverified, *site.fixed, *site.job.required]:
        assert schema.key_of(key) or key in schema.sections(), key
    for scheduler in site.schedulers:
        assert scheduler in schema.SCHEDULERS
    if site.job.queue and site.job.queues:
        assert site.resources.walltime == site.job.queues[site.job.queue]
    if site.scheduler not in (None, "existing"):
        assert site.resources.memory


@pytest.mark.parametrize("name", NAMES)
def test_every_value_has_an_origin(name):
    found = load(name, [built_in()])
    defaults = schema.keys()
    for key, rule in defaults.items():
        value = schema.value_of(found.profile, key)
        said = [one for one in found.origins if one == key or one.startswith(f"{key}.")]
        if value != rule.default:
            assert said, key
        for one in said:
            assert (FOLDER.parent / found.origins[one]).exists()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_a_profile_names_its_source_and_nobodys_folder(path):
    text = path.read_text()
    assert text.startswith("# ")
    if path.stem not in ("local", "pbs", "sge", "lsf", "condor", "_batch", "slurm"):
        assert re.search(r"^# .*Sources?:|Sources?: ", text, re.MULTILINE), "no source is named"
    assert not re.search(r"/(home|users?|work)/[a-z]+/|@[a-z]+\.(ch|edu|gov|de)\b", text)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_the_json_schema_takes_every_profile(path):
    assert list(breaches(tomllib.loads(path.read_text()), json_schema(), "")) == []


@pytest.mark.parametrize(
    "text",
    [
        "shedulers = 1",
        "[resources]\nmemory = 'lots'",
        "[resources]\ncores = 0",
        "[resources]\nwalltime = '8 parsecs'",
        "resources = 3",
        "engines = 'dask'",
        "scheduler = 'condo'",
        "shares_store = 'yes'",
        "ports = { scheduler = [1, 2, 3] }",
        "ports = { worker = [0, 7] }",
        "ports = { worker = [1, 65536] }",
        "[env]\n'A B' = 'c'",
        "[env]\nA = 1",
        "[job]\nship = 'tar'",
        "[directives]\nqueue = [1]",
        'notes = ["a\\nb"]',
    ],
)
def test_what_the_json_schema_refuses_is_refused_by_the_loader(text, tmp_path):
    (tmp_path / "bad.toml").write_text(text)
    assert list(breaches(tomllib.loads(text), json_schema(), ""))
    with pytest.raises(UsageError):
        load_site("bad", tmp_path)


def breaches(value, rule, where):
    """What in a value breaks a JSON schema, as far as ours go."""
    kinds = {
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "array": list,
        "object": dict,
    }
    if "oneOf" in rule or "anyOf" in rule:
        branches = rule.get("oneOf") or rule["anyOf"]
        if all(list(breaches(value, one, where)) for one in branches):
            yield f"{where}: none of the kinds"
        return
    if "enum" in rule or "const" in rule:
        if value not in rule.get("enum", [rule.get("const")]):
            yield f"{where}: {value!r} is none of them"
        return
    wanted = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
    if not any(
        isinstance(value, kinds[one]) and (one == "boolean") == isinstance(value, bool) for one in wanted
    ):
        yield f"{where}: {value!r} is no {wanted}"
        return
    if isinstance(value, str) and not re.search(rule.get("pattern", ""), value):
        yield f"{where}: {value!r} does not match"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value < rule.get("minimum", value) or value > rule.get("maximum", value):
            yield f"{where}: {value} is out of bounds"
        if value <= rule.get("exclusiveMinimum", value - 1):
            yield f"{where}: {value} is too small"
    if isinstance(value, list):
        if not rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", len(value)):
            yield f"{where}: {len(value)} items"
        for number, one in enumerate(value):
            yield from breaches(one, rule["items"], f"{where}[{number}]")
    if isinstance(value, dict):
        for key, one in value.items():
            inner = rule.get("properties", {}).get(key) or next(
                (
                    each
                    for pattern, each in rule.get("patternProperties", {}).items()
                    if re.search(pattern, key)
                ),
                None,
            )
            if inner is None:
                yield f"{where}.{key}: unknown"
            else:
                yield from breaches(one, inner, f"{where}.{key}")


def test_every_key_has_a_kind_in_the_schema_and_a_meaning():
    text = json.loads(site_words.schema_text())
    for name, key in schema.keys().items():
        section, _, last = name.rpartition(".")
        place = text["properties"][section]["properties"] if section else text["properties"]
        assert place[last]["description"] == key.about
        assert len(key.about) > 5


def changed(key, rule, site):
    """Another value for a key, as text is typed."""
    kind = values
    table = {
        kind.text: "other", kind.flag: "no" if schema.value_of(site, key) else "yes", kind.count: "7",
        kind.number: "1.5", kind.size: "9GB", kind.span: "17m", kind.texts: "one more", kind.names: "ONE_MORE", kind.ports: "2000-2010",
    }  # fmt: skip
    if rule.reader in table:
        return table[rule.reader]
    return next(one for one in rule.reader.args[0] if one != schema.value_of(site, key))


@pytest.mark.parametrize("name", NAMES)
def test_every_key_can_be_overridden_or_says_why_not(name):
    site = load_site(name)
    for key, rule in schema.keys().items():
        if key in schema.IDENTITY:
            with pytest.raises(UsageError, match="says what the site"):
                overrides.overridden(site, {key: "x"})
            continue
        asked = {f"{key}.A": "b"} if rule.table else {key: changed(key, rule, site)}
        if key == "job.queues":
            asked = {"job.queues.A": "30d", "job.queue": "A"}
        if key == "job.queue" and site.job.queues:
            asked = {"job.queue": next((one for one in site.job.queues if one != site.job.queue), "")}
        if key == "job.workers" and "resources.cores" in site.fixed and site.scheduler != "existing":
            with pytest.raises(UsageError, match="cannot be changed"):
                overrides.overridden(site, asked)
            continue
        if any(one == key or one.startswith(f"{key}.A") for one in site.fixed):
            with pytest.raises(UsageError) as caught:
                overrides.overridden(site, asked)
            assert site.fixed[key] in str(caught.value)
            continue
        after, origins = overrides.overridden(site, asked)
        for one in asked:
            assert origins[one] == "command line"
            whole, row = schema.key_of(one)
            now = schema.value_of(after, whole.name)
            assert (now[row] if row else now) != (None if row else schema.value_of(site, whole.name)), one
        assert dataclasses.replace(after) == after


@pytest.mark.parametrize("name", NAMES)
def test_required_keys_are_asked_for_by_their_options(name, monkeypatch):
    monkeypatch.delenv("COFFEA_IMAGE_FULL", raising=False)
    site = load_site(name)
    missing = overrides.lacking(site)
    assert set(site.job.required) >= set(missing) - {"dask.address"}
    if not missing:
        overrides.require(site)
        return
    with pytest.raises(UsageError) as caught:
        overrides.require(site)
    for key in missing:
        assert overrides.OPTIONS[key] in str(caught.value)
    given = {key: "tls://a:1" if key == "dask.address" else "x" for key in missing}
    overrides.require(overrides.overridden(site, given)[0])


def test_the_options_of_keys_exist():
    from executors.options import options

    declared = {each.about["site"]: each.flag for each in options() if each.about.get("site")}
    assert {key: overrides.OPTIONS[key] for key in declared} == declared


@pytest.mark.parametrize("name", NAMES)
def test_every_engine_of_a_site_opens_by_name(name):
    site = load_site(name)
    asked = {"dask.address": "tls://a:1", "job.account": "group", "job.image": "/cvmfs/x"}
    asked = {key: value for key, value in asked.items() if key in site.job.required}
    for engine in site.engines:
        asked = asked if engine in ("dask", "parsl") else {}
        placed = registry.place(f"{engine}/{name}", overrides=asked)
        assert (placed.kind, placed.site.name) == (engine, name)
        if engine in ("futures", "iterative"):
            assert placed.site.scheduler is None
        elif site.scheduler:
            again = registry.place(f"{engine}/{site.scheduler}/{name}", overrides=asked)
            assert again.site == placed.site
    for old in site.old_names:
        if site.unusable:
            with pytest.raises(UsageError, match=re.escape(site.unusable)):
                registry.split(old)
        else:
            assert registry.split(old)[1] == name
    if site.unusable:
        with pytest.raises(UsageError, match=re.escape(site.unusable)):
            registry.place(f"dask/{name}", overrides=asked)


def test_old_names_mean_one_site_each():
    known = [old for name in NAMES for old in load_site(name).old_names]
    assert len(known) == len(set(known))
    hosts = {}
    for name in NAMES:
        for host in load_site(name).detect.hostname:
            hosts.setdefault(host, []).append(name)
    for names in hosts.values():  # of one place only, and its own name comes first
        first, *others = sorted(names)
        assert all(first in load(one, [built_in()]).inherits for one in others), names


def test_the_originals_executors_all_mean_something():
    spoken = {
        "iterative": "local", "futures": "local", "parsl/slurm": "slurm", "parsl/condor": "condor",
        "parsl/condor/naf_lite": "naf_lite", "dask/condor": "condor", "dask/condor/brux": "brux",
        "dask/slurm": "slurm", "dask/lpc": "lpc", "dask/lxplus": "lxplus", "dask/casa": "casa",
    }  # fmt: skip
    for name, site in spoken.items():
        assert registry.split(name)[1] == site
    for name in ("condor_standalone", "condor/standalone"):
        with pytest.raises(UsageError, match=r"later part; with one: dask/condor.* dask/lxplus"):
            registry.split(name)


def test_the_names_of_pocket_coffea_mean_the_same_places():
    """``engine@site``, as its runner knows them."""
    spoken = {
        "dask@lxplus": "lxplus", "dask@swan": "swan", "dask@T3_CH_PSI": "psi", "parsl@DESY": "naf",
        "parsl@RWTH": "rwth", "dask@RWTH": "rwth", "parsl@CLAIX": "claix", "dask@CLAIX": "claix",
        "dask@brux": "brux", "dask@rubin": "rubin", "dask@oscar": "oscar", "dask@casa": "casa",
        "dask@infn-af": "infn",
    }  # fmt: skip
    for name, site in spoken.items():
        assert registry.split(name) == (name.partition("@")[0], site)
    with pytest.raises(UsageError, match="Gateway"):
        registry.split("dask@purdue-af")
    for name in ("condor@lxplus", "condor@rubin"):
        with pytest.raises(UsageError, match=f"with one: dask/{name.partition('@')[2]}"):
            registry.split(name)


@pytest.mark.parametrize("name", NAMES)
def test_one_site_is_shown_in_eighty_columns(name):
    text = site_words.shown(name)
    assert max(map(len, text.splitlines())) <= 80
    site = load_site(name)
    flat = " ".join(text.split())
    for key in site.unverified:
        assert key in flat
    for note in site.notes:
        assert " ".join(note.split()[:3]) in flat
    for reason in site.fixed.values():
        assert " ".join(reason.split()[:4]) in flat
    data = json.loads(site_words.shown(name, as_json=True))
    assert set(data["values"]) == set(schema.keys())
    text.encode("utf-8")


def test_all_sites_are_listed_in_eighty_columns():
    text = site_words.listed()
    assert max(map(len, text.splitlines())) <= 80
    rows = json.loads(site_words.listed(as_json=True))["sites"]
    assert [row["name"] for row in rows] == find.names(find.layers())
    for row in rows:
        assert row["usable"] or row["why"]
        assert re.search(rf"^{row['name']} ", text, re.MULTILINE)


def test_profiles_need_no_room_but_errors():
    """Whoever reads a profile imports nothing else of the project."""
    for name in ("values", "schema", "profile", "overrides", "find", "detect", "json_schema"):
        tree = ast.parse((FOLDER / f"{name}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("executors"):
                assert node.module == "executors.errors"


# What public sources say of each site (named in its file), so that nobody changes it by accident.
VALUES = {
    "bnl": {"resources.memory": "1.5GB", "job.account_directive": "accounting_group"},
    "brux": {"resources.memory": "4GB", "resources.disk": "4GB", "limits.jobs": "336", "network.address": "hostname"},
    "casa": {
        "scheduler": "existing", "dask.address": "tls://localhost:8786", "dask.tls_ca": "/etc/cmsaf-secrets/ca.pem",
        "dask.tls_cert": "/etc/cmsaf-secrets/hostcert.pem", "resources.memory": "4GiB", "resources.disk": "2GiB",
        "urls.cache": "xcache", "proxy.kind": "token", "proxy.path": "/etc/cmsaf-secrets-chown/access_token",
        "limits.jobs": "50", "detect.marker": "/etc/cmsaf-secrets/ca.pem", "env.XRD_RUNFORKHANDLER": "1",
    },
    "claix": {
        "job.queue": "c23ms", "directives.constraint": "zen4", "resources.memory": "4GB", "resources.walltime": "6h",
        "job.scratch": "$TMPDIR", "limits.usual": "20",
        "env.X509_CERT_DIR": "/cvmfs/grid.cern.ch/etc/grid-security/certificates",
    },
    "cmsconnect": {"proxy.required": "true", "detect.hostname": "*uscms*"},
    "infn": {
        "scheduler": "existing", "proxy.required": "true", "job.required": "dask.address",
        "env.X509_CERT_DIR": "/cvmfs/grid.cern.ch/etc/grid-security/certificates/",
    },
    "lpc": {
        "job.image_directive": "+SingularityImage", "job.walltime_directive": "+MaxRuntime",
        "job.image_variable": "COFFEA_IMAGE_FULL", "resources.memory": "2GB", "limits.death": "1m",
        "ports.worker": "10000 to 10070", "ports.scheduler": "10071 to 10100", "shares_store": "false",
        "job.submit_options": "-spool", "proxy.required": "true", "schedd.pool": "$FERMIHTC_REMOTE_POOL",
        "paths.logs": "$HOME, /uscmst1b_scratch/lpc1/3DayLifetime, /uscms_data",
    },
    "lxplus": {
        "ports.scheduler": "8786", "ports.worker": "10000 to 10100", "job.queue_directive": "+JobFlavour",
        "job.queues.espresso": "20m", "job.queues.microcentury": "1h", "job.queues.longlunch": "2h",
        "job.queues.workday": "8h", "job.queues.tomorrow": "1d", "job.queues.testmatch": "3d",
        "job.queues.nextweek": "7d", "job.walltime_directive": "+MaxRuntime", "job.submit_options": "-spool",
        "job.image_directive": "MY.SingularityImage", "limits.jobs": "500", "limits.jobs_per_submission": "100",
        "directives.MY.SendCredential": "true", "directives.MY.SpoolOnEvict": "false",
        "proxy.path": "$HOME/x509up_u{uid}", "paths.unseen": "/tmp",
    },
    "maxwell": {"job.queue": "all", "resources.walltime": "2h", "resources.memory": "4GB"},
    "mit": {
        "resources.memory": "5GB", "resources.disk": "2GB", "job.account_directive": "+AccountingGroup",
        "job.image_directive": "+SingularityImage", "proxy.required": "true",
    },
    "naf": {
        "resources.memory": "4GB", "resources.walltime": "6h", "job.walltime_directive": "+RequestRuntime",
        "job.setup": "source /cvmfs/grid.desy.de/etc/profile.d/grid-ui-env.sh, ulimit -u 32768 || true",
    },
    "naf_lite": {"resources.memory": "2GB", "resources.walltime": "3h", "resources.cores": "1"},
    "nd": {"ports.scheduler": "9123 to 9130", "detect.hostname": "earth.crc.nd.edu"},
    "oscar": {"job.queue": "batch", "resources.memory": "7.5GB", "resources.walltime": "6h", "limits.usual": "64"},
    "ospool": {
        "job.account_directive": "+ProjectName", "directives.+JobDurationCategory": "Medium",
        "resources.walltime": "20h", "limits.memory": "40GB",
    },
    "psi": {
        "job.queue": "standard", "resources.memory": "4GB", "resources.walltime": "6h",
        "job.setup": "ulimit -u unlimited || true",
    },
    "purdue": {"xrootd.request_timeout": "300", "xrootd.stream_timeout": "300", "xrootd.connection_retry": "5"},
    "rubin": {
        "resources.memory": "4GB", "resources.disk": "3GB", "limits.jobs": "336", "resources.walltime": "6h",
        "job.walltime_directive": "+MaxRuntime", "directives.MY.SendCredential": "true",
    },
    "rwth": {
        "resources.memory": "4GB", "resources.disk": "4GB", "resources.walltime": "6h", "limits.usual": "20",
        "job.setup": "ulimit -s unlimited || true",
    },
    "swan": {"scheduler": "existing", "job.required": "dask.address"},
    "uchicago": {
        "job.queue": "short", "job.queue_directive": "+queue", "resources.walltime": "4h",
        "dask.address": "tls://localhost:8786", "urls.cache": "xcache.af.uchicago.edu", "urls.cache_form": "prefix",
    },
    "uf": {"ports.scheduler": "9123 to 9130"},
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_the_values_of_a_site_are_those_of_its_sources(name):
    site = load_site(name)
    found = {}
    for key in VALUES[name]:
        whole, row = schema.key_of(key)
        value = schema.value_of(site, whole.name)
        found[key] = overrides.shown(key, value[row] if row else value)
    assert found == VALUES[name]


@pytest.mark.parametrize("name", [name for name in NAMES if load_site(name).scheduler is not None])
def test_what_every_site_repeats(name):
    """What frameworks set on each worker; where certificates lie comes from the runner or from the profile."""
    site = load_site(name)
    assert (site.env["XRD_RUNFORKHANDLER"], site.env["MALLOC_TRIM_THRESHOLD_"]) == ("1", "0")
    if site.scheduler != "existing":
        assert site.job.pass_env == ("X509_CERT_DIR",)
