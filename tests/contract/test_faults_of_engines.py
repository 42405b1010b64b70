"""What kills an engine itself: its keeper, its host, its idle workers; and what a thousand deaths leave."""

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from concurrent.futures import wait
from pathlib import Path

import psutil
import pytest

from executors import contract_tasks as tasks
from executors import registry
from executors.contract import wait_until
from executors.engines import call
from executors.engines.base import Resources, WorkerDied
from executors.engines.futures import WorkerSlot
from executors.engines.nursery import Nursery
from executors.engines.parsl_task import outcome_file
from executors.engines.tls import make_certificate
from executors.errors import EngineError, SiteError, UsageError

HOSTED = ["dask/local", "parsl/local"]
ALL = ["futures", *HOSTED]


@contextlib.contextmanager
def opened(name, **want):
    engine, site = registry.resolve(name)
    before = tasks.descendants()
    with engine.open(site, Resources(**({"workers": 2} | want))) as pool:
        yield pool
    assert not tasks.gone(tasks.descendants() - before, 5)


def mine(pattern):
    found = set()
    for one in tasks.descendants():
        with contextlib.suppress(psutil.Error):
            if pattern in " ".join([one.name(), *one.cmdline()]):
                found.add(one)
    return found


def keepers():
    return [one for one in psutil.Process().children() if "keeper.py" in " ".join(one.cmdline())]


def sizes(keeper):
    found = []
    for one in keeper.children():
        with contextlib.suppress(psutil.Error):
            found.append(one.memory_info().rss)
    return found


@pytest.mark.parametrize("name", ALL)
def test_death_of_the_keeper_fails_everything_and_ends(name):
    with opened(name) as pool:
        futures = [pool.submit(time.sleep, 600) for _ in range(6)]
        wait_until(futures[0].running, 30)
        (keeper,) = keepers()
        below = tasks.descendants(keeper.pid)
        keeper.kill()
        assert not wait(futures, 20).not_done
        assert all(isinstance(one.exception(), WorkerDied | EngineError) for one in futures)
        with pytest.raises(EngineError):
            pool.submit(tasks.none).result(30)
    # Parsl's own programs outlive the death of both the keeper and their host, until the engine is left.
    assert not tasks.gone(below, 10)


@pytest.mark.parametrize("name", HOSTED)
def test_death_of_the_host_is_healed(name):
    with opened(name) as pool:
        futures = [pool.submit(time.sleep, 600) for _ in range(2)]
        wait_until(lambda: all(one.running() for one in futures), 30)
        (keeper,) = keepers()
        for host in keeper.children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it may have gone with the one before
                host.kill()
        assert all(isinstance(one.exception(20), WorkerDied) for one in futures)
        assert list(pool.map(tasks.length, [b"x"] * 10, timeout=60)) == [1] * 10


def test_answers_of_a_host_before_are_not_taken_for_those_of_the_next(tmp_path):
    """Parsl's workers may live on for a while, and write what they were asked for."""
    with opened("parsl/local", scratch=tmp_path) as pool:
        assert list(pool.map(tasks.length, [b"x"] * 4, timeout=60)) == [1] * 4
        notes = [path for path in tmp_path.glob("parsl-*/note-*") if not path.suffix]
        assert notes
        (keeper,) = keepers()
        for host in keeper.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                host.kill()
        late = call.run(call.pack_call(tasks.length, (b"of another",), {}))
        for note in notes:
            for ticket in range(20):
                outcome_file(str(note), ticket).write_bytes(late)
        answers = [pool.submit(tasks.interval, 1.5) for _ in range(4)]  # long enough to be looked for
        for one in answers:
            with contextlib.suppress(WorkerDied):
                assert isinstance(one.result(60), tuple)
        assert isinstance(pool.submit(tasks.interval, 1.5).result(60), tuple)


@pytest.mark.parametrize("program", ["process_worker_pool.py", "interchange"])
def test_death_of_parsls_own_programs_is_healed(program):
    with opened("parsl/local", workers=2) as pool:
        futures = [pool.submit(time.sleep, 600) for _ in range(2)]
        wait_until(lambda: all(one.running() for one in futures), 30)
        time.sleep(1)
        victims = mine(program)
        assert victims
        for one in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        assert not wait(futures, 90).not_done
        assert all(isinstance(one.exception(), WorkerDied) for one in futures)
        assert list(pool.map(tasks.length, [b"x"] * 10, timeout=90)) == [1] * 10


@pytest.mark.parametrize("name", ALL)
def test_death_of_idle_workers_is_healed(name):
    with opened(name) as pool:
        pids = {pid for pid, _, _ in pool.map(tasks.interval, [0.2] * 4)}
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
        futures = [pool.submit(tasks.length, b"x") for _ in range(10)]
        assert not wait(futures, 100).not_done
        assert sum(one.exception() is None for one in futures) >= 8


def test_many_deaths_leave_no_descriptor_and_no_process(request):
    deaths = 1000 if request.config.getoption("markexpr") == "full" else 200
    with opened("futures") as pool:
        wait([pool.submit(tasks.die, "exit") for _ in range(10)])
        (keeper,) = keepers()
        # A dead worker has no socket, and the next one is on its way: counted too early, there is one less.
        wait_until(lambda: len({pid for pid, _, _ in pool.map(tasks.interval, [0.1] * 4)}) == 2, 30)
        time.sleep(0.2)
        ours, its = psutil.Process().num_fds(), keeper.num_fds()
        futures = [pool.submit(tasks.die, "exit") for _ in range(deaths)]
        assert not wait(futures, 100).not_done
        assert all(one.exception().exitcode == 3 for one in futures)
        wait_until(lambda: len(tasks.descendants(keeper.pid)) == 2, 30)
        wait_until(lambda: psutil.Process().num_fds() <= ours and keeper.num_fds() <= its, 10)


def semaphores(processes):
    """Those with a name that the processes have."""
    numbers = set()
    for one in processes:
        with contextlib.suppress(OSError):
            maps = Path(f"/proc/{one.pid}/maps").read_text()
            numbers |= set(map(int, re.findall(r"(\d+) +/dev/shm/sem\.", maps)))
    return {
        path for path in Path("/dev/shm").glob("sem.*") if path.exists() and path.stat().st_ino in numbers
    }


@pytest.mark.parametrize("name", HOSTED)
def test_semaphores_of_those_that_are_killed_are_removed(name):
    """Parsl's own processes have some, and a task's may."""
    with opened(name) as pool:
        assert pool.submit(tasks.semaphore).result(60)
        left = semaphores(tasks.descendants())
        assert left
    assert {path for path in left if path.exists()} == set()


@pytest.mark.parametrize("name", HOSTED)
def test_repeated_deaths_behind_a_host(name):
    with opened(name) as pool:
        futures = [pool.submit(*((tasks.die, "exit") if n % 3 == 0 else (tasks.pid,))) for n in range(18)]
        assert not wait(futures, 100).not_done
        assert {n for n, one in enumerate(futures) if one.exception() is not None} == set(range(0, 18, 3))


def test_death_says_how():
    with opened("futures") as pool:
        by_exit = pool.submit(tasks.die, "exit").exception()
        by_signal = pool.submit(tasks.die, "segfault").exception()
        assert (by_exit.why, by_exit.exitcode) == ("exit", 3)
        assert (by_signal.why, by_signal.exitcode) == ("signal", -signal.SIGSEGV)
        eater = pool.submit(tasks.eat, 300 << 20, 600)
        (keeper,) = keepers()
        wait_until(lambda: any(size > 300 << 20 for size in sizes(keeper)), 30)
        assert pool.kill(eater, "time limit")
        assert eater.exception(10).why == "time limit"
        assert 300 << 20 < eater.exception().peak < 400 << 20


def test_a_kill_that_comes_late_does_not_hit_the_next_task(tmp_path):
    nursery = Nursery(tmp_path)
    slot = WorkerSlot(nursery, 0, call.pack_outfit(None, ()))
    blob = call.pack_call(tasks.pid, (), {})
    try:
        for _ in range(20):
            slot.ready()
            slot.kill("late")
            assert slot.call(blob)
    finally:
        slot.close()
        nursery.close()


def test_a_forked_child_that_holds_the_socket_does_not_hide_the_death():
    def leave_a_twin():
        if not os.fork():
            os.setsid()
            time.sleep(600)
        time.sleep(0.2)
        os._exit(3)

    with opened("futures") as pool:
        began = time.monotonic()
        assert pool.submit(leave_a_twin).exception(30).exitcode == 3
        assert time.monotonic() - began < 20


def test_crash_traceback_is_in_the_log(tmp_path):
    with opened("futures", log_dir=tmp_path) as pool:
        pool.submit(tasks.die, "segfault").exception()
    assert "Segmentation fault" in "".join(one.read_text() for one in tmp_path.glob("worker-*.log"))


@pytest.mark.parametrize("name", ["futures", "parsl/local"])
def test_a_gigabyte_of_output_does_not_stay(tmp_path, name):
    size = 200 << 20
    with opened(name, workers=1, log_dir=tmp_path) as pool:
        assert pool.submit(tasks.shout, size).exception(60) is None
        assert pool.submit(tasks.shout, 10).exception(60) is None
    assert sum(one.stat().st_size for one in tmp_path.iterdir()) < 2 * call.LOG_LIMIT


def test_an_unfinished_pool_ends_with_the_interpreter(tmp_path):
    code = """
import time, os
from executors import registry
from executors.engines.base import Resources
engine, site = registry.resolve("futures")
opened = engine.open(site, Resources(workers=2))
pool = opened.__enter__()
future = pool.submit(time.sleep, 600)
pid = pool.submit(os.getpid).result()
print(pid)
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(one or str(Path.cwd()) for one in sys.path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=env, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    wait_until(lambda: not psutil.pid_exists(int(done.stdout)), 10)


def test_preloaded_modules_are_shared_and_random_numbers_differ():
    with opened("futures", preload=("numpy.random", "no_such_module_here")) as pool:
        draw = "(__import__('time').sleep(0.2), __import__('numpy').random.random())[1]"
        draws = pool.map(eval, [draw] * 2)
        assert len(set(draws)) == 2
        assert pool.submit(eval, "'numpy' in __import__('sys').modules").result(10)


def test_keys_are_private_and_gone_after_kill_or_leaving(tmp_path):
    for name in HOSTED:
        with opened(name, scratch=tmp_path) as pool:
            pool.submit(tasks.none).result(30)
            (private,) = tmp_path.iterdir()
            assert private.stat().st_mode & 0o777 == 0o700
            keys = [one for one in private.rglob("*") if "key" in one.suffix or one.name == "key.pem"]
            assert keys
            assert all(one.parent.stat().st_mode & 0o777 == 0o700 for one in keys)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", HOSTED)
def test_what_stays_on_this_machine_listens_on_loopback_alone(name):
    before = tasks.descendants()
    with opened(name) as pool:
        pool.submit(tasks.none).result(30)
        found = tasks.listeners(tasks.descendants() - before)
        assert found
        assert {host.removeprefix("::ffff:") for host, _ in found} == {"127.0.0.1"}
        for address in found:
            with socket.create_connection(address, 10) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                with contextlib.suppress(OSError):
                    assert not sock.recv(1000).startswith(b"HTTP"), "a page for everybody"


def test_a_stranger_cannot_speak_to_dask(tmp_path):
    before = tasks.descendants()
    strange = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    strange.check_hostname, strange.verify_mode = False, ssl.CERT_NONE
    strange.load_cert_chain(*make_certificate(tmp_path / "keys"))
    with opened("dask/local") as pool:
        pool.submit(tasks.none).result(30)
        wait_until(lambda: len(tasks.listeners(tasks.descendants() - before)) >= 3, 30)
        addresses = tasks.listeners(tasks.descendants() - before)
        assert len(addresses) == 3  # the scheduler, two workers, and no web server
        for address in addresses:
            with socket.create_connection(address, 10) as plain:
                plain.sendall(b"\0" * 64)
                assert refused(plain)
            with socket.create_connection(address, 10) as plain, contextlib.suppress(ssl.SSLError):
                assert refused(strange.wrap_socket(plain))


def refused(sock):
    try:
        return not sock.recv(1000) or not sock.recv(1000)  # at most a TLS alert before the end
    except OSError:
        return True


def test_wrong_wishes_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ALL:
        with pytest.raises(UsageError), opened(name, workers=0):
            pass
        with pytest.raises(SiteError), opened(name, scratch=tmp_path / "file" / "below"):
            pass


def test_an_outcome_is_a_description_when_all_else_fails():
    class Nasty(Exception):
        def __str__(self):
            raise RuntimeError("no text")

        def __reduce__(self):
            raise RuntimeError("no pickle")

    def fail():
        raise Nasty

    error = call.rebuild_outcome(call.run(call.pack_call(fail, (), {})))
    assert "Nasty" in str(error)
