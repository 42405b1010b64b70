"""Reading one JSON or YAML document with care: nothing is dropped, guessed, run or read without end.

It returns plain dicts, lists and scalars, or raises ``FilesetError`` with the place of the mistake. What the
document means is for others (``fileset``).
"""

from __future__ import annotations

import gzip
import importlib
import io
import json
import stat
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from executors.errors import FilesetError

if TYPE_CHECKING:
    from collections.abc import Iterable

LARGEST = 512_000_000  # bytes; a fileset of a million files has a third of that
_SUFFIXES = (".gz", ".json", ".yaml", ".yml", ".jsn")


def stem(path: str) -> str:
    """The name of a document without folder and suffixes, as output names use it."""
    if path == "-":
        return "stdin"
    name = Path(path).name
    while (suffix := Path(name).suffix.lower()) in _SUFFIXES and Path(name).stem:
        name = name[: -len(suffix)]
    return name


def read_document(path: str) -> Any:
    """The content of a JSON or YAML file, gzipped or not; ``-`` is standard input."""
    raw = _bytes(path)
    if raw.startswith(b"root"):
        raise FilesetError(f'{path} is a ROOT file, not a fileset; write one: {{"name": ["{path}"]}}')
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FilesetError(f"{path}: byte {error.start} is not UTF-8 text") from None
    if not text.strip("\ufeff \t\r\n"):
        raise FilesetError(f"{path} is empty")
    return parse(text, path)


def parse(text: str, path: str) -> Any:
    """The document in ``text``; ``path`` is for messages and tells JSON from YAML."""
    name = path.lower().removesuffix(".gz")
    yaml = name.endswith((".yaml", ".yml")) or not (name.endswith(".json") or text.lstrip()[:1] in ("{", "["))
    try:
        return _yaml(text) if yaml else _json(text)
    except FilesetError as error:
        raise FilesetError(f"{path}: {error}") from None
    except RecursionError:
        raise FilesetError(f"{path}: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise FilesetError(f"{path}: {_place(error)}: not JSON: {error.msg}{_hint(error)}") from None
    except ValueError as error:
        raise FilesetError(f"{path}: {error}") from None


def _bytes(path: str) -> bytes:
    try:
        if path == "-":
            return _whole(sys.stdin.buffer, path)
        mode = Path(path).stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise FilesetError(
                f"{path} is {'a directory' if stat.S_ISDIR(mode) else 'not a file'}, not a fileset"
            )
        with Path(path).open("rb") as file:
            return _whole(file, path)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FilesetError(f"cannot read the fileset {path}: {reason}") from error


def _whole(file: BinaryIO, path: str) -> bytes:
    raw = file.read(LARGEST + 1)
    if raw.startswith(b"\x1f\x8b"):
        with gzip.open(io.BytesIO(raw)) as unpacked:
            raw = unpacked.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise FilesetError(f"{path} is over {LARGEST // 1_000_000} MB: this is not a fileset")
    return raw


def _place(error: json.JSONDecodeError) -> str:
    return f"line {error.lineno}, column {error.colno}"


def _hint(error: json.JSONDecodeError) -> str:
    before = error.doc[: error.pos].rstrip()
    if error.msg == "Extra data":
        return " (the document ended before this)"
    if before.endswith(",") or (
        error.pos < len(error.doc) and error.doc[error.pos] in "]}" and before[-1:] == ","
    ):
        return " (a comma after the last item?)"
    return ""


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        _twice(key for key, _ in pairs)
    return table


def _twice(keys: Iterable[Any]) -> NoReturn:
    seen = set()
    for key in keys:
        if key in seen:
            raise FilesetError(f"the key {key!r} stands twice in one table; the first would be lost")
        seen.add(key)
    raise FilesetError("a key stands twice in one table")


def _no_constant(word: str) -> NoReturn:
    raise FilesetError(f"{word} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise FilesetError(f"the number {text} is too large")
    return value


def _yaml(text: str) -> Any:
    yaml: Any = importlib.import_module("yaml")  # slow to import, and most filesets are JSON
    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc]
        """The safe loader, refusing a key that stands twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            keys = [key.value for key in own if isinstance(key, yaml.ScalarNode)]
            if len(set(keys)) != len(keys):
                try:
                    _twice(keys)
                except FilesetError as error:
                    raise FilesetError(f"line {node.start_mark.line + 1}: {error}") from None
            return dict(super().construct_mapping(node, deep))

    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise FilesetError(f"{place}not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise FilesetError(f"not YAML: {error}") from None
    except (TypeError, AttributeError, OverflowError) as error:  # dates and tags that do not construct
        raise FilesetError(f"not YAML: {error}") from None
