"""The JSON schema of a profile, made from its fields: editors complete and check TOML files with it."""

from __future__ import annotations

from functools import partial
from typing import Any

from sites import values
from sites.schema import Key, keys, sections

DRAFT = "https://json-schema.org/draft/2020-12/schema"
SIZE = r"^\s*\d+(\.\d+)?\s*[kKmMgGtT]?[iI]?[bB]?$"
SPAN = r"^\d+(\.\d+)?\s*[smhd]$"
TEXT = {"type": "string", "pattern": r"^[^\u0000-\u001f\u007f]*$"}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
TIME = {"oneOf": [{"type": "string", "pattern": SPAN}, {"type": "number", "exclusiveMinimum": 0}]}


def _rows(kind: dict[str, Any], names: str = r"^.*\S.*$") -> dict[str, Any]:
    return {"type": "object", "patternProperties": {names: kind}, "additionalProperties": False}


# How a file spells what each reader takes.
KINDS: dict[Any, dict[str, Any]] = {
    values.text: TEXT,
    values.flag: {"type": "boolean"},
    values.count: {"type": "integer", "minimum": 1},
    values.number: {"type": "number", "exclusiveMinimum": 0},
    values.size: {"oneOf": [{"type": "string", "pattern": SIZE}, {"type": "integer", "minimum": 1}]},
    values.span: TIME,
    values.texts: {"type": "array", "items": TEXT},
    values.names: {"type": "array", "items": {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}},
    values.patterns: {"oneOf": [TEXT, {"type": "array", "items": TEXT}]},
    values.ports: {"oneOf": [PORT, {"type": "array", "items": PORT, "minItems": 2, "maxItems": 2}]},
    values.scalars: _rows({"type": ["string", "number", "boolean"]}),
    values.words: _rows(TEXT),
    values.variables: _rows(TEXT, "^[A-Za-z_][A-Za-z0-9_]*$"),
    values.spans: _rows(TIME),
}


def json_schema() -> dict[str, Any]:
    """The schema of one file below ``sites/``."""
    properties: dict[str, Any] = {
        "inherits": {
            "type": "string",
            "description": "the site it begins with; its own name: the one it hides",
        }
    }
    for name, about in sections().items():
        properties[name] = {
            "type": "object", "description": about, "properties": {}, "additionalProperties": False
        }  # fmt: skip
    for key in keys().values():
        section, _, name = key.name.rpartition(".")
        place = properties[section]["properties"] if section else properties
        place[name] = {**_kind(key), "description": key.about}
    return {
        "$schema": DRAFT,
        "title": "a site's profile",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _kind(key: Key) -> dict[str, Any]:
    if isinstance(key.reader, partial):
        allowed = [*key.reader.args[0], *([""] if key.default is None else [])]
        return {"enum": allowed}
    kind = KINDS[key.reader]
    # An empty string takes back what is inherited.
    empty = key.default is None and key.reader is not values.text
    return {"anyOf": [kind, {"const": ""}]} if empty else kind
