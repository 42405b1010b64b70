"""How often a site is asked: a budget for each minute, so that haste now is paid for later.

Moments alone may enter: nothing is asked or waited for here.
"""

from __future__ import annotations

from collections import deque


class Pace:
    """Moments of looks at a queue: never more in any minute than the profile allows."""

    def __init__(self, per_minute: float) -> None:
        self.period = 60.0 / per_minute
        self._window = max(60.0, self.period)
        self._most = max(1, int(per_minute * self._window / 60.0))
        self._past: deque[float] = deque(maxlen=self._most)

    def mark(self, now: float) -> None:
        """A look was taken."""
        self._past.append(now)

    def next(self, now: float, *, news: bool, waiting: bool) -> float:
        """When the next look is due: soon if there is ``news``, in a period if something is ``waiting``."""
        if not self._past:
            return now
        last = self._past[-1]
        due = last + (self.period if waiting or news else 2 * self.period)
        recent = sum(1 for one in self._past if one > now - self._window)
        if news and 2 * recent < self._most:  # the other half of the budget is for the steady looks
            due = min(due, last + min(2.0, self.period))
        return max(due, self._past[0] + self._window) if len(self._past) == self._most else due
