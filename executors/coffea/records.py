"""An awkward record whose fields are made when first looked at; all of them are listed from the start.

Only awkward's public constructors are used. Nothing here knows of files or schemas.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, SupportsIndex

import awkward as ak
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

BACKEND = ak.contents.NumpyArray(np.zeros(0)).backend
# A flat record of more fields than this (triggers, filters) is itself filled field by field.
FEW = 4


class Contents(list[Any]):
    """The contents of a record, each built at its first use.

    A list, because a record keeps the very list it is given; every way to look inside goes by ``_at``.
    """

    def __init__(self, length: int, build: Callable[[int], Any]) -> None:
        super().__init__([None] * length)
        self._build = build
        self.open = (
            False  # looks empty to the record's constructor, which would ask every content for its length
        )

    def _at(self, index: int) -> Any:
        content = super().__getitem__(index)
        if content is None:
            content = self._build(index % len(self))
            super().__setitem__(index, content)
        return content

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        if isinstance(index, slice):
            return [self._at(i) for i in range(*index.indices(len(self)))]
        return self._at(index.__index__())

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self) if self.open else 0):
            yield self._at(index)

    def __reversed__(self) -> Iterator[Any]:
        yield from list(self)[::-1]

    def __add__(self, other: Any) -> Any:
        return list(self) + list(other)

    def __radd__(self, other: Any) -> Any:
        return list(other) + list(self)

    def __mul__(self, times: SupportsIndex) -> list[Any]:
        return list(self) * times

    def __contains__(self, item: object) -> bool:
        return item in list(self)

    def __eq__(self, other: object) -> bool:
        return list(self) == other

    __hash__ = None

    def __reduce_ex__(self, _protocol: SupportsIndex) -> tuple[Any, ...]:
        return list, (list(self),)

    def copy(self) -> list[Any]:
        """An ordinary list, with every content built."""
        return list(self)

    def index(self, value: Any, *where: SupportsIndex) -> int:
        """As of a list, with every content built."""
        return list(self).index(value, *where)

    def count(self, value: Any) -> int:
        """As of a list, with every content built."""
        return list(self).count(value)


# What awkward asks every field for, though the form knows it. Cached properties can be answered beforehand;
# where they are none, asking merely builds the fields.
SEEDS = tuple(
    name
    for name in ("minmax_depth", "purelist_depth", "purelist_isregular", "branch_depth")
    if any(isinstance(vars(kind).get(name), cached_property) for kind in ak.contents.RecordArray.__mro__)
    and hasattr(ak.forms.RecordForm, name)
)


def lazy_record(
    form: Any, parameters: Mapping[str, Any] | None, length: int, make: Callable[[Any], Any]
) -> Any:
    """A record array of a form, whose fields ``make(form of the field)`` fills on demand."""

    def build(index: int) -> Any:
        field = form.contents[index]
        if isinstance(field, ak.forms.RecordForm) and not field.is_tuple and len(field.fields) > FEW:
            return lazy_record(field, field.parameters, length, make)
        return make(field)

    contents = Contents(len(form.contents), build)
    record = ak.contents.RecordArray(contents, form.fields, length, parameters=parameters, backend=BACKEND)
    contents.open = True
    if record.contents is not contents:
        raise TypeError("this awkward copies the list of a record's contents")
    for name in SEEDS:
        record.__dict__.setdefault(name, getattr(form, name))
    return record
