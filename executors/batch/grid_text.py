"""The directives on top of job.sh for Slurm, SGE, PBS and LSF.

Only their languages: prefix, options, units. A profile's own directives follow; one that says again what a
typed field says is refused.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from executors.batch import allowed
from executors.batch.allowed import ACCOUNT, CORES, IMAGE, MEMORY, QUEUE, WALLTIME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from executors.batch.spec import JobSpec
    from sites.profile import Scalar

OPTION = re.compile(r"(-{1,2})?([A-Za-z][A-Za-z0-9_-]{0,63})(?: ([A-Za-z_][A-Za-z0-9_.]{0,63}))?", re.ASCII)
ENVIRONMENT_FILE = "job.env"
RUNNERS = "the runner itself"


def slurm(spec: JobSpec) -> list[str]:
    """``#SBATCH`` lines."""
    logs = allowed.path("the log folder", spec.logs)
    lines = [
        f"--job-name={allowed.job_name('name', spec.name)}",
        f"--output={logs}/%j.out",
        f"--error={logs}/%j.err",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={allowed.whole(CORES, spec.cores)}",
        # Nothing of the runner's environment goes into the job. With "--export=NONE" each node asks a login
        # shell for the user's, and a slow one gets the job held; so it is with "NIL" before Slurm 23.
        f"--export-file={ENVIRONMENT_FILE}",
        # A job that was started again may run beside its old processes; lost jobs are replaced by new ones.
        "--no-requeue",
    ]
    lines += [f"--mem={one}M" for one in _mebibytes(spec)]
    lines += [f"--time={one}" for one in _clock(spec)]
    names = _named(spec, SLURM_OURS, "--partition={}", "--account={}", "--{}={}")
    return [f"#SBATCH {one}" for one in [*lines, *names, *_own(spec, SLURM_OURS, "--{}={}")]]


def sge(spec: JobSpec) -> list[str]:
    """``#$`` lines, which qsub looks for in all of the script."""
    logs = allowed.path("the log folder", spec.logs, without=":")
    for key, given in spec.directives.items():
        if isinstance(given, str) and "#" in given:
            raise allowed.refused(
                allowed.directive(key), given, "qsub forgets what follows a #, quoted or not"
            )
    lines = [
        f"-N {allowed.job_name('name', spec.name)}",
        "-S /bin/bash",
        f"-o {logs}/$JOB_ID.out",
        f"-e {logs}/$JOB_ID.err",
        "-r n",
    ]
    cores = allowed.whole(CORES, spec.cores)
    if cores > 1 and not any(key.lstrip("-").startswith("pe") for key in spec.directives):
        lines.append(f"-pe smp {cores}")
    if not any(
        _resource(key) in ("h_vmem", "mem_free", "s_vmem", "h_rss", "s_rss") for key in spec.directives
    ):
        # A wish, not a limit: h_vmem counts address space, of which Python has far more than memory.
        lines += [f"-l mem_free={one}M" for one in _mebibytes(spec)]
    lines += [f"-l h_rt={one}" for one in _clock(spec)]
    return [f"#$ {one}" for one in [*lines, *_named(spec, SGE_OURS, "-q {}", "-P {}"), *_own(spec, SGE_OURS)]]


def pbs(spec: JobSpec) -> list[str]:
    """``#PBS`` lines of PBS Pro and OpenPBS."""
    logs = allowed.path("the log folder", spec.logs, without=":")
    # Its own files get a fixed name each; job.sh writes where the job's number is in the name.
    lines = [
        f"-N {allowed.job_name('name', spec.name)}",
        "-S /bin/bash",
        f"-o {logs}/",
        f"-e {logs}/",
        "-r n",
    ]
    if not any(_resource(key) in ("select", "nodes") for key in spec.directives):
        memory = "".join(f":mem={one}mb" for one in _mebibytes(spec))
        lines.append(f"-l select=1:ncpus={allowed.whole(CORES, spec.cores)}{memory}")
    lines += [f"-l walltime={one}" for one in _clock(spec)]
    return [
        f"#PBS {one}" for one in [*lines, *_named(spec, PBS_OURS, "-q {}", "-A {}"), *_own(spec, PBS_OURS)]
    ]


def lsf(spec: JobSpec) -> list[str]:
    """``#BSUB`` lines of LSF 10.1 and later, where sizes have units."""
    logs = allowed.path("the log folder", spec.logs)
    lines = [
        f"-J {allowed.job_name('name', spec.name)}",
        f"-o {logs}/%J.out",
        f"-e {logs}/%J.err",
        '-env "none"',
        "-rn",
        f"-n {allowed.whole(CORES, spec.cores)}",
    ]
    if spec.cores > 1:
        lines.append('-R "span[hosts=1]"')
    lines += [f"-M {one}MB" for one in _mebibytes(spec)]
    if spec.walltime is not None and spec.walltime_directive is None:
        minutes = math.ceil(allowed.seconds(WALLTIME, spec.walltime) / 60)
        lines.append(f"-W {minutes // 60}:{minutes % 60:02d}")
    return [
        f"#BSUB {one}" for one in [*lines, *_named(spec, LSF_OURS, "-q {}", "-P {}"), *_own(spec, LSF_OURS)]
    ]


DIRECTIVES: Mapping[str, Callable[[JobSpec], Sequence[str]]] = {
    "slurm": slurm,
    "sge": sge,
    "pbs": pbs,
    "lsf": lsf,
}


def _ours(names: str, field: str = RUNNERS) -> dict[str, str]:
    return dict.fromkeys(names.split(), field)


SLURM_OURS = {
    **_ours(
        "job-name J output o error e input i array a export export-file get-user-env wrap chdir D requeue"
    ),
    **_ours(
        "no-requeue nodes N ntasks n parsable test-only wait W bcast uid gid open-mode quiet Q help version"
    ),
    **_ours("partition p", QUEUE),
    **_ours("account A", ACCOUNT),
    **_ours("cpus-per-task c", CORES),
    **_ours("mem", MEMORY),
    **_ours("time t", WALLTIME),
}
SGE_OURS = {
    **_ours("N S o e j r t V v cwd wd C b sync terse verify now inherit shell help"),
    **_ours("q", QUEUE),
    **_ours("P", ACCOUNT),
    **_ours("l_h_rt", WALLTIME),
}
PBS_OURS = {
    **_ours("N S o e j r J t V v d w C I X z"),
    **_ours("q", QUEUE),
    **_ours("A", ACCOUNT),
    **_ours("l_walltime", WALLTIME),
}
LSF_OURS = {
    **_ours("J o oo e eo i is env cwd L r rn K I Is Ip IS ISp ISs Zs json yaml jsdl pack E Ep"),
    **_ours("q", QUEUE),
    **_ours("P", ACCOUNT),
    **_ours("n", CORES),
    **_ours("M", MEMORY),
    **_ours("W", WALLTIME),
}


def _mebibytes(spec: JobSpec) -> Iterator[int]:
    if spec.memory is not None:
        yield math.ceil(allowed.whole(MEMORY, spec.memory) / 2**20)


def _clock(spec: JobSpec) -> Iterator[str]:
    """Hours, minutes and seconds, unless the site has its own word for the walltime."""
    if spec.walltime is not None and spec.walltime_directive is None:
        left = allowed.seconds(WALLTIME, spec.walltime)
        yield f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"


def _named(
    spec: JobSpec, ours: Mapping[str, str], queue: str, account: str, other: str = "-{} {}"
) -> Iterator[str]:
    """Queue, account, image and walltime as plain options, or by the site's own words."""
    limit = None if spec.walltime is None else allowed.seconds(WALLTIME, spec.walltime)
    told: list[tuple[str, str | int | None, str | None, str]] = [
        (QUEUE, spec.queue, spec.queue_directive, queue),
        (ACCOUNT, spec.account, spec.account_directive, account),
        (IMAGE, spec.image, spec.image_directive, ""),  # without a word for it, job.sh runs the container
        (WALLTIME, limit, spec.walltime_directive, ""),
    ]
    for field, given, own, plain in told:
        if given is None:
            continue
        checked = given if isinstance(given, int) else allowed.word(field, given)
        if own:
            key = allowed.directive_of(field)
            _not_ours(key, own, ours, but=field)
            yield _line(key, own, checked, other)
        elif own is None and plain:
            yield plain.format(checked)


def _own(spec: JobSpec, ours: Mapping[str, str], other: str = "-{} {}") -> Iterator[str]:
    """The profile's directives; False and "" leave one out that was inherited."""
    for key, given in spec.directives.items():
        field = allowed.directive(key)
        _not_ours(field, key, ours)
        line = _line(field, key, given, other)
        if given is not False and given != "":
            yield line


def _not_ours(field: str, key: object, ours: Mapping[str, str], but: str = "") -> None:
    """What is set already; long options may be abbreviated, so the first letters of ours are ours too."""
    match = OPTION.fullmatch(key) if isinstance(key, str) else None
    if match is None:
        return  # refused as no option at all
    name = f"{match[2]}_{match[3]}" if match[3] else match[2]
    told = [field for one, field in ours.items() if one == name or (len(name) > 1 and one.startswith(name))]
    if told and told[0] != but:
        raise allowed.refused(field, key, f"set by {told[0]}")


def _line(field: str, key: object, given: Scalar, other: str) -> str:
    match = OPTION.fullmatch(key) if isinstance(key, str) else None
    if match is None:
        raise allowed.refused(field, key, 'an option such as "--constraint", "-R" or "-l h_vmem"')
    if len(match[2]) == 1:
        other = "-{} {}"
    if isinstance(given, bool):
        return other.format(match[2], "").rstrip(" =")
    text = _value(field, given)
    if match[3] is not None:
        sign = " " if match[2] == "pe" else "="
        return f"-{match[2]} {match[3]}{sign}{text}"
    return other.format(match[2], text)


def _value(field: str, given: Scalar) -> str:
    if not isinstance(given, str):
        return repr(given)
    if given == "" or allowed.WORD.fullmatch(given):
        return given
    # Quotes, backslashes and dollars mean different things to the four parsers, and nothing to their users.
    text = allowed.expression(field, given, without="\"'\\$")
    return f'"{text}"'


def _resource(key: str) -> str:
    match = OPTION.fullmatch(key)
    return match[3] or "" if match is not None else ""
