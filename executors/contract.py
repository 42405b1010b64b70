"""The contract of an engine, as tests that anybody can run against their own::

    from executors.contract import EngineContract

    class TestMine(EngineContract):
        engine_name = "mine"            # a name the registry resolves; or override open_pool

Needs pytest. Which tests apply follows from the engine's Capabilities. Engines' own tests may not enter.
"""

# ruff: noqa: S101, D102 - a test asserts, and its name says what it promises

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import psutil
import pytest

from executors import contract_tasks as tasks
from executors import registry
from executors.engines.base import Resources
from executors.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Executor, Future
    from contextlib import AbstractContextManager

    from executors.engines.base import Capabilities

BIG = 20_000_000
PRELUDE = """
import os, signal, sys, time
from executors import registry
from executors.engines.base import Resources
engine, site = registry.resolve({name!r})
"""


class EngineContract:
    """What every engine promises; subclass it and set ``engine_name``."""

    engine_name: ClassVar[str] = ""
    workers: ClassVar[int] = 2
    patience: ClassVar[float] = 60.0  # seconds in which anything must have come to an end

    # -- hooks -------------------------------------------------------------------------------------

    def open_pool(self, **want: Any) -> AbstractContextManager[Executor]:
        """Open the engine under test; override for one that the registry does not know."""
        engine, site = registry.resolve(self.engine_name)
        return engine.open(site, Resources(**({"workers": self.workers} | want)))

    @property
    def can(self) -> Capabilities:
        """The capabilities of the engine under test."""
        return registry.describe(self.engine_name).capabilities

    @pytest.fixture(scope="class")
    def pool(self) -> Iterator[Executor]:
        with self.open_pool() as pool:
            yield pool

    def need(self, capability: str) -> None:
        """Skip the test unless the engine has the capability."""
        if not getattr(self.can, capability):
            pytest.skip(f"{self.engine_name} does not claim {capability}")

    # -- calls -------------------------------------------------------------------------------------

    def test_arguments_and_result(self, pool: Executor) -> None:
        # Names that an engine's own submit might take for itself must reach the function.
        given = dict.fromkeys(("fn", "self", "workers", "retries", "key", "pure", "resources"), 1)
        assert pool.submit(tasks.echo, 1, "two", None, **given).result(self.patience) == (
            (1, "two", None),
            given,
        )

    def test_closure_travels_by_value(self, pool: Executor) -> None:
        offset = 40
        assert pool.submit(lambda x: x + offset, 2).result(self.patience) == 42

    def test_exception_keeps_its_type_and_attributes(self, pool: Executor) -> None:
        error = pool.submit(tasks.raise_peculiar, 7).exception(self.patience)
        assert isinstance(error, tasks.Peculiar)
        assert error.number == 7
        if self.can.isolates:
            assert "raise_peculiar" in str(error.__cause__)

    def test_exception_that_cannot_be_rebuilt_is_described(self, pool: Executor) -> None:
        error = pool.submit(tasks.raise_awkward).exception(self.patience)
        assert error is not None
        assert "this and that" in str(error)
        assert pool.submit(tasks.length, b"after").result(self.patience) == 5

    def test_sys_exit_is_the_outcome_of_its_task_only(self, pool: Executor) -> None:
        assert isinstance(pool.submit(tasks.leave, 3).exception(self.patience), SystemExit)
        assert pool.submit(tasks.length, b"after").result(self.patience) == 5

    def test_result_that_cannot_be_pickled_fails_its_future_only(self, pool: Executor) -> None:
        self.need("isolates")
        first = pool.submit(tasks.pid)
        assert pool.submit(tasks.lock).exception(self.patience) is not None
        assert first.exception(self.patience) is None
        assert pool.submit(tasks.length, b"after").result(self.patience) == 5

    def test_argument_that_cannot_be_pickled_fails_its_future_only(self, pool: Executor) -> None:
        self.need("isolates")
        assert pool.submit(tasks.echo, threading.Lock()).exception(self.patience) is not None
        assert pool.submit(tasks.length, b"after").result(self.patience) == 5

    def test_large_arguments_and_results(self, pool: Executor) -> None:
        futures = [pool.submit(tasks.length, b"x" * BIG) for _ in range(3)]
        assert [one.result(self.patience) for one in futures] == [BIG] * 3
        assert len(pool.submit(tasks.blob, BIG).result(self.patience)) == BIG

    def test_map_keeps_the_order(self, pool: Executor) -> None:
        lengths = pool.map(tasks.length, [b"a" * n for n in range(50)], timeout=self.patience)
        assert list(lengths) == list(range(50))

    def test_a_thousand_small_tasks(self, pool: Executor) -> None:
        futures = [pool.submit(tasks.none) for _ in range(1000)]
        assert not wait(futures, self.patience).not_done
        assert all(one.exception() is None for one in futures)

    def test_one_task_at_a_time_in_each_worker(self, pool: Executor) -> None:
        spans = list(pool.map(tasks.interval, [0.02] * 20, timeout=self.patience))
        for process in {pid for pid, _, _ in spans}:
            mine = sorted((began, ended) for pid, began, ended in spans if pid == process)
            assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(mine))

    def test_pending_future_can_be_cancelled(self, pool: Executor) -> None:
        self.need("cancels")
        running = [pool.submit(tasks.interval, 0.5) for _ in range(self.workers)]
        pending = [pool.submit(tasks.interval, 0.5) for _ in range(self.workers * 4)]
        assert pending[-1].cancel()
        assert not wait([*running, *pending], self.patience).not_done
        with pytest.raises(CancelledError):
            pending[-1].result()
        assert all(one.exception() is None for one in [*running, *pending[:-1]])

    # -- faults ------------------------------------------------------------------------------------

    @pytest.mark.parametrize("how", ["exit", "kill", "segfault"])
    def test_death_of_a_worker_is_its_tasks_exception(self, pool: Executor, how: str) -> None:
        self.need("isolates")
        began = time.monotonic()
        assert pool.submit(tasks.die, how).exception(self.patience) is not None
        assert time.monotonic() - began < 10
        after = [pool.submit(tasks.pid) for _ in range(self.workers * 2)]
        assert all(one.exception(self.patience) is None for one in after)

    def test_only_the_guilty_task_fails(self, pool: Executor) -> None:
        self.need("isolates")
        innocent, guilty = (tasks.interval, 0.1), (tasks.die, "kill")
        futures: list[Future[Any]] = [pool.submit(*(guilty if n in (4, 9) else innocent)) for n in range(16)]
        assert not wait(futures, self.patience).not_done  # result or error, but none hangs
        failed = {n for n, one in enumerate(futures) if one.exception() is not None}
        assert {4, 9} <= failed
        if self.can.exact_blame:
            assert failed == {4, 9}

    def test_stopped_worker_does_not_hang(self, pool: Executor) -> None:
        self.need("isolates")
        assert pool.submit(tasks.die, "stop").exception(self.patience) is not None
        assert pool.submit(tasks.length, b"after").result(self.patience) == 5

    @pytest.mark.parametrize("task", [time.sleep, tasks.hold_gil])
    def test_running_task_can_be_killed(self, pool: Executor, task: Any) -> None:
        self.need("kills")
        future = pool.submit(task, 600)
        bystander = pool.submit(tasks.interval, 1.0)
        wait_until(future.running, self.patience)
        time.sleep(0.3)
        assert pool.kill(future, "time limit")  # type: ignore[attr-defined]
        assert "time limit" in str(future.exception(self.patience))
        assert bystander.exception(self.patience) is None
        assert not pool.kill(future, "again")  # type: ignore[attr-defined]
        assert pool.submit(tasks.length, b"after").result(self.patience) == 5

    def test_worker_can_be_renewed(self, pool: Executor) -> None:
        self.need("renews")
        first = pool.submit(tasks.pid)
        old = first.result(self.patience)
        # Without any call lost: it finishes what it does, and the next call is another's.
        running = [pool.submit(tasks.interval, 0.2) for _ in range(self.workers)]
        assert pool.renew(first)  # type: ignore[attr-defined]
        assert not wait(running, self.patience).not_done
        after = [pool.submit(tasks.interval, 0.05) for _ in range(self.workers * 6)]
        assert old not in {one.result(self.patience)[0] for one in after}
        assert all(one.exception() is None for one in running)
        assert not pool.renew(first)  # type: ignore[attr-defined]

    def test_memory_limit(self) -> None:
        self.need("kills_on_memory")
        with self.open_pool(memory=400 << 20) as pool:
            greedy, modest = pool.submit(tasks.eat, 800 << 20, 30), pool.submit(tasks.eat, 20 << 20, 1)
            died = greedy.exception(self.patience)
            assert getattr(died, "why", "") == "memory"
            assert 400 << 20 <= getattr(died, "peak", 0) < 1000 << 20
            assert modest.exception(self.patience) is None
            assert getattr(pool, "memory", 400 << 20) == 400 << 20

    def test_memory_of_a_tasks_own_processes_counts(self) -> None:
        self.need("kills_on_memory")
        with self.open_pool(memory=400 << 20) as pool:
            greedy = pool.submit(tasks.eat_elsewhere, 250 << 20, 2, 30)
            died = greedy.exception(self.patience)
            assert getattr(died, "why", "") == "memory"
            assert getattr(died, "peak", 0) >= 400 << 20
            assert pool.submit(tasks.length, b"after").result(self.patience) == 5

    # -- what workers get --------------------------------------------------------------------------

    def test_workers_get_what_they_were_promised(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "only_here.py").write_text("answer = 42\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.chdir(tmp_path)
        given = {"env": {"SCALEOUT_GIVEN": "yes"}, "initializer": tasks.initialize, "initargs": ("word",)}
        with self.open_pool(**given) as pool:
            assert pool.submit(tasks.environment, "SCALEOUT_GIVEN").result(self.patience) == "yes"
            assert "word" in pool.submit(tasks.initialized).result(self.patience)
            assert pool.submit(eval, "__import__('only_here').answer").result(self.patience) == 42
            path, cwd = pool.submit(tasks.path_and_cwd).result(self.patience)
            assert path == sys.path
            assert cwd == str(tmp_path)
        assert "SCALEOUT_GIVEN" not in os.environ
        assert [one.name for one in tmp_path.iterdir() if one.name != "__pycache__"] == ["only_here.py"]

    @pytest.mark.parametrize("initializer", [tasks.raise_peculiar, os._exit])
    def test_initializer_that_fails_is_an_error_at_once(self, initializer: Any) -> None:
        if initializer is os._exit:
            self.need("isolates")
        with pytest.raises(EngineError), self.open_pool(initializer=initializer, initargs=(5,)) as pool:
            pool.submit(tasks.none).result(self.patience)

    def test_output_of_workers_goes_to_the_logs(self, tmp_path: Path) -> None:
        self.need("isolates")
        with self.open_pool(log_dir=tmp_path) as pool:
            pool.submit(tasks.shout, 100).result(self.patience)
        written = "".join(one.read_text(errors="replace") for one in tmp_path.rglob("*.log"))
        assert all(letter * 100 in written for letter in "xyz")

    # -- the runner's own things -------------------------------------------------------------------

    def test_the_runner_is_left_as_it_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with self.open_pool() as pool:  # whatever is imported for good is imported by now
            pool.submit(tasks.pid).result(self.patience)
        gc.collect()  # what others left behind is not to go while this one counts
        before = _runner_state()
        for _ in range(2):
            with self.open_pool() as pool:
                assert pool.submit(tasks.pid).exception(self.patience) is None
                if self.can.isolates:
                    assert pool.submit(tasks.die, "kill").exception(self.patience) is not None
        limit = time.monotonic() + 5  # a thread may still be on its way out
        while (after := _runner_state()) != before and time.monotonic() < limit:
            time.sleep(0.05)
        assert after == before
        assert not list(tmp_path.iterdir())

    def test_opens_in_any_thread_and_twice_at_once(self) -> None:
        results: list[int] = []

        def use() -> None:
            with self.open_pool() as pool:
                results.append(pool.submit(tasks.length, b"four").result(self.patience))

        threads = [threading.Thread(target=use) for _ in range(2)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(self.patience)
        assert results == [4, 4]

    def test_shutdown_waits_for_what_was_submitted(self) -> None:
        with self.open_pool() as pool:
            futures = [pool.submit(tasks.interval, 0.05) for _ in range(6)]
            pool.shutdown(wait=True)
            assert all(one.done() and one.exception() is None for one in futures)
            with pytest.raises(RuntimeError):
                pool.submit(tasks.none)

    # -- leaving -----------------------------------------------------------------------------------

    def test_leaving_ends_everything(self) -> None:
        self.need("isolates")
        before = tasks.descendants()
        with self.open_pool() as pool:
            stray = pool.submit(tasks.detach).result(self.patience)
            busy = [pool.submit(tasks.hold_gil, 600), *(pool.submit(time.sleep, 600) for _ in range(9))]
            wait_until(busy[0].running, self.patience)
            time.sleep(0.5)
            mine = tasks.descendants() - before
            addresses = tasks.listeners(mine)
            assert stray in {one.pid for one in mine}
            began = time.monotonic()
        assert time.monotonic() - began < 10
        assert not tasks.gone(mine, 1)
        assert not tasks.descendants() - before
        assert not wait(busy, 5).not_done
        assert self.can.remote or all(host.endswith(("127.0.0.1", "::1")) for host, _ in addresses), addresses
        assert not tasks.listeners(tasks.descendants() | {psutil.Process()}) & addresses

    def test_kill_of_the_runner_leaves_nothing(self, tmp_path: Path) -> None:
        self.need("isolates")
        body = """
        from executors import contract_tasks as tasks
        with engine.open(site, Resources(workers=2)) as pool:
            pool.submit(tasks.detach).result()
            futures = [pool.submit(tasks.hold_gil, 600), pool.submit(time.sleep, 600)]
            time.sleep(0.5)
            print("busy", flush=True)
            time.sleep(600)
        """
        for early in (None, 0.1, 0.6, 1.5):
            with self.runner(body, tmp_path) as (runner, token):
                if early is None:
                    assert runner.stdout is not None
                    assert runner.stdout.readline() == "busy\n"
                else:
                    time.sleep(early)
                theirs = tasks.descendants(runner.pid)
                runner.kill()
                runner.wait()
                assert not tasks.gone(theirs | tasks.marked(token), 10)
                assert not tasks.marked(token)

    def test_ctrl_c_is_the_runners_alone(self, tmp_path: Path) -> None:
        self.need("isolates")
        body = """
        from executors import contract_tasks as tasks
        signal.signal(signal.SIGINT, lambda *_: os.write(1, b"interrupted\\n"))
        with engine.open(site, Resources(workers=2)) as pool:
            future = pool.submit(tasks.wait_for, os.path.abspath("go"), 20)
            while not future.running():
                time.sleep(0.01)
            time.sleep(0.3)
            print("busy", flush=True)
            print(future.result(), flush=True)
        """
        with self.runner(body, tmp_path) as (runner, _):
            assert runner.stdout is not None
            assert runner.stdout.readline() == "busy\n"
            os.killpg(runner.pid, signal.SIGINT)
            assert runner.stdout.readline() == "interrupted\n"
            (tmp_path / "go").touch()
            out, err = runner.communicate(timeout=self.patience)
        assert out == "finished\n"
        assert not err

    @pytest.mark.parametrize("way", ["file", "stdin"])
    def test_plain_script_without_a_guard(self, tmp_path: Path, way: str) -> None:
        body = """
        class Thing:
            def __init__(self, x): self.x = x
        def double(thing):
            print("noise"); print("noise", file=sys.stderr)
            return Thing(thing.x * 2)
        with engine.open(site, Resources(workers=2)) as pool:
            things = list(pool.map(double, [Thing(1), Thing(2)]))
            assert all(type(one) is Thing for one in things)
            if engine.capabilities.isolates:
                assert pool.submit(os._exit, 1).exception() is not None
                pool.submit(time.sleep, 600)
            sys.stdout, before = sys.__stdout__, sys.stdout
        print(sum(one.x for one in things))
        """
        with self.runner(body, tmp_path, stdin=way == "stdin") as (runner, _):
            out, err = runner.communicate(timeout=self.patience)
        assert runner.returncode == 0, err
        lines = out.split()
        assert lines[-1] == "6"
        if self.can.isolates:
            assert lines == ["6"]
            assert not err

    @contextlib.contextmanager
    def runner(
        self, body: str, folder: Path, *, stdin: bool = False
    ) -> Iterator[tuple[subprocess.Popen[str], str]]:
        """A script of its own in its own process group, and the token that it and all it starts carry."""
        token = uuid.uuid4().hex
        script = folder / f"{token}.py"
        script.write_text(PRELUDE.format(name=self.engine_name) + textwrap.dedent(body))
        path = os.pathsep.join(one or str(Path.cwd()) for one in sys.path)
        env = os.environ | {tasks.TOKEN: token, "SPT_NOENV": "1", "PYTHONPATH": path}
        with (
            script.open() as text,
            subprocess.Popen(  # noqa: S603 - our own interpreter and file
                [sys.executable, *([] if stdin else [str(script)])],
                stdin=text if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=env,
                cwd=folder,
                start_new_session=True,
            ) as process,
        ):
            try:
                yield process, token
            finally:
                process.kill()
                for one in tasks.marked(token):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()


def wait_until(condition: Any, seconds: float) -> None:
    """Return once the condition holds; fails when it does not in time."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.01)


def _runner_state() -> dict[str, Any]:
    umask = os.umask(0o22)
    os.umask(umask)
    return {
        "signals": [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        "umask": umask,
        "cwd": str(Path.cwd()),
        "threads": sorted(one.name for one in threading.enumerate()),
        "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "handlers": list(logging.getLogger().handlers),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "children": tasks.descendants(),
    }
