"""What ``runner.py sites`` says: all sites, and whether they can be used from here; one site in full.

Looks at names, files and PATH only: nothing is started, and no scheduler is asked (that is ``check``).
"""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from executors import naming, registry
from executors.errors import ExecutorsError, UnknownNameError, UsageError
from executors.redact import HIDDEN, cleaned, redact, secret_name
from executors.tables import cells, clipped
from executors.where import asked_of_site, said_of_site
from sites import find, overrides
from sites.detect import fits, full_hostname
from sites.json_schema import json_schema
from sites.profile import load
from sites.schema import keys, value_of
from sites.values import Table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from executors.options import Settings
    from sites.profile import Layer, Loaded, SiteProfile

WIDTH = 80
COMMANDS = {
    "condor": ("condor_submit", "condor_q", "condor_rm"),
    "slurm": ("sbatch", "squeue", "scancel"),
    "sge": ("qsub", "qstat", "qdel"),
    "pbs": ("qsub", "qstat", "qdel"),
    "lsf": ("bsub", "bjobs", "bkill"),
}


@dataclass(frozen=True, slots=True)
class Usable:
    """Whether a site can be used from here, as far as can be seen without asking anybody."""

    yes: bool
    why: str  # why not, or under which condition


def usable(profile: SiteProfile, host: str) -> Usable:
    """Look at the host's name, the scheduler's commands, the engines' packages and the required keys."""
    if why := profile.unusable or _no_engine(profile):
        return Usable(False, why)
    missing = [one for one in COMMANDS.get(profile.scheduler or "", ()) if shutil.which(one) is None]
    elsewhere = (profile.detect.hostname or profile.detect.marker) and not fits(profile, host)
    if elsewhere:
        known = [f"its hosts are {' or '.join(profile.detect.hostname)}"] if profile.detect.hostname else []
        known += [f"on its hosts there is {one}" for one in profile.detect.marker]
        return Usable(False, ", ".join(known))
    if missing:
        return Usable(False, f"{missing[0]} is not on PATH")
    lacking = sorted({one for engine in profile.engines for one in registry.missing_packages(engine)})
    if lacking and len(lacking) >= len([one for one in profile.engines if one in registry.NEEDS]):
        return Usable(False, f"not installed: {', '.join(lacking)}")
    try:
        overrides.filled(profile, os.environ)
    except UsageError as error:
        return Usable(False, error.message)
    unknown = "detect" in profile.unverified
    return Usable(True, "if you are there: its hosts' names are not known" if unknown else "")


def _no_engine(profile: SiteProfile) -> str:
    """Why no engine runs there, as far as the profile says; nothing if one does."""
    if not profile.engines:
        return 'its profile names no engine: engines = ["dask", "parsl"]'
    known = registry.engine_names()
    wrong = [one for one in profile.engines if one not in known]
    return UnknownNameError.of("engine in its profile:", wrong[0], known).message if wrong else ""


CREDENTIALS = {"x509": "an x509 proxy", "token": "a token", "kerberos": "a Kerberos ticket"}


def needed(profile: SiteProfile) -> list[str]:
    """The options without which nothing runs there."""
    return [overrides.how_to_say(profile, key) for key in overrides.lacking(profile)]


def needs(profile: SiteProfile) -> list[str]:
    """What somebody has to bring along to use the site: values that it has no default for, a credential."""
    found = needed(profile)
    if profile.proxy.kind is not None:
        often = "" if profile.proxy.required else " where files ask for it"
        found.append(f"{CREDENTIALS[profile.proxy.kind]}{often}")
    return found


# -- all sites --------------------------------------------------------------------------------------


def listed(as_json: bool = False) -> str:
    """Every site: its scheduler, its engines, whether it can be used from here and why not."""
    among = find.layers()
    host = full_hostname()
    rows = [_row(name, among, host) for name in find.names(among)]
    troubles = find.troubles(among)
    if as_json:
        return json.dumps({"host": host, "sites": rows, "troubles": troubles}, indent=1)
    return redact(
        "\n".join([*_table(rows), *(line for one in troubles for line in _wrapped(one)), *_foot(host)])
    )


def _row(name: str, among: list[Layer], host: str) -> dict[str, Any]:
    try:
        found = load(name, among)
    except UsageError as error:
        return {"name": name, "scheduler": "?", "engines": [], "usable": False, "why": error.message,
                "description": "", "from": "", "needs": [], "commands": [], "hides": None}  # fmt: skip
    profile, state = found.profile, usable(found.profile, host)
    return {
        "name": name,
        "description": _about(found),
        "scheduler": profile.scheduler,
        "engines": list(profile.engines),
        "usable": state.yes,
        "why": state.why,
        "needs": needs(profile),
        "commands": list(COMMANDS.get(profile.scheduler or "", ())),
        "from": found.label,
        "hides": str(found.hides) if found.hides else None,
    }


def _about(found: Loaded) -> str:
    return found.profile.description or (f"as {found.inherits[0]}" if found.inherits else "a site")


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Names, schedulers and engines in columns; reasons wrapped beside them, never cut."""
    heads = ("site", "scheduler", "engines")
    columns = [(row["name"], str(row["scheduler"] or "-"), _engines(row)) for row in rows]
    widths = [max(cells(one[at]) for one in [heads, *columns]) for at in range(3)]
    left = sum(widths) + 6
    lines = [_line(heads, widths) + "from here", "-" * WIDTH]
    for row, column in zip(rows, columns, strict=True):
        said = ("yes" + (f", {row['why']}" if row["why"] else "")) if row["usable"] else f"no: {row['why']}"
        if row["hides"] is not None:
            said += f"; {row['from']}, hides {row['hides']}"
        elif row["from"] not in ("", find.BUILT_IN):
            said += f" ({row['from']})"
        body = _folded(said, max(WIDTH - left, 20)) or [""]
        if row["needs"]:
            body += _folded(f"needs {', '.join(row['needs'])}", max(WIDTH - left, 20))
        lines += [_line(column, widths) + body[0], *(" " * left + more for more in body[1:])]
    return lines


def _line(column: tuple[str, ...], widths: list[int]) -> str:
    return "".join(f"{text:{width}}  " for text, width in zip(column, widths, strict=True))


def _engines(row: dict[str, Any]) -> str:
    """Those with jobs or workers elsewhere; where there is none, what runs on the login node."""
    far = [one for one in row["engines"] if one not in naming.HERE]
    return " ".join(far or row["engines"][:1]) or "-"


def _foot(host: str) -> list[str]:
    return [
        "",
        *_wrapped(
            f"this host is {host}. 'runner.py sites NAME' shows one site, value by value, and which engines "
            "run there; 'runner.py check --executor ENGINE/NAME' asks its scheduler. A site with a scheduler "
            "also needs that one's commands on PATH (condor_submit, sbatch, qsub, bsub)."
        ),
    ]


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent) or [indent]


def _folded(text: str, width: int) -> list[str]:
    """Lines of that width; a host's name is not broken at its dashes."""
    return textwrap.wrap(text, width, break_on_hyphens=False)


# -- one site ---------------------------------------------------------------------------------------


def asked_for(name: str | None, settings: Settings, *, as_json: bool = False) -> str:
    """One site, by its name or an executor's, as a run with these settings would use it."""
    file, scheduler = settings.site_file, None
    if name is not None and ("/" in name or name == naming.AUTO):
        parts = naming.parts(name, registry.engine_names(), file)
        name, scheduler = parts.site, parts.scheduler
    elif name is None and file is not None:
        name = file.name.removesuffix(".toml").removesuffix(".site")
    return shown(str(name), as_json, file, settings, scheduler)


def as_used(found: Loaded, settings: Settings, scheduler: str | None = None) -> Loaded:
    """The profile with what the settings and this environment say of it, and who says so."""
    profile = found.profile if scheduler is None else overrides.at_scheduler(found.profile, scheduler)
    site, origins = overrides.as_used(profile, asked_of_site(settings), said_of_site(settings), os.environ)
    by_name = {} if scheduler is None else {"scheduler": "the executor's name"}
    return replace(found, profile=site, origins={**found.origins, **by_name, **origins})


def for_config(settings: Settings) -> str:
    """The site's values in a run with these settings, as the comments that ``--show-config`` ends with."""
    head = f"\n# the site, as {settings.executor} has it\n"
    try:
        site, origins = registry.look_up(
            settings.executor, asked_of_site(settings), said_of_site(settings), settings.site_file
        )
    except ExecutorsError as error:
        return redact(head + "".join(f"# {line}\n" for line in error.message.splitlines()))
    rows = [
        (f"# {key} = {value}", origin)
        for key, value, origin in _rows(site, origins)
        if value != "-" or origin != DEFAULT
    ]
    if site.scheduler is not None:
        rows += [(f"# {how} has to be given", "") for how in needed(site)]
    width = min(44, max(len(text) for text, _ in rows))
    return redact(head + "".join(f"{text:{width}}  # {origin}".rstrip(" #") + "\n" for text, origin in rows))


def shown(
    name: str,
    as_json: bool = False,
    site_file: Path | None = None,
    settings: Settings | None = None,
    scheduler: str | None = None,
) -> str:
    """One site: every value with its origin, what nobody could verify, what is fixed, what to know."""
    found = find.find(name, site_file)
    if settings is not None:
        found = as_used(found, settings, scheduler)
    if as_json:
        return json.dumps(cleaned(_data(found)), indent=1)
    profile = found.profile
    state = usable(profile, full_hostname())
    head = [f"{name}: {_about(found)}"]
    names = [f"{engine}/{name}" for engine in profile.engines]
    names += [f"dask/{one}/{name}" for one in profile.schedulers]
    said = ("yes" + (f", {state.why}" if state.why else "")) if state.yes else f"no: {state.why}"
    head += _item("executors", ", ".join(names) or "none")
    head += _item("from here", said)
    if wanted := needs(profile):
        head += _item("needs", ", ".join(wanted))
    head += _item("profile", f"{found.path}, {found.label}")
    if found.inherits:
        head += _item("inherits", ", ".join(found.inherits))
    if found.hides is not None:
        head += _item("hides", f'{found.hides}: inherits = "{name}" begins with what that says')
    for note in profile.notes:
        head += _item("note", note)
    return redact("\n".join([*head, "", *_values(found)]))


def _item(title: str, text: str) -> list[str]:
    lines = _folded(text, WIDTH - 14) or [""]
    return [f"  {title:10}  {lines[0]}", *(" " * 14 + more for more in lines[1:])]


# Said above the values, or of no use to a reader of them.
APART = ("description", "notes", "engines", "unusable", "unverified", "schedulers", "old_names")
DEFAULT = "default"


def _rows(profile: SiteProfile, origins: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Key, value as a file spells it, origin; a table row by row."""
    rows: list[tuple[str, str, str]] = []
    for key in keys().values():
        value = value_of(profile, key.name)
        if key.name in APART or key.name.startswith("fixed"):
            continue
        if key.table and value:
            inner = [(f"{key.name}.{row}", one) for row, one in value.items()]
        else:
            inner = [(key.name, value)]
        rows += [(name, _said(name, one), _origin(origins, name)) for name, one in inner]
    return rows


def _said(key: str, value: Any) -> str:
    """A value as a file spells it; a secret is not said."""
    if isinstance(value, Table):
        value = Table(_plain(value))
    return HIDDEN if value and secret_name(key.rpartition(".")[2]) else overrides.shown(key, value)


def _origin(origins: Mapping[str, str], key: str) -> str:
    return origins.get(key, DEFAULT)


def _marks(profile: SiteProfile, key: str) -> str:
    """``!`` for a key that cannot be changed, ``?`` for one that nobody could verify."""
    doubted = any(key == one or key.startswith(f"{one}.") for one in profile.unverified)
    return ("!" if key in profile.fixed else "") + ("?" if doubted else "")


def _values(found: Loaded) -> list[str]:
    rows = _rows(found.profile, found.origins)
    profile = found.profile
    first = min(max(len(key) for key, _, _ in rows), 30)
    last = min(max(len(origin) for _, _, origin in rows), 24)
    middle = WIDTH - first - last - 7
    lines = [f"{'key':{first}}     {'value':{middle}}  from", "-" * WIDTH]
    for key, value, origin in rows:
        body = _folded(value, middle) or [""]
        mark = _marks(profile, key)
        lines.append(
            f"{clipped(key, first):{first}} {mark:2}  {body[0]:{middle}}  {_end(origin, last)}".rstrip()
        )
        lines += [" " * (first + 5) + more for more in body[1:]]
    legend = [f"!  cannot be changed: {key}: {why}" for key, why in profile.fixed.items()]
    if profile.unverified:
        legend.append(
            f"?  not verified at the site: {', '.join(profile.unverified)}. 'runner.py check' and 'runner.py "
            "selftest' with an executor there tell more"
        )
    body = [line for one in legend for line in textwrap.wrap(one, WIDTH, subsequent_indent="   ")]
    return [*lines, *([""] if body else []), *body]


def _end(text: str, width: int) -> str:
    return text if len(text) <= width else f"…{text[1 - width :]}"


def _data(found: Loaded) -> dict[str, Any]:
    profile = found.profile
    state = usable(profile, full_hostname())
    values = {
        key.name: {
            "value": _plain(value_of(profile, key.name)),
            "shown": _said(key.name, value_of(profile, key.name)),
            "origin": _origins(found, key.name, key.table),
            "verified": "?" not in _marks(profile, key.name),
            "about": key.about,
        }
        for key in keys().values()
    }
    return {
        "name": profile.name,
        "path": str(found.path),
        "from": found.label,
        "inherits": list(found.inherits),
        "hides": str(found.hides) if found.hides else None,
        "usable": state.yes,
        "why": state.why,
        "values": values,
    }


def _origins(found: Loaded, key: str, table: bool) -> Any:
    if not table:
        return _origin(found.origins, key)
    return {row: _origin(found.origins, f"{key}.{row}") for row in value_of(found.profile, key)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Table):
        return {row: HIDDEN if secret_name(row) else one for row, one in value.items()}
    return value


# -- for editors ------------------------------------------------------------------------------------


def schema() -> dict[str, Any]:
    """The JSON schema of a profile."""
    return json_schema()


def schema_text() -> str:
    """The same as text."""
    return json.dumps(schema(), indent=1, ensure_ascii=False)
