"""What travels to the workers: a small call that finds the analysis by its digest and does tasks with it.

The processor is written once into the run's directory and read once by each worker process, whatever the
number of tasks; where workers do not see that directory each is given it when it starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from executors import luggage
from executors.errors import AnalysisError, DamagedError, UsageError
from executors.work.merge import MergeTask, merge
from executors.work.store import write_whole
from executors.work.worker import perform

if TYPE_CHECKING:
    from pathlib import Path

    from executors.work.model import Analysis, Receipt, Task
    from executors.work.worker import Place

_loaded: dict[str, Analysis] = {}
_received: dict[str, bytes] = {}  # where no file system is shared


@dataclass(frozen=True, slots=True)
class Call:
    """Does one task on a worker. Equal for all tasks of a run, and small."""

    digest: str
    place: Place
    path: Path

    def __call__(self, task: Task | MergeTask) -> Receipt:
        """Do the task with the analysis of this run."""
        analysis = self._analysis()
        if isinstance(task, MergeTask):
            return merge(task, analysis, self.place)
        return perform(task, analysis, self.place)

    def _analysis(self) -> Analysis:
        found = _loaded.get(self.digest)
        if found is None:
            data = _received.get(self.digest)
            found = _load(self.digest, self.path.read_bytes() if data is None else data)
        return found


def _load(digest: str, data: bytes) -> Analysis:
    import cloudpickle

    if hashlib.blake2b(data, digest_size=20).hexdigest() != digest:
        raise DamagedError("what was sent is not the analysis of this run")
    found: Analysis = cloudpickle.loads(data)
    # A worker serves one run: a former analysis is of no more use.
    _loaded.clear()
    _loaded[digest] = found
    return found


def receive(digest: str, data: bytes, modules: bytes) -> None:
    """On a new worker that sees no file of the run: take the analysis and the modules that it imports."""
    luggage.unpack(modules)
    _received[digest] = data


def prepare(analysis: Analysis, place: Place) -> Call:
    """Write the analysis where workers find it; the call that uses it."""
    import cloudpickle

    try:
        data = cloudpickle.dumps(analysis, protocol=5)
    except Exception as error:
        # Whatever a user's object raises while it is being pickled is the user's to mend.
        raise AnalysisError(
            f"the workflow cannot be sent to workers: {type(error).__name__}: {error}. Make what it cannot "
            "pickle (open files, locks, generators) inside process(), or at its first use there"
        ) from error
    digest = hashlib.blake2b(data, digest_size=20).hexdigest()
    path = place.run / "job" / f"{digest}.pkl"
    # The workflow's arguments are in it, which may be nobody else's business.
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path, [data], mode=0o600)
    # Whoever merges later finds the workflow's modules where this process does.
    write_whole(path.with_suffix(".json"), [json.dumps([*sys.path]).encode()], mode=0o600)
    return Call(digest, place, path)


def local(analysis: Analysis, call: Call) -> Call:
    """Let this very process use the analysis object itself."""
    _loaded.clear()
    _loaded[call.digest] = analysis
    return call


def by_value(obj: Any) -> None:
    """Have the module of an object sent along where workers could not import it by its name."""
    import cloudpickle

    module = sys.modules.get(getattr(obj, "__module__", "") or "")
    spec = getattr(module, "__spec__", None)
    if module is None or module.__name__ == "__main__":
        return
    if spec is None or spec.origin is None or getattr(module, "__loaded_from_file__", False):
        cloudpickle.register_pickle_by_value(module)


def stored_analysis(folder: Path) -> Any:
    """The analysis that a run's workers were last sent; None where it is not kept here."""
    import cloudpickle

    jobs = sorted((folder / "job").glob("*.pkl"), key=lambda p: p.stat().st_mtime_ns)
    if not jobs:
        return None
    data, places = (_read_own(path) for path in (jobs[-1], jobs[-1].with_suffix(".json")))
    if hashlib.blake2b(data, digest_size=20).hexdigest() != jobs[-1].stem:
        raise DamagedError(f"{jobs[-1]} is damaged; run the command of that directory again")
    known = set(sys.path)
    sys.path.extend(e for e in json.loads(places) if e not in known)
    try:
        return cloudpickle.loads(data)
    except Exception as error:
        # Whatever importing the user's modules raises.
        raise AnalysisError(
            f"the workflow of {folder} cannot be loaded to apply its postprocess: {type(error).__name__}: "
            f"{error}. Run this where its modules can be imported, or with --no-postprocess"
        ) from error


def _read_own(path: Path) -> bytes:
    """The content of a file of this user's: who owns it is asked once it is open, and not before."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid():
            raise UsageError(
                f"{path} belongs to somebody else, and reading it would run code of theirs: --no-postprocess"
            )
        return file.read()
