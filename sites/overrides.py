"""What the user asks of a site put into its profile: read as files are, held against what the site fixes.

Values follow each other here (memory grows with cores, a flavour brings its walltime), so that everybody
below sees one profile that fits together.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from executors.errors import UnknownNameError, UsageError
from sites.schema import IDENTITY, SCHEDULERS, Key, SiteProfile, key_of, keys, sections, value_of
from sites.values import (
    Table,
    amount,
    duration,
    from_text,
    ports,
    scalar_from_text,
    scalars,
    size,
    span,
    spans,
    variables,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TYPED = "command line"
# How a key is spelt on the command line; the others have no option of their own.
OPTIONS = {
    "dask.address": "--scheduler-address",
    "directives": "--directive",
    "env": "--env",
    "job.account": "--account",
    "job.image": "--image",
    "job.python": "--worker-python",
    "job.queue": "--queue",
    "job.setup": "--worker-setup",
    "job.ship": "--ship-env",
    "job.workers": "--workers",
    "limits.start": "--start-timeout",
    "limits.usual": "--scaleout",
    "ports.scheduler": "--scheduler-port",
    "proxy.path": "--voms",
    "resources.cores": "--cores",
    "resources.disk": "--disk",
    "resources.memory": "--memory",
    "resources.walltime": "--walltime",
    "shares_store": "--shared-store",
}
# Lists that an option adds to: a line more, not another script.
ADDED_TO = ("job.setup", "job.submit_options")
SAMPLES = {
    "dask.address": "tls://HOST:PORT",
    "job.image": "/cvmfs/…",
    "resources.walltime": "8h",
    "resources.memory": "4GB",
}


def spelt(key: str) -> str:
    """How a person says a key: its option, or the key itself."""
    found = key_of(key)
    option = OPTIONS.get(found[0].name if found else key)
    if option is None:
        return f"the key {_shown(key)}"
    row = _shown(found[1])[1:-1] if found else ""
    return f"{option} {row}=…" if row else option


def overridden(
    profile: SiteProfile, asked: Mapping[str, object], said: Mapping[str, str] | None = None
) -> tuple[SiteProfile, dict[str, str]]:
    """The profile with what is asked (dotted keys), and where each value that changed comes from.

    Text is read as the command line spells it. ``said`` tells who asks for a key, the command line if not.
    """
    given = {key: value for key, value in asked.items() if value is not None}
    changes: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, value in given.items():
        origin = (said or {}).get(key, TYPED)
        _put(profile, changes, key, value, origin)
        origins[key] = origin
    changed = _with(profile, changes)
    for follow in (_existing, _cores, _memory_and_disk, _queue):
        more, why = follow(profile, changed, given)
        changed = _with(changed, more)
        origins |= dict.fromkeys(more, why)
    _fits_the_queue(changed)
    return changed, origins


def _put(profile: SiteProfile, changes: dict[str, Any], key: str, value: object, origin: str) -> None:
    """Read one value and note it under its key; a row of a table goes into the whole table."""
    found = key_of(key)
    if found is None:
        raise UnknownNameError.of(f"key of a site ({origin}):", key[:100], [*keys(), *sections()])
    rule, row = found
    if rule.name in IDENTITY:
        raise UsageError(
            f"{origin}: {rule.name!r} says what the site {profile.name!r} is and cannot be changed for one "
            f'run; a site of your own may differ: inherits = "{profile.name}" in a file for --site-file'
        )
    before = changes.get(rule.name, value_of(profile, rule.name))
    after = _value(rule, row, before, value, f"{origin}: {spelt(key)}")
    for one in _held(profile, rule, before, after):
        raise UsageError(f"{origin}: {spelt(key)} cannot be changed at {profile.name}: {profile.fixed[one]}")
    changes[rule.name] = after


def _value(rule: Key, row: str, before: Any, value: object, where: str) -> Any:
    """The value of a whole key after what is asked of it."""
    if row:
        plain = scalar_from_text(value) if isinstance(value, str) and rule.reader is scalars else value
        if rule.reader is variables and isinstance(value, int | float):
            plain = str(value)  # as a file may say OMP_NUM_THREADS = 1
        return _read(rule, {**before, row: plain}, value, where)
    if isinstance(value, str):
        if value == "" and rule.default is None:
            return None
        value = from_text(rule.reader, value)
    read = _read(rule, value, value, where)
    if rule.table:
        return Table({**before, **read})
    if rule.name in ADDED_TO:
        return (*before, *read)
    return read


def _held(profile: SiteProfile, rule: Key, before: Any, after: Any) -> list[str]:
    """The keys that the site fixes and that would have another value."""
    if before == after:
        return []
    if not rule.table:
        return [rule.name] if rule.name in profile.fixed else []
    rows = [one for one in {**before, **after} if before.get(one) != after.get(one)]
    return [one for one in (rule.name, *(f"{rule.name}.{each}" for each in rows)) if one in profile.fixed]


def _read(rule: Key, value: object, shown: object, where: str) -> Any:
    try:
        return rule.reader(value)
    except ValueError as error:
        raise UsageError(f"{where} must be {error}, not {_shown(shown)}") from None


def _shown(value: object) -> str:
    """As an error may show it: escaped, at most 80 characters."""
    said = ascii(value)
    return said if len(said) <= 80 else f"{said[:77]}…"


def _with(profile: SiteProfile, changes: Mapping[str, Any]) -> SiteProfile:
    """The profile with other values under dotted keys."""
    whole: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    names = {one.name for one in fields(SiteProfile)}
    for key, value in changes.items():
        section, dot, last = key.partition(".")
        if dot and section in names:
            parts.setdefault(section, {})[last] = value
        else:
            whole[key] = value
    nested = {section: replace(getattr(profile, section), **values) for section, values in parts.items()}
    return replace(profile, **whole, **nested)


# -- what follows from what is asked: changes, and why ----------------------------------------------

Follow = tuple[dict[str, Any], str]


def _existing(_profile: SiteProfile, now: SiteProfile, asked: Mapping[str, object]) -> Follow:
    """A scheduler's address means a scheduler that runs already, whatever the site has of its own."""
    if not asked.get("dask.address") or now.scheduler == "existing":
        return {}, ""
    change: dict[str, Any] = {"scheduler": "existing"}
    if "shares_store" not in asked:
        change["shares_store"] = (
            False  # nobody knows where its workers are: results travel, which always works
        )
    return change, f"as {OPTIONS['dask.address']} is given"


def _cores(profile: SiteProfile, now: SiteProfile, asked: Mapping[str, object]) -> Follow:
    """A job of more workers needs as many cores."""
    if now.job.workers is None or "resources.cores" in asked or not _batch(now):
        return {}, ""
    if now.job.workers == now.resources.cores:
        return {}, ""
    if "resources.cores" in profile.fixed:
        raise UsageError(
            f"--workers {now.job.workers}: cores of a job at {profile.name} are {now.resources.cores}, "
            f"which cannot be changed: {profile.fixed['resources.cores']}"
        )
    return {"resources.cores": now.job.workers}, "one for each worker"


def _memory_and_disk(profile: SiteProfile, now: SiteProfile, asked: Mapping[str, object]) -> Follow:
    """Memory and disk grow with the cores where nobody says how much."""
    times = now.resources.cores / profile.resources.cores
    change = {
        key: math.ceil(old * times)
        for key in ("resources.memory", "resources.disk")
        if times != 1 and _batch(now) and key not in asked and key not in profile.fixed
        if (old := value_of(profile, key)) is not None
    }
    return change, f"scaled with {now.resources.cores} cores"


def _queue(profile: SiteProfile, now: SiteProfile, asked: Mapping[str, object]) -> Follow:
    """A queue brings its time; a time takes the place of a flavour, where it is one or the other."""
    job, time = now.job, now.resources.walltime
    either = _either(now)
    if "resources.walltime" in asked and "job.queue" not in asked and either and time is not None:
        return {"job.queue": None}, f"as {OPTIONS['resources.walltime']} is given"
    limit = job.queues.get(job.queue or "")
    fixed = "resources.walltime" in profile.fixed or "resources.walltime" in asked
    if "job.queue" not in asked or limit is None or fixed or not (either or time is None or time > limit):
        return {}, ""
    return {"resources.walltime": limit}, f"the limit of {job.queue}"


def _either(profile: SiteProfile) -> bool:
    """Whether the queue is a name for a time, so that one of the two is said."""
    return profile.job.queue_directive is not None and profile.job.walltime_directive is not None


def _batch(profile: SiteProfile) -> bool:
    return profile.scheduler not in (None, "existing")


def _fits_the_queue(profile: SiteProfile) -> None:
    job, time = profile.job, profile.resources.walltime
    if not job.queues:
        return
    if job.queue is not None and job.queue not in job.queues:
        raise UnknownNameError.of(f"queue of {profile.name}", job.queue, job.queues, "(--queue)")
    if job.queue is None and not _either(profile):
        return  # the scheduler's own choice of queue, of which nothing is known
    limit = job.queues[job.queue] if job.queue is not None else max(job.queues.values())
    if time is None or time <= limit:
        return
    longer = [f"{name} ({duration(most)})" for name, most in job.queues.items() if most >= time]
    where = f"the queue {job.queue!r}" if job.queue is not None else f"the longest queue of {profile.name}"
    most = max(job.queues, key=lambda name: job.queues[name])
    there = f"--queue {most} and " if job.queue not in (None, most) else ""
    less = f"{there}--walltime {duration(job.queues[most])} or less"
    mend = f"--queue {' or '.join(longer)}" if longer else less
    raise UsageError(
        f"a walltime of {duration(time)} is longer than {where} allows ({duration(limit)}): {mend}"
    )


# -- what has to be there in the end ----------------------------------------------------------------


def filled(profile: SiteProfile, env: Mapping[str, str]) -> tuple[SiteProfile, dict[str, str]]:
    """The profile with what the runner's environment says where nothing else does: the image."""
    name = profile.job.image_variable
    if profile.job.image is not None or name is None or not env.get(name):
        return profile, {}
    return overridden(profile, {"job.image": env[name]}, {"job.image": f"env {name}"})


def as_used(
    profile: SiteProfile,
    asked: Mapping[str, object],
    said: Mapping[str, str] | None,
    env: Mapping[str, str],
) -> tuple[SiteProfile, dict[str, str]]:
    """The profile as a run from here has it: with what is asked, and what this environment says."""
    profile, filling = filled(profile, env)
    site, origins = overridden(profile, asked, said)
    site, passing = passed_on(site, env) if site.scheduler is not None else (site, {})
    return site, {**filling, **origins, **passing}


def passed_on(profile: SiteProfile, env: Mapping[str, str]) -> tuple[SiteProfile, dict[str, str]]:
    """The profile with the runner's own variables that its workers need too (``job.pass_env``).

    They mostly name folders: of those only what the workers see as well is of use to them.
    """
    rows = {
        f"env.{name}": env[name]
        for name in profile.job.pass_env
        if env.get(name) and name not in profile.env and _seen(profile, env[name], env)
    }
    return overridden(profile, rows, {key: f"env {key.partition('.')[2]}" for key in rows})


def _seen(profile: SiteProfile, value: str, env: Mapping[str, str]) -> bool:
    if not value.startswith("/") or value.startswith("/cvmfs/"):
        return True
    hidden = [one.replace("$HOME", env.get("HOME", "/")) for one in profile.paths.unseen]
    return profile.shares_store and not any(f"{value}/".startswith(f"{one}/") for one in hidden)


def lacking(profile: SiteProfile) -> list[str]:
    """The required keys that have no value."""
    wanted = [*profile.job.required, *(["dask.address"] if profile.scheduler == "existing" else [])]
    return [key for key in dict.fromkeys(wanted) if value_of(profile, key) in (None, "", ())]


def how_to_say(profile: SiteProfile, key: str) -> str:
    """The option that gives a key its value, with an example."""
    words = (
        f"{spelt(key)} {SAMPLES.get(key, 'NAME')}" if key in OPTIONS else f"{key} in a file for --site-file"
    )
    variable = profile.job.image_variable
    return f"{words} (or the variable ${variable})" if key == "job.image" and variable else words


def require(profile: SiteProfile) -> None:
    """Refuse a profile that lacks what the site cannot do without."""
    missing = lacking(profile)
    if missing:
        said = ", ".join(how_to_say(profile, key) for key in missing)
        raise UsageError(f"the site {profile.name!r} needs {said} (see runner.py sites {profile.name})")


def at_scheduler(profile: SiteProfile, scheduler: str) -> SiteProfile:
    """The profile with the scheduler that a name asks for, where the site has it."""
    if scheduler == profile.scheduler:
        return profile
    if scheduler in profile.schedulers:
        return replace(profile, scheduler=scheduler)
    has = [one for one in (profile.scheduler, *profile.schedulers) if one]
    if scheduler not in SCHEDULERS:
        raise UnknownNameError.of(
            "scheduler", scheduler, has or SCHEDULERS, f"(at the site {profile.name!r})"
        )
    there = f"there: {' and '.join(has)}" if has else "it has none: work runs on this machine"
    raise UsageError(f"the site {profile.name!r} is not reached through {scheduler!r}; {there}")


def here(profile: SiteProfile) -> SiteProfile:
    """The profile for an engine that stays on this machine: the site's files and credentials, no jobs."""
    return replace(profile, scheduler=None, shares_store=True, unusable=None)


def shown(key: str, value: Any) -> str:
    """A value as a profile spells it."""
    found = key_of(key)
    if value is None or value in ((), {}):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Table):
        return ", ".join(f"{row} = {shown(f'{key}.{row}', one)}" for row, one in value.items())
    spell = SPELLING.get(found[0].reader) if found else None
    if spell is not None:
        return spell(value)
    if isinstance(value, tuple):
        return ", ".join(str(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _range(value: tuple[int, int]) -> str:
    return f"{value[0]} to {value[1]}" if value[0] != value[1] else str(value[0])


SPELLING: dict[Any, Callable[[Any], str]] = {size: amount, span: duration, spans: duration, ports: _range}
