"""From the nodes of a structure back to the accumulator: always new objects, the same graph each time.

Blobs are unpickled here, which runs code: for the project's own results only.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import TYPE_CHECKING, Any

import awkward as ak
from coffea.processor import (
    column_accumulator,
    defaultdict_accumulator,
    dict_accumulator,
    list_accumulator,
    set_accumulator,
    value_accumulator,
)

from executors.coffea import arrays, constants, histograms
from executors.coffea.places import at

if TYPE_CHECKING:
    from collections.abc import Callable

    from executors.coffea.encode import Node
    from executors.coffea.places import Path
    from executors.work.packed import Source


def decode(node: Node, source: Source, path: Path) -> Any:
    """The value of a node, with its cells and blobs from the source."""
    return _DECODERS[node[0]](node, source, path)


def _decode_within(node: Node, source: Source, path: Path) -> list[Any]:
    return [decode(child, source, path) for child in node[1]]


def constant(form: Any, path: Path) -> Any:
    """A key, class or factory; ``AnalysisError`` where its code is not to be found here."""
    with at(path, "cannot be read back"):
        return constants.decode(form)


def _decode_mapping(node: Node, source: Source, path: Path) -> Any:
    whole = _empty_mapping(node, path)
    for form, child in zip(node[3], node[1], strict=True):
        key = constant(form, path)
        whole[key] = decode(child, source, (*path, key))
    return whole


def _empty_mapping(node: Node, path: Path) -> Any:
    kind = mapping_class(node, path)
    if node[0] in "DE":
        return kind(constant(node[4], path))
    return kind.__new__(kind)


def mapping_class(node: Node, path: Path) -> Any:
    """The class of a mapping."""
    if node[0] != "d":
        return {"D": defaultdict, "E": defaultdict_accumulator, "m": dict_accumulator}[node[0]]
    if isinstance(node[4], list):
        return constant(node[4], path)
    return OrderedDict if node[4] else dict


def _decode_items(kind: Callable[[list[Any]], Any]) -> Callable[[Node, Source, Path], Any]:
    def read(node: Node, source: Source, path: Path) -> Any:
        if node[3] in ("f", "i"):
            return kind(source.take(*node[2][0]).tolist())
        if node[3] == "s":
            return kind(node[4])
        return kind([decode(child, source, (*path, i)) for i, child in enumerate(node[1])])

    return read


def _decode_set(kind: Callable[[list[Any]], Any]) -> Callable[[Node, Source, Path], Any]:
    return lambda node, _source, path: kind([constant(form, path) for form in node[3]])


def _decode_value(node: Node, source: Source, path: Path) -> Any:
    whole = value_accumulator.__new__(value_accumulator)
    (whole.value,) = _decode_within(node, source, path)
    whole.default_factory = constant(node[3], path)
    return whole


def _decode_opaque(_node: Node, source: Source, path: Path) -> Any:
    with at(path, "cannot be read back"):
        return constants.loads(source.take_blob())


def _decode_awkward(node: Node, source: Source, path: Path) -> Any:
    _, _, _, names, form, length = node
    buffers = dict(zip(names, _decode_within(node, source, path), strict=True))
    return ak.from_buffers(ak.forms.from_json(form), length, buffers)


_DECODERS: dict[str, Callable[[Node, Source, Path], Any]] = {
    "k": lambda node, _source, path: constant(node[3], path),
    "i": lambda node, source, _path: source.take(*node[2][0]).item(),
    "f": lambda node, source, _path: source.take(*node[2][0]).item(),
    "c": lambda node, source, _path: source.take(*node[2][0]).item(),
    "s": lambda node, source, _path: source.take(*node[2][0])[0],
    "S": lambda node, source, path: _decode_within(node, source, path)[0][()],
    "a": lambda node, source, _path: arrays.read_plain(node, source),
    "A": lambda node, source, _path: arrays.read_raw(node, source),
    "R": lambda node, source, _path: arrays.read_record(node, source),
    "h": lambda node, source, _path: histograms.value_of(node, source),
    "H": lambda node, source, _path: histograms.value_of(node, source),
    "d": _decode_mapping,
    "D": _decode_mapping,
    "E": _decode_mapping,
    "m": _decode_mapping,
    "l": _decode_items(list),
    "t": _decode_items(tuple),
    "L": _decode_items(list_accumulator),
    "e": _decode_set(set),
    "z": _decode_set(frozenset),
    "Z": _decode_set(set_accumulator),
    "v": _decode_value,
    "C": lambda node, source, path: column_accumulator(*_decode_within(node, source, path)),
    "y": _decode_awkward,
    "o": _decode_opaque,
}
