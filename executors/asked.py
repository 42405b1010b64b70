"""What a command asks for, read and checked: the settings with all that was looked up for them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from executors import planning
from executors.memory import budget as budgets
from executors.memory import footprints

if TYPE_CHECKING:
    from pathlib import Path

    from executors.engines.nursery import Spare
    from executors.fileset import Fileset
    from executors.fingerprint import Fingerprint
    from executors.options import Settings
    from executors.where import Where
    from executors.work.footprint import Fit
    from executors.work.plan import Plan
    from executors.work.report import Observer
    from executors.workflow import Workflow


@dataclass(frozen=True)
class Asked:
    """What a command asks for, read and checked: nothing has been started or written."""

    settings: Settings
    workflow: Workflow
    fileset: Fileset
    fingerprint: Fingerprint
    folder: Path
    observer: Observer
    where: Where
    how: planning.Access
    chunk: budgets.Chunk
    budget: budgets.Budget | None  # of a worker
    stop: threading.Event = field(default_factory=threading.Event)
    spare: Spare | None = None  # of the engine, which is being started already

    @property
    def plan(self) -> Plan:
        """The plan, before anything is counted."""
        return planning.asked_plan(
            self.fileset, self.settings, self.workflow.name, self.fingerprint, self.chunk
        )

    def like(self, kept: Plan | None) -> Asked:
        """The same, with chunks as a kept plan has them where the command says nothing of them."""
        if kept is None or self.settings.chunk is not None:
            return self
        return replace(self, chunk=budgets.AUTO if kept.auto else kept.chunk)

    @property
    def known(self) -> dict[str, Fit]:
        """What the analysis needed of memory when it was measured last, by dataset."""
        return footprints.recall(self.fingerprint.digest, self.settings.cache)
