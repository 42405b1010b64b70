"""The text each site's jobs have, kept as files: a change of a profile or of the renderer shows as a diff.

``python tests/golden/test_golden.py --write`` writes them anew; look at the diff before it is committed. Both
engines send the same text: they differ in the files they carry and in what ``pilot.json`` says.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from batch_text import Condor, Slurm, condor_submit, directives, run, stub  # noqa: E402

from executors.batch.render import SCHEDULERS, render  # noqa: E402
from executors.batch.spec import spec_of  # noqa: E402
from sites.overrides import overridden  # noqa: E402
from sites.profile import load_site, site_names  # noqa: E402

HOME = Path("/home/user")
RUN = HOME / "run" / "outputs"
# What somebody who goes there has to say; the rest is the profile's own.
SAID = {"job.account": "some.account", "job.image": "/cvmfs/unpacked.cern.ch/image:latest"}


def places():
    """The sites whose jobs an engine submits, each with its batch system."""
    known = [load_site(name) for name in site_names()]
    return [one for one in known if one.scheduler in SCHEDULERS and {"dask", "parsl"} & set(one.engines)]


def texts(site, folder=RUN, command=()):
    """File name -> text of one site."""
    asked = {key: SAID[key] for key in site.job.required if key in SAID}
    effective, _ = overridden(site, asked)
    carried = [folder / "private" / name for name in ("parcel.pyz", "pilot.json")]
    spec = spec_of(
        effective,
        name="cs-user-01234567",
        command=command or (effective.job.python or f"{HOME}/venv/bin/python", "parcel.pyz", "pilot.json"),
        folder=folder / "private",
        logs=folder / "logs",
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        transfer=carried if site.scheduler == "condor" else (),
        proxy=HOME / "x509up_u1000" if site.proxy.kind == "x509" else None,
    )
    return render(site.scheduler, spec)


def kept(site):
    """File -> text as it should be."""
    return {HERE / f"{site.name}.{site.scheduler}.{name}": text for name, text in texts(site).items()}


def write():
    """All files anew, and none that no site has."""
    wanted = {path: text for site in places() for path, text in kept(site).items()}
    for path in HERE.glob("*.*.job.*"):
        if path not in wanted:
            path.unlink()
    for path, text in wanted.items():
        path.write_text(text)
    print(f"{len(wanted)} files in {HERE}")


@pytest.mark.parametrize("site", places(), ids=lambda site: site.name)
def test_the_text_is_as_kept(site):
    for path, text in kept(site).items():
        assert path.exists(), "python tests/golden/test_golden.py --write"
        assert text == path.read_text(), "meant? python tests/golden/test_golden.py --write"


def test_no_file_is_of_no_site():
    wanted = {path.name for site in places() for path in kept(site)}
    assert {path.name for path in HERE.glob("*.*.job.*")} == wanted
    assert {site.scheduler for site in places()} == set(SCHEDULERS)


@pytest.mark.parametrize("site", places(), ids=lambda site: site.name)
def test_job_sh_comes_as_far_as_the_worker(site, tmp_path):
    """By the shell itself; setup lines that need the site's own files are left out."""
    (tmp_path / "private").mkdir()
    (tmp_path / "logs").mkdir()
    program = stub(tmp_path / "private")
    text = texts(site, tmp_path, (str(program), "parcel.pyz", "pilot.json"))["job.sh"]
    text = (
        re.sub(r"(?m)^eval -- .*/cvmfs/.*\n", "", text)
        .replace("/gpfs/", f"{tmp_path}/")
        .replace('"/scratch/', f'"{tmp_path}/')
    )
    env = {"PATH": "/usr/bin:/bin", "USER": "user", "TMPDIR": str(tmp_path)}
    code, said, args, told = run(text, tmp_path / "private", env)
    assert (code, args) == (0, ["parcel.pyz", "pilot.json"]), said
    assert told["PYTHONDONTWRITEBYTECODE"] == "1"
    assert told["XRD_RUNFORKHANDLER"] == "1"


@pytest.mark.parametrize(
    "site", [one for one in places() if one.scheduler == "condor"], ids=lambda site: site.name
)
@pytest.mark.skipif(
    condor_submit() is None, reason="no condor_submit: the real parser did not read these files"
)
def test_condor_submit_reads_it(site, tmp_path):
    files = dict(texts(site, tmp_path))
    # There is no proxy here, and condor_submit looks into it.
    files["job.sub"] = re.sub(r"(?m)^(use_)?x509userproxy = .*\n", "", files["job.sub"])
    (tmp_path / "logs").mkdir()
    ad = Condor(tmp_path).read(files)
    assert ad["coffeascaleout"] == ad["jobbatchname"] == '"cs-user-01234567"'
    assert int(ad["requestcpus"]) == site.resources.cores
    assert int(ad["requestmemory"]) * 2**20 >= site.resources.memory > (int(ad["requestmemory"]) - 1) * 2**20
    assert (ad["shouldtransferfiles"], ad["transferoutput"]) == ('"YES"', '""')
    spooled = "-spool" in site.job.submit_options
    assert ad["leavejobinqueue"] == (
        "JobStatus == 4 && time() - CompletionDate < 600" if spooled else "false"
    )
    assert ad["out"] == f'"{tmp_path}/logs/1.0.out"'
    assert ad["environment"] == '""'


@pytest.mark.parametrize(
    "site", [one for one in places() if one.scheduler == "slurm"], ids=lambda site: site.name
)
@pytest.mark.skipif(
    shutil.which("sbatch") is None, reason="no sbatch: the real parser did not read these files"
)
def test_sbatch_reads_it(site, tmp_path):
    read = Slurm(tmp_path).read(texts(site))
    assert read["job-name"] == "cs-user-01234567"
    assert read["export-file"] == "job.env"
    assert read["cpus-per-task"] == str(site.resources.cores)
    assert read.get("partition") == site.job.queue
    assert read["output"] == f"{RUN}/logs/%j.out"


@pytest.mark.parametrize("scheduler", ["sge", "pbs", "lsf"])
def test_directives_are_words(scheduler):
    """No parser of these three is at hand: each line is one option and its value, by the shell's rules."""
    found = directives(scheduler, texts(load_site(scheduler))["job.sh"])
    assert len(found) >= 5
    assert all(words[0].startswith("-") and len(words) <= 2 for words in found), found


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/golden/test_golden.py --write")
    write()
