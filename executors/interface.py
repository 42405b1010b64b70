"""The Python interface to whole runs: the same path as the command, with results and exceptions."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors import outputs
from executors.errors import AnalysisError, ExecutorsError, IncompleteError, InterruptedRunError, SiteError
from executors.running import execute

if TYPE_CHECKING:
    from executors.work.report import Observer, Outcome


def run(
    processor: Any,
    fileset: Any,
    *,
    on: str = "futures",
    out: str | os.PathLike[str] | None = None,
    name: str | None = None,
    observer: Observer | None = None,
    **options: Any,
) -> Any:
    """Run a processor over a fileset and return the merged result.

    ``on`` is an executor's name, ``out`` the run's directory (with it, the same call resumes); every option
    of the command is a keyword (``chunk=``, ``workers=``, ``skipbadfiles=``, ...). Raises ``AnalysisError``,
    ``IncompleteError``, ``SiteError`` or ``InterruptedRunError`` instead of giving an incomplete result.
    """
    from executors.settings import resolve
    from executors.workflow import from_object

    workflow = from_object(processor, name)
    settings = resolve(executor=on, **options).settings
    with contextlib.ExitStack() as stack:
        if out is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coffea-scaleout-")))
        else:
            folder = Path(out)
        outcome = execute(settings, observer=observer, workflow=workflow, fileset=fileset, folder=folder)
        if outcome.exit_code:
            if out is None:
                stack.pop_all()  # what is done stays where the error says it is
            raise _error(outcome)
        return load(folder)


def _error(outcome: Outcome) -> ExecutorsError:
    kinds: Mapping[int, type[ExecutorsError]] = {
        1: AnalysisError, 3: IncompleteError, 4: SiteError, 130: InterruptedRunError
    }  # fmt: skip
    return kinds.get(outcome.exit_code, ExecutorsError)(outcome.text, manifest=outcome.data)


def load(path: str | os.PathLike[str], *, trust: bool = False) -> Any:
    """The merged result of a run's directory, or the content of one ``.coffea`` file, verified.

    Loading runs code that is in the file, so one of another user is refused unless you ``trust`` its owner.
    """
    from executors.coffea.save import load as load_file

    place = Path(path)
    if not place.is_dir():
        return load_file(place, trust=trust)
    manifest = outputs.read_json(place / "manifest.json")
    merged = manifest.get("merged")
    if not merged:
        raise IncompleteError(
            f"{place} holds no merged result; 'runner.py status {place}' says what is missing"
        )
    if bad := outputs.outputs_intact(place, {merged: manifest["outputs"][merged]}):
        raise IncompleteError(f"{place / bad[0]} is damaged; run the same command again to write it anew")
    return load_file(place / merged, trust=trust)


def as_read(fileset: Mapping[str, Any], on: str, **options: Any) -> dict[str, Any]:
    """The same fileset with each file's address as the site of an executor reads it.

    For coffea's own ``Runner``, which opens what it is given; ``run`` needs no such help.
    """
    from executors.settings import resolve
    from executors.where import where
    from sites.urls import Reading

    reading = Reading(where(resolve(executor=on, **options).settings).site, os.environ)

    def read(files: Any) -> Any:
        if isinstance(files, str):
            return reading.read(files)
        if isinstance(files, Mapping):
            return {reading.read(path): about for path, about in files.items()}
        return [reading.read(path) for path in files]

    return {
        name: {**about, "files": read(about["files"])}
        if isinstance(about, Mapping) and "files" in about
        else read(about)
        for name, about in fileset.items()
    }


def digest(value: Any) -> str:
    """The digest of a result: equal for equal results, on whatever engine they were made."""
    from executors.coffea.pack import pack

    return pack(value).digest()
