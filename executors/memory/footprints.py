"""What an analysis needed of memory, remembered, so that the next run starts with sizes that fit.

Only a saving, like the cache of counts: what is missing or damaged is measured again.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from executors.work.cache import default_folder
from executors.work.footprint import Fit
from executors.work.store import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MOST_DATASETS = 10_000


def _file(fingerprint: str, folder: Path | None) -> Path:
    return (folder or default_folder()) / "footprints" / f"{fingerprint}.json"


def recall(fingerprint: str, folder: Path | None = None) -> dict[str, Fit]:
    """The fits of an analysis by dataset, from earlier runs and probes; ``folder`` is the cache's."""
    found = {}
    with contextlib.suppress(OSError, ValueError, AttributeError):
        rows = json.loads(_file(fingerprint, folder).read_text())
        for name, row in rows.items():
            with contextlib.suppress(LookupError, TypeError, ValueError):
                found[name] = Fit.from_row(row)
    return found


def remember(fingerprint: str, fits: Mapping[str, Fit], folder: Path | None = None) -> None:
    """Keep fits for later runs; those of datasets that are not among them stay."""
    if not fits:
        return
    path = _file(fingerprint, folder)
    both = {**recall(fingerprint, folder), **fits}
    rows = {name: both[name].as_row() for name in list(both)[-MOST_DATASETS:]}
    with contextlib.suppress(OSError, RuntimeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, [json.dumps(rows).encode()])
