"""The checks of a site that need more than its profile: the schedd that a run would take, a job's text.

Each asks one question and changes nothing: a job's text is read by the batch system's own parser, and no job
is submitted. What follows from the profile alone is in ``sites.checks``.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from executors.errors import ExecutorsError, UsageError
from sites import check_batch, clusters
from sites.checks import CHECKS, stops
from sites.scene import Check

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from executors.where import Where
    from sites.commands import Answer
    from sites.scene import Scene

QUICKLY: Final = 4.0  # seconds for a collector before a run: the engine has more patience
OPTIONS: Final = "{options}"  # the site's own for the submit command
# Programs that read a job's text and say what they think of it; they submit nothing.
REHEARSALS: Final[Mapping[str, tuple[str, ...]]] = {
    "condor": ("condor_submit", "-dry-run", "-", "job.sub", "-queue", "1"),
    "sge": ("qsub", "-w", "v", OPTIONS, "job.sh"),
    "slurm": ("sbatch", "--test-only", OPTIONS, "job.sh"),
}
# What there is to be had, in each system's own words.
SHOWS: Final[Mapping[str, str]] = {
    "qsub": "qhost; qconf -sql; qconf -spl",
    "sbatch": "sinfo -o '%P %c %m %l'; scontrol show partition",
}
IMPORTS: Final = "import sys, importlib; getattr(importlib.import_module(sys.argv[1]), sys.argv[2])"
CLUSTER: Final = "another version of its package, or another class: --site-set dask.cluster"
LOOK: Final = "look at the job's text: runner.py plan --dry-run with the same options"


def checks_of(spot: Where) -> dict[str, Callable[[Scene], list[Check]]]:
    """Every check of an engine at a site, in the order in which they are shown."""
    return {**CHECKS, "scheduler": partial(scheduler, spot), "cluster": cluster}


def scheduler(spot: Where, scene: Scene) -> list[Check]:
    """The batch system as it answers; if it does, what it says of the job's text."""
    found = schedd(scene)
    return found if not scene.batch or stops(found) else found + job(spot, scene)


def schedd(scene: Scene) -> list[Check]:
    """The batch system as it answers; where a site has several schedds, the one that a run would take."""
    wanted = scene.site.schedd
    several = wanted.pool or wanted.constraint or wanted.rank
    if scene.site.scheduler != "condor" or not several or shutil.which("condor_status") is None:
        return check_batch.scheduler(scene)
    from executors.batch.schedd import chosen

    heard: list[str] = []
    try:
        patience = QUICKLY if scene.quick else scene.patience
        site = chosen(scene.site, lambda _, text: heard.append(text), patience)
    except ExecutorsError as error:
        late = scene.quick and "no answer within" in error.message  # it may only be a busy moment
        says, _, mend = error.message.partition(". Look: ")
        return [Check("schedd", None if late else False, says, mend or "condor_status -schedd")]
    found = [Check("schedd", True, text) for text in heard]
    return [*found, *check_batch.scheduler(replace(scene, site=site))]


def cluster(scene: Scene) -> list[Check]:
    """Whether a cluster class of others is there; where there is time, that another process can import it."""
    found, dask = clusters.check(scene), scene.site.dask
    name = dask.offers if dask.cluster == clusters.OFFERED else dask.cluster
    if scene.quick or name is None or not found or found[0].ok is not True:
        return found
    module, _, kind = name.partition(":")
    answer = scene.ask([sys.executable, "-c", IMPORTS, module, kind], scene.patience)
    if answer.good or answer.slow:
        return found
    return [Check("cluster", False, f"{name} cannot be imported: {answer.why}", f"{CLUSTER}=module:Class")]


def job(spot: Where, scene: Scene) -> list[Check]:
    """Whether the job's text can be written; and what the batch system's own parser says of it.

    The latter not before a run, which soon hears it.
    """
    if scene.site.dask.cluster is not None and scene.engine == "dask":
        return []  # that class writes a text of its own
    command = REHEARSALS.get(str(scene.site.scheduler), ())
    from executors.where import submitted

    with tempfile.TemporaryDirectory(prefix="rehearsal-") as name:
        folder = Path(name)
        (folder / "logs").mkdir()
        try:
            for file, text in submitted(spot, folder).items():
                (folder / file).write_text(text, encoding="utf-8")
        except UsageError as error:
            return [Check("job", False, error.message, "leave it out, or write it as that says")]
        except ExecutorsError:
            return []  # a proxy is missing: said by the check of the credential
        if scene.quick or not command or shutil.which(command[0]) is None:
            return []
        answer = _rehearsed(scene, command, folder)
        if _unfit(answer):
            # With "v" Grid Engine looks at no loads (mem_free), with "p" at no job that will have ended.
            other = _rehearsed(scene, tuple("p" if one == "v" else one for one in command), folder)
            answer = answer if _unfit(other) else other
    return [_judged(command[0], answer)]


def _rehearsed(scene: Scene, command: tuple[str, ...], folder: Path) -> Answer:
    options = scene.site.job.submit_options
    words = [one for word in command for one in (options if word == OPTIONS else (word,))]
    return scene.ask(words, scene.patience, folder=folder)


def _unfit(answer: Answer) -> bool:
    return "no suitable queues" in f"{answer.text}{answer.complaint}"


def _judged(program: str, answer: Answer) -> Check:
    from executors.batch.reasons import is_transient, refusal_advice
    from executors.batch.schedulers import clean

    said = clean(answer.complaint.strip() or answer.text.strip(), 300)
    if answer.slow or (not answer.good and is_transient(said)):
        return Check("job", None, f"{program} did not say whether it would take such a job: {answer.why}")
    if _unfit(answer):
        says = f"no queue seems to fit such a job, now or when all are empty: {said}"
        return Check("job", None, says, SHOWS.get(program, LOOK))
    if not answer.good:
        mend = "; ".join(one for one in (refusal_advice(said), SHOWS.get(program, "")) if one)
        return Check("job", False, f"{program} would not take such a job: {said}", mend or LOOK)
    if warning := re.search(r"^\s*WARNING: (.*)$", answer.complaint, re.MULTILINE):
        says = f"{program} would take such a job, and warns: {clean(warning[1], 200)}"
        return Check("job", None, says, "look at the site's directives and --directive")
    return Check("job", True, f"{program} would take such a job")
