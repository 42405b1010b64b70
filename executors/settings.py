"""How each option gets its value, and from where: defaults < site < file < environment < command line.

Reads, checks and explains; it starts, opens or imports nothing that an option is about. What the options are
is declared in ``options``.
"""

from __future__ import annotations

import functools
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executors.errors import UnknownNameError, UsageError
from executors.options import ENVIRONMENT, Option, Settings, options
from executors.redact import HIDDEN, cleaned, secret_name
from executors.values import MismatchError, Spelled, convert, literal, plain
from sites.schema import key_of, sections

__all__ = ["Resolved", "Settings", "read_toml", "resolve", "show_config"]

INTERNAL = ENVIRONMENT + "_"  # variables of our own, such as those that mark workers: no options
LARGEST = 2**53
SITE_SET = "site_set"  # the option that any key of a profile goes into
# Who may say an option that is not everybody's: what opens a door is said each time anew, by a person.
_SCOPES: dict[str | None, tuple[str, ...]] = {
    "command": ("command line",),
    "typed": ("command line", "--set", "caller"),
}


@dataclass(frozen=True)
class Resolved:
    """The settings of a run, and where each value came from."""

    settings: Settings
    origins: Mapping[str, str]  # option, or option.key for a table → 'default', 'command line', …


def resolve(
    cli: Mapping[str, Any] | None = None,
    config_file: Path | None = None,
    env: Mapping[str, str] | None = None,
    site: Mapping[str, Any] | None = None,
    **defaults: Any,
) -> Resolved:
    """The value of every option: default < site < file < environment < command line < ``--set``.

    ``cli`` maps option names to what was typed (text, a list of texts, True). ``defaults`` are values of a
    calling program; they come before the site.
    """
    cli = dict(cli or {})
    config_file = config_file or (Path(cli["config"]) if cli.get("config") else None)
    values: dict[str, Any] = {o.name: o.default for o in options()}
    origins = {o.name: "default" for o in options()}
    called = {name: [value] if _lone(name, value) else value for name, value in defaults.items()}
    layers: list[tuple[str, Mapping[str, Any]]] = [("caller", called), ("site", site or {})]
    if config_file is not None:
        layers.append((f"file {config_file}", read_toml(config_file)))
    layers += _environment(env if env is not None else {})
    typed = {name: _typed_in(_option(name, "command line"), value) for name, value in cli.items()}
    layers.append(("command line", typed))
    layers += _set(cli.get("set") or ())
    for origin, layer in layers:
        for key, value in layer.items():
            name, said = (SITE_SET, {key: value}) if _sites_own(key) else (key, value)
            said = _flat(said, "") if name == SITE_SET and isinstance(said, dict) else said
            _put(values, origins, _option(name, origin), said, origin)
    return Resolved(Settings(**values, origins=origins), origins)


@functools.cache
def _sites_own(key: str) -> bool:
    """Whether a key is no option, but one of a site's profile, or the name of a table in it."""
    return all(key != each.name for each in options()) and (key in sections() or key_of(key) is not None)


def _flat(rows: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The tables of a profile by dotted keys, as options name them."""
    flat: dict[str, Any] = {}
    for key, value in rows.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _lone(name: str, value: Any) -> bool:
    """Whether a calling program gave one text where a list is wanted."""
    return isinstance(value, str) and _option(name, "caller").repeated


def read_toml(path: Path) -> dict[str, Any]:
    """The keys of a configuration file; ``-`` and ``_`` are the same in a key."""
    try:
        if path.stat().st_size > 1_000_000:
            raise UsageError(f"{path}: over 1 MB: this is not a configuration file")
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read the configuration file {path}: {_reason(error)}") from error
    keys = {key.replace("-", "_"): value for key, value in content.items()}
    if len(keys) != len(content):
        raise UsageError(f"{path}: a key is given twice, once with '-' and once with '_'")
    return keys


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _environment(env: Mapping[str, str]) -> list[tuple[str, Mapping[str, Any]]]:
    scopes = {o.variable: o for o in options()}
    known = {name: o for name, o in scopes.items() if o.about.get("scope") is None}
    layers: list[tuple[str, Mapping[str, Any]]] = []
    for name in sorted(env):
        if not name.startswith(ENVIRONMENT) or name.startswith(INTERNAL):
            continue
        if name in scopes and scopes[name].about.get("scope") == "typed":
            _option(scopes[name].name, f"env {name}")  # raises: a variable that was set once is not typed now
        if name not in known:
            raise UnknownNameError.of("environment variable", name, known)
        layers.append((f"env {name}", {known[name].name: _typed_in(known[name], env[name])}))
    return layers


def _set(pairs: Any) -> list[tuple[str, Mapping[str, Any]]]:
    layers: list[tuple[str, Mapping[str, Any]]] = []
    for pair in pairs:
        key, equals, text = str(pair).partition("=")
        if not equals:
            raise UsageError(f"--set {_brief(pair)}: expected KEY=VALUE, as in --set chunk=50000")
        whole = key.strip()
        key, _, inner = whole.replace("-", "_").partition(".")
        if _sites_own(key):  # as sites NAME spells it: resources.memory
            layers.append(("--set", {SITE_SET: {whole: Spelled(text)}}))
            continue
        found = _option(key, "--set")
        value: Any = {inner: Spelled(text)} if inner and found.table else _typed_in(found, text)
        if inner and not found.table:
            raise UsageError(
                f"--set {_brief(pair)}: {key!r} is not a table, so there is no {key}.{_brief(inner)}"
            )
        layers.append(("--set", {key: value}))
    return layers


def _typed_in(found: Option, value: Any) -> Any:
    """What was typed, marked as such; tables and lists taken apart."""
    if found.table:
        return _pairs(found, value)
    if isinstance(value, list | tuple):
        separator = found.about.get("separator")
        parts = [
            part for item in value for part in (str(item).split(separator) if separator else [str(item)])
        ]
        return [Spelled(part.strip()) for part in parts if part.strip()]
    return Spelled(value) if isinstance(value, str) else value


def _pairs(found: Option, value: Any) -> dict[str, Any]:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        table: dict[str, Any] = _converted(found, Spelled(value), found.flag)
        return table
    pairs = {}
    for pair in [value] if isinstance(value, str) else value:
        key, equals, text = str(pair).partition("=")
        if not equals or not key.strip():
            raise UsageError(f"{found.flag} {_brief(pair)}: expected KEY=VALUE, as in {found.flag} year=2022")
        pairs[key.strip()] = Spelled(text)
    return pairs


def _option(key: str, origin: str) -> Option:
    for candidate in options():
        if candidate.name == key:
            if origin not in _SCOPES.get(candidate.about.get("scope"), (origin,)):
                raise UsageError(f"{origin}: {key!r} belongs on the command line: {candidate.flag}")
            return candidate
    known = [*(o.name for o in options() if o.about.get("scope") is None), *sections()]
    raise UnknownNameError.of(f"option ({origin})" if origin else "option", key, known)


def _put(values: dict[str, Any], origins: dict[str, str], found: Option, value: Any, origin: str) -> None:
    given = f"{origin}: {found.name} = {_shown(value)}"
    where = f"{found.flag} {_typed_text(value)}" if origin == "command line" else given
    read = _converted(found, value, where)
    if found.table:
        values[found.name] = {**values[found.name], **read}
        origins.update({f"{found.name}.{key}": origin for key in read})
    else:
        values[found.name] = read
    origins[found.name] = origin


def _typed_text(value: Any) -> str:
    text = " ".join(str(item) for item in value) if isinstance(value, list) else str(plain(value))
    return _brief(text) or "''"


def _brief(text: object) -> str:
    """What was typed as an error may show it: on one line, and no longer than one."""
    said = str(text) if str(text).isprintable() else ascii(str(text))
    return said if len(said) <= 80 else said[:77] + "..."


def _shown(value: Any) -> str:
    text = repr(plain(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _converted(found: Option, value: Any, where: str) -> Any:
    try:
        read = dict(value) if found.table and isinstance(value, dict) else convert(value, found.kind)
    except MismatchError as error:
        raise UsageError(f"{where}: expected {error}") from None
    _check(found, read, where)
    return tuple(read) if found.repeated else read


def _check(found: Option, value: Any, where: str) -> None:
    least = found.about.get("least")
    most = found.about.get("most", LARGEST)
    if least is not None and isinstance(value, int | float) and not least <= value <= most:
        raise UsageError(f"{where}: expected at {f'most {most}' if value > most else f'least {least}'}")
    for text in value if isinstance(value, tuple | list) else (value,):
        if isinstance(text, str | Path) and any(ord(char) < 32 or ord(char) == 127 for char in str(text)):
            raise UsageError(f"{where!r}: control characters cannot stand here")
    if found.name == "index" and value is not None:
        _check_index(value, where)


def _check_index(value: tuple[int, ...], where: str) -> None:
    if len(value) not in (1, 2, 4) or min(value) < 0 or max(value) > LARGEST:
        raise UsageError(
            f"{where}: expected i, i,j or i,j,k,l: dataset and split of the first, then of the last"
        )
    if len(value) == 4 and value[2:] < value[:2]:
        raise UsageError(f"{where}: {value[2]},{value[3]} lies before {value[0]},{value[1]}")


def show_config(resolved: Resolved) -> str:
    """Every value and where it came from, as TOML that ``--config`` reads again; secrets are left out."""
    lines: list[tuple[str, str]] = []
    group = ""
    for each in options():
        scope = each.about.get("scope")
        if scope == "command":
            continue
        if each.about["group"] != group:
            group = each.about["group"]
            lines += [("", ""), (f"# {group}", "")]
        value = getattr(resolved.settings, each.name)
        for key, item in _rows(each, value):
            text = f"# {key} is not set" if item is None else f"{key} = {_toml(key, item)}"
            text = f"# {text}" if scope == "typed" else text  # shown, but no line that --config reads
            lines.append((text, resolved.origins.get(key, resolved.origins[each.name])))
    width = min(44, max(len(text) for text, origin in lines if origin))
    return "\n".join(f"{text:{width}}  # {origin}" if origin else text for text, origin in lines[1:]) + "\n"


def _rows(found: Option, value: Any) -> list[tuple[str, Any]]:
    if not found.table:
        return [(found.name, value)]
    return [(f"{found.name}.{_key(key)}", item) for key, item in value.items()] or [(found.name, None)]


def _key(key: str) -> str:
    return key if key.isascii() and key.replace("_", "").replace("-", "").isalnum() else toml(key)


def _toml(key: str, value: Any) -> str:
    if secret_name(key):
        return f'"{HIDDEN}"'
    if (
        isinstance(value, Spelled)
        and isinstance(number := literal(value), int | float)
        and str(number) == value
    ):
        value = number
    return toml(cleaned(str(value) if isinstance(value, Path) else value))


def toml(value: Any) -> str:
    """A value as it is written in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml(str(key))} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
