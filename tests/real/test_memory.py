"""Jobs at real batch systems with chunks that need more memory than a job has: one culprit, and the run is exact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from real.lab import accounted

GREEDY = Path(__file__).parents[1] / "greedy.py"
PLACES = [("slurm", "dask"), ("slurm", "parsl"), ("condor", "dask"), ("condor", "parsl")]
pytestmark = [
    pytest.mark.parametrize("lab", PLACES, indirect=True, ids=lambda place: f"{place[1]}/{place[0]}"),
    pytest.mark.timeout(600),
]
MB = 1 << 20


def site_with(lab, **limits):
    """The site of the lab, and what else it says about memory; its name stays."""
    text = lab.site_file.read_text()
    words = "".join(f"{key} = {value}\n" for key, value in limits.items())
    path = lab.folder / lab.site_file.name
    path.write_text(
        text.replace("[limits]\n", f"[limits]\n{words}")
        if "[limits]" in text
        else f"{text}\n[limits]\n{words}"
    )
    lab.site_file = lab.own(path)


def rows(lab, event):
    path = lab.rundir(wf="make") / "journal.jsonl"
    found = [json.loads(line.partition(" ")[2]) for line in path.read_text().splitlines()]
    return [row for row in found if row["event"] == event]


def greedy(lab, *more, spike, entries=4000, seconds=0.02, **place):
    """The command of a run in which a chunk takes so many bytes an event more."""
    words = [f"per_event={5000}", f"seconds={seconds}", f"spike={json.dumps(spike)}"]
    command = lab.command(*[word for one in words for word in ("--wf-arg", one)], *more, **place)
    command[command.index("--wf") + 1] = f"{GREEDY}:make"
    command[command.index("--chunk") + 1] = str(entries)
    return command


@pytest.mark.quick_at(("slurm", "dask"), ("condor", "parsl"))
@pytest.mark.parametrize("chunks", [100, pytest.param(500, marks=pytest.mark.full)])
def test_only_the_culprit_is_blamed(lab, chunks):
    """Several workers in a job: the pilot ends the one that is over its share, before the batch system ends all."""
    lab.data(dy=[80_000] * (chunks // 20))
    memory = 1700 * MB  # of a job; each of two workers has some 560 to 800 of that
    spike = {"*@2000": 1500 * MB // 4000}  # too much for one half, not for a quarter
    command = greedy(lab, "--memory", f"{memory}B", spike=spike, workers=2)
    code, out = lab.run(command, timeout=500)
    assert code == 0, out
    accounted(lab.manifest(wf="make"), chunks * 4000)
    failures = rows(lab, "failure")
    assert {(one["kind"], one["action"]) for one in failures} == {("memory", "split")}, failures
    # The chunk with the spike, twice at the most, and nobody who worked beside it.
    nodes = [tuple(one["node"]) for one in failures]
    assert {(node[1], node[3]) for node in nodes} == {(file, 0) for file in range(chunks // 20)}
    assert all(nodes.count(node) <= 2 for node in nodes)
    assert "ended" not in out, "no job was ended"
    truth = greedy(lab, "--memory", "8GB", spike=spike, out="truth", on="iterative")
    code, out = lab.run(truth)
    assert code == 0, out
    assert lab.manifest(wf="make")["digest"] == lab.manifest("truth", "make")["digest"]
    lab.nothing_left(30)


@pytest.mark.quick_at(("condor", "dask"))
def test_the_next_jobs_ask_for_more(lab):
    """Workers over their share, in a job that is lost later: the one that takes its place asks for more."""
    site_with(lab, memory='"3GB"')
    lab.data(dy=[32_000])
    # Two chunks that fit into no job of the first size, until they are halved.
    command = greedy(lab, "--memory", "900MB", spike={"*%16000": 1000 * MB // 4000}, seconds=1.0, jobs=1)
    process = lab.start(command)
    lab.until(lambda: lab.journal("failure", wf="make") >= 2, process, within=180)
    for job in lab.batch.running():
        lab.batch.take_away(job, lab.batch.ways[0])
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert "jobs ask for 1.35 GB now: 2 ended for memory with 0.9 GB" in out, out
    accounted(lab.manifest(wf="make"), 32_000)
    lab.nothing_left(30)


@pytest.mark.full
@pytest.mark.at("condor")  # it ends a job by a rule of its own
def test_the_batch_system_is_quicker(lab):
    """The whole job is held before a worker is over its share: who was largest is to blame, and more is asked for."""
    site_with(lab, memory='"6GB"')
    lab.data(dy=[32_000])
    rule = [
        "--directive",
        "periodic_hold=MemoryUsage > 0.4 * RequestMemory",
        "--directive",
        "periodic_hold_subcode=34",
    ]
    spike = {"*@2000": 900 * MB // 4000}
    command = greedy(lab, "--memory", "2900MB", *rule, spike=spike, seconds=8.0, jobs=1, workers=2)
    code, out = lab.run(command, timeout=400)
    assert code == 0, out
    assert "jobs ask for 4.35 GB now: 1 ended for memory" in out, out
    accounted(lab.manifest(wf="make"), 32_000)
    if lab.engine == "dask":
        assert {tuple(one["node"])[3] for one in rows(lab, "failure")} == {0}, rows(lab, "failure")
    lab.nothing_left(30)
