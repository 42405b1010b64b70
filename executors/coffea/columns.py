"""Declared columns: which branches the analysis may see, and the error that says which one was not declared.

A declaration is the user's and is never learnt in silence: what is not declared is not there.
"""

from __future__ import annotations

import fnmatch
import re
from typing import TYPE_CHECKING, Any

from executors.coffea.classify import ColumnError

if TYPE_CHECKING:
    from collections.abc import Iterable

# Without these a collection that is declared cannot be used at all: its counter, and what vectors insist on.
INSISTED = ("pt", "eta", "phi", "mass", "charge")
SHOWN = 5


class Columns:
    """A declaration: names of branches, with ``*`` and ``?`` as in the shell."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(dict.fromkeys(patterns))
        self._match = _pattern(self.patterns)

    def chosen(self, names: Iterable[str], always: Iterable[str] = ()) -> frozenset[str]:
        """Those of a file's branches that are visible: declared, or needed by what is declared."""
        there = list(names)
        declared = {name for name in there if self._match(name)}
        needed = set(always)
        for name in declared:
            collection = name.split("_")[0]
            needed.add(f"n{collection}")
            needed.update(f"{collection}_{field}" for field in INSISTED)
        return frozenset(declared | (needed & set(there)))


def _pattern(patterns: tuple[str, ...]) -> Any:
    if not patterns:
        return lambda _name: False
    return re.compile("|".join(fnmatch.translate(p) for p in patterns)).match


def undeclared(error: BaseException, hidden: Iterable[str]) -> ColumnError | None:
    """The error to raise instead, if what the analysis missed is a branch that was not declared."""
    if not isinstance(error, AttributeError | LookupError | TypeError | ValueError):
        return None
    missed = set(re.findall(r"['\"`](\w+)['\"`]", str(error)))
    if not missed:
        return None
    found = [
        name for name in hidden if name in missed or missed & {name.split("_")[0], name.partition("_")[2]}
    ]
    if not found:
        return None
    # A bare name may be a field of several collections: those whose whole name was asked for come first.
    found.sort(key=lambda name: (name not in missed, name.split("_")[0] not in missed, name))
    shown = " or ".join(repr(name) for name in found[:SHOWN]) + (", …" if len(found) > SHOWN else "")
    text = (
        f"the analysis used a column that was not declared: {shown} "
        f"({type(error).__name__}: {str(error).splitlines()[0]}). "
        f"Add it to --columns, or to the processor's attribute 'columns', or declare none to see them all"
    )
    return ColumnError(text, columns=found)
