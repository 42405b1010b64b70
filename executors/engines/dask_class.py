"""Making a cluster of a class of others: its key, the one port, and an ear for what it only logs.

What it is told of the jobs is ``dask_keywords``; what becomes of them is watched by ``dask_cluster``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import dask

from executors.batch import allowed
from executors.batch.schedulers import clean
from executors.engines.dask_keywords import NODE, accepted, environment, fitting, found_class, offered
from executors.engines.dask_parts import QuietScheduler, security
from executors.engines.dask_remote import TRIES, in_use
from executors.engines.host import say
from executors.engines.tls import make_certificate
from executors.errors import EngineError, UsageError
from sites import ports

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sites.profile import SiteProfile

# What a class may not leave out without anybody being told.
MISSED = frozenset(
    {"cores", "memory", "queue", "account", "walltime", "python", "log_directory", "job_script_prologue",
     "worker_extra_args"}
)  # fmt: skip
# By which of its keywords HTCondor is told to bring files along.
CARRIERS = frozenset({"job_extra_directives", "transfer_input_files"})
UNNUMBERED = "it got no number for a job; its own words are in logs/dask-host.log"


class UnnumberedError(Exception):
    """A submission of which nothing came, and nothing was raised."""


class Keys(NamedTuple):
    """How this side speaks, what the class is given to tell its workers, and the files that go with a job."""

    guard: Any
    told: Any
    files: tuple[Path, ...] = ()


class Carried:
    """Certificates that lie elsewhere on the node: classes write their paths into the workers' command."""

    def __init__(self, guard: Any, **files: Path) -> None:
        self._guard, self._there = guard, {part: f"{NODE}/{path.name}" for part, path in files.items()}

    def __getattr__(self, name: str) -> Any:
        """All else is as it is here."""
        return getattr(self._guard, name)

    def get_tls_config_for_role(self, role: str) -> dict[str, Any]:
        """The files of a role; a worker's are beside it."""
        here: dict[str, Any] = self._guard.get_tls_config_for_role(role)
        return here | self._there if role == "worker" else here


def made(site: SiteProfile, setup: Mapping[str, Any], folder: Path) -> tuple[Any, Any]:
    """The cluster, and how one speaks with it; UsageError for what such a class cannot do."""
    kind = found_class(str(site.dask.cluster))
    offered(site, setup)  # what no class could say is said before there is a key
    keys = guarded(site, setup, folder, accepted(kind))
    plain = {"distributed.comm.require-encryption": keys.guard is not None}
    dask.config.set(plain | {"temporary-directory": setup["private"]})
    files, read = sourced(site, setup, folder, keys)
    given, missed = fitting(kind, offered(site, setup, files, read), site.dask.cluster_options)
    if gone := MISSED.intersection(missed):
        say("warning", f"{site.dask.cluster} does not take {', '.join(sorted(gone))}: said without")
    heed(kind, given, site)
    return _listening(kind, given, keys, site), keys.guard


def guarded(site: SiteProfile, setup: Mapping[str, Any], folder: Path, known: set[str]) -> Keys:
    """Our key: HTCondor carries it, elsewhere workers read it where it lies; else only what was typed."""
    if setup.get("environment"):
        raise UsageError(
            f"--ship-env {site.job.ship}: {site.dask.cluster} carries no environment to its jobs; without "
            "dask.cluster this program's own jobs do"
        )
    carries = site.scheduler == "condor" and not CARRIERS.isdisjoint(known)
    if carries or site.shares_store:
        certificate, key = make_certificate(folder)
        guard = security(str(certificate), str(key))
        if not carries:
            return Keys(guard, guard)
        there = Carried(guard, ca_file=certificate, cert=certificate, key=key)
        return Keys(guard, there, (certificate, key))
    if setup["insecure"]:
        say("warning", f"{site.dask.cluster} unencrypted: who reaches the scheduler's port runs code as you")
        return Keys(None, None)
    raise UsageError(
        f"workers at {site.name} see no file of the runner's, and {site.dask.cluster} carries no key to "
        "them: without dask.cluster this program's own jobs do. If you accept a connection that others can "
        "read and use: --insecure"
    )


def sourced(
    site: SiteProfile, setup: Mapping[str, Any], folder: Path, keys: Keys
) -> tuple[tuple[Path, ...], str]:
    """All files that go with a job, and the one of variables as its shell finds it; none without a way."""
    file = folder / "environment.sh"
    if keys.guard is None:
        return (), ""
    file.write_text(environment(site, setup), encoding="utf-8")
    if keys.files:
        return (*keys.files, file), f"{NODE}/{file.name}"
    return (), allowed.path("the folder for keys", file)


def heed(kind: type, given: dict[str, Any], site: SiteProfile) -> None:
    """Dask's own configuration files: what they say beyond the profile holds, of the rest it is told."""
    section = str(getattr(kind, "config_name", None) or getattr(kind, "__name__", ""))
    own = said_by_user(section)
    if site.job.image is None and {"worker_image", "container_runtime"} & own:
        given.pop("container_runtime", None)
        own -= {"worker_image", "container_runtime"}
    if unused := sorted(own & given.keys()):
        say(
            "warning",
            f"your Dask configuration of jobqueue.{section} ({', '.join(unused)}) is not used: the site's "
            f"profile and options say these (runner.py sites {site.name})",
        )


def said_by_user(section: str) -> set[str]:
    """What configuration files and variables, not packages, say in a section of ``jobqueue``."""
    found: set[str] = set()
    for one in (*dask.config.collect_yaml(dask.config.paths), dask.config.collect_env()):
        jobqueue = one.get("jobqueue") if isinstance(one, dict) else None
        words = jobqueue.get(section) if isinstance(jobqueue, dict) else None
        if isinstance(words, dict):
            found |= {
                str(key).replace("-", "_") for key, value in words.items() if value not in (None, [], {})
            }
    return found


def _listening(kind: type, given: Mapping[str, Any], keys: Keys, site: SiteProfile) -> Any:
    """The cluster on the one address and a port that the site names."""
    host, taken = ports.address(site.network.address), set[int]()
    protocol = "tls://" if keys.guard is not None else "tcp://"
    while True:
        port = ports.pick(site.ports.scheduler, host, skip=taken, hint=site.ports.hint or "")
        where = {"host": host, "port": port, "protocol": protocol, "dashboard": False,
                 "dashboard_address": "127.0.0.1:0", "security": keys.guard}  # fmt: skip
        own = {
            "scheduler_options": where,
            "scheduler_cls": QuietScheduler,
            "security": keys.told,
            "protocol": protocol,
        }
        try:
            return kind(**given, **own)
        except Exception as error:  # the engine's edge: a class of others raises whatever it likes
            if not in_use(error) or len(taken) >= TRIES:
                raise EngineError(
                    f"{site.dask.cluster} could not be made: {type(error).__name__}: {clean(str(error))}"
                ) from error
            taken.add(port)


def listen_to(cluster: Any, hear: Callable[[Any, BaseException], None]) -> None:
    """Hear of refused submissions, which such classes only log."""
    spec = getattr(cluster, "new_spec", None)
    if not isinstance(spec, dict) or not isinstance(spec.get("cls"), type):
        return

    base = spec["cls"]

    async def start(job: Any) -> None:
        try:
            await base.start(job)
        except Exception as error:
            hear(job, error)
            raise
        if getattr(job, "job_id", "") is None:
            hear(job, UnnumberedError(UNNUMBERED))

    spec["cls"] = type(base.__name__, (base,), {"start": start})
