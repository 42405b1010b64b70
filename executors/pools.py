"""``executors.open``: any engine at any site as a ``concurrent.futures.Executor``, and nothing more."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Executor


@contextlib.contextmanager
def open(  # noqa: A001 - the verb users know: executors.open(name)
    name: str,
    *,
    workers: int = 1,
    memory: int | None = None,
    log_dir: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    **more: Any,
) -> Iterator[Executor]:
    """Open an engine (``"futures"``, ``"dask/local"``, …); leaving the block ends its workers.

    A task whose worker dies fails with an exception; nothing is retried here.
    """
    from executors import registry
    from executors.engines.base import Resources

    engine, site = registry.resolve(name)
    want = Resources(
        workers=workers,
        memory=memory,
        log_dir=Path(log_dir) if log_dir is not None else None,
        env=dict(env or {}),
        **more,
    )
    with engine.open(site, want) as pool:
        yield pool
