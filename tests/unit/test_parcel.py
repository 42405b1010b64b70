"""The parcel: what is in it, that it is the same for the same code, and that a bare interpreter can run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from executors.batch import parcel

PILOT = """
import json, os, sys, executors
from pathlib import Path
def main(settings):
    Path(settings["out"]).write_text(json.dumps({
        "settings": settings, "package": executors.__file__, "path": sys.path, "umask": oct(os.stat(settings["local"]).st_mode),
    }))
    if settings.get("sleep"):
        import time; time.sleep(60)
    if settings.get("raise"):
        raise RuntimeError("as asked")
    return settings.get("code", 0)
"""


@pytest.fixture
def made(tmp_path):
    """A folder with a parcel, as it would lie on a node."""
    (tmp_path / "job").mkdir()
    parcel.build(tmp_path / "job")
    (tmp_path / "module").mkdir()
    (tmp_path / "module" / "a_pilot.py").write_text(PILOT)
    return tmp_path


def start(made: Path, *flags: str, env=None, **words) -> subprocess.Popen:
    settings = made / "job" / "pilot.json"
    words = {"pilot": "a_pilot:main", "out": str(made / "out.json"), "scratch": str(made / "scratch")} | words
    settings.write_text(json.dumps(words))
    (made / "scratch").mkdir(exist_ok=True)
    more = {"PYTHONPATH": str(made / "module"), "PATH": os.defpath} | (env or {})
    # Another folder, so that the checkout is not found by chance.
    command = [sys.executable, *flags, "parcel.pyz", "pilot.json"]
    return subprocess.Popen(command, cwd=made / "job", env=more, stderr=subprocess.PIPE, text=True)


def run(made: Path, *flags: str, env=None, **words) -> tuple[int, dict, str]:
    process = start(made, *flags, env=env, **words)
    _, err = process.communicate(timeout=60)
    out = made / "out.json"
    return process.returncode, json.loads(out.read_text()) if out.exists() else {}, err


def test_it_holds_the_two_packages_and_nothing_else(made):
    names = zipfile.ZipFile(made / "job" / "parcel.pyz").namelist()
    assert "__main__.py" in names
    for needed in ("executors/engines/keeper.py", "executors/coffea/analysis.py", "sites/local.toml"):
        assert needed in names
    assert {name.split("/")[0] for name in names} == {"__main__.py", "executors", "sites"}
    assert {Path(name).suffix for name in names} <= {".py", ".toml", ".typed"}
    assert not [name for name in names if "__pycache__" in name]


def test_equal_code_is_an_equal_file(made, tmp_path):
    first = (made / "job" / "parcel.pyz").read_bytes()
    time.sleep(2.1)  # a zip counts time in steps of two seconds
    (tmp_path / "again").mkdir()
    assert parcel.build(tmp_path / "again").read_bytes() == first


def test_the_node_uses_the_parcel_code_from_a_private_folder(made):
    code, out, err = run(made)
    assert code == 0, err
    local = Path(out["settings"]["local"])
    assert out["package"].startswith(f"{local}/code/")
    assert out["path"][0] == f"{local}/code"
    assert local.parent == (made / "scratch").resolve()
    assert out["umask"].endswith("700")
    assert not any(entry.endswith("parcel.pyz") for entry in out["path"])


def test_nothing_is_left_behind(made):
    run(made)
    assert list((made / "scratch").iterdir()) == []


def test_nothing_is_left_behind_when_the_pilot_raises(made):
    code, _, err = run(made, **{"raise": True})
    assert code == 1
    assert "as asked" in err
    assert list((made / "scratch").iterdir()) == []


def test_a_polite_end_cleans_up_and_says_which_signal(made):
    process = start(made, sleep=True)
    limit = time.monotonic() + 30
    while not (made / "out.json").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert list((made / "scratch").iterdir()) == []


def test_what_a_job_left_that_was_killed_at_once_is_removed_by_the_next_one_there(made):
    first = start(made, sleep=True)
    limit = time.monotonic() + 30
    while not (made / "out.json").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    others = made / "scratch" / "cs-of-another-program"
    others.mkdir()
    (made / "out.json").unlink()
    second = start(made, sleep=True)
    while not (made / "out.json").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    assert len(list((made / "scratch").iterdir())) == 3  # a job that lives is left alone
    for process in (first, second):
        process.kill()
        process.communicate()
    assert len(list((made / "scratch").iterdir())) == 3
    run(made)
    assert list((made / "scratch").iterdir()) == [others]


def test_the_exit_code_is_the_pilots(made):
    assert run(made, code=3)[0] == 3


def test_it_runs_in_isolated_mode(made):
    code, _, err = run(made, "-I", pilot="executors.batch.parcel:job_id")
    assert code == 1  # no pilot that can be found in this mode makes an int of its settings
    assert "invalid literal" in err
    assert "No module" not in err


def test_scratch_is_expanded_on_the_node(made):
    (made / "there").mkdir()
    _, out, _ = run(made, env={"WHERE": str(made / "there")}, scratch="$WHERE")
    assert Path(out["settings"]["local"]).parent == (made / "there").resolve()


@pytest.mark.parametrize("scratch", [None, "$NOT_SET_AT_ALL", "/no/such/folder"])
def test_without_a_scratch_folder_it_takes_the_systems(made, scratch):
    (made / "tmp").mkdir()
    _, out, err = run(made, env={"TMPDIR": str(made / "tmp")}, scratch=scratch)
    assert Path(out["settings"]["local"]).parent == (made / "tmp").resolve(), err


def test_the_pilot_is_told_where_its_files_are_and_which_job_it_is(made):
    _, out, _ = run(made, env={"SLURM_JOB_ID": "17"})
    assert out["settings"]["job"] == "17"
    assert out["settings"]["files"] == str((made / "job").resolve())


@pytest.mark.parametrize(
    ("line", "says"),
    [("import no_such_package.inner", "lacks no_such_package"), ("from json import nothing", "is not fit")],
)
def test_a_python_without_what_is_needed_says_so_in_a_line(made, line, says):
    """Whose last lines are all that the runner shows of a job."""
    (made / "module" / "bare.py").write_text(f"{line}\n")
    code, _, err = run(made, pilot="bare:main")
    assert code == parcel.UNFIT
    last = err.splitlines()[-1]
    assert f"the workers' Python {sys.executable} (3." in last
    assert says in last
    assert "--worker-python" in last
    assert "Traceback" not in err
    assert list((made / "scratch").iterdir()) == []


def test_wrong_words_say_how_it_is_used(made):
    done = subprocess.run(
        [sys.executable, str(made / "job" / "parcel.pyz")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "usage" in done.stderr


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"SLURM_JOB_ID": "12"}, "12"),
        ({"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}, "12_3"),
        ({"JOB_ID": "7", "SGE_TASK_ID": "undefined"}, "7"),
        ({"JOB_ID": "7", "SGE_TASK_ID": "2"}, "7.2"),
        ({"PBS_JOBID": "99.server"}, "99.server"),
        ({"LSB_JOBID": "5", "LSB_JOBINDEX": "0"}, "5"),
        ({"LSB_JOBID": "5", "LSB_JOBINDEX": "4"}, "5[4]"),
        ({}, "local"),
        ({"_CONDOR_JOB_AD": "/no/such/file"}, "local"),
    ],
)
def test_the_jobs_number_is_what_the_batch_system_calls_it(env, expected):
    assert parcel.job_id(env) == expected


def test_the_number_of_a_condor_job_is_in_its_ad(tmp_path):
    ad = tmp_path / ".job.ad"
    ad.write_text('Args = "a = b"\nProcId = 3\nClusterId = 41\nAutoClusterId = 2\n')
    assert parcel.job_id({"_CONDOR_JOB_AD": str(ad), "SLURM_JOB_ID": "9"}) == "41.3"
