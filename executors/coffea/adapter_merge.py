"""Sums in a fixed shape: a binary tree over the item's index, whatever the order of arrival.

Only the shape is decided here; what a sum is remains coffea's ``accumulate``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Tree:
    """Adds up ``size`` results; holds few of them: each gap in the order keeps at most log2(size) sums."""

    def __init__(self, size: int, add: Callable[[Any, Any, bool], Any]) -> None:
        self.size = size
        self.missing = size
        self.held: dict[tuple[int, int], Any] = {}
        self.most_held = 0
        self._add = add

    def put(self, index: int, value: Any) -> None:
        """Take the result of one item; None for one that has none."""
        self.missing -= 1
        level = 0
        while (1 << level) < self.size:
            beside = index ^ 1
            if beside << level < self.size:
                if (level, beside) not in self.held:
                    break
                other = self.held.pop((level, beside))
                value = self._join(value, other, level) if index < beside else self._join(other, value, level)
            level, index = level + 1, index >> 1
        self.held[level, index] = value
        self.most_held = max(self.most_held, len(self.held))

    def _join(self, left: Any, right: Any, level: int) -> Any:
        if left is None or right is None:
            return right if left is None else left
        return self._add(left, right, level == 0)

    def total(self) -> Any:
        """The sum of all that was put, which is used up by this; the gaps count for nothing."""
        top = max(0, (self.size - 1).bit_length())
        return self._below(top, 0) if self.size else None

    def _below(self, level: int, index: int) -> Any:
        if index << level >= self.size:
            return None
        if (level, index) in self.held or level == 0:
            return self.held.pop((level, index), None)
        left, right = (self._below(level - 1, 2 * index + side) for side in (0, 1))
        return self._join(left, right, level - 1)


def add(left: Any, right: Any, leaves: bool) -> Any:
    """The sum of two, as coffea has it: the first addition makes a new object, later ones are in place."""
    from coffea.processor import accumulate

    return accumulate([left, right]) if leaves else accumulate([right], left)
