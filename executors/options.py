"""Every option of a run, declared once: its type, its default, its group, its help, its flags.

Parser, ``--help``, ``--show-config``, TOML keys, environment variables and documents derive from the
fields of ``Settings``. Nothing here reads a value (``settings``) or does what an option says.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping  # noqa: TC003 - the annotations are read at run time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENVIRONMENT = "COFFEA_SCALEOUT_"

WHAT = "what to run"
WHERE = "where it runs"
JOBS = "jobs at a batch site (defaults are the site's: runner.py sites NAME)"
SPLIT = "how the work is divided"
OUT = "outputs"
FAULTS = "failures"
LOOK = "settings, and looking without running"
SAY = "what is said"


def option(default: Any, group: str, text: str, /, *flags: str, **more: Any) -> Any:
    """A field of ``Settings``: its default, its group in ``--help``, its help, its flags."""
    about = {"group": group, "help": text, "flags": flags, **more}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that a run is told. Field by field: the option, its type, its default, its help."""

    wf: str = option(
        "",
        WHAT,
        "the workflow: a registered name, module:object, or path/to/file.py:object",
        "--wf",
        "--workflow",
        metavar="WF",
    )
    wf_arg: Mapping[str, Any] = option(
        {}, WHAT, "argument of the workflow; may be repeated", metavar="KEY=VALUE"
    )
    json: str = option("", WHAT, "the fileset, JSON or YAML; - reads standard input", metavar="FILESET")
    only: tuple[str, ...] = option(
        (),
        WHAT,
        "only this dataset: name, glob, index, one input file, or @FILE with"
        " a name on each line; may be repeated",
        metavar="NAME",
    )
    limit: int | None = option(None, WHAT, "first N files of each dataset", metavar="N", least=1)
    max: int | None = option(None, WHAT, "at most N chunks in total", metavar="N", least=1)
    max_per_dataset: int | None = option(None, WHAT, "at most N chunks of each dataset", metavar="N", least=1)
    schema: str = option(
        "NanoAODSchema", WHAT, "schema of the events: a coffea name or module:Class", metavar="NAME"
    )
    treename: str | None = option(
        None,
        WHAT,
        "tree to read where the fileset names none (else the only tree of a file, or Events)",
        metavar="NAME",
    )
    columns: tuple[str, ...] = option(
        (),
        WHAT,
        "the only branches the workflow may see, names or globs; a branch missed here fails loudly",
        metavar="A,B,…",
        separator=",",
    )

    executor: str = option(
        "futures", WHERE, "engine, engine/site, engine/scheduler/site, or auto", metavar="NAME"
    )
    workers: int | typing.Literal["auto"] | None = option(
        None,
        WHERE,
        "worker processes, of each job at a batch site (default: 3 here, a job's cores there); auto: as many"
        " as cores and memory allow",
        "-j",
        "--workers",
        metavar="N|auto",
        least=1,
        most=100_000,
    )
    scaleout: int | None = option(
        None,
        WHERE,
        "jobs at a batch site, at most (default: the site's, mostly 6); this machine has none",
        "-s",
        "--scaleout",
        metavar="N",
        least=1,
        most=100_000,
        site="limits.usual",
    )
    read_timeout: float | None = option(
        None,
        WHERE,
        "wait so long for an answer of a file server (default: the site's, mostly a minute)",
        metavar="SECONDS",
        least=0.1,
        most=86_400,
    )

    site_file: Path | None = option(
        None, WHERE, "a site's profile of your own, known by the file's name", metavar="FILE.toml"
    )
    scheduler_address: str | None = option(
        None, WHERE, "a Dask scheduler that runs already", metavar="tls://HOST:PORT", site="dask.address"
    )
    scheduler_port: int | None = option(
        None, WHERE, "the port our own scheduler listens on", metavar="N", least=1, most=65535,
        site="ports.scheduler",
    )  # fmt: skip
    insecure: bool = option(False, WHERE, "talk to a scheduler that encrypts nothing: whoever can reach it"
                            " can run code as you; no file and no variable can say so",
                            scope="typed")  # fmt: skip
    check: bool = option(True, WHERE, "look whether the site is fit before work starts")

    cores: int | None = option(None, JOBS, "cores of a job", metavar="N", least=1, site="resources.cores")
    memory: str | None = option(None, JOBS, "memory of a job", metavar="4GB", site="resources.memory")
    disk: str | None = option(None, JOBS, "disk of a job", metavar="10GB", site="resources.disk")
    walltime: str | None = option(None, JOBS, "time a job may last", metavar="8h", site="resources.walltime")
    queue: str | None = option(None, JOBS, "queue, partition or flavour", metavar="NAME", site="job.queue")
    account: str | None = option(
        None, JOBS, "account, project or accounting group", metavar="NAME", site="job.account"
    )
    image: str | None = option(None, JOBS, "container image", metavar="PATH", site="job.image")
    directive: Mapping[str, Any] = option(
        {}, JOBS, "anything else for the scheduler; may be repeated", metavar="KEY=VALUE", site="directives"
    )
    env: Mapping[str, Any] = option(
        {}, JOBS, "environment of the workers; may be repeated", metavar="KEY=VALUE", site="env"
    )
    worker_setup: tuple[str, ...] = option(
        (), JOBS, "shell line before a worker starts; may be repeated", metavar="CMD", site="job.setup"
    )
    worker_python: str | None = option(
        None, JOBS, "the workers' Python (default: this one)", metavar="PATH", site="job.python"
    )
    ship_env: typing.Literal["venv", "container", "none"] | None = option(
        None, JOBS, "how Python and packages get to the workers: venv, container or none",
        metavar="HOW", site="job.ship",
    )  # fmt: skip
    voms: str | None = option(
        None, JOBS, "x509 proxy, where it is not at its usual place", metavar="PATH", site="proxy.path"
    )
    shared_store: typing.Literal["yes", "no"] | None = option(
        None, JOBS, "whether workers see the run's directory: yes or no", metavar="yes|no",
        site="shares_store",
    )  # fmt: skip
    site_set: Mapping[str, Any] = option(
        {}, JOBS, "any other key of the site's profile; may be repeated", metavar="KEY=VALUE", site=""
    )
    start_timeout: str | None = option(
        None, JOBS, "give up when no worker came for so long", metavar="1h", site="limits.start"
    )

    chunk: int | typing.Literal["auto"] | None = option(
        None,
        SPLIT,
        "events of one call of process(), at most; auto: as many as the memory allows (default: auto where"
        " the memory of a worker is known, else 100000)",
        metavar="N|auto",
        least=1,
    )
    ranges: Path | None = option(
        None, SPLIT, "cut files as the run in this directory did, for the same bits as there", metavar="DIR"
    )
    fsize: int | None = option(
        None, SPLIT, "files of one indexed output, at most; without it all is in one", metavar="N", least=1
    )
    index: tuple[int, ...] | None = option(
        None,
        SPLIT,
        "only these splits: dataset and split to start at, and the last ones; all from 0, both ends included",
        metavar="i[,j[,k,l]]",
        separator=",",
    )
    task_seconds: float | None = option(
        None,
        SPLIT,
        "a task should last about so long (default: the engine's own)",
        metavar="SECONDS",
        least=0,
        most=86_400,
    )

    outputdir: Path = option(Path(), OUT, "where the run's directory is made", metavar="DIR")
    output: Path | None = option(
        None, OUT, "also write the merged result here, as given", "-o", "--output", metavar="FILE"
    )
    overwrite: bool = option(False, OUT, "begin anew where a run lies already")
    reuse: bool = option(False, OUT, "keep results of a changed analysis, knowingly")
    no_merge: bool = option(False, OUT, "leave merging to 'runner.py merge'")
    postprocess: bool = option(True, OUT, "apply the workflow's postprocess to the merged result")
    cache: Path | None = option(
        None, OUT, "where entries once counted are remembered (default: the user's cache)", metavar="DIR"
    )

    retries: int = option(3, FAULTS, "times a chunk is tried again", metavar="N", least=0, most=1000)
    skipbadfiles: bool = option(False, FAULTS, "go on without bad inputs, and list them")
    allow_missing: int = option(0, FAULTS, "exit 0 with up to N events missing", metavar="N", least=0)
    allow_missing_files: int = option(
        0, FAULTS, "exit 0 with up to N files that nobody could open", metavar="N", least=0
    )
    chunk_timeout: float | None = option(
        None,
        FAULTS,
        "give up a chunk after so long (default: an hour)",
        metavar="SECONDS",
        least=0.1,
        most=30 * 86_400,
    )

    config: Path | None = option(
        None, LOOK, "read options from a TOML file", metavar="run.toml", scope="command"
    )
    set: tuple[str, ...] = option(
        (), LOOK, "set any option by its key; may be repeated", metavar="KEY=VALUE", scope="command"
    )
    show_config: bool = option(False, LOOK, "print every value and where it came from", scope="command")
    dry_run: bool = option(False, LOOK, "print the plan and what would be started", scope="command")
    profile_memory: bool = option(
        False, LOOK, "measure a few chunks here and say what the run would need of memory", scope="command"
    )
    validate: bool = option(False, LOOK, "open and check every file before work starts")

    quiet: bool = option(False, SAY, "say only errors and the closing table", "-q", "--quiet")
    log_level: typing.Literal["debug", "info", "warning", "error"] = option(
        "info", SAY, "how much is said: debug, info, warning or error", metavar="LEVEL"
    )

    # No option: who said what ("command line", "file run.toml"), as ``settings`` found it.
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Option:
    """One option as parser, help and readers see it."""

    name: str
    default: Any
    about: Mapping[str, Any]

    @property
    def kind(self) -> Any:
        """Its type."""
        return _kinds()[self.name]

    @property
    def switch(self) -> bool:
        """Whether it is given without a value."""
        return isinstance(self.default, bool)

    @property
    def table(self) -> bool:
        """Whether it is given as KEY=VALUE, key by key."""
        return isinstance(self.default, dict)

    @property
    def repeated(self) -> bool:
        """Whether it may be given several times."""
        return isinstance(self.default, tuple)

    @property
    def flags(self) -> tuple[str, ...]:
        """How it is spelt on the command line."""
        given = tuple(self.about["flags"])
        return given or (("--no-" if self.default is True else "--") + self.name.replace("_", "-"),)

    @property
    def flag(self) -> str:
        """Its long flag, as messages name it."""
        return next(flag for flag in self.flags if flag.startswith("--"))

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return ENVIRONMENT + self.name.upper()


@functools.cache
def options() -> tuple[Option, ...]:
    """Every option, in the order of ``--help``."""
    blank = Settings()
    fields = dataclasses.fields(Settings)
    return tuple(Option(f.name, getattr(blank, f.name), f.metadata) for f in fields if f.metadata)


@functools.cache
def _kinds() -> dict[str, Any]:
    return typing.get_type_hints(Settings)
