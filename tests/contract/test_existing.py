"""The engine ``dask`` with a scheduler and workers that somebody else runs: the contract, and that they survive."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from real.servers import python as other_python

from executors import contract_tasks as tasks
from executors.contract import EngineContract, wait_until
from executors.engines.base import Capabilities, Resources
from executors.engines.dask import DaskEngine
from executors.engines.tls import make_certificate
from executors.errors import EngineError, SiteError, UsageError
from sites.profile import Dask, Limits, SiteProfile

CLUSTER = """
import asyncio, sys
sys.path[:] = [one for one in sys.path if not one.startswith(sys.argv[3])] + [sys.argv[4]]
import importlib.util
assert importlib.util.find_spec("executors") is None, "the scheduler of others must not know this package"
from distributed import Nanny, Scheduler
from distributed.security import Security

async def main(folder, protocol):
    roles = {f"tls_{role}_{part}": f"{folder}/{name}.pem" for role in ("client", "scheduler", "worker")
             for part, name in (("cert", "certificate"), ("key", "key"))}
    guard = Security(tls_ca_file=f"{folder}/certificate.pem", require_encryption=True, **roles) if protocol == "tls" else None
    more = {"host": "127.0.0.1", "security": guard, "dashboard": False}
    async with Scheduler(protocol=protocol, port=0, **more) as scheduler:
        nanny = {"memory_limit": "2GB", "local_directory": folder, **more}
        async with Nanny(scheduler.address, nthreads=1, **nanny), Nanny(scheduler.address, nthreads=1, **nanny):
            print(scheduler.address, flush=True)
            await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


class Cluster:
    """A scheduler with two workers in processes that have never heard of this package."""

    def __init__(self, folder: Path, protocol: str = "tls", python: str = sys.executable) -> None:
        self.folder = folder
        folder.chmod(0o700)
        make_certificate(folder)
        script = folder / "cluster.py"
        script.write_text(textwrap.dedent(CLUSTER))
        # -S: the environment's own path files may point to this checkout.
        root = str(Path(__file__).resolve().parents[2])
        packages = str(Path(psutil.__file__).parents[1])
        self.process = subprocess.Popen(
            [python, "-S", str(script), str(folder), protocol, root, packages],
            stdout=subprocess.PIPE,
            stderr=(folder / "cluster.err").open("wb"),
            text=True,
            cwd=folder,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            start_new_session=True,
        )
        self.address = self.process.stdout.readline().strip()
        assert self.address, (folder / "cluster.err").read_text()

    @property
    def certificates(self) -> dict[str, str]:
        certificate = str(self.folder / "certificate.pem")
        return {"tls_ca": certificate, "tls_cert": certificate, "tls_key": str(self.folder / "key.pem")}

    def site(self, **more) -> SiteProfile:
        return SiteProfile(
            name="theirs",
            scheduler="existing",
            engines=("dask",),
            shares_store=False,
            dask=Dask(address=self.address, **(self.certificates | more)),
            limits=Limits(start=20.0),
        )

    def ours(self) -> set[psutil.Process]:
        """Processes beside their workers that work for us."""
        found = set()
        for one in tasks.descendants(self.process.pid):
            with contextlib.suppress(psutil.Error):
                if any("cs-" in word for word in one.cmdline()):
                    found.add(one)
        return found

    def close(self) -> None:
        below = tasks.descendants(self.process.pid)
        self.process.kill()
        self.process.wait()
        for one in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("theirs"))
    yield made
    assert made.process.poll() is None, "their scheduler must survive us"
    made.close()


class TestExisting(EngineContract):
    """What needs the workers' own folder, path or end does not hold for workers of others."""

    engine_name = "dask/local"

    test_workers_get_what_they_were_promised = None
    test_output_of_workers_goes_to_the_logs = None
    test_kill_of_the_runner_leaves_nothing = None
    test_leaving_ends_everything = None
    test_ctrl_c_is_the_runners_alone = None
    test_plain_script_without_a_guard = None
    test_the_runner_is_left_as_it_was = None

    @pytest.fixture(autouse=True)
    def _theirs(self, cluster):
        type(self).cluster = cluster

    @pytest.fixture(scope="class")
    def pool(self, cluster):
        with DaskEngine().open(cluster.site(), Resources(workers=2)) as pool:
            yield pool

    def open_pool(self, **want):
        return DaskEngine().open(self.cluster.site(), Resources(**({"workers": 2} | want)))

    @property
    def can(self):
        return Capabilities(kills_on_memory=True, shares_store=False, remote=True)


def test_nothing_of_ours_stays(cluster):
    before = cluster.ours()
    theirs = tasks.descendants(cluster.process.pid) - before
    with DaskEngine().open(cluster.site(), Resources(workers=2)) as pool:
        busy = [pool.submit(tasks.hold_gil, 600), pool.submit(time.sleep, 600)]
        wait_until(lambda: len(cluster.ours() - before) >= 4, 60)
        time.sleep(1)  # the calls are with them by then
    assert all(one.exception(10) is not None for one in busy)
    mine = cluster.ours()
    assert tasks.gone(mine, 40) == set()
    assert not cluster.ours()
    assert {one.pid for one in theirs} <= {one.pid for one in tasks.descendants(cluster.process.pid)}
    left = {one.name for one in cluster.folder.rglob("*") if "cs-" in one.name or "parcel" in one.name}
    assert left == set()


def test_their_workers_learn_nothing_of_us(cluster):
    with DaskEngine().open(cluster.site(), Resources(workers=2)) as pool:
        host = pool.submit(os.getppid).result(60)
    import distributed

    from executors.engines.dask_parts import security

    certificates = cluster.certificates
    guard = security(certificates["tls_cert"], certificates["tls_key"])
    with distributed.Client(cluster.address, security=guard, set_as_default=False) as client:
        found = client.run(lambda: (__import__("os").getpid(), "executors" in __import__("sys").modules))
    assert len(found) == 2
    assert not any(known for _, known in found.values())
    assert host not in {pid for pid, _ in found.values()}


def test_a_scheduler_that_is_not_there_is_named(cluster, tmp_path):
    site = cluster.site()
    gone = SiteProfile(
        name="theirs", scheduler="existing", dask=Dask(address="tls://127.0.0.1:1", **cluster.certificates)
    )
    with (
        pytest.raises(EngineError, match=r"tls://127.0.0.1:1 .*is it running"),
        DaskEngine().open(gone, Resources()),
    ):
        pass
    assert site.dask.address


@pytest.mark.parametrize(
    ("dask", "error", "text"),
    [
        (Dask(), UsageError, "--scheduler-address"),
        (Dask(address="tcp://127.0.0.1:8786"), UsageError, "--insecure"),
        (Dask(address="localhost"), UsageError, "tls://HOST:PORT"),
        (Dask(address="tls//localhost:8786"), UsageError, "tls://HOST:PORT"),
        (Dask(address="http://localhost:8787/status"), UsageError, "tls://HOST:PORT"),
        (Dask(address="localhost:99999"), UsageError, "tls://HOST:PORT"),
        (Dask(address="tls://localhost:abc"), UsageError, "tls://HOST:PORT"),
        (Dask(address="tls://[::1:8786"), UsageError, "tls://HOST:PORT"),
        (Dask(address="tls://127.0.0.1:8786", tls_ca="/no/such", tls_cert="/no/such"), SiteError, "/no/such"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(dask, error, text):
    site = SiteProfile(name="theirs", scheduler="existing", dask=dask)
    with pytest.raises(error, match=text), DaskEngine().open(site, Resources()):
        pass


@pytest.mark.parametrize(("has", "says"), [("", r"\(absent\)"), ("2020.1.0", "2020.1.0")])
def test_workers_with_another_coffea_are_refused_by_both_versions(tmp_path, has, says):
    """Before anything is done: their sums would be other ones, or their tasks would fail one by one."""
    python = other_python.without_project(tmp_path / "env")
    (own,) = (tmp_path / "env").glob("lib/*/site-packages")
    (about,) = own.glob("coffea-*.dist-info")
    about.unlink()
    if has:
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: coffea\nVersion: {has}\n")
    (folder := tmp_path / "theirs").mkdir()
    theirs = Cluster(folder, python=str(python))
    want = Resources(workers=1, preload=("executors.coffea.analysis",))
    try:
        with (
            pytest.raises(EngineError, match=rf"coffea {says} where the runner has \d+") as caught,
            DaskEngine().open(theirs.site(), want) as pool,
        ):
            pool.submit(abs, -1).result(60)
        assert "its Python is" in str(caught.value)
    finally:
        theirs.close()


def test_a_scheduler_without_encryption_is_used_only_when_that_was_typed(tmp_path):
    plain = Cluster(tmp_path, "tcp")
    try:
        with DaskEngine().open(plain.site(), Resources(insecure=True)) as pool:
            assert pool.submit(tasks.length, b"four").result(60) == 4
    finally:
        plain.close()
