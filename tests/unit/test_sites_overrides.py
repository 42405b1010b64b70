"""What a user asks of a site: read, held against what is fixed, and what follows from it."""

import pytest

from executors.errors import UnknownNameError, UsageError
from sites import overrides, values
from sites.overrides import overridden
from sites.profile import FOLDER, load_site
from sites.values import Table, amount, duration, from_text, scalar_from_text, size, span

LXPLUS = load_site("lxplus")
SLURM = load_site("slurm")


def site(tmp_path, text, name="mine"):
    for base in ("_batch", "slurm", "condor"):
        (tmp_path / f"{base}.toml").write_text((FOLDER / f"{base}.toml").read_text())
    (tmp_path / f"{name}.toml").write_text(text)
    return load_site(name, tmp_path)


def test_nothing_asked_changes_nothing():
    assert overridden(LXPLUS, {}) == (LXPLUS, {})
    assert overridden(LXPLUS, {"job.queue": None}) == (LXPLUS, {})


def test_text_is_read_as_it_is_typed():
    asked = {
        "resources.cores": "4", "resources.memory": "9GB", "job.setup": "echo hi", "env.A": "x=y",
        "directives.+Foo": "1", "directives.flag": "true", "directives.word": "007", "limits.start": "90",
        "shares_store": "no", "ports.scheduler": "8786", "directives.expression": "TARGET.X > 1",
    }  # fmt: skip
    found, origins = overridden(LXPLUS, asked)
    assert (found.resources.cores, found.resources.memory) == (4, 9 * 10**9)
    assert found.job.setup == ("echo hi",)
    assert found.env["A"] == "x=y"
    assert found.env["XRD_RUNFORKHANDLER"] == "1"
    assert dict(found.directives) == {
        "MY.SendCredential": True, "MY.SpoolOnEvict": False, "+Foo": 1, "flag": True, "word": "007", "expression": "TARGET.X > 1"
    }  # fmt: skip
    assert found.limits.start == 90
    assert found.shares_store is False
    assert origins["directives.+Foo"] == "command line"
    assert LXPLUS.resources.cores == 1


def test_who_asked_is_kept():
    _, origins = overridden(
        SLURM, {"resources.memory": "9GB", "job.queue": "x"}, {"job.queue": "file run.toml"}
    )
    assert origins == {"resources.memory": "command line", "job.queue": "file run.toml"}


def test_lines_of_setup_follow_each_other(tmp_path):
    mine = site(tmp_path, 'inherits = "slurm"\n[job]\nsetup = ["one"]\nsubmit_options = ["--x"]\n')
    found, _ = overridden(mine, {"job.setup": ["two", "three"], "job.submit_options": ["-y"]})
    assert found.job.setup == ("one", "two", "three")
    assert found.job.submit_options == ("--x", "-y")
    assert overridden(mine, {"paths.logs": ["/a"]})[0].paths.logs == ("/a",)


def test_an_empty_text_takes_back():
    assert overridden(LXPLUS, {"job.queue": ""})[0].job.queue is None
    assert overridden(LXPLUS, {"resources.disk": ""})[0].resources.disk is None


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("resources.memry", "1", "resources.memory"),
        ("resorces", "1", "resources"),
        ("directives.", "1", "directives"),
        ("env", "x", "--env"),
        ("env.A B", "x", "'A B' is no name"),
        ("env.A", "a\nb", "--env A"),
        ("job.queue", "a\nb", "--queue"),
        ("job.queue", "a" + chr(0x202E) + "b", "--queue"),
        ("job.queue", 7, "--queue"),
        ("resources.cores", "0", "--cores"),
        ("resources.cores", "many", "--cores"),
        ("resources.cores", True, "--cores"),
        ("resources.memory", "lots", "--memory"),
        ("resources.memory", "9" * 100, "--memory"),
        ("resources.walltime", "8 hours", "--walltime"),
        ("shares_store", "maybe", "--shared-store"),
        ("job.ship", "rocket", "--ship-env must be none, venv or container"),
        ("ports.worker", "1-2-3", "ports.worker"),
        ("ports.worker", "99999", "ports.worker"),
        ("directives.x", [1], "--directive"),
        ("engines", ["dask"], "says what the site"),
        ("fixed.ports.scheduler", "x", "says what the site"),
        ("detect.hostname", "x", "says what the site"),
        ("name", "x", "name"),
        ("scheduler", "x", "says what the site"),
    ],
)
def test_what_cannot_be_is_refused_by_name(key, value, says):
    with pytest.raises(UsageError) as caught:
        overridden(SLURM, {key: value})
    assert says in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


def test_what_a_site_fixes_is_refused_with_the_reason():
    with pytest.raises(UsageError, match="no other"):
        overridden(LXPLUS, {"ports.scheduler": [8787, 8787]})
    with pytest.raises(UsageError, match="--scheduler-port"):
        overridden(LXPLUS, {"ports.scheduler": "8787"})
    same, _ = overridden(LXPLUS, {"ports.scheduler": [8786, 8786]})  # asking for what it is changes nothing
    assert same == LXPLUS


def test_a_row_of_a_table_can_be_fixed(tmp_path):
    mine = site(tmp_path, '[directives]\nA = 1\nB = 2\n[fixed]\n"directives.A" = "because"\n')
    assert overridden(mine, {"directives.B": "3"})[0].directives["B"] == 3
    for asked in ({"directives.A": "3"}, {"directives": {"A": 3}}):
        with pytest.raises(UsageError, match="because"):
            overridden(mine, asked)


def test_memory_and_disk_grow_with_cores():
    found, origins = overridden(SLURM, {"resources.cores": 4})
    assert (found.resources.memory, found.resources.disk) == (8 * 10**9, 16 * 10**9)
    assert origins["resources.memory"] == "scaled with 4 cores"
    found, origins = overridden(SLURM, {"resources.cores": 4, "resources.memory": "3GB"})
    assert (found.resources.memory, found.resources.disk) == (3 * 10**9, 16 * 10**9)
    assert origins["resources.memory"] == "command line"


def test_workers_bring_cores():
    found, origins = overridden(SLURM, {"job.workers": 4})
    assert (found.job.workers, found.resources.cores, found.resources.memory) == (4, 4, 8 * 10**9)
    assert origins["resources.cores"] == "one for each worker"
    found, _ = overridden(SLURM, {"job.workers": 4, "resources.cores": 2})
    assert (found.job.workers, found.resources.cores) == (4, 2)
    here, _ = overridden(load_site("local"), {"job.workers": 4})
    assert here.resources == load_site("local").resources
    casa, _ = overridden(load_site("casa"), {"job.workers": 4})
    assert casa.resources == load_site("casa").resources


def test_a_fixed_memory_is_not_scaled(tmp_path):
    mine = site(tmp_path, 'inherits = "slurm"\n[fixed]\n"resources.memory" = "x"\n')
    assert overridden(mine, {"resources.cores": 4})[0].resources.memory == 2 * 10**9


def test_a_flavour_brings_its_time_and_a_time_its_directive():
    found, origins = overridden(LXPLUS, {"job.queue": "tomorrow"})
    assert found.resources.walltime == 86400
    assert origins["resources.walltime"] == "the limit of tomorrow"
    assert overridden(LXPLUS, {"job.queue": "espresso"})[0].resources.walltime == 1200
    found, origins = overridden(LXPLUS, {"resources.walltime": "12h"})
    assert (found.job.queue, found.resources.walltime) == (None, 43200)
    assert origins["job.queue"] == "as --walltime is given"


QUEUES = 'inherits = "slurm"\n[job]\nqueue = "short"\n[job.queues]\nshort = "4h"\nlong = "7d"\n'


def test_queues_with_limits(tmp_path):
    mine = site(tmp_path, QUEUES)
    assert mine.resources.walltime == 7200
    assert overridden(mine, {"job.queue": "long"})[0].resources.walltime == 7200
    with pytest.raises(UsageError, match=r"5h is longer than the queue 'short' allows \(4h\): --queue long"):
        overridden(mine, {"resources.walltime": "5h"})
    with pytest.raises(UsageError, match=r"--walltime 7d or less"):
        overridden(mine, {"resources.walltime": "8d", "job.queue": "long"})
    with pytest.raises(UsageError, match=r"\(4h\): --queue long and --walltime 7d or less"):
        overridden(mine, {"resources.walltime": "8d"})
    with pytest.raises(UnknownNameError, match="did you mean 'short'"):
        overridden(mine, {"job.queue": "shor"})
    long = site(
        tmp_path,
        QUEUES.replace("[job]", '[resources]\nwalltime = "2d"\n[job]').replace('"short"', '"long"', 1),
        "m2",
    )
    assert overridden(long, {"job.queue": "short"})[0].resources.walltime == 4 * 3600
    assert overridden(SLURM, {"job.queue": "anything"})[0].job.queue == "anything"


def test_no_queue_is_the_schedulers_choice():
    uchicago = load_site("uchicago")
    found, _ = overridden(uchicago, {"job.queue": "", "resources.walltime": "24h"})
    assert (found.job.queue, found.resources.walltime) == (None, 86400)
    with pytest.raises(UsageError, match="4h"):
        overridden(uchicago, {"resources.walltime": "24h"})


def test_an_address_means_a_scheduler_that_runs():
    found, origins = overridden(SLURM, {"dask.address": "tls://h:1"})
    assert (found.scheduler, found.shares_store) == ("existing", False)
    assert origins["scheduler"] == "as --scheduler-address is given"
    assert overridden(SLURM, {"dask.address": "tls://h:1", "shares_store": True})[0].shares_store
    casa, _ = overridden(load_site("casa"), {"dask.address": "tls://h:1"})
    assert casa.dask.address == "tls://h:1"


def test_the_image_of_the_environment():
    lpc = load_site("lpc")
    assert overrides.lacking(lpc) == ["job.image"]
    found, origins = overrides.filled(lpc, {"COFFEA_IMAGE_FULL": "/cvmfs/x"})
    assert found.job.image == "/cvmfs/x"
    assert origins == {"job.image": "env COFFEA_IMAGE_FULL"}
    assert overrides.filled(lpc, {"COFFEA_IMAGE_FULL": ""}) == (lpc, {})
    with pytest.raises(UsageError, match="COFFEA_IMAGE_FULL"):
        overrides.filled(lpc, {"COFFEA_IMAGE_FULL": "a\nb"})


def test_schedulers_of_a_name():
    uchicago = load_site("uchicago")
    assert overrides.at_scheduler(uchicago, "condor") is uchicago
    assert overrides.at_scheduler(uchicago, "existing").scheduler == "existing"
    with pytest.raises(UsageError, match="condor and existing"):
        overrides.at_scheduler(uchicago, "slurm")
    with pytest.raises(UnknownNameError, match="condor"):
        overrides.at_scheduler(uchicago, "kondor")
    with pytest.raises(UsageError, match="this machine"):
        overrides.at_scheduler(load_site("local"), "slurm")


@pytest.mark.parametrize(
    "number", [1, 1000, 1500, 10**6, 2 * 10**9, 2**30, 7 * 10**8 + 1, 1536 * 2**20, 10**12]
)
def test_sizes_are_spelt_so_that_they_are_read_again(number):
    assert size(amount(number)) == number


@pytest.mark.parametrize("seconds", [0.5, 1, 59, 60, 90, 3600, 5400, 86400, 129600, 604800, 12345])
def test_times_are_spelt_so_that_they_are_read_again(seconds):
    assert span(duration(float(seconds))) == seconds


@pytest.mark.parametrize(
    ("typed", "value"),
    [("1", 1), ("-3", -3), ("1.5", 1.5), ("1.50", "1.50"), ("01", "01"), ("true", True), ("True", "True"), ("", ""),
     ("nan", "nan"), ("inf", "inf"), ("1e5", "1e5"), ("9" * 30, "9" * 30), ("1_000", "1_000"), ("٣", "٣")],
)  # fmt: skip
def test_words_that_are_numbers(typed, value):
    found = scalar_from_text(typed)
    assert (found, type(found)) == (value, type(value))


def test_from_text():
    assert from_text(values.ports, "1-2") == [1, 2]
    assert from_text(values.ports, "1:2") == [1, 2]
    assert from_text(values.ports, "7") == [7, 7]
    assert from_text(values.number, "0.5") == 0.5
    assert from_text(values.number, "x") == "x"
    assert from_text(values.span, "60") == 60
    assert from_text(values.texts, "a") == ["a"]


def test_a_table_is_read_only_equal_and_hashable():
    table = Table({"a": 1})
    assert table == {"a": 1}
    assert hash(table) == hash(Table({"a": 1}))
    with pytest.raises(TypeError):
        table["b"] = 2
