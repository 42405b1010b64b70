"""What the next jobs are asked for: as the site says, or more memory once jobs have shown to need it.

Knows one job's description and the most that it may become; who needs more, and why, is the crew's to say.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from executors.errors import ExecutorsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from executors.batch.spec import JobSpec

OUTGROWN = 2  # workers that needed more than is theirs, and the next jobs get more
GROWTH = 1.5
MIB = 1 << 20


class Growth:
    """The description of the next jobs. Not locked: the crew does that."""

    def __init__(self, spec: JobSpec, most: int | None, grow: Callable[[int], JobSpec] | None) -> None:
        """``grow``: the same job with so much memory, where it can have more; ``most``: bytes."""
        self.spec = spec
        self._most, self._grow = most, grow
        self._outgrown: list[str] = []  # what said that jobs of the present size are too small

    def outgrown(self, had: int | None, what: str, *, enough: int = OUTGROWN) -> str:
        """Have the next jobs ask for more, if this one had what they would ask for now; what to say of it."""
        now = self.spec.memory
        if self._grow is None or now is None or self._most is None or had != now or now >= self._most:
            return ""
        self._outgrown.append(what)
        if len(self._outgrown) < enough:
            return ""
        count, self._outgrown = len(self._outgrown), []
        more = min(self._most, math.ceil(GROWTH * now / MIB) * MIB)
        try:
            self.spec = self._grow(more)
        except (OSError, ExecutorsError) as error:
            return f"jobs cannot ask for more memory: {error}"
        return f"jobs ask for {more / 1e9:.3g} GB now: {count} ended for memory with {now / 1e9:.3g} GB"
