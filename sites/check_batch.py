"""Checks of a batch system: its commands answer, queue and account exist, image and interpreter are there.

One cheap question each; nothing is submitted.
"""

from __future__ import annotations

import difflib
import getpass
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sites.credentials import span_text
from sites.scene import Check, below, finite

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sites.scene import Scene

# What must be on PATH to submit, to look and to remove.
COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    "condor": ("condor_submit", "condor_q", "condor_rm"),
    "lsf": ("bsub", "bjobs", "bkill"),
    "pbs": ("qsub", "qstat", "qdel"),
    "sge": ("qsub", "qstat", "qdel"),
    "slurm": ("sbatch", "squeue", "scancel"),
}
# Its programs are here, and know nothing of the site's servers.
CONFIGURATION: Final = re.compile(r"configuration source|CONDOR_CONFIG|SGE_ROOT|LSF_ENVDIR|lsf\.conf")
SPAN: Final = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", re.ASCII)
NODES: Final = re.compile(r"(\d+)/(\d+)/\d+/(\d+)", re.ASCII)  # allocated, idle, other, all
# PBS: whether it takes jobs and starts them; LSF likewise.
CLOSED: Final = re.compile(
    r"^\S+\s+\d+\s+\d+\s+(?:no\s+\S+|yes\s+no)\s|\b(?:Closed|Open:Inact)", re.MULTILINE
)
NEEDED: Final = ("coffea", "uproot", "awkward", "hist")
FINDS: Final = "import sys, importlib.util as u; print(*(n for n in sys.argv[1:] if u.find_spec(n) is None))"
IMPORTS: Final = (
    "import sys, importlib; print(sys.version.split()[0]); [importlib.import_module(n) for n in sys.argv[1:]]"
)


def scheduler(scene: Scene) -> list[Check]:
    """Whether the batch system's commands are here and answer, and know the queue."""
    name = scene.site.scheduler or ""
    if not scene.batch or name not in COMMANDS:
        return []
    missing = [one for one in COMMANDS[name] if shutil.which(one) is None]
    if missing:
        mend = "log in to a machine of the site that submits, or load its module: module avail"
        return [Check("scheduler", False, f"{' and '.join(missing)} {_be(missing)} not here", mend)]
    asked: Mapping[str, Callable[[Scene], list[Check]]] = {
        "condor": _condor, "lsf": _lsf, "pbs": _pbs, "sge": _sge, "slurm": _slurm,
    }  # fmt: skip
    return asked[name](scene)


def image(scene: Scene) -> list[Check]:
    """Whether the container image is where it should be."""
    wanted = scene.site.job.image
    if wanted is None:
        return []
    if "://" in wanted or not wanted.startswith("/"):
        return [Check("image", None, f"{wanted} is fetched by the nodes: not checked here")]
    if Path(wanted).exists():
        return [Check("image", True, f"{wanted} is there")]
    if wanted.startswith("/cvmfs/") and not Path("/cvmfs").is_dir():
        return [
            Check("image", None, f"{wanted} cannot be seen: there is no /cvmfs here", "check it on a node")
        ]
    return [Check("image", False, f"there is no image {wanted}", _nearest_image(Path(wanted)))]


def python(scene: Scene) -> list[Check]:
    """Whether the workers' interpreter is there and, where there is time, imports what a run needs."""
    site, wanted = scene.site, scene.workers_python
    if not scene.batch or site.job.image or site.job.ship != "none" or not site.shares_store:
        return []  # it is in the image, or travels, or lies on a node: only a canary job can tell
    if below(Path(wanted), site.paths.unseen):
        mend = "move the environment to a folder that nodes see, or --ship-env venv"
        return [Check("python", False, f"workers do not see {wanted}", mend)]
    found = shutil.which(os.path.expandvars(wanted))
    if site.job.setup and site.job.python is not None:
        return [Check("python", None, f"{wanted} is looked for after the site's setup: only a job can tell")]
    if found is None:
        return [Check("python", False, f"{wanted} cannot be run", f"--worker-python {scene.python}")]
    return [_imports(scene, found)]


def _imports(scene: Scene, found: str) -> Check:
    libraries = {"dask": ["distributed"], "parsl": ["parsl"]}.get(scene.engine, [])
    needed = dict.fromkeys([*NEEDED, *libraries, *scene.packages])
    env = dict(scene.site.env)
    if scene.quick:
        return _finds(scene, found, [*needed], env)
    answer = scene.ask([found, "-c", IMPORTS, *needed], 60.0, env=env)
    if answer.good:
        return Check("python", True, f"{found} (Python {answer.text.strip()[:20]}) imports what a run needs")
    lacks = re.search(r"No module named '([\w.]+)'", answer.complaint)
    mend = f"{found} -m pip install {lacks[1]}" if lacks else f"{found} -c 'import coffea'"
    return Check("python", False, f"{found}: {answer.why}", mend)


def _finds(scene: Scene, found: str, needed: list[str], env: dict[str, str]) -> Check:
    """Before a run: whether another Python than the runner's has the packages, none of which is imported."""
    good = Check("python", True, f"workers use {found}")
    if found == scene.python:
        return good
    answer = scene.ask([found, "-c", FINDS, *needed], scene.patience, env=env)
    lacks = answer.text.split() if answer.good else []
    if lacks:
        mend = f"{found} -m pip install {' '.join(lacks)}; or --worker-python {scene.python}"
        return Check("python", False, f"{found} has no {', '.join(lacks)}", mend)
    if answer.good or answer.slow:
        return good
    return Check("python", None, f"{found}: {answer.why}", f"--worker-python {scene.python}")


def _be(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _slurm(scene: Scene) -> list[Check]:
    ping = scene.ask(["scontrol", "ping"], scene.patience)  # sinfo would try for 9 s
    if "is DOWN" in ping.text and "is UP" not in ping.text:
        says = "Slurm's controller is down: " + ping.text.splitlines()[0].strip()[:80]
        return [Check("scheduler", False, says, "wait, or tell the administrators: scontrol ping")]
    answer = scene.ask(["sinfo", "--noheader", "--format=%R|%a|%l|%F"], scene.patience)
    if not answer.good:
        return [_mute(scene, "sinfo", answer.why, answer.slow)]
    rows = [line.strip().split("|") for line in answer.text.splitlines()]
    known = {row[0]: row for row in rows if len(row) >= 3}
    found = [Check("scheduler", True, f"sinfo answers in {answer.seconds:.1f} s")]
    wanted = scene.site.job.queue
    if wanted is None:
        return found
    return found + [_partition(scene, one, known) for one in wanted.split(",")]


def _partition(scene: Scene, wanted: str, known: Mapping[str, list[str]]) -> Check:
    if wanted not in known:
        return Check(
            "queue", False, f"there is no partition {wanted!r}", instead("--queue", wanted, sorted(known))
        )
    _, state, limit, *nodes = known[wanted]
    if state not in ("up", "*up"):
        return Check("queue", None, f"the partition {wanted} is {state}", f"sinfo --partition={wanted}")
    longest, asked = _seconds(limit), scene.site.resources.walltime
    if longest is not None and asked is not None and asked > longest:
        says = f"the partition {wanted} allows {span_text(longest)}; {span_text(finite(asked))} are asked for"
        return Check("queue", False, says, f"--walltime {int(longest)}s, or another --queue: sinfo")
    counted = NODES.fullmatch(nodes[0]) if nodes else None
    if counted is not None and not int(counted[1]) and not int(counted[2]):
        says = f"of the {counted[3]} nodes of the partition {wanted} none can be used now"
        return Check("queue", None, says, "sinfo -R says why; or another --queue")
    return Check("queue", True, f"the partition {wanted} is up")


def _seconds(text: str) -> float | None:
    """Slurm's own way to write a time: days-hours:minutes:seconds; None: no limit."""
    match = SPAN.fullmatch(text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(one or 0) for one in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _condor(scene: Scene) -> list[Check]:
    server = server_of(scene.site.job.submit_options)
    answer = scene.ask(["condor_q", *server, "-totals"], scene.patience)
    if not answer.good:
        return [_mute(scene, "condor_q", answer.why, answer.slow)]
    found = [
        Check("scheduler", True, f"condor_q answers in {answer.seconds:.1f} s"),
        *_machines(scene, server),
    ]
    if os.getuid() == 0:
        found.append(
            Check("scheduler", None, "HTCondor takes no jobs from root", "log in as an ordinary user")
        )
    elif not scene.quick and shutil.which("condor_ping"):
        words = ["condor_ping", *server, "-type", "SCHEDD", "WRITE"]
        allowed = scene.ask(words, scene.patience)
        if not allowed.good:
            mend = f"{' '.join(words)} -verbose (a ticket or token may be missing: kinit)"
            found.append(Check("scheduler", None, f"you may not submit: {allowed.why}", mend))
    return found


def _machines(scene: Scene, server: list[str]) -> list[Check]:
    """Whether any machine could take such a job: HTCondor lets one that fits nowhere wait without a word."""
    if scene.quick or shutil.which("condor_status") is None:
        return []
    asked = scene.site.resources
    wanted = [f"TotalCpus >= {asked.cores}"]
    if asked.memory is not None:
        wanted.append(f"TotalMemory >= {asked.memory // 2**20}")
    look = ["condor_status", *pool_of(server), "-limit", "1", "-af", "Name"]
    fits = scene.ask([*look, "-constraint", " && ".join(wanted)], scene.patience)
    if not fits.good or fits.text.strip() or not scene.ask(look, scene.patience).text.strip():
        return []  # one does, or nobody can say
    size = f"{asked.cores} core{'s' if asked.cores > 1 else ''}" + (
        f" and {asked.memory / 1e9:.3g} GB" if asked.memory is not None else ""
    )
    says = f"no machine that the pool has now is so large: {size}"
    return [Check("size", None, says, "--cores, --memory; condor_status -af Machine TotalCpus TotalMemory")]


def pool_of(server: list[str]) -> list[str]:
    """Of the words that name a schedd, those that name its pool."""
    pairs = zip(server[::2], server[1::2], strict=True)
    return [one for pair in pairs if pair[0] == "-pool" for one in pair]


def server_of(options: tuple[str, ...]) -> list[str]:
    """Which schedd the site's submit options name, for the commands that ask it."""
    found: list[str] = []
    for at, word in enumerate(options[:-1]):
        if word in ("-name", "-pool", "-remote"):
            found += ["-name" if word == "-remote" else word, options[at + 1]]
    return found


def _sge(scene: Scene) -> list[Check]:
    return _queue(scene, ["qstat", "-u", getpass.getuser()], ["qconf", "-sq"], ["qconf", "-sql"])


def _pbs(scene: Scene) -> list[Check]:
    return _queue(scene, ["qstat", "-B"], ["qstat", "-Q"], None)


def _lsf(scene: Scene) -> list[Check]:
    return _queue(scene, ["bqueues", "-w"], ["bqueues", "-w"], None)


def _queue(scene: Scene, alive: list[str], one: list[str], every: list[str] | None) -> list[Check]:
    """A batch system that is asked for one queue by name."""
    answer = scene.ask(alive, scene.patience)
    if not answer.good:
        return [_mute(scene, alive[0], answer.why, answer.slow)]
    found = [Check("scheduler", True, f"{alive[0]} answers in {answer.seconds:.1f} s")]
    wanted = scene.site.job.queue
    if wanted is None or shutil.which(one[0]) is None:
        return found
    told = scene.ask([*one, wanted], scene.patience)
    if told.good and CLOSED.search(told.text):
        return [*found, Check("queue", None, f"the queue {wanted} is closed now", " ".join([*one, wanted]))]
    if told.good:
        return [*found, Check("queue", True, f"there is a queue {wanted}")]
    if told.slow:
        return [*found, _mute(scene, one[0], told.why, told.slow)]
    known = sorted(scene.ask(every, scene.patience).text.split()) if every else []
    mend = instead("--queue", wanted, known) if known else " ".join(one)
    return [*found, Check("queue", False, f"there is no queue {wanted!r}: {told.why}", mend)]


def _mute(scene: Scene, command: str, why: str, slow: bool) -> Check:
    """A program that failed, or did not answer: before a run the latter may only be a busy moment."""
    ok = None if slow and scene.quick else False
    mend = f"try by hand: {command}"
    if CONFIGURATION.search(why):
        mend = "load the site's module of the batch system, or log in where jobs are submitted: module avail"
    return Check("scheduler", ok, f"{command}: {why.removeprefix(f'{command}: ')}", mend)


def instead(option: str, wanted: str, known: list[str]) -> str:
    """What to type in place of a name that nobody knows."""
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    return f"{option} " + (" or ".join(near) if near else "one of: " + ", ".join(known[:12]))


def _nearest_image(wanted: Path) -> str:
    above = wanted.parent
    while not above.is_dir() and above != above.parent:
        above = above.parent
    return f"--image PATH; look into: ls {above}"
