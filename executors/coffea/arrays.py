"""Numpy arrays of every type as flat cells, exact to the last bit, and back.

What numpy adds cell by cell goes into the region of its type; anything else is kept as bytes, and its
padding cleared, so that equal arrays have equal bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from executors.coffea.constants import simple_dtype

if TYPE_CHECKING:
    from executors.work.packed import Sink, Source

_RAW = "|u1"  # where the bytes go of what is not added as numbers


def node(value: Any, sink: Sink) -> list[Any] | None:
    """The structure of an array, its cells put into the sink; None for one of objects."""
    dtype = value.dtype
    if value.ndim and numeric(dtype):
        return ["a", [], [sink.put(dtype.str, value)], list(value.shape)]
    if flat_bytes(dtype):
        return raw(value, sink)
    if dtype.names is None or dtype.hasobject or _rebuilt(dtype) != dtype:
        return None
    fields = [node(value[name], sink) for name in dtype.names]
    return ["R", fields, [], list(value.shape), _description(dtype)]


def numeric(dtype: np.dtype[Any]) -> bool:
    """Whether an array of this type is added cell by cell, and the sum has the same type."""
    return dtype.kind in "biufcm" and dtype.isnative and simple_dtype(dtype)


def flat_bytes(dtype: np.dtype[Any]) -> bool:
    """Whether ``raw`` can hold an array of this type."""
    return simple_dtype(dtype) or dtype.char in "gG"


def raw(array: Any, sink: Sink) -> list[Any]:
    """An array that is not added as it is: its bytes (a 0-d array becomes a number in a sum, and so on)."""
    data = np.ascontiguousarray(array).reshape(-1).view(_RAW)
    if array.dtype.char in "gG" and np.finfo(array.dtype).nmant == 63:
        data = data.copy()
        data.reshape(-1, np.dtype("g").itemsize)[:, 10:] = 0  # padding, which holds anything
    return ["A", [], [sink.put(_RAW, data)], list(array.shape), array.dtype.str]


def _description(dtype: np.dtype[Any]) -> Any:
    """A structured type in JSON."""
    if dtype.names is None:
        base, shape = dtype.subdtype or (dtype, ())
        return [_description(base), list(shape)] if shape else base.str
    fields = [[n, _description(dtype.fields[n][0]), dtype.fields[n][1]] for n in dtype.names]  # type: ignore[index]
    return {"fields": fields, "size": dtype.itemsize, "align": dtype.isalignedstruct}


def _described(form: Any) -> np.dtype[Any]:
    if isinstance(form, str):
        return np.dtype(form)
    if isinstance(form, list):
        return np.dtype((_described(form[0]), tuple(form[1])))
    names, formats, offsets = zip(*form["fields"], strict=True) if form["fields"] else ((), (), ())
    parts = {
        "names": list(names),
        "formats": [_described(f) for f in formats],
        "offsets": list(offsets),
        "itemsize": form["size"],
    }
    return np.dtype(parts, align=form["align"])  # type: ignore[call-overload,no-any-return]


def _rebuilt(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    try:
        return _described(_description(dtype))
    except (ValueError, TypeError):
        return None


def read_plain(form: list[Any], source: Source) -> Any:
    """The array of an additive node."""
    return source.take(*form[2][0]).copy().reshape(form[3])


def read_raw(form: list[Any], source: Source) -> Any:
    """The array of a node of bytes."""
    return source.take(*form[2][0]).copy().view(np.dtype(form[4])).reshape(form[3])


def read_record(form: list[Any], source: Source) -> Any:
    """The array of a node of fields."""
    whole = np.zeros(tuple(form[3]), _described(form[4]))
    for (name, *_), field in zip(form[4]["fields"], form[1], strict=True):
        whole[name] = READERS[field[0]](field, source)
    return whole


READERS = {"a": read_plain, "A": read_raw, "R": read_record}
