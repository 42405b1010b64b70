"""The text of a batch job: JobSpec in, the files that the submit command reads out.

Pure: nothing is written, asked or started here. With ``condor_text``, ``grid_text`` and ``script`` it is
all that makes such text, and every string in it has passed ``allowed``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executors.batch import allowed
from executors.batch.condor_text import submit_text
from executors.batch.grid_text import DIRECTIVES, ENVIRONMENT_FILE
from executors.batch.script import script
from executors.errors import UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from executors.batch.spec import JobSpec

SCHEDULERS = ("condor", "lsf", "pbs", "sge", "slurm")


def render(scheduler: str, spec: JobSpec) -> Mapping[str, str]:
    """File name -> text: ``job.sh``, for condor also ``job.sub``, whose ``queue N`` the submit command adds.

    Every value is checked, the submit options too; UsageError names the field that cannot go into the text.
    """
    for at, word in enumerate(spec.submit_options, 1):
        allowed.option(f"job.submit_options[{at}]", word)
    if scheduler == "condor":
        return {"job.sub": submit_text(spec), "job.sh": script("condor", spec)}
    if scheduler not in DIRECTIVES:
        raise UnknownNameError.of("batch system", scheduler, SCHEDULERS)
    files = {"job.sh": script(scheduler, spec, DIRECTIVES[scheduler](spec))}
    if scheduler == "slurm":
        files[ENVIRONMENT_FILE] = f"COFFEA_SCALEOUT={allowed.job_name('name', spec.name)}\0"
    return files
