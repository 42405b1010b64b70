"""Histograms as flat cells and axis parameters in JSON, exact to the last bit, and back.

The parameters are those that the axes themselves give to a pickle (their state), written without one.
Adding unlike histograms is hist's own business: nothing here merges axes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import boost_histogram as bh
import hist
import numpy as np
from boost_histogram import _core

from executors.coffea import constants
from executors.errors import DamagedError
from executors.work.packed import FRESH

if TYPE_CHECKING:
    from executors.work.packed import Array, Sink, Source

CLASSES: dict[type, str] = {hist.Hist: "Hist", hist.NamedHist: "NamedHist", bh.Histogram: "Histogram"}
_BY_NAME: dict[str, Any] = {name: kind for kind, name in CLASSES.items()}
_STORAGES = {
    "any_double": "Double",
    "any_int64": "Int64",
    "any_atomic_int64": "AtomicInt64",
    "any_weight": "Weight",
    "any_mean": "Mean",
    "any_weighted_mean": "WeightedMean",
    "any_multi_cell": "MultiCell",
}
_ADDITIVE = {"any_double", "any_int64", "any_atomic_int64", "any_weight", "any_multi_cell"}
_UNLIMITED = "any_unlimited"
_KNOWN = "_variance_known"  # cleared by every addition, so it is a cell of its own region
_EMPTY_TAIL = 4  # how the state of an empty Unlimited ends: version, type of cell, number of cells, cells
_SMALL = 1 << 14  # bins below which copying the state is quicker than opening a view


def node(value: Any, sink: Sink) -> list[Any] | None:
    """The structure of a histogram, its cells put into the sink; None for a storage not known here."""
    attributes = dict(value.__getstate__()[1])
    inner = attributes.pop("_hist")
    storage = type(inner).__name__
    if storage not in _STORAGES and storage != _UNLIMITED:
        return None
    fresh = attributes.get(_KNOWN)
    cells = []
    if type(fresh) is bool:
        attributes[_KNOWN] = None
        cells.append(sink.put(FRESH, np.array([fresh], dtype="|u1")))
    axes = [_axis(inner.axis(i)) for i in range(inner.rank())]
    shape = [CLASSES[type(value)], storage, axes, constants.encode(attributes)]
    if storage == _UNLIMITED:
        return ["H", [], cells, *shape, constants.encode(_tail(inner))]
    data = _flat(inner)
    cells.append(sink.put(data.dtype.str, data))
    width = inner.nelem() if storage == "any_multi_cell" else 0
    return ["h" if cells[0][0] == FRESH and storage in _ADDITIVE else "H", [], cells, *shape, width]


def value_of(form: list[Any], source: Source) -> Any:
    """The histogram of ``node``'s structure, with its cells from the source."""
    _, _, cells, kind, storage, axes, attributes, extra = form
    held = constants.decode(attributes)
    if cells and cells[0][0] == FRESH:
        held[_KNOWN] = bool(source.take(*cells[0])[0])
    parts = [_read_axis(*axis) for axis in axes]
    if storage == _UNLIMITED:
        inner = _with_tail(parts, constants.decode(extra))
    else:
        inner = _filled(storage, parts, extra, source.take(*cells[-1]))
    return _restored(_BY_NAME[kind], (0, {**held, "_hist": inner}))


def _restored(kind: Any, state: tuple[Any, ...]) -> Any:
    made = kind.__new__(kind)
    made.__setstate__(state)
    return made


def _axis(axis: Any) -> list[Any]:
    return [type(axis).__name__, *map(constants.encode, axis.__getstate__())]


def _read_axis(name: str, *state: Any) -> Any:
    return _restored(getattr(_core.axis, name), tuple(map(constants.decode, state)))


def _flat(inner: Any) -> Array:
    """All cells in memory order; a view of a large histogram's own memory."""
    if inner.size() < _SMALL:
        small: Array = inner.__getstate__()[-1]
        return small
    return _view(inner)


def _view(inner: Any) -> Array:
    view = inner.view(True)  # with flow; the first axis is the fastest
    flat: Array = view.T.reshape(-1)
    return flat.view("<f8") if flat.dtype.names else flat


def _filled(storage: str, axes: list[Any], width: int, data: Array) -> Any:
    kind = getattr(_core.hist, storage)
    kept = getattr(bh.storage, _STORAGES[storage])
    inner = kind(axes, kept(width) if storage == "any_multi_cell" else kept())
    if inner.size() >= _SMALL:
        _view(inner)[:] = data
        return inner
    state = inner.__getstate__()
    if state[-1].shape != data.shape:
        raise DamagedError("packed result: a histogram's cells do not fit its axes")
    return _restored(kind, (*state[:-1], data))


# An Unlimited storage has cells of one to eight bytes, of any number of bytes, or doubles; a view would turn
# it into doubles for good. So its state is kept as it is: all that follows the axes in the histogram's own.
def _tail(inner: Any) -> list[Any]:
    axes = [inner.axis(i) for i in range(inner.rank())]
    empty = type(inner)(axes, bh.storage.Unlimited()).__getstate__()
    return list(inner.__getstate__()[len(empty) - _EMPTY_TAIL :])


def _with_tail(axes: list[Any], tail: list[Any]) -> Any:
    kind: Any = _core.hist.any_unlimited
    empty = kind(axes, bh.storage.Unlimited()).__getstate__()
    return _restored(kind, (*empty[:-_EMPTY_TAIL], *tail))
