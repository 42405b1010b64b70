"""SiteProfile: what can be said of a site, key by key, each with its kind, its default and its meaning.

Data and nothing else: reading files is ``profile``, changing values ``overrides``. Documents, ``sites NAME``
and the JSON schema for editors are made from these fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any

from sites.values import (
    Ports,
    Scalar,
    Table,
    choice,
    count,
    flag,
    names,
    number,
    patterns,
    ports,
    scalars,
    size,
    span,
    spans,
    text,
    texts,
    variables,
    words,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SCHEDULERS = ("condor", "slurm", "sge", "pbs", "lsf", "existing")
# Keys that speak of one site alone: who inherits from it does not take them over.
OF_THE_SITE_ALONE = ("description", "detect", "old_names")
# Keys that say what the site is; no option can change them.
IDENTITY = (
    *OF_THE_SITE_ALONE, "scheduler", "schedulers", "engines", "fixed", "unverified", "unusable", "notes",
    "job.required", "detect.hostname", "detect.marker",
)  # fmt: skip


def _key(reader: Callable[[object], Any], default: Any = None, about: str = "") -> Any:
    return field(default=default, metadata={"reader": reader, "about": about})


def _table(reader: Callable[[object], Any], about: str) -> Any:
    return field(default_factory=Table, metadata={"reader": reader, "about": about, "table": True})


def _section(kind: type) -> Any:
    return field(default_factory=kind, metadata={"section": kind})


@dataclass(frozen=True, slots=True)
class Detect:
    """How the site is recognised from the machine one is on."""

    hostname: tuple[str, ...] = _key(patterns, (), "patterns of full host names: `lxplus*.cern.ch`")
    marker: tuple[str, ...] = _key(texts, (), "paths, any of which exists only there")


@dataclass(frozen=True, slots=True)
class SiteResources:
    """What one batch job gets where nobody asks for something else."""

    cores: int = _key(count, 1, "cores of a job")
    memory: int | None = _key(size, None, "memory of a job; its workers share it equally")
    disk: int | None = _key(size, None, "disk of a job, for batch systems that ask")
    walltime: float | None = _key(span, None, "how long a job may last")


@dataclass(frozen=True, slots=True)
class Job:
    """How a job is described to the scheduler, beyond its resources."""

    workers: int | None = _key(count, None, "worker processes of a job; one for each core if not set")
    queue: str | None = _key(text, None, "queue, partition or flavour")
    queues: Mapping[str, float] = _table(
        spans, "the queues that exist and how long a job may last there; empty: not known"
    )
    queue_directive: str | None = _key(
        text, None, "how the queue is said where it is no plain option: `+JobFlavour`"
    )
    walltime_directive: str | None = _key(
        text, None, "how the walltime is said, in seconds, where it is no plain option: `+MaxRuntime`"
    )
    account: str | None = _key(text, None, "account, project or accounting group")
    account_directive: str | None = _key(text, None, "how the account is said: `accounting_group`")
    required: tuple[str, ...] = _key(texts, (), "keys without a default that must be given: `job.account`")
    image: str | None = _key(text, None, "container image that the job runs in")
    image_variable: str | None = _key(text, None, "variable of the runner's environment that names the image")
    image_directive: str | None = _key(text, None, "how the image is said: `+SingularityImage`")
    python: str | None = _key(text, None, "the workers' interpreter; the runner's own if not set")
    setup: tuple[str, ...] = _key(
        texts, (), "shell lines that run before the worker starts; trusted as the file is"
    )
    pass_env: tuple[str, ...] = _key(
        names,
        (),
        "variables of the runner's environment that workers get as well, where they are set and mean the "
        "same there",
    )
    scratch: str | None = _key(
        text, None, "folder on the worker's own disk; `$NAME` is read there: `$TMPDIR`"
    )
    ship: str = _key(
        choice("none", "venv", "container"), "none", "how Python and its packages get to the worker"
    )
    submit_options: tuple[str, ...] = _key(texts, (), "more words for the submit command: `-spool`")


@dataclass(frozen=True, slots=True)
class Schedd:
    """Which HTCondor server takes the jobs, where a site has several; without these keys the default one."""

    pool: str | None = _key(
        text,
        None,
        "the collector that knows them; `$NAME` reads the environment, else HTCondor's configuration; of "
        "several the first that answers",
    )
    constraint: str | None = _key(text, None, "ClassAd expression that is true for one that may be used")
    rank: str | None = _key(text, None, "ClassAd expression; the one with the lowest value is taken")


@dataclass(frozen=True, slots=True)
class Network:
    """How workers reach the runner."""

    address: str = _key(
        text,
        "hostname",
        "where the scheduler listens: hostname, fqdn, loopback, interface:NAME, or a name or address itself",
    )


@dataclass(frozen=True, slots=True)
class SitePorts:
    """Port ranges that the site's firewall leaves open; None: any."""

    scheduler: Ports | None = _key(ports, None, "ports the runner's scheduler may listen on, [first, last]")
    worker: Ports | None = _key(ports, None, "ports workers may listen on, [first, last]")
    hint: str | None = _key(text, None, "what to do when no port is free")


@dataclass(frozen=True, slots=True)
class Urls:
    """How files are reached from here."""

    schemes: tuple[str, ...] = _key(
        texts, ("file", "root", "roots", "xroot", "http", "https", "s3"), "kinds of URL that can be read"
    )
    rewrite: Mapping[str, str] = _table(words, "prefix and what it is replaced by, the longest first")
    cache: str | None = _key(
        text, None, "host[:port] that every /store/ path is read through; `$NAME` reads the environment"
    )
    cache_form: str = _key(
        choice("direct", "prefix"), "direct", "`root://cache//store/…`, or before the whole URL"
    )


@dataclass(frozen=True, slots=True)
class XRootD:
    """Time-outs of the XRootD client in seconds: its own defaults let a hung server cost 8 to 20 minutes."""

    connection_window: int = _key(count, 10, "for one attempt to connect")
    connection_retry: int = _key(count, 2, "attempts to connect (a number, no time)")
    request_timeout: int = _key(count, 60, "for the answer to a request")
    stream_timeout: int = _key(count, 30, "for a connection on which nothing comes")
    timeout_resolution: int = _key(count, 5, "how often the client looks")


@dataclass(frozen=True, slots=True)
class Proxy:
    """Which credential the site wants, where it must lie, and how long it must last."""

    kind: str | None = _key(choice("x509", "token", "kerberos"), None, "kind of credential")
    path: str | None = _key(text, None, "where workers see it: `$HOME/x509up_u{uid}`")
    lifetime: float | None = _key(span, None, "how long it must last, at least; else the walltime")
    required: bool = _key(flag, False, "without it nothing is begun")


@dataclass(frozen=True, slots=True)
class Limits:
    """Courtesy and patience as data."""

    jobs: int | None = _key(count, None, "jobs of one run, in the queue at a time, at most")
    submissions_per_second: float = _key(number, 5.0, "submit commands")
    polls_per_minute: float = _key(number, 6.0, "questions to the scheduler, each for all jobs")
    jobs_per_submission: int = _key(count, 100, "jobs of one submit command")
    memory: int | None = _key(
        size,
        None,
        "the most that a job may ask for: when some ended for memory, the next ask for half as much again, "
        "up to this; not set: for no more",
    )
    idle: float = _key(
        span,
        60.0,
        "a job that has had nothing to do for so long, with less left than there are jobs, is given back",
    )
    start: float = _key(span, 3600.0, "so long without any worker, and the run gives up")
    death: float = _key(span, 60.0, "a worker that has lost its runner ends after so long")
    usual: int | None = _key(count, None, "jobs of a run where nobody says how many; six if not set")


@dataclass(frozen=True, slots=True)
class Paths:
    """Which folders a site allows or forbids, and for what."""

    logs: tuple[str, ...] = _key(texts, (), "logs and submission lie below one of these; empty: anywhere")
    outputs: tuple[str, ...] = _key(texts, (), "outputs lie below one of these; empty: anywhere")
    unseen: tuple[str, ...] = _key(texts, (), "folders that workers do not see as the runner does")


@dataclass(frozen=True, slots=True)
class Dask:
    """A Dask scheduler that the site runs already, or the cluster class that is to start one."""

    address: str | None = _key(text, None, "its address: `tls://localhost:8786`")
    tls_ca: str | None = _key(text, None, "file with its authority's certificate")
    tls_cert: str | None = _key(text, None, "file with the client's certificate")
    tls_key: str | None = _key(text, None, "file with the client's key")
    cluster: str | None = _key(
        text,
        None,
        "a cluster class that submits the jobs instead of this program: `dask_jobqueue:SLURMCluster`; "
        "`site`: the one that the site offers, where it is installed",
    )
    offers: str | None = _key(text, None, 'the class that `cluster = "site"` means')
    cluster_options: Mapping[str, Scalar] = _table(scalars, "more keywords for that class")


@dataclass(frozen=True, slots=True)
class SiteProfile:
    """One site. Every field can be set in its TOML file; the rest comes from what it inherits."""

    name: str
    description: str = _key(text, "", "the site in a few words")
    scheduler: str | None = _key(
        choice(*SCHEDULERS),
        None,
        "the batch system; `existing`: a Dask scheduler that runs already; not set: this machine",
    )
    schedulers: tuple[str, ...] = _key(
        texts, (), "other schedulers that may be named there: `dask/existing/NAME`"
    )
    engines: tuple[str, ...] = _key(
        texts, (), "engines that run there, the best first; futures and iterative run on the login node"
    )
    shares_store: bool = _key(flag, True, "workers see the folder the run writes to")
    old_names: tuple[str, ...] = _key(texts, (), "other names of executors that mean this site")
    unverified: tuple[str, ...] = _key(texts, (), "keys whose values nobody could check at the site")
    unusable: str | None = _key(text, None, "why no engine can use the batch system there, and what can")
    notes: tuple[str, ...] = _key(texts, (), "what somebody who goes there should know")
    fixed: Mapping[str, str] = _table(words, "keys that cannot be changed there, each with the reason")
    directives: Mapping[str, Scalar] = _table(scalars, "what else the scheduler is told, word for word")
    env: Mapping[str, str] = _table(variables, "environment of the workers")
    detect: Detect = _section(Detect)
    resources: SiteResources = _section(SiteResources)
    job: Job = _section(Job)
    schedd: Schedd = _section(Schedd)
    network: Network = _section(Network)
    ports: SitePorts = _section(SitePorts)
    urls: Urls = _section(Urls)
    xrootd: XRootD = _section(XRootD)
    proxy: Proxy = _section(Proxy)
    limits: Limits = _section(Limits)
    paths: Paths = _section(Paths)
    dask: Dask = _section(Dask)


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a profile: its dotted name, how it is read, and what it means."""

    name: str
    reader: Callable[[object], Any]
    about: str
    table: bool
    default: Any


@cache
def keys() -> Mapping[str, Key]:
    """Every key by its dotted name; those of a section follow each other."""
    return Table({key.name: key for key in _keys(SiteProfile, "")})


def _keys(kind: type[Any], prefix: str) -> Iterator[Key]:
    for one in fields(kind):
        about = one.metadata
        if "section" in about:
            yield from _keys(about["section"], f"{prefix}{one.name}.")
        elif about:
            table = bool(about.get("table"))
            default = Table() if table else one.default
            yield Key(f"{prefix}{one.name}", about["reader"], about["about"], table, default)


def sections() -> dict[str, str]:
    """The sections, and what each is about."""
    return {
        one.name: (one.metadata["section"].__doc__ or "").strip()
        for one in fields(SiteProfile)
        if "section" in one.metadata
    }


def key_of(name: str) -> tuple[Key, str] | None:
    """The key that a dotted name means, and which row of it if it is a table: ``directives.+JobFlavour``."""
    known = keys()
    if name in known:
        return known[name], ""
    tables = [key for key in known.values() if key.table and name.startswith(f"{key.name}.")]
    row = name[len(tables[0].name) + 1 :] if tables else ""
    return (tables[0], row) if row else None


def value_of(profile: SiteProfile, name: str) -> Any:
    """The value of one key by its dotted name."""
    value: Any = profile
    for part in name.split("."):
        value = getattr(value, part)
    return value
