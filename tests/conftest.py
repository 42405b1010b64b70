"""Options, markers and fixtures for all tests: quick by default, the full figures with ``--full``."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from executors import signals

sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the full figures of the fault tests")


def pytest_collection_modifyitems(config, items):
    """What is of the full set, or makes no sense where it would run, is no test of this session: not skipped."""
    full = config.getoption("--full")
    left = [item for item in items if belongs(item, full)]
    if len(left) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(left)])
        items[:] = left


def belongs(item, full):
    """Whether a test is of this session, by its marks."""
    params = getattr(item, "callspec", None)
    values = (
        [] if params is None else [params.params[one] for one in ("lab", "batch") if one in params.params]
    )
    words = {word for value in values for word in ([value] if isinstance(value, str) else value)}
    places = [place for mark in item.iter_markers("quick_at") for place in mark.args]
    quick = not places or any(words.issuperset(place) for place in places)
    return (full or (quick and "full" not in item.keywords)) and all(
        words.intersection(mark.args) for mark in item.iter_markers("at")
    )


def pytest_terminal_summary(terminalreporter):
    """Tests of real batch systems and servers that could not run are said aloud, and what would let them run."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if "real" in report.keywords and "full" not in report.keywords
    )
    for reason, count in reasons.most_common():
        tests = "test" if count == 1 else "tests"
        terminalreporter.write_line(f"real: {count} {tests} skipped: {reason}", yellow=True, bold=True)


@pytest.fixture
def scale(request):
    """``scale(quick, full)``: the figure for this run."""
    full = request.config.getoption("--full")
    return lambda quick, most: most if full else quick


@pytest.fixture
def signals_as_they_were():
    """For tests that import dask-jobqueue: it takes Ctrl-C for itself, and other tests come after."""
    with signals.as_they_were():
        yield


@pytest.fixture
def memory_path():
    """A folder in memory where there is one: the core flushes each object, which a disk makes slow."""
    shm = Path("/dev/shm")
    base = shm if shm.is_dir() and shutil.disk_usage(shm).free > 1 << 30 else None
    folder = Path(tempfile.mkdtemp(prefix="core-test-", dir=base))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
