"""The text each site's jobs have with each engine, kept as files: a change of a profile, of an engine or of the
renderer shows as a diff.

``python tests/golden/test_golden.py --write`` writes them anew; look at the diff before it is committed. The
engines' own code says what a job is: only what differs from run to run is put in its place here.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from batch_text import Condor, Slurm, condor_submit, directives, run, stub  # noqa: E402

from executors.batch.render import SCHEDULERS, render  # noqa: E402
from executors.engines import dask_remote, parsl_remote  # noqa: E402
from sites.overrides import overridden  # noqa: E402
from sites.profile import load_site, site_names  # noqa: E402

HOME = "/home/user"
RUN = f"{HOME}/run/outputs"
ENGINES = ("dask", "parsl")
# What somebody who goes there has to say; the rest is the profile's own.
SAID = {"job.account": "some.account", "job.image": "/cvmfs/unpacked.cern.ch/image:latest"}


def places():
    """The sites whose jobs an engine submits, each with the engines that do."""
    known = [load_site(name) for name in site_names()]
    return [
        (one, engine)
        for one in known
        if one.scheduler in SCHEDULERS
        for engine in ENGINES
        if engine in one.engines
    ]


def of(scheduler):
    """Those of one batch system."""
    return [one for one in places() if one[0].scheduler == scheduler]


def named(value):
    """What a case is called: the site, the engine."""
    return value if isinstance(value, str) else value.name


each = pytest.mark.parametrize(("site", "engine"), places(), ids=named)


class Stopped(Exception):
    """Raised where an engine would begin to submit; it has the job."""


def crew(_scheduler, spec, *_, **__):
    """In place of what submits."""
    raise Stopped(spec)


def interchange():
    """What Parsl's interchange says of itself, without one."""

    def keys(folder):
        folder.mkdir(mode=0o700)
        found = [folder / "client.key_secret", folder / "server.key_secret"]
        for path in found:
            path.touch()
        return found

    return SimpleNamespace(
        worker_keys=keys, versions=dict, manager_words=list, address="login.example.org", port=54321
    )


def archive(folder):
    """The parcel, empty."""
    (Path(folder) / "parcel.pyz").touch()
    return Path(folder) / "parcel.pyz"


def proxy(site):
    """Where it would lie."""
    return Path(HOME) / "x509up_u1000" if site.proxy.kind == "x509" else None


def described(site, engine, folder):
    """The job that an engine describes, with its files below the folder."""
    (folder / "logs").mkdir(exist_ok=True)
    private = Path(tempfile.mkdtemp(dir=folder)).rename(folder / "private")
    setup = {
        "site": site,
        "name": "cs-user-01234567",
        "workers": site.job.workers or site.resources.cores,
        "jobs": 1,
        "memory": None,
        "private": str(private),
        "logs": str(folder / "logs"),
        "outfit": b"",
        "preload": (),
        "path": [],
        "python": f"{HOME}/venv/bin/python",
        "env": {**site.env, "PYTHONDONTWRITEBYTECODE": "1"},
        "insecure": False,
    }
    with pytest.MonkeyPatch.context() as patch:
        for module in (dask_remote, parsl_remote):
            patch.setattr(module, "say", lambda *_: None)
            patch.setattr(module, "Crew", crew)
        patch.setattr("executors.batch.parcel.build", archive)
        patch.setattr("executors.batch.spec._proxy", proxy)
        if engine == "parsl":
            spec = parsl_remote._job(setup, interchange(), private)(site, private / "job", {})
        else:
            with pytest.raises(Stopped) as stopped:
                dask_remote._crew(setup, private, "tls://login.example.org:8786")
            spec = stopped.value.args[0]
    return spec


def effective(site):
    """The site as somebody uses it who says no more than has to be said."""
    return overridden(site, {key: SAID[key] for key in site.job.required if key in SAID})[0]


def texts(site, engine, folder, program=None):
    """File name -> text of one site's jobs with one engine."""
    shutil.rmtree(folder / "private", ignore_errors=True)
    spec = described(effective(site), engine, folder)
    if program is not None:
        spec = replace(spec, command=(str(program), *spec.command[1:]))
    return render(site.scheduler, spec)


def kept(site, engine):
    """File -> text as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        found = texts(site, engine, Path(folder).resolve())
        mine = str(Path(folder).resolve())
    stem = f"{site.name}.{engine}.{site.scheduler}"
    return {HERE / f"{stem}.{name}": text.replace(mine, RUN) for name, text in found.items()}


def write():
    """All files anew, and none that no site has."""
    wanted = {path: text for one in places() for path, text in kept(*one).items()}
    for path in HERE.glob("*.job.*"):
        if path not in wanted:
            path.unlink()
    for path, text in wanted.items():
        path.write_text(text)
    print(f"{len(wanted)} files in {HERE}")


@each
def test_the_text_is_as_kept(site, engine):
    for path, text in kept(site, engine).items():
        assert path.exists(), "python tests/golden/test_golden.py --write"
        assert text == path.read_text(), "meant? python tests/golden/test_golden.py --write"


def test_no_file_is_of_no_site():
    wanted = {path.name for one in places() for path in kept(*one)}
    assert {path.name for path in HERE.glob("*.job.*")} == wanted
    assert {(site.scheduler, engine) for site, engine in places()} == {
        (scheduler, engine) for scheduler in SCHEDULERS for engine in ENGINES
    }


@pytest.mark.parametrize("name", site_names())
def test_every_site_is_here_or_has_no_jobs(name):
    """Each profile with a batch system and engines of ours is among the files, with both."""
    site = load_site(name)
    mine = [engine for one, engine in places() if one.name == name]
    if site.scheduler in SCHEDULERS and not site.unusable:
        assert sorted(mine) == sorted(ENGINES)
    else:
        assert mine == []
        assert site.unusable or site.scheduler in (None, "existing")


@each
def test_job_sh_comes_as_far_as_the_worker(site, engine, tmp_path):
    """By the shell itself; setup lines that need the site's own files are left out."""
    program = stub(tmp_path)
    text = texts(site, engine, tmp_path, program)["job.sh"]
    text = (
        re.sub(r"(?m)^eval -- .*/cvmfs/.*\n", "", text)
        .replace("/gpfs/", f"{tmp_path}/")
        .replace('"/scratch/', f'"{tmp_path}/')
    )
    env = {"PATH": "/usr/bin:/bin", "USER": "user", "TMPDIR": str(tmp_path)}
    code, said, args, told = run(text, tmp_path / "private", env)
    assert code == 0, said
    assert [Path(one).name for one in args] == ["parcel.pyz", "pilot.json"]
    assert all(Path(one).is_absolute() == (site.scheduler != "condor") for one in args)
    assert told["PYTHONDONTWRITEBYTECODE"] == "1"
    assert told["XRD_RUNFORKHANDLER"] == "1"


@pytest.mark.parametrize(("site", "engine"), of("condor"), ids=named)
@pytest.mark.skipif(
    condor_submit() is None, reason="no condor_submit: the real parser did not read these files"
)
def test_condor_submit_reads_it(site, engine, tmp_path):
    files = dict(texts(site, engine, tmp_path))
    # There is no proxy here, and condor_submit looks into it.
    files["job.sub"] = re.sub(r"(?m)^(use_)?x509userproxy = .*\n", "", files["job.sub"])
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
    sent = [Path(one).name for one in ad["transferinput"].strip('"').replace(" ", "").split(",")]
    assert (
        sent
        == {
            "dask": ["parcel.pyz", "pilot.json", "outfit.pickle", "certificate.pem", "key.pem"],
            "parsl": ["parcel.pyz", "pilot.json", "outfit", "client.key_secret", "server.key_secret"],
        }[engine]
    )
    for name, value in effective(site).directives.items():
        plain = re.sub(r"(?i)^(\+|my\.)", "", name).lower()
        assert ad[plain].strip('"').lower() == str(value).lower()


@pytest.mark.parametrize(("site", "engine"), of("slurm"), ids=named)
@pytest.mark.skipif(
    shutil.which("sbatch") is None, reason="no sbatch: the real parser did not read these files"
)
def test_sbatch_reads_it(site, engine, tmp_path):
    read = Slurm(tmp_path).read(texts(site, engine, tmp_path))
    assert read["job-name"] == "cs-user-01234567"
    assert read["export-file"] == "job.env"
    assert read["cpus-per-task"] == str(site.resources.cores)
    assert read.get("partition") == site.job.queue
    assert read["output"] == f"{tmp_path}/logs/%j.out"
    for name, value in site.directives.items():
        assert read[name].lower() == str(value).lower()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("scheduler", ["sge", "pbs", "lsf"])
def test_directives_are_words(scheduler, engine, tmp_path):
    """No parser of these three is at hand: each line is one option and its value, by the shell's rules."""
    found = directives(scheduler, texts(load_site(scheduler), engine, tmp_path)["job.sh"])
    assert len(found) >= 5
    assert all(words[0].startswith("-") and len(words) <= 2 for words in found), found


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/golden/test_golden.py --write")
    write()
