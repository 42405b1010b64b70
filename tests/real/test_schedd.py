"""Two schedds, one of which is being emptied: every command of a run goes to the other."""

from __future__ import annotations

import json

import pytest
from real.lab import Lab, accounted
from real.servers import processes

pytestmark = pytest.mark.timeout(300)
TWO = """
DAEMON_LIST = $(DAEMON_LIST), SCHEDD2
DC_DAEMON_LIST = +SCHEDD2
SCHEDD2 = $(SBIN)/condor_schedd
SCHEDD2_ARGS = -local-name SCHEDD2
SCHEDD2.SCHEDD_NAME = second
SCHEDD2.SCHEDD_LOG = $(LOG)/SchedLog2
SCHEDD2.SPOOL = $(LOCAL_DIR)/run
SCHEDD2.HISTORY = $(LOCAL_DIR)/run/history
SCHEDD2.SCHEDD_ADDRESS_FILE = $(LOCAL_DIR)/run/.schedd2_address
SCHEDD_ATTRS = $(SCHEDD_ATTRS) FERMIHTC_DRAIN_LPCSCHEDD FERMIHTC_SCHEDD_TYPE
FERMIHTC_SCHEDD_TYPE = "CMSLPC"
FERMIHTC_DRAIN_LPCSCHEDD = True
SCHEDD2.FERMIHTC_DRAIN_LPCSCHEDD = False
FERMIHTC_REMOTE_POOL = 127.0.0.1:9, $(COLLECTOR_HOST)
"""
SITE = """
inherits = "condor"
[network]
address = "loopback"
[job]
submit_options = ["-spool"]
[schedd]
pool = "$FERMIHTC_REMOTE_POOL"
constraint = 'FERMIHTC_DRAIN_LPCSCHEDD =?= false && FERMIHTC_SCHEDD_TYPE =?= "CMSLPC" && MaxJobsRunning =!= 0'
rank = "0.7 * 100 * RecentDaemonCoreDutyCycle + 0.2 * 100 * ShadowsRunning / MaxJobsRunning + 0.1 * TotalIdleJobs"
[limits]
polls_per_minute = 60
start = "60s"
death = "10s"
"""


@pytest.fixture(scope="module")
def two(pool):
    one = pool(rules=TWO)
    (one.folder / "twoschedds.toml").write_text(SITE)
    assert processes.wait_for(lambda: len(names(one)) == 2, 30, every=0.5), names(one)
    return one


@pytest.fixture(params=["dask", "parsl"])
def at_two(two, request):
    place = Lab(two, request.param, "two")
    place.site_file = two.folder / "twoschedds.toml"
    try:
        yield place
        place.nothing_left()
        assert processes.wait_for(lambda: not second(place), 30, every=0.5), second(place)
    finally:
        place.close()
        two.command("condor_rm", "-name", names(two)[-1], "-all", check=False)


def names(pool):
    """The schedds, the one that is being emptied first."""
    said = pool.command("condor_status", "-schedd", "-af", "FERMIHTC_DRAIN_LPCSCHEDD", "Name")
    return [line.split()[1] for line in sorted(said.splitlines(), reverse=True)]


def second(lab):
    """The jobs of the schedd that is to be used."""
    said = lab.batch.command("condor_q", "-name", names(lab.batch)[-1], "-allusers", "-json")
    return json.loads(said) if said.strip() else []


def test_jobs_go_to_the_one_that_takes_them(at_two):
    """To the end of the run, and of its logs."""
    assert len(names(at_two.batch)) == 2
    at_two.data(dy=[2500])
    code, out = at_two.run(at_two.command())
    assert code == 0, out
    accounted(at_two.manifest(), 2500)
    assert f"the schedd {names(at_two.batch)[-1]}" in out, out


@pytest.mark.parametrize("way", [pytest.param("interrupt", marks=pytest.mark.full), "kill"])
def test_they_leave_it_again(at_two, way):
    """Also where nobody is left who made the choice."""
    at_two.data(dy=[5000])
    command = at_two.command("--wf-arg", f"gate={at_two.folder / 'gate'}", "--task-seconds", "1", wf="Paced")
    process = at_two.start(command)
    at_two.until_working(process, wf="Paced")
    assert second(at_two)
    assert not at_two.batch.queue(), "jobs at the schedd that is being emptied"
    process.send_signal(2) if way == "interrupt" else process.kill()
    process.communicate(timeout=60)
    assert processes.wait_for(lambda: not second(at_two), 60, every=1), second(at_two)
