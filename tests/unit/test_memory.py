"""What is measured of memory is the truth: processors whose use is known, each in a fresh process."""

import inspect
import mmap
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from fakes import FakeAnalysis, make_place, make_plan

import executors
from executors.work import limits, memory, processes, worker
from executors.work.layout import Tree
from executors.work.memory import Family, Meter
from executors.work.model import Kind
from executors.work.worker import perform

MB = 1 << 20
ROOT = Path(__file__).parents[2]
START = f"""
import mmap, os, subprocess, sys, threading, time
sys.path.insert(0, {str(ROOT)!r})
from executors.work import memory, processes

meter, MB = memory.meter(), 1 << 20

def touch(size):
    # Private, as what programs ask for.
    fresh = mmap.mmap(-1, size * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, len(fresh), mmap.PAGESIZE):
        fresh[page] = 1
    return fresh

def program(size, hold=0.15):
    code = f"import time; kept = b'x' * {{size * MB}}; time.sleep({{hold}})"
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", code])

def said(*spans):
    for span in spans:
        use = span.use
        print(use.before, use.peak, use.children, use.mapped)
"""

linux = pytest.mark.skipif(processes.status() is None, reason="the kernel keeps no high-water mark")
pytestmark = linux


def run(code, *args):
    """What a fresh process says of its spans, in MB."""
    # A process has its parent's mark for a start, and this one may be large by now: the shell's is small.
    argv = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", START + code, *map(str, args)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    return [memory.Use(*(int(word) / MB for word in line.split())) for line in done.stdout.splitlines()]


# -- of one process ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [50, 200])
def test_a_known_use_is_measured(size):
    code = "with meter.span() as span:\n    touch(int(sys.argv[1])).close()\nsaid(span)"
    (use,) = run(code, size)
    assert use.peak - use.before == pytest.approx(size, rel=0.02)
    assert (use.children, use.mapped) == (0, pytest.approx(0, abs=2))


def test_what_a_thread_takes_counts():
    (use,) = run("""
with meter.span() as span:
    thread = threading.Thread(target=lambda: touch(100).close())
    thread.start()
    thread.join()
said(span)
""")
    assert use.peak - use.before == pytest.approx(100, rel=0.02)


def test_each_block_has_its_own_peak_within_others():
    outer, inner, last = run("""
with meter.span() as outer:
    touch(150).close()
    with meter.span() as inner:
        touch(50).close()
    touch(20).close()
with meter.span() as last:
    touch(10).close()
said(outer, inner, last)
""")
    assert outer.peak - outer.before == pytest.approx(150, rel=0.02)
    assert inner.peak - inner.before == pytest.approx(50, rel=0.03)
    assert last.peak - last.before == pytest.approx(10, rel=0.1)


def test_blocks_of_two_threads_lose_nothing():
    first, second = run("""
first, second = meter.span(), meter.span()
first.__enter__()
touch(100).close()
second.__enter__()
touch(30).close()
first.__exit__(None, None, None)
touch(60).close()
second.__exit__(None, None, None)
said(first, second)
""")
    assert first.peak - first.before == pytest.approx(100, rel=0.02)
    assert second.peak - second.before == pytest.approx(60, rel=0.03)


def test_a_block_that_raises_is_measured():
    (use,) = run("""
try:
    with meter.span() as span:
        kept = touch(50)
        raise MemoryError
except MemoryError:
    said(span)
""")
    assert use.peak - use.before == pytest.approx(50, rel=0.02)


def test_pages_of_files_are_told_apart(tmp_path):
    path = tmp_path / "big"
    path.write_bytes(bytes(64 * MB))
    (use,) = run(
        """
with meter.span():
    pass
with open(sys.argv[1], "rb") as file, meter.span() as span:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    sum(mapped[page] for page in range(0, len(mapped), mmap.PAGESIZE))
    kept = touch(20)
said(span)
""",
        path,
    )
    assert use.mapped == pytest.approx(64, abs=2)
    assert use.peak - use.before == pytest.approx(84, rel=0.03)


HEAP = """
def chunk(kind, size, count):
    with meter.span(kind, size) as span:
        # Blocks too small for a mapping of their own, with one that stays above them: the heap cannot shrink.
        blocks = [b"x" * 100_000 for _ in range(count)]
        kept.append(b"x" * 100_000)
        del blocks
    return span

kept, trims, give_back = [], [], processes.give_back
def count_trims():
    trims.append(1)
    return give_back()
processes.give_back = count_trims
"""


def test_a_small_chunk_after_a_big_one_has_its_own_peak():
    said = run(HEAP + "chunk('d', 1, 10)\nsaid(chunk('d', 100, 1000), chunk('d', 10, 100))")
    big, small = said
    assert big.peak - big.before == pytest.approx(95, abs=5)
    assert small.peak < big.before + 30


def test_the_heap_is_given_back_only_where_it_tells_something():
    (use,) = run(
        HEAP
        + """
for _ in range(20):
    chunk("d", 100, 1000)
print(len(trims), 0, 0, 0)
"""
    )
    assert 1 <= use.before * MB <= 3


# -- of children ------------------------------------------------------------------------------------


def test_a_program_that_came_and_went_counts():
    (use,) = run("with meter.span() as span:\n    program(100).wait()\nsaid(span)")
    assert use.children == pytest.approx(103, rel=0.05)
    assert use.peak == pytest.approx(use.before + use.children, rel=0.02)


def test_programs_that_run_together_are_added_and_others_are_not():
    together, after = run("""
with meter.span() as together:
    for child in [program(60, 2.0) for _ in range(3)]:
        child.wait()
with meter.span() as after:
    for _ in range(3):
        program(60).wait()
said(together, after)
""")
    assert together.children == pytest.approx(3 * 63, rel=0.06)
    assert after.children == pytest.approx(63, rel=0.06)


def test_own_and_childrens_peaks_at_different_times_are_not_added():
    (use,) = run("""
with meter.span() as span:
    touch(150).close()
    time.sleep(0.05)
    program(60).wait()
said(span)
""")
    assert use.peak - use.before == pytest.approx(150, rel=0.02)


def test_a_fork_does_not_count_its_parents_pages_twice():
    (use,) = run("""
held = touch(100)
with meter.span() as span:
    pid = os.fork()
    if pid == 0:
        kept = touch(60)
        time.sleep(0.3)
        os._exit(0)
    os.waitpid(pid, 0)
said(span)
""")
    assert use.peak - use.before == pytest.approx(60, rel=0.06)


def test_a_child_of_earlier_counts_with_what_it_has_now():
    (use,) = run("""
code = "import time; kept = b'x' * (60 << 20); print(flush=True); time.sleep(20)"
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE)
child.stdout.readline()
with meter.span() as span:
    pass
child.kill()
child.wait()
said(span)
""")
    assert use.children == pytest.approx(63, rel=0.06)


def test_what_a_child_had_before_does_not_count():
    first, second = run("""
code = "import sys; kept = b'x' * (80 << 20); del kept; print(flush=True); sys.stdin.read()"
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
with meter.span() as first:
    time.sleep(0.1)
with meter.span() as second:
    pass
child.communicate(timeout=20)
said(first, second)
""")
    assert first.children < 20
    assert second.children < 20


def test_the_end_of_a_child_is_left_to_its_parent():
    (use,) = run("""
with meter.span() as span:
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "raise SystemExit(7)"])
    time.sleep(0.3)
    assert child.wait() == 7
said(span)
""")
    assert use.peak > 0


def test_in_a_fork_the_meter_begins_anew():
    (use,) = run("""
with meter.span() as span:
    meter._lock.acquire()  # as the thread that looks for children may have it at that moment
    pid = os.fork()
    if pid == 0:
        span.__exit__(None, None, None)
        with memory.meter().span() as inner:
            touch(20).close()
        os._exit(0 if inner.use.peak - inner.use.before > 18 * MB else 1)
    meter._lock.release()
    _, code = os.waitpid(pid, 0)
assert code == 0
said(span)
""")
    assert use.peak > 0


def test_a_child_of_our_very_size_shares_all_and_keeps_our_mark(monkeypatch):
    me = processes.Status(900, 500, 400, 50)
    resets = []
    monkeypatch.setattr(processes, "descendants", lambda: [7])
    monkeypatch.setattr(processes, "status", lambda pid="self": me)
    monkeypatch.setattr(processes, "reset", lambda pid="self": resets.append(pid) or True)
    assert Family().look(me, 500) == 0
    assert resets == []


def test_the_growth_of_a_child_after_the_last_look_counts():
    family = Family()
    family._largest = (300, 100, 250)
    assert family.to_the_end(360, own=90) == (100, 310)
    assert family.to_the_end(200, own=90) == (100, 250)
    assert Family().to_the_end(360, own=90) == (90, 270)


def test_looking_ends_when_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(memory, "LOOK", 0.001)
    monkeypatch.setattr(memory, "REST", 3)
    meter = Meter()
    before = threading.active_count()
    with meter.span(), meter.span():
        assert threading.active_count() == before + 1
    deadline = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with meter.span():
        assert threading.active_count() == before + 1


# -- where the kernel gives less --------------------------------------------------------------------


def test_without_a_mark_that_can_be_reset_it_is_sampled():
    before, spike = run("""
processes.reset = lambda pid="self": False
touch(100).close()
with meter.span() as before:
    pass
with meter.span() as spike:
    kept = touch(50)
    time.sleep(1.0)
    kept.close()
said(before, spike)
""")
    assert before.peak - before.before < 5
    assert spike.peak - spike.before == pytest.approx(50, rel=0.05)


def test_without_a_proc_file_system_there_are_figures_all_the_same():
    short, high = run("""
processes._read = lambda path: b""
processes.reset = lambda pid="self": False
with meter.span() as short:
    pass
with meter.span() as high:
    touch(100).close()
said(short, high)
""")
    assert short.peak == pytest.approx(short.before, abs=1)
    assert high.peak - high.before > 90


def test_what_cannot_be_read_is_nothing(monkeypatch):
    monkeypatch.setattr(processes, "_read", lambda path: b"")
    assert processes.status() is None
    assert processes.rollup() is None
    assert processes.descendants() == []
    gone = 2**22 + 1  # above the highest number of a process
    assert processes.reset(gone) is False
    assert abs(processes.resident()[0] - psutil.Process().memory_info().rss) < 20 * MB


def test_children_where_the_kernel_lists_none():
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert child.pid in processes.descendants()
        assert child.pid in processes._children_by_parent(os.getpid())
        assert processes.has_children()
        assert not processes.is_fork(child.pid)
    finally:
        child.communicate(b"\n", timeout=30)


# -- in receipts ------------------------------------------------------------------------------------

PLAN = make_plan((40,), chunk=10)
TASK = Tree(PLAN).task(Tree(PLAN).root)


def test_a_failed_chunk_says_how_high_it_was(memory_path):
    def fails(start, stop):
        block = b"x" * (64 * MB)
        raise MemoryError(len(block))

    receipt = perform(TASK, FakeAnalysis({("a/0.root", 10): fails}), make_place(memory_path))
    (failure,) = receipt.failures
    assert failure.kind is Kind.MEMORY
    assert failure.peak >= processes.resident()[0] - 64 * MB
    assert failure.peak > 64 * MB
    assert all(record.peak >= record.before > 0 for record in receipt.chunks)


def test_pages_are_counted_one_by_one_only_in_long_tasks(memory_path, monkeypatch):
    place = make_place(memory_path)
    monkeypatch.setattr(worker, "LONG_ENOUGH", 60.0)
    assert "pss" not in perform(TASK, FakeAnalysis(), place).extra
    monkeypatch.setattr(worker, "LONG_ENOUGH", 0.0)
    extra = perform(TASK, FakeAnalysis(), place).extra
    assert 0 < extra["uss"] <= extra["pss"]


# -- what processors may ask ------------------------------------------------------------------------


def test_the_memory_of_now_is_psutils():
    assert executors.memory_usage_psutil() == pytest.approx(
        psutil.Process().memory_info().rss / MB, rel=0.02, abs=2
    )


def test_a_block_is_measured_within_a_chunk():
    outer, inner = run("""
import executors
with meter.span() as span:
    touch(100).close()
    with executors.memory_used() as used:
        kept = touch(30)
        time.sleep(0.05)
print(span.use.before, span.use.peak, 0, 0)
print(used.before, used.peak, used.after, int(used.seconds * MB))
assert "MB at most, " in str(used)
""")
    assert outer.peak - outer.before == pytest.approx(100, rel=0.02)
    assert inner.peak - inner.before == pytest.approx(30, rel=0.03)
    assert inner.children - inner.before == pytest.approx(30, rel=0.03)
    assert inner.mapped >= 0.05


def test_a_block_that_fails_is_complete():
    with pytest.raises(ValueError, match="no"), executors.memory_used() as used:
        raise ValueError("no")
    assert used.peak >= used.before > 0
    assert used.after > 0
    assert used.grown == used.peak - used.before


# -- on engines -------------------------------------------------------------------------------------


def greedy(own, children):
    """Take so many MB here and in a program, each for a while; the use as it was measured."""
    code = f"import time; kept = b'x' * {children << 20}; time.sleep(0.2)"
    with memory.meter().span("made", own) as span:
        if children:
            subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
        block = mmap.mmap(-1, max(1, own) << 20)
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        block.close()
    return span.use


OWN_AND_CHILDREN = [(50, 0), (10, 60)]
FULL = [(200, 0), (1000, 0), (4000, 0), (50, 1000)]


@pytest.mark.parametrize(
    "engine",
    ["iterative", "futures", *(pytest.param(name, marks=pytest.mark.full) for name in ("dask", "parsl"))],
)
@pytest.mark.parametrize(
    ("own", "children"),
    [*OWN_AND_CHILDREN, *(pytest.param(*sizes, marks=pytest.mark.full) for sizes in FULL)],
)
def test_the_truth_on_every_engine(engine, own, children):
    if limits.available() < (own + children + 1000) * MB:
        pytest.skip("too little memory is free here")
    if engine == "iterative":  # it works in the process that asks: one whose heap no other test has used
        code = "import executors\n" + inspect.getsource(greedy)
        code += "with executors.open('iterative') as pool:\n"
        code += "    print(*pool.submit(greedy, *map(int, sys.argv[1:])).result())"
        (use,) = run(code, own, children)
        use = memory.Use(*(part * MB for part in use))
    else:
        with executors.open(engine) as pool:
            use = pool.submit(greedy, own, children).result(110)
    if children:
        assert use.children == pytest.approx((children + 3) * MB, rel=0.05)
    assert use.peak - use.before == pytest.approx(max(own, children + 3) * MB, rel=0.05)
