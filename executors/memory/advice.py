"""What measured memory means for a run: what it needs, what a worker has, which sizes of chunks fit.

Words and arithmetic only; nothing is measured or read here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executors import words
from executors.errors import SiteError
from executors.memory import budget as budgets
from executors.tables import size
from executors.work import sizing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from executors.asked import Asked
    from executors.memory.budget import Budget
    from executors.memory.usage import Usage


def budget_of(asked: Asked) -> Budget | None:
    """What a worker of the run has; None at a batch site that says nothing of memory."""
    if asked.budget is not None or not asked.where.local:
        return asked.budget
    return budgets.of_machine(asked.where.slots)


def fitting_events(usage: Usage, share: int) -> int:
    """Events of a dataset's chunks that keep to a worker's memory, as a run sizes them; 0 where none do."""
    fit = usage.fit
    if fit is None or fit.upper(sizing.FIRST) > share or 0 < usage.burst <= sizing.FIRST:
        return 0
    events = min(fit.within(int(sizing.SHARE * share)), sizing.MOST)
    events = max(min(events, usage.burst // 2) if usage.burst else events, sizing.FIRST)
    return sizing.rounded(events)


def advice(
    usages: Sequence[Usage], chunk: budgets.Chunk, have: Budget | None, workers: int
) -> tuple[int, str]:
    """What the run would need, what it has and which chunks fit, in words; exit code 4 if none does."""
    chunks = [_chunk(usage, chunk, have) for usage in usages]
    rows = [(u.fit.upper(n), n, u) for u, n in zip(usages, chunks, strict=True) if u.fit is not None]
    need, events, heaviest = max(rows, key=lambda row: row[0], default=(0, 0, usages[0]))
    said = f"this run needs up to {size(need)} a worker, in chunks of {events:,} events of {heaviest.dataset}"
    if have is None:
        return 0, f"{said}; --memory says what a worker has, and --chunk auto keeps to it"
    said += f"; a worker has {size(have.memory)} ({have.source})"
    bad = [usage for usage in usages if not fitting_events(usage, have.memory)]
    if bad:
        return SiteError.exit_code, "\n".join([f"{said}:", *(_mended(usage, workers) for usage in bad)])
    sizes = sorted((fitting_events(usage, have.memory), usage.dataset) for usage in usages)
    listed = ", ".join(f"{most:,} of {name}" for most, name in sizes[:3])
    listed += f", and no fewer of {words.number(len(sizes) - 3, 'other dataset')}" if len(sizes) > 3 else ""
    fits = need <= have.memory and not any(0 < u.burst <= n for u, n in zip(usages, chunks, strict=True))
    end = "that fits" if fits else "that is too much"
    return 0, f"{said}: {end}\nevents of a chunk that --chunk auto takes, at most: {listed}"


def _chunk(usage: Usage, chunk: budgets.Chunk, have: Budget | None) -> int:
    """Events of a dataset's chunks; of one file, where the line does not reach farther."""
    if chunk == budgets.AUTO:
        return max(fitting_events(usage, have.memory), sizing.FIRST) if have is not None else sizing.MOST
    reached = usage.fit is not None and usage.fit.widest * sizing.GROWTH >= chunk
    return chunk if reached else min(chunk, max(usage.longest, 1))


def _mended(usage: Usage, workers: int) -> str:
    """What would let the smallest chunks of a dataset fit."""
    fit = usage.fit
    if fit is None:
        return f"{usage.dataset}: {usage.burst:,} events need more than this machine has"
    least = fit.upper(sizing.FIRST)
    memory = -(-int(least / sizing.SHARE) * workers // 10**8) / 10
    said = f"{usage.dataset} needs {size(least)} for only {sizing.FIRST:,} events: --memory {memory:g}GB"
    return said + (f", or fewer workers than {workers} (-j)" if workers > 1 else "")
