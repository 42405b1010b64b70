"""A real Grid Engine, for both engines: exact, whatever is taken away, refusals in its own words, and nothing left.

Where it cannot be had, its tests are skipped aloud, in continuous integration too: not every Debian has it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter

import pytest
from hostile.test_injection import HINTS, HOSTILE, NO_TEXT, harmless, rendered, with_value
from real.lab import Lab, accounted
from real.servers import processes

BOTH = pytest.mark.parametrize(
    "lab", [("sge", "dask"), ("sge", "parsl")], indirect=True, ids=["dask", "parsl"]
)
pytestmark = pytest.mark.timeout(300)
SHOWN = {"queue": "hard_queue_list", "directives value": "account", "name": "job_name"}
ASK = """
import json, sys
from executors.batch.schedulers import scheduler_of

states = scheduler_of("sge").query(sys.argv[1], sys.argv[2:])
print(json.dumps({one: [state.phase, state.fate, state.exit, state.says] for one, state in states.items()}))
"""


@BOTH
def test_two_hundred_chunks(lab):
    """A run is the same, bit for bit, as the plain one."""
    lab.data(dy=[2500] * 2, tt=[5000])
    truth = lab.truth()
    code, out = lab.run(lab.command(workers=2), timeout=90)
    assert code == 0, out
    found = lab.manifest()
    accounted(found, 10_000)
    assert found["digest"] == truth
    lab.nothing_left(30)


@pytest.mark.parametrize(
    "lab",
    [("sge", "dask"), pytest.param(("sge", "parsl"), marks=pytest.mark.full)],
    indirect=True,
    ids=["dask", "parsl"],
)
def test_jobs_taken_away(lab):
    """By qdel and by a kill that nobody hears of: others take their place, and nothing is counted twice."""
    lab.data(dy=[5000] * 4)
    gate = lab.folder / "gate"
    argument = f"gate={gate}"
    process = lab.start(lab.command("--wf-arg", argument, "--task-seconds", "1", wf="Paced", workers=2))
    lab.until_working(process, wf="Paced")
    seen = set()
    for way in lab.batch.ways if lab.engine == "dask" else ["qdel"]:
        lab.until(lambda: len(lab.batch.running()) == 2 and lab.batch.job_processes(), process)
        time.sleep(1)
        job = random.choice(lab.batch.running())
        seen |= {one.id for one in lab.batch.queue()}
        lab.batch.take_away(job, way)
        lab.until(lambda: {one.id for one in lab.batch.running()} - seen, process)
        tasks = lab.journal("task", wf="Paced")
        lab.until(lambda: lab.journal("task", wf="Paced") > tasks, process)
    gate.touch()
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    accounted(lab.manifest(wf="Paced"), 20_000)
    assert lab.manifest(wf="Paced")["digest"] == lab.truth("Paced", "--wf-arg", argument)
    lab.nothing_left(30)


@BOTH
def test_no_such_queue(lab):
    """Refused by Grid Engine: said in its own words, at once."""
    lab.data(dy=[500])
    began = time.monotonic()
    code, out = lab.run(lab.command("--queue", "nosuch", "--no-check"), timeout=60)
    assert time.monotonic() - began < 30
    assert code == 4, out
    assert 'job requests unknown queue "nosuch"' in out, out
    assert "--queue" in out
    assert "Traceback" not in out


@pytest.mark.parametrize("lab", [("sge", "dask")], indirect=True, ids=["dask"])
def test_no_such_queue_is_found_before(lab):
    """By the check that runs first, with the names that there are."""
    lab.data(dy=[500])
    code, out = lab.run(lab.command("--queue", "al.q"), timeout=60)
    assert code != 0
    assert "no queue 'al.q'" in out, out
    assert "all.q" in out


@pytest.mark.parametrize(
    ("lab", "way"),
    [(("sge", "dask"), "interrupt"), (("sge", "parsl"), "kill")],  # what is behind it is the same for both
    indirect=["lab"],
    ids=["interrupt-dask", "kill-parsl"],
)
def test_the_runner_ends(lab, way):
    """However the runner ends, its jobs leave the queue."""
    lab.data(dy=[5000])
    gate = lab.folder / "gate"
    command = lab.command("--wf-arg", f"gate={gate}", "--task-seconds", "1", wf="Paced", workers=2)
    process = lab.start(command)
    lab.until_working(process, wf="Paced")
    assert lab.batch.running()
    if way == "interrupt":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.kill()
    out, _ = process.communicate(timeout=60)
    if way == "interrupt":
        assert process.returncode == 130, out
        assert "Traceback" not in out
    lab.nothing_left(60)


def submitted(cell, script, text, *options):
    """The number of a job of this text."""
    script.write_text("#!/bin/bash\n" + text)
    argv = ["qsub", "-terse", "-S", "/bin/bash", "-o", "/dev/null", "-e", "/dev/null", "-N", "cs-fates"]
    return cell.command(*argv, *options, str(script)).strip()


def test_what_became_of_jobs(sge):
    """Time, memory and a removal are told apart, and jobs that cannot start say why."""
    lab = Lab(sge, "dask", "fates")
    eat = "for one in 1 2; do head -c 200M /dev/zero | tail -c 200M | sleep 60 & done; wait\n"
    told = {
        ("sleep 60\n", "-l", "h_rt=0:0:2"): ("failed", "walltime", -9, "a limit of time"),
        (eat, "-l", "h_vmem=300M,h_rt=1:0:0"): ("failed", "memory", -9, "more memory than requested"),
        ("sleep 60\n",): ("failed", "removed", -9, "as qdel does"),
        ("exit 3\n",): ("failed", "exit", 3, "exit code 3"),
        ("sleep 1\n", "-wd", "/nowhere"): ("held", "", None, "Eqw: error: can't chdir to /nowhere"),
        ("sleep 60\n", "-h"): ("held", "removed", None, "by its owner"),
    }
    jobs = [submitted(sge, lab.folder / "job.sh", *words) for words in told]
    assert processes.wait_for(lambda: jobs[2] in [one.id for one in sge.running()], 20), sge.queue()
    sge.command("qdel", jobs[2])
    assert processes.wait_for(lambda: all(map(sge.account, jobs[:4])), 40, every=0.5), sge.queue()
    code, out = lab.script(ASK, "cs-fates", *jobs)
    sge.clear()
    assert code == 0, out
    found = json.loads(out)
    for job, (phase, fate, code, says) in zip(jobs, told.values(), strict=True):
        assert found[job][:3] == [phase, fate, code], found[job]
        assert says in found[job][3]


def verified(cell, folder, text):
    """What qsub understood, and None where it refused; the whole script is in its answer."""
    (folder / "job.sh").write_text(text)
    argv = [*cell.run_as, "qsub", "-verify", "job.sh"]
    done = subprocess.run(
        argv, cwd=folder, env=cell.env, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0 or done.stderr.strip(), done
    rows = (line.partition(":") for line in done.stdout.partition("script_")[0].splitlines())
    return None if done.returncode else {key: value.strip() for key, _, value in rows if value}


def test_qsub_reads_the_same_values(sge):
    """Hostile values that we let pass, in every field: the real parser reads the same one, and no other changes."""
    folder, counts = sge.fresh("hostile"), Counter()
    (folder / "stub").touch()
    (folder / "logs").mkdir()
    plain_spec = dataclasses.replace(harmless("sge", folder), directives={"-A": "abc"})
    text = rendered("sge", plain_spec)["job.sh"]
    plain, seen = verified(sge, folder, text), {text}
    assert {plain[name] for name in SHOWN.values()} == {"short", "abc", "cs-me-01234567"}
    before = sorted(folder.iterdir())
    for name in HINTS.keys() - NO_TEXT - {"env", "setup"}:
        for bad in HOSTILE:
            for what, spec in with_value(plain_spec, name, HINTS[name], bad):
                files = rendered("sge", spec)
                if files is None or files["job.sh"] in seen:
                    continue
                seen.add(files["job.sh"])
                read = verified(sge, folder, files["job.sh"])
                assert sorted(folder.iterdir()) == before, (what, bad)
                if read is None:
                    counts[f"{what} refused by qsub"] += 1
                    continue
                counts[what] += 1
                if what in SHOWN and bad not in ("", "None"):  # it writes NONE for the latter
                    assert read[SHOWN[what]] == bad, (what, bad, read)
                changed = {key for key in {*plain, *read} if plain.get(key) != read.get(key)}
                assert len(changed) <= 1 or name == "logs", (what, bad, changed)
    print(counts)
    assert counts["directives value"] > 10, counts


@pytest.mark.full
@pytest.mark.parametrize("lab", [("sge", "dask")], indirect=True, ids=["dask"])
def test_by_dask_jobqueues_class(lab):
    """Its own template says neither a shell nor cores nor memory: what is left out there is added."""
    lab.data(dy=[1000])
    truth = lab.truth()
    code, out = lab.run(lab.command("--site-set", "dask.cluster=site"), timeout=150)
    assert code == 0, out
    assert "dask_jobqueue:SGECluster submits" in out
    assert lab.manifest()["digest"] == truth
    lab.nothing_left(30)
