"""A site's profile as keywords for a Dask cluster class of others, by the names of dask-jobqueue's classes.

The templates of those classes quote nothing, so every string has passed our own renderer or its allow-list
before it is given away. Nothing is made or submitted here, and Dask may not enter.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.batch import allowed
from executors.batch.condor_text import MARK, SPOOL
from executors.batch.render import render
from executors.batch.script import exports, quoted
from executors.batch.spec import spec_of
from executors.errors import EngineError, UnknownNameError, UsageError
from sites import clusters, ports
from sites.clusters import KEY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from executors.batch.spec import JobSpec
    from sites.profile import SiteProfile

MARKS = {"slurm": "#SBATCH ", "sge": "#$ ", "pbs": "#PBS ", "lsf": "#BSUB "}
OWN_WORDS = ("queue", "walltime", "account", "image")
MACRO = re.compile(r"\$[A-Za-z0-9_]*\(", re.ASCII)  # HTCondor's, which knows no quotes
SETUP_FAILED = 78
PAGES = "DASK_DISTRIBUTED__WORKER__HTTP__ROUTES"
SCRATCH = "${TMPDIR:-/tmp}"
# Keywords that a class takes out of its own before any signature says so.
UNSAID = {"lpcjobqueue": frozenset({"transfer_input_files"})}
# What of our own text makes HTCondor carry files, and nothing else, to a job and back.
CARRIES = frozenset(
    {"should_transfer_files", "transfer_input_files", "when_to_transfer_output", "transfer_output_files",
     "leave_in_queue"}
)  # fmt: skip
# What the class for a batch system does not say of a job at all: of Grid Engine's neither cores nor memory.
LEFT_OUT = {"sge": ("-S ", "-pe ", "-l mem_free=")}
NODE = "${_CONDOR_SCRATCH_DIR:-.}"  # where they are then
# What the profile only proposes: a word of the user's own counts more.
PROPOSED = frozenset({"batch_name", "container_runtime", "transfer_input_files", "worker_image"})
# What only the engine can say; beside these an option may not take what a key of the site says already.
OURS = frozenset(
    {"scheduler_options", "scheduler_cls", "security", "protocol", "interface", "host", "dashboard_address",
     "asynchronous", "loop", "n_workers", "workers", "worker", "scheduler", "name", "job_cls", "shebang",
     "worker_command", "worker_class", "job_extra", "env_extra", "extra", "header_skip", "project",
     "job_directives_skip"}
)  # fmt: skip


def found_class(name: str) -> type:
    """The class that ``module:Class`` means; else what to install or to write."""
    module, _, kind = clusters.checked(name).partition(":")
    try:
        found = getattr(importlib.import_module(module), kind, None)
    except ImportError as error:
        mend = clusters.lacks(name)[1] or f"pip install {clusters.package(name)}"
        raise EngineError(
            f"{KEY}: {module} cannot be imported ({error}). Beside the runner: {mend}"
        ) from error
    if found is None:
        near = [one for one in dir(importlib.import_module(module)) if one.endswith("Cluster")]
        raise UnknownNameError.of(f"class of {module}", kind, near, f"({KEY})")
    if not isinstance(found, type) or not hasattr(found, "scale"):
        raise UsageError(f"{KEY}: {name} is no cluster class of Dask: it has no scale()")
    return found


def accepted(kind: type) -> set[str]:
    """Every keyword that the class takes, itself or for its jobs."""
    names = set(UNSAID.get(kind.__module__.partition(".")[0], ()))
    for chain in (kind, getattr(kind, "job_cls", None)):
        if not isinstance(chain, type):
            continue
        for one in chain.__mro__:
            if "__init__" not in vars(one):
                continue
            parameters = inspect.signature(vars(one)["__init__"]).parameters.values()
            names |= {
                each.name
                for each in parameters
                if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
            }
            if all(each.kind is not each.VAR_KEYWORD for each in parameters):
                break
    return names - {"self"}


def fitting(
    kind: type, offered: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """What of it all the class takes, and what it does not; UsageError for an option that is not theirs."""
    known = accepted(kind)
    given = {key: value for key, value in offered.items() if value is not None}
    given.pop("project" if "account" in known else "account", None)  # one thing under two names
    for key, value in options.items():
        field = f"dask.cluster_options.{key}"
        if key in OURS or (key in given and key not in PROPOSED):
            raise UsageError(f"{field}: {key} is said by the site's other keys or by the runner itself")
        if key not in known:
            raise UnknownNameError.of(
                f"keyword of {kind.__name__}", key[:80], known - OURS, "(dask.cluster_options)"
            )
        word = allowed.word(field, value) if isinstance(value, str) else value
        given[key] = [*given.get(key, ()), word] if key == "transfer_input_files" else word
    if "worker_image" in options and "container_runtime" not in options:
        given.pop("container_runtime", None)  # ours is for the profile's image
    return {key: value for key, value in given.items() if key in known}, sorted(given.keys() - known)


def offered(
    site: SiteProfile, setup: Mapping[str, Any], carried: Sequence[Path] = (), sourced: str = ""
) -> dict[str, Any]:
    """What the profile says of a job; None where it says nothing. UsageError names what cannot be said.

    ``carried``: files that go along with each job, by HTCondor alone; ``sourced``: one that its shell reads.
    """
    spec = described(site, setup, carried)
    scheduler, workers, python = str(site.scheduler), int(setup["workers"]), spec.command[0]
    private = allowed.path("the folder for keys", spec.folder)
    _refuse_image(scheduler, spec)
    said = {one: None if _by_directive(scheduler, spec, one) else getattr(spec, one) for one in OWN_WORDS}
    return {
        "cores": spec.cores,
        "processes": workers,
        "memory": f"{spec.memory}B" if spec.memory is not None else None,
        "disk": f"{spec.disk}B" if spec.disk is not None and scheduler == "condor" else None,
        "queue": said["queue"],
        "account": said["account"],
        "project": said["account"],
        "walltime": _clock(scheduler, said["walltime"]),
        "job_name": spec.name,
        "batch_name": spec.name,
        "image": spec.image,
        "worker_image": spec.image,
        "container_runtime": "none" if spec.image is None else "singularity",
        "transfer_input_files": [str(one) for one in carried] or None,
        "job_extra_directives": directives(scheduler, spec),
        "job_script_prologue": prologue(scheduler, spec, sourced),
        "nanny": workers > 1,
        "python": python,
        "log_directory": allowed.path("the log folder", spec.logs),
        "local_directory": SCRATCH if spec.scratch is None else allowed.scratch("job.scratch", spec.scratch),
        "shared_temp_directory": private,
        "death_timeout": math.ceil(site.limits.death),
        "worker_extra_args": list(worker_words(site, workers)),
        "submit_command_extra": list(spec.submit_options) or None,
        "cancel_command_extra": _server(spec.submit_options) or None,
    }


def described(site: SiteProfile, setup: Mapping[str, Any], carried: Sequence[Path] = ()) -> JobSpec:
    """The job as we would say it, but that its command is the interpreter alone."""
    return spec_of(
        site,
        name=setup["name"],
        command=(allowed.word("job.python (--worker-python)", site.job.python or setup["python"]),),
        folder=Path(setup["private"]),
        logs=Path(setup["logs"]),
        env=setup.get("env", {}),
        transfer=carried,
    )


def environment(site: SiteProfile, setup: Mapping[str, Any]) -> str:
    """What a job's shell reads for its variables: others may see its arguments, but not this."""
    return exports(str(site.scheduler), described(site, setup))


def _refuse_image(scheduler: str, spec: JobSpec) -> None:
    if spec.image is not None and spec.image_directive is None and scheduler != "condor":
        raise UsageError(
            f"--image: a cluster class ({KEY}) does not start containers of {scheduler}; without it ours do"
        )


def _by_directive(scheduler: str, spec: JobSpec, field: str) -> bool:
    """Whether it goes into the text as a directive; HTCondor has no other way, and classes no keyword."""
    return scheduler == "condor" or getattr(spec, f"{field}_directive") is not None


def directives(scheduler: str, spec: JobSpec) -> dict[str, str] | list[str]:
    """What the site wants said beyond the usual: the lines that our own text has because of it."""
    without = {one: None for one in OWN_WORDS if _by_directive(scheduler, spec, one)}
    bare = replace(spec, directives={}, proxy=None, **without)  # type: ignore[arg-type]
    usual = set(_lines(scheduler, bare))
    lines = list(_lines(scheduler, spec))
    more = [line for line in lines if line not in usual]
    if scheduler != "condor":
        return [one for one in lines if one.startswith(LEFT_OUT.get(scheduler, ()))] + more
    said = dict(line.split(" = ", 1) for line in more)
    if spec.transfer:
        said |= {key: text for key, text in (line.split(" = ", 1) for line in lines) if key in CARRIES}
    if SPOOL in spec.submit_options:  # what is spooled cannot be streamed; the classes ask for it
        said |= {"Stream_Output": "False", "Stream_Error": "False"}
    # The name by which jobs are asked for and removed, by the runner and by what outlives it.
    return said | {f"MY.{MARK}": f'"{spec.name}"'}


def _lines(scheduler: str, spec: JobSpec) -> Iterator[str]:
    files = render(scheduler, spec)
    if scheduler == "condor":
        yield from (line for line in files["job.sub"].splitlines() if " = " in line)
        return
    mark = MARKS[scheduler]
    yield from (line.removeprefix(mark) for line in files["job.sh"].splitlines() if line.startswith(mark))


def prologue(scheduler: str, spec: JobSpec, sourced: str = "") -> list[str]:
    """Shell lines before the worker: each for itself, so that an open quote breaks itself alone."""
    # Without a dashboard a worker still answers anybody's HTTP on its machine: so there are no pages.
    lines = ["umask 077", f"export {PAGES}=[]"]
    if scheduler == "condor":  # its jobs have no PATH
        lines.append("export PATH=${PATH:-/usr/local/bin:/usr/bin:/bin}")
    if sourced:
        lines.append(f". {sourced}")
    for number, given in enumerate(spec.setup, 1):
        field = f"job.setup[{number}] (--worker-setup)"
        text = allowed.line(field, given)
        if scheduler == "condor" and MACRO.search(text):
            raise allowed.refused(
                field, text, f"HTCondor reads $(...) itself where a cluster class ({KEY}) puts it"
            )
        lines.append(f"eval {quoted(text)} || exit {SETUP_FAILED}")
    if spec.scratch is not None:
        lines.append(f"mkdir -p {allowed.scratch('job.scratch', spec.scratch)}")
    return lines


def worker_words(site: SiteProfile, workers: int) -> Iterator[str]:
    """One call at a time, no page for others, and the ports that are open; a nanny has its own half."""
    yield from ("--nthreads", "1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0")
    if site.ports.worker is None:
        return
    first, last = site.ports.worker
    if workers == 1:
        yield from ("--worker-port", f"{first}:{last}")
        return
    own, nannies = ports.parted((first, last), 2)
    yield from ("--worker-port", f"{own[0]}:{own[1]}", "--nanny-port", f"{nannies[0]}:{nannies[1]}")


def _clock(scheduler: str, seconds: float | None) -> str | None:
    if seconds is None:
        return None
    minutes = math.ceil(seconds / 60)
    clock = f"{minutes // 60:02d}:{minutes % 60:02d}"
    return clock if scheduler == "lsf" else f"{clock}:00"


def _server(options: tuple[str, ...]) -> list[str]:
    """The options that name an HTCondor server, for the command that removes jobs there."""
    return [word for one, value in pairwise(options) if one in ("-name", "-pool") for word in (one, value)]
