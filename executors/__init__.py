"""Run coffea processors anywhere without losing an event.

The public interface and nothing else; each name is imported at its first use, so that ``import executors``
costs nothing. ``run`` does a whole run; ``open`` gives a ``concurrent.futures.Executor`` on any engine;
``for_coffea`` gives an executor for coffea's own ``Runner``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from executors.coffea.adapter import for_coffea
    from executors.errors import (
        AnalysisError,
        DamagedError,
        EngineError,
        ExecutorsError,
        FilesetError,
        IncompleteError,
        InterruptedRunError,
        LockedError,
        PlanChangedError,
        SiteError,
        UnknownNameError,
        UsageError,
    )
    from executors.interface import as_read, digest, load, run
    from executors.measuring import MemoryUsed, memory_usage_psutil, memory_used
    from executors.pools import open  # noqa: A004 - the verb users know: executors.open(name)
    from executors.registry import describe, names

_ERRORS = (
    "AnalysisError",
    "DamagedError",
    "EngineError",
    "ExecutorsError",
    "FilesetError",
    "IncompleteError",
    "InterruptedRunError",
    "LockedError",
    "PlanChangedError",
    "SiteError",
    "UnknownNameError",
    "UsageError",
)
_HOMES = {
    "MemoryUsed": "executors.measuring",
    "as_read": "executors.interface",
    "describe": "executors.registry",
    "digest": "executors.interface",
    "for_coffea": "executors.coffea.adapter",
    "load": "executors.interface",
    "memory_usage_psutil": "executors.measuring",
    "memory_used": "executors.measuring",
    "names": "executors.registry",
    "open": "executors.pools",
    "run": "executors.interface",
    **dict.fromkeys(_ERRORS, "executors.errors"),
}

__all__ = [
    "AnalysisError",
    "DamagedError",
    "EngineError",
    "ExecutorsError",
    "FilesetError",
    "IncompleteError",
    "InterruptedRunError",
    "LockedError",
    "MemoryUsed",
    "PlanChangedError",
    "SiteError",
    "UnknownNameError",
    "UsageError",
    "as_read",
    "describe",
    "digest",
    "for_coffea",
    "load",
    "memory_usage_psutil",
    "memory_used",
    "names",
    "open",
    "run",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'executors' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value  # a module of the same name (executors.run) must not hide it the next time
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
