"""How much memory a worker has, which sizes of chunks follow, and whether a run can fit at all.

Looks ahead with what earlier runs measured; what happens while a run goes on is ``work.sizing``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from executors.errors import SiteError, UsageError
from executors.tables import size
from executors.work.sizing import FEW, FIRST, SHARE, Sizing, rounded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from executors.options import Settings
    from executors.where import Where
    from executors.work.footprint import Fit
    from executors.work.plan import Plan

AUTO: Literal["auto"] = "auto"
PLAIN = 100_000  # events of a chunk where nothing is known of memory

Chunk: TypeAlias = 'int | Literal["auto"]'


@dataclass(frozen=True, slots=True)
class Budget:
    """What one worker may use, and who says so."""

    memory: int  # bytes
    source: str


def budget(spot: Where) -> Budget | None:
    """What a worker has by the user's or the site's word; None where nobody gave one."""
    memory = spot.site.resources.memory
    if memory is None:
        return None
    return Budget(memory // spot.workers, "--memory" if spot.local else f"a job at {spot.site.name}")


def of_machine(workers: int) -> Budget:
    """A worker's share of what this machine, container or job lets the runner have."""
    from executors.work.limits import share

    limit = share(workers)
    return Budget(limit.bytes, limit.source)


def reasonable(fits: Mapping[str, Fit]) -> int:
    """Bytes that each of several workers should have, for chunks that are worth their while."""
    return int(max(fit.upper(FEW) for fit in fits.values()) / SHARE)


def chosen(settings: Settings, known: Budget | None) -> Chunk:
    """The size of chunks that a command asks for; without a word, by memory where a budget is known."""
    if settings.ranges is not None:
        if settings.chunk not in (None, AUTO):
            raise UsageError("--ranges says how files are cut: leave out --chunk")
        return AUTO
    limited = settings.max is not None or settings.max_per_dataset is not None
    if settings.chunk == AUTO and limited:
        raise UsageError("--max and --max-per-dataset count chunks: give --chunk a number with them")
    if settings.chunk is not None:
        return settings.chunk
    return AUTO if known is not None and not limited else PLAIN


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the chunks of one dataset will need, by what was measured before."""

    dataset: str
    events: int  # of its largest chunk
    need: int  # bytes
    fit: Fit

    def words(self) -> str:
        """The prediction for a person."""
        return f"{self.dataset}: {size(self.need)} a worker at chunks of {self.events} events"


def predictions(plan: Plan, fits: Mapping[str, Fit], have: Budget | None) -> Iterator[Prediction]:
    """What each dataset of a plan will need, where that was measured."""
    sizing = Sizing([d.name for d in plan.datasets], budget=have.memory if have else None, known=fits)
    for number, dataset in enumerate(plan.datasets):
        fit = fits.get(dataset.name)
        longest = max((f.whole for f in dataset.files), default=0)
        if fit is None or not longest:
            continue
        most = sizing.size(number, longest) or sizing.canary(number) if plan.auto else plan.chunk
        events = min(most, longest)
        yield Prediction(dataset.name, events, fit.upper(events), fit)


def refuse(plan: Plan, fits: Mapping[str, Fit], have: Budget | None) -> None:
    """SiteError, with what would help, if a chunk is known to need more than a worker has."""
    over = [each for each in predictions(plan, fits, have) if have is not None and each.need > have.memory]
    if have is None or not over:
        return
    worst = max(over, key=lambda each: each.need)
    fitting = rounded(min(each.fit.within(int(SHARE * have.memory)) for each in over))
    ways = [f"--memory for at least {size(int(worst.need / SHARE))} a worker", "fewer workers (-j)"]
    if fitting >= FIRST:
        ways.insert(0, f"--chunk auto or --chunk {fitting}")
    listed = "".join(f"\n  {each.words()}" for each in over[:10])
    raise SiteError(
        f"this run needs more memory than a worker has ({size(have.memory)}, {have.source}):{listed}\n"
        f"What would do: {', '.join(ways)}. This is by earlier measurements; --no-check tries it all the same"
    )


def lines(plan: Plan, fits: Mapping[str, Fit], have: Budget | None) -> list[str]:
    """What is known of a run's memory before it begins, a line each; for the plan."""
    found = list(predictions(plan, fits, have))
    said = [f"a worker has {size(have.memory)} ({have.source})"] if have else []
    if not found:
        return (
            [*said, "what the chunks need is not measured yet: --profile-memory measures it"] if said else []
        )
    worst = max(found, key=lambda each: each.need)
    fits_in = "" if have is None or worst.need <= have.memory else ": more than a worker has"
    return [*said, f"expected of {worst.words()}{fits_in}"]
