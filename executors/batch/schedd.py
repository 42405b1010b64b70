"""Which of a site's schedds takes the jobs of an opened engine, where there are several to choose from.

The site says as data where to ask, which may be used and which is better (``[schedd]`` of its profile), in
HTCondor's own expressions. The choice is made once and put among the submit options, so that all later
commands go to the same server.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from executors.batch.condor import SERVERS
from executors.batch.schedulers import CommandError, ask, clean
from executors.errors import SiteError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sites.profile import SiteProfile

PATIENCE = 30.0  # seconds for one collector
# What an answer may put among our words.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,250}", re.ASCII)
POOL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*", re.ASCII)
VARIABLE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)", re.ASCII)
MANY = 8  # names in one message


class Found(NamedTuple):
    """A schedd that may be used, and how busy it is: the lowest wins."""

    rank: float
    name: str


def chosen(site: SiteProfile, tell: Callable[[str, str], object], patience: float = PATIENCE) -> SiteProfile:
    """The site with its schedd among the submit options; as it is where none has to be chosen."""
    wanted, options = site.schedd, site.job.submit_options
    if site.scheduler != "condor" or not (wanted.pool or wanted.constraint or wanted.rank):
        return site
    if not set(SERVERS).isdisjoint(options):
        return site  # the user has chosen
    complaints = []
    for pool in _pools(site, patience):
        server = ["-pool", pool] if pool else []
        try:
            found = _ask(server, wanted.constraint, wanted.rank, patience)
        except CommandError as error:
            complaints.append(f"{pool or 'the collector'}: {error.message}")
            continue
        if not found:
            complaints.append(_none_fit(pool, server, wanted.constraint, patience))
            continue
        best = min(found)
        tell("info", f"jobs go to the schedd {best.name}{_reason(best, len(found))}")
        more = ("-name", best.name, *server)
        return replace(site, job=replace(site.job, submit_options=(*options, *more)))
    raise SiteError(
        f"no schedd of the site {site.name!r} takes jobs: {'; '.join(complaints)}. "
        "Look: condor_status -schedd; or name one in a site file: "
        'submit_options = ["-spool", "-name", "SCHEDD"]'
    )


def _pools(site: SiteProfile, patience: float) -> list[str]:
    """The collectors that know the schedds, the first to be asked first; "" is HTCondor's own."""
    text = site.schedd.pool
    if text is None:
        return [""]
    variable = VARIABLE.fullmatch(text)
    if variable is not None:
        text = os.environ.get(variable[1]) or _configured(variable[1], patience)
    found = POOL.findall(text)
    if not found:
        raise SiteError(
            f"the site {site.name!r} names the collector of its schedds by {site.schedd.pool}, which is set "
            "neither in the environment nor in HTCondor's configuration here: log in to a node of the site, "
            f"and use its own configuration (CONDOR_CONFIG; see: runner.py sites {site.name})"
        )
    return list(dict.fromkeys(found))


def _configured(name: str, patience: float) -> str:
    answer = ask(["condor_config_val", name], patience)
    return answer.out if answer.code == 0 else ""


def _ask(server: list[str], constraint: str | None, rank: str | None, patience: float) -> list[Found]:
    """The usable schedds of one collector; HTCondor works out the expressions itself."""
    only = ["-constraint", constraint] if constraint else []
    order = f"({rank})" if rank and rank.startswith("-") else rank or "0"  # a minus, and not an option
    answer = ask(["condor_status", *server, "-schedd", *only, "-af:t", "Name", order], patience)
    if answer.code:
        raise CommandError(f"condor_status failed: {answer.complaint}")
    rows = (line.split("\t") for line in answer.out.splitlines() if line.strip())
    return [Found(_number(row[-1]), row[0]) for row in rows if len(row) == 2 and NAME.fullmatch(row[0])]


def _number(text: str) -> float:
    """A rank; what HTCondor calls undefined or an error is the worst."""
    try:
        value = float(text)
    except ValueError:
        return math.inf
    return math.inf if math.isnan(value) else value


def _none_fit(pool: str, server: list[str], constraint: str | None, patience: float) -> str:
    """Why a collector that answered has no schedd for us."""
    where = pool or "the collector"
    try:
        every = sorted(one.name for one in _ask(server, None, None, patience)) if constraint else []
    except CommandError:
        every = []
    if not every:
        return f"{where} knows no schedd"
    names = ", ".join(every[:MANY]) + (", …" if len(every) > MANY else "")
    return clean(f"{where} has {names}, and none with {constraint} (drained?)")


def _reason(best: Found, count: int) -> str:
    if count == 1:
        return ", the only one"
    return f", the best of {count}" + (f" ({best.rank:.3g})" if math.isfinite(best.rank) else "")
