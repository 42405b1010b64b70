"""The rules of three sites, kept by real servers here: lxplus, the LPC and coffea-casa.

Each profile is the site's own; only addresses and what exists nowhere else (a container) are replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from real.lab import ROOT, Lab, accounted
from real.servers import certificates, processes, python, session
from real.servers.condor import give
from real.servers.dask import Facility

import executors

pytestmark = pytest.mark.timeout(300)
ENGINES = pytest.mark.parametrize("engine", ["dask", "parsl"])

# --- lxplus -----------------------------------------------------------------------------------------

FLAVOURS = {"espresso": 1200, "microcentury": 3600, "longlunch": 7200, "workday": 28800, "tomorrow": 86400}
LXPLUS_RULES = f"""
JOB_TRANSFORM_NAMES = $(JOB_TRANSFORM_NAMES) FLAVOUR KERBEROS
JOB_TRANSFORM_KERBEROS @=end
  REQUIREMENTS SendCredential isnt undefined
  COPY SendCredential KerberosWasAsked
  SET SendCredential False
@end
JOB_TRANSFORM_FLAVOUR @=end
  REQUIREMENTS JobFlavour isnt undefined && MaxRuntime is undefined
  EVALSET MaxRuntime {"".join(f'ifThenElse(JobFlavour =?= "{name}", {most}, ' for name, most in FLAVOURS.items())}0{")" * len(FLAVOURS)}
@end
SUBMIT_REQUIREMENT_NAMES = $(SUBMIT_REQUIREMENT_NAMES) FLAVOUR MEMORY SPOOLED
SUBMIT_REQUIREMENT_FLAVOUR = MaxRuntime isnt undefined && MaxRuntime > 0
SUBMIT_REQUIREMENT_FLAVOUR_REASON = strcat("no such JobFlavour: ", JobFlavour ?: "none")
SUBMIT_REQUIREMENT_MEMORY = RequestMemory <= 4000
SUBMIT_REQUIREMENT_MEMORY_REASON = strcat("this site gives no job more than 4000 MB, asked: ", string(RequestMemory))
SUBMIT_REQUIREMENT_SPOOLED = HoldReasonCode =?= 16
SUBMIT_REQUIREMENT_SPOOLED_REASON = "this schedd takes spooled jobs only"
SYSTEM_PERIODIC_REMOVE = JobStatus == 2 && MaxRuntime isnt undefined && (time() - JobCurrentStartDate) > MaxRuntime
"""
NEARER = """
[network]
address = "loopback"
[limits]
polls_per_minute = 60
start = "60s"
"""


@pytest.fixture(scope="module")
def lxplus(pool):
    one = pool(rules=LXPLUS_RULES)
    (one.folder / "nearlxplus.toml").write_text(f'inherits = "lxplus"\n{NEARER}')
    (one.folder / "plain.toml").write_text(f'inherits = "condor"\n{NEARER}')
    return one


@pytest.fixture
def at_lxplus(lxplus):
    assert processes.wait_for(lambda: processes.free(8786), 60, every=1), "somebody else's 8786"
    place = Lab(lxplus, "dask", "lxplus")
    place.site_file = lxplus.folder / "nearlxplus.toml"
    try:
        yield place
        place.finish()
    finally:
        place.close()
        lxplus.clear()


class Sockets(NamedTuple):
    """Ports at which processes listen, and those to which they are connected."""

    listening: set[int]
    connected: set[int]


def sockets(pids):
    """Those of all these processes."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            found += psutil.Process(pid).net_connections("tcp")
    return Sockets(
        {c.laddr.port for c in found if c.status == "LISTEN"}, {c.raddr.port for c in found if c.raddr}
    )


@ENGINES
def test_lxplus(at_lxplus, engine):
    at_lxplus.engine = engine
    at_lxplus.data(dy=[5000])
    gate = at_lxplus.folder / "gate"
    argument = f"gate={gate}"
    process = at_lxplus.start(at_lxplus.command("--wf-arg", argument, "--task-seconds", "1", wf="Paced"))
    at_lxplus.until_working(process, 2, wf="Paced")
    jobs = at_lxplus.batch.queue()
    ad = at_lxplus.batch.show(jobs[0].id)
    assert (ad["JobFlavour"], ad["MaxRuntime"]) == ("workday", 28800)
    assert ad["KerberosWasAsked"], "there is none here"
    assert ad["Iwd"].startswith(str(at_lxplus.batch.folder / "spool"))
    here, there = sockets(at_lxplus.here()), sockets(at_lxplus.batch.job_processes())
    assert 8786 in here.listening
    if engine == "dask":
        assert here.listening == {8786}
    # Parsl's own two processes also speak to each other, on loopback: nothing from a node goes there.
    assert there.connected & here.listening == {8786}
    assert all(10_000 <= port <= 10_100 for port in there.listening), there
    gate.touch()
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    accounted(at_lxplus.manifest(wf="Paced"), 5000)
    assert at_lxplus.manifest(wf="Paced")["digest"] == at_lxplus.truth("Paced", "--wf-arg", argument)


def test_lxplus_flavours(at_lxplus):
    """A flavour that exists is used, one that does not is refused before anything is sent."""
    at_lxplus.data(dy=[500])
    code, out = at_lxplus.run(at_lxplus.command("--queue", "espresso", jobs=1))
    assert code == 0, out
    code, out = at_lxplus.run(at_lxplus.command("--queue", "expresso", out="other"))
    assert code == 2, out
    assert "espresso" in out


def test_lxplus_walltime(at_lxplus):
    """A walltime of one's own goes as a number of seconds."""
    at_lxplus.data(dy=[5000])
    gate = at_lxplus.folder / "gate"
    command = at_lxplus.command("--wf-arg", f"gate={gate}", "--walltime", "100m", wf="Paced")
    process = at_lxplus.start(command)
    at_lxplus.until_working(process, wf="Paced")
    ad = at_lxplus.batch.show(at_lxplus.batch.queue()[0].id)
    assert ad["MaxRuntime"] == 6000
    assert "JobFlavour" not in ad
    gate.touch()
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out


@pytest.mark.parametrize(
    ("site", "more", "says"),
    [
        ("nearlxplus", ["--memory", "5GB", "--no-check"], "no job more than 4000 MB"),
        ("plain", ["--no-check"], "JobFlavour"),
    ],
)
def test_lxplus_refuses(at_lxplus, site, more, says):
    """What its schedd does not take is said in the schedd's words, at once."""
    at_lxplus.data(dy=[500])
    at_lxplus.site_file = at_lxplus.batch.folder / f"{site}.toml"
    began = time.monotonic()
    code, out = at_lxplus.run(at_lxplus.command(*more), timeout=60)
    assert time.monotonic() - began < 30
    assert code == 4, out
    assert says in out
    assert "Traceback" not in out


def test_lxplus_has_one_port(at_lxplus):
    at_lxplus.data(dy=[500])
    code, out = at_lxplus.run(at_lxplus.command("--scheduler-port", "9000"))
    assert code == 2, out
    assert "8786" in out
    with socket.create_server(("127.0.0.1", 8786)):
        began = time.monotonic()
        code, out = at_lxplus.run(at_lxplus.command(), timeout=60)
    assert time.monotonic() - began < 30
    assert code == 4, out
    assert "8786" in out
    assert "process of user" in out or str(os.getpid()) in out
    assert "ssh lxplus.cern.ch" in out, "where to go instead"
    code, out = at_lxplus.run(at_lxplus.command())
    assert code == 0, out


# --- the LPC ----------------------------------------------------------------------------------------


# One schedd as theirs are; of several one is chosen in test_schedd.py. The proxy is copied, not delegated: what
# makes a new proxy of a proxy is broken in Debian's HTCondor 23.9.
LPC_RULES = """
DELEGATE_JOB_GSI_CREDENTIALS = False
FERMIHTC_REMOTE_POOL = $(COLLECTOR_HOST)
FERMIHTC_SCHEDD_TYPE = "CMSLPC"
FERMIHTC_DRAIN_LPCSCHEDD = False
SCHEDD_ATTRS = $(SCHEDD_ATTRS) FERMIHTC_DRAIN_LPCSCHEDD FERMIHTC_SCHEDD_TYPE
"""


@pytest.fixture(scope="module")
def lpc(pool):
    one = pool(private_tmp=True, rules=LPC_RULES)
    env = "".join(
        f'{name} = "{value}"\n' for name, value in python.environment(one.folder / "python/base").items()
    )
    (one.folder / "nearlpc.toml").write_text(
        f'inherits = "lpc"\n{NEARER}\n[job]\npython = "{one.python}"\nimage = "{one.folder}/image"\n[env]\n{env}'
    )
    (one.folder / "image").mkdir()
    with session.folder() as unseen:  # below /tmp: no job sees it
        one.env["HOME"] = str(unseen / "home")
        one.env.pop("X509_USER_PROXY", None)
        (unseen / "home").mkdir()
        proxy = certificates.proxy(unseen / "home" / f"x509up_u{os.stat(one.home).st_uid}")
        for path in (unseen / "home", proxy):
            give(path, one.user)
        yield one


@pytest.fixture
def at_lpc(lpc):
    folder = Path(lpc.env["HOME"]) / f"run-{time.monotonic_ns() % 10**9}"
    folder.mkdir()
    give(folder, lpc.user)
    place = Lab(lpc, "dask", "lpc", folder)
    place.site_file = lpc.folder / "nearlpc.toml"
    try:
        yield place
        place.finish()
        node = lpc.folder / "execute"
        assert processes.wait_for(lambda: not list(node.glob("dir_*")), 20), "something was left on a node"
    finally:
        place.close()
        lpc.clear()


@ENGINES
def test_lpc(at_lpc, engine):
    """Workers see neither the run nor this project nor each other's /tmp, and have the proxy all the same."""
    at_lpc.engine = engine
    fileset = at_lpc.data(at=at_lpc.batch.fresh("data"), dy=[2500] * 2)
    assert all(path.startswith(str(at_lpc.batch.folder)) for path in fileset["dy"]["files"])
    far = ["--wf-arg", f"unseen={at_lpc.folder}:{ROOT / 'runner.py'}", "--wf-arg", "proxy=yes"]
    code, out = at_lpc.run(at_lpc.command(*far, wf="Far"))
    assert code == 0, out
    accounted(at_lpc.manifest(wf="Far"), 5000)
    at_lpc.run(at_lpc.command(out="truth", on="iterative"))
    assert at_lpc.manifest(wf="Far")["digest"] == at_lpc.manifest("truth")["digest"]


NAMES = """
import json, os
from pathlib import Path
from coffea import processor
from named_scales.tables import table

class Names(processor.ProcessorABC):
    def process(self, events):
        beside = json.loads(Path(__file__).with_name("corrections.json").read_text())
        relative = json.loads(open(os.path.join("maps", f"sf_{2022}.json")).read())
        assert not os.path.exists(UNSEEN), "this is the machine of the runner"
        return {"n": len(events), "sum": len(events) * (beside + relative + table())}

    def postprocess(self, accumulator):
        return accumulator
"""
NAMED = {
    "near.py": NAMES,
    "corrections.json": "1",
    "maps/sf_2022.json": "10",
    "named_scales/tables.py": "import json\nfrom importlib.resources import files\ndef table():\n"
    "    return json.loads((files('named_scales') / 'tables' / 'a.json').read_text())\n",
    "named_scales/__init__.py": "",
    "named_scales/tables/a.json": "100",
    "main.py": """
import json, sys
import executors
from coffea import processor
from coffea.nanoevents import BaseSchema
from near import Names

class Here(Names):
    def process(self, events):
        return {**Names().process(events), "own": json.load(open("maps/sf_2022.json")) * len(events)}

on, site_file, *files = sys.argv[1:]
with executors.for_coffea(on, site_file=site_file, jobs=1, status=False) as executor:
    run = processor.Runner(executor=executor, schema=BaseSchema, chunksize=500)
    print(json.dumps(run({"dy": files}, Here(), treename="Events")))
""",
}


@ENGINES
def test_lpc_brings_what_the_code_names(at_lpc, engine):
    """Corrections beside a module, in a package, and by a relative name: as on the machine of the runner."""
    at_lpc.engine = engine
    for name, text in NAMED.items():
        path = at_lpc.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        give(path.parent, at_lpc.batch.user)
        give(path, at_lpc.batch.user)
    (big := at_lpc.folder / "big.json").write_bytes(b"1" * (17 << 20))
    with (at_lpc.folder / "near.py").open("a") as near:
        near.write(f"\nBIG, UNSEEN = 'big.json', {str(at_lpc.folder)!r}\n")
    files = list(at_lpc.data(at=at_lpc.batch.fresh("data"), dy=[1000])["dy"]["files"])
    if engine == "dask":
        command = at_lpc.command(jobs=1)
        command[command.index("--wf") + 1] = "near.py:Names"
        code, out = at_lpc.run(command)
        assert code == 0, out
        assert f"{big} (17 MB, more than 16 MB)" in out
        accounted(at_lpc.manifest(wf="Names"), 1000)
        assert executors.load(at_lpc.rundir(wf="Names"), trust=True)["sum"] == 111_000
    else:
        code, out = at_lpc.run([sys.executable, "main.py", at_lpc.on, str(at_lpc.site_file), *files])
        assert code == 0, out
        assert json.loads(out.splitlines()[-1]) == {"n": 1000, "sum": 111_000, "own": 10_000}
        assert str(big) in out


def test_lpc_allows_some_folders(at_lpc):
    """A run from anywhere else is refused with the folders that are allowed."""
    home = Path(at_lpc.batch.env["HOME"])
    with session.folder() as elsewhere:
        give(elsewhere, at_lpc.batch.user)
        at_lpc.folder = elsewhere
        at_lpc.data(dy=[500])
        code, out = at_lpc.run(at_lpc.command())
    assert code == 4, out
    assert str(home) in out or "$HOME" in out, out


def test_lpc_wants_a_proxy(at_lpc):
    """Missing: said before anything is sent, with the command that makes one."""
    at_lpc.data(dy=[500])
    at_lpc.batch.env["X509_USER_PROXY"] = "/nowhere/proxy"
    proxy = next(Path(at_lpc.batch.env["HOME"]).glob("x509up_u*"))
    away = proxy.rename(proxy.with_name("away"))
    try:
        code, out = at_lpc.run(at_lpc.command())
    finally:
        away.rename(proxy)
        del at_lpc.batch.env["X509_USER_PROXY"]
    assert code == 4, out
    assert "voms-proxy-init" in out


# --- coffea-casa ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def casa(clean):
    with session.folder() as folder:
        facility = Facility(folder)
        try:
            yield facility.start()
        finally:
            facility.stop()


class Here:
    """No batch system: the workers are somebody else's."""

    kind = "casa"

    def __init__(self, facility):
        self.facility = facility
        self.run_as = []
        self.env = dict(os.environ)
        self.site_file = facility.folder / "nearcasa.toml"
        self.site_file.write_text(
            f'inherits = "casa"\n[dask]\naddress = "{facility.address}"\ntls_ca = "{facility.certificate}"\n'
            f'tls_cert = "{facility.certificate}"\ntls_key = "{facility.key}"\n[limits]\nstart = "60s"\n'
        )

    def queue(self):
        return []

    def job_processes(self):
        return []


@pytest.fixture
def at_casa(casa, tmp_path):
    place = Lab(Here(casa), "dask", "casa", tmp_path)
    before = casa.state()
    try:
        yield place
        place.finish()
        assert casa.alive()
        after = casa.state()
        assert after["works"] == 6
        assert (after["tasks"], after["clients"]) == (0, 0), after
        assert after["plugins"] == before["plugins"]
        assert after["handlers"] == before["handlers"]
        assert not after["modules"], "our code was run on somebody else's scheduler"
    finally:
        place.close()


def test_casa(at_casa, casa):
    """A run on workers that we did not start; twice, for the first could spoil them for the second."""
    at_casa.data(dy=[2500] * 2)
    truth = at_casa.truth()
    before = casa.state()["processes"]
    for out in ("out", "again"):
        code, said = at_casa.run(at_casa.command(out=out))
        assert code == 0, said
        accounted(at_casa.manifest(out), 5000)
        assert at_casa.manifest(out)["digest"] == truth
    after = casa.state()["processes"]
    assert {worker: one[0] for worker, one in after.items()} == {
        worker: one[0] for worker, one in before.items()
    }


@pytest.mark.parametrize("way", [pytest.param("interrupt", marks=pytest.mark.full), "kill"])
def test_casa_survives(at_casa, casa, way):
    """Whatever becomes of the runner, the facility goes on, and its workers are free again soon."""
    at_casa.data(dy=[5000])
    gate = at_casa.folder / "gate"
    command = at_casa.command("--wf-arg", f"gate={gate}", "--task-seconds", "1", wf="Paced")
    process = at_casa.start(command)
    at_casa.until_working(process, 2, wf="Paced")
    os.killpg(process.pid, signal.SIGINT) if way == "interrupt" else process.kill()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if way == "interrupt" else -9), out
    at_casa.nothing_left()
    assert processes.wait_for(lambda: casa.state()["tasks"] == 0, 30, every=1)
    gate.touch()
    code, out = at_casa.run(command)
    assert code == 0, out
    accounted(at_casa.manifest(wf="Paced"), 5000)


def test_casa_worker_dies(at_casa, casa):
    """The nanny of the facility starts it anew, and we go on with it."""
    at_casa.data(dy=[2500])
    mark = at_casa.folder / "mark"
    code, out = at_casa.run(at_casa.command("--wf-arg", f"mark={mark}", wf="DiesOnce"))
    assert code == 0, out
    assert mark.exists()
    accounted(at_casa.manifest(wf="DiesOnce"), 2500)
    assert processes.wait_for(lambda: len(casa.state()["workers"]) == 2, 30, every=1)


SOMEBODY = """
import os, sys, time
from distributed import Client
from distributed.security import Security

address, certificate, key, gate = sys.argv[1:]

def waits(gate):
    while not os.path.exists(gate):
        time.sleep(0.1)
    return os.getpid()

guard = Security(tls_ca_file=certificate, tls_client_cert=certificate, tls_client_key=key, require_encryption=True)
with Client(address, security=guard) as client:
    kept, data = client.submit(os.getpid, pure=False), client.scatter(list(range(100)))
    before, busy = kept.result(60), client.submit(waits, gate)
    print("ready", flush=True)
    sys.stdin.readline()
    print(busy.status, kept.result(60) == before, client.submit(sum, data).result(60), flush=True)
    open(gate, "w").close()
    print(busy.result(60) > 0, flush=True)
"""


def test_casa_is_shared(at_casa, casa):
    """What somebody else has there meanwhile, tasks that run and results that are kept, is not touched."""
    at_casa.data(dy=[2500])
    words = [casa.address, casa.certificate, casa.key, at_casa.folder / "theirs"]
    somebody = subprocess.Popen(
        [sys.executable, "-c", SOMEBODY, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, cwd=at_casa.folder,
    )  # fmt: skip
    try:
        assert somebody.stdout.readline() == "ready\n"
        code, out = at_casa.run(at_casa.command())
        assert code == 0, out
        accounted(at_casa.manifest(), 2500)
        said, _ = somebody.communicate("\n", timeout=60)
        assert said.split() == ["pending", "True", "4950", "True"], said
    finally:
        somebody.kill()
        somebody.communicate()


@pytest.mark.full
def test_casa_scheduler_ends(clean, tmp_path):
    """Said at once with what to do; when there is another, the same command goes on."""
    with session.folder() as folder:
        facility = Facility(folder)
        place = Lab(Here(facility), "dask", "casa", tmp_path)
        place.data(dy=[5000])
        gate = place.folder / "gate"
        command = place.command("--wf-arg", f"gate={gate}", "--task-seconds", "1", wf="Paced")
        try:
            facility.start()
            process = place.start(command)
            place.until_working(process, 2, wf="Paced")
            facility.end_scheduler()
            out, _ = process.communicate(timeout=60)
            assert process.returncode == 4, out
            assert "the same command goes on" in out
            facility.stop()
            facility.start()
            done = len(list(place.rundir(wf="Paced").rglob("*.part")))
            assert done
            gate.touch()
            code, out = place.run(command)
            assert code == 0, out
            accounted(place.manifest(wf="Paced"), 5000)
        finally:
            place.close()
            facility.stop()


@pytest.mark.parametrize(
    ("wrong", "says"), [("certificate", "certificate"), ("address", "nothing listens"), ("plain", "tls://")]
)
def test_casa_refuses(at_casa, casa, wrong, says):
    """Without the facility's certificate, or where nothing listens: said in seconds."""
    at_casa.data(dy=[500])
    text = at_casa.site_file.read_text()
    if wrong == "certificate":
        own, key = certificates.self_signed(at_casa.folder, "other")
        text = text.replace(f'tls_cert = "{casa.certificate}"', f'tls_cert = "{own}"')
        text = text.replace(f'tls_key = "{casa.key}"', f'tls_key = "{key}"')
    elif wrong == "address":
        text = text.replace(str(casa.port), str(processes.free_ports(1)))
    else:
        text = text.replace("tls://", "tcp://")
    at_casa.site_file = at_casa.folder / "wrongcasa.toml"
    at_casa.site_file.write_text(text)
    began = time.monotonic()
    code, out = at_casa.run(at_casa.command(), timeout=120)
    assert code in (2, 4), out
    assert says in out
    assert "TypeError" not in out
    assert time.monotonic() - began < 60
