"""Whether the site can be used is asked while the workflow is imported; what it says counts as before."""

from __future__ import annotations

import threading

import pytest
from data import make_fileset

from executors import ahead, running, workflow
from executors.errors import ExecutorsError, SiteError, UsageError
from executors.settings import resolve
from sites.checks import Check

WAIT = 30.0
WARNING = Check("space", None, "only little is free", "remove something")


class Site:
    """A preflight that notes where it was asked about, and answers what it was told to."""

    def __init__(self, monkeypatch, *answers):
        self.answers, self.asked, self.begun, self.go = (
            list(answers),
            [],
            threading.Event(),
            threading.Event(),
        )
        self.go.set()
        monkeypatch.setattr(ahead, "before_run", self)

    def __call__(self, spot, folder, *, insecure):
        self.asked.append(folder)
        self.begun.set()
        assert self.go.wait(WAIT)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Stopped(ExecutorsError):
    """Raised where work would begin."""


class Said:
    def __init__(self):
        self.messages = []

    def message(self, level, text):
        self.messages.append((level, text))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run up to the moment when the directory would be locked."""

    def locked(*_args, **_more):
        raise Stopped("here work would begin")

    monkeypatch.setattr(running.lock, "hold", locked)
    said = Said()

    def go(load, executor="dask/slurm", **options):
        monkeypatch.setattr(workflow, "load_workflow", load)
        fileset = make_fileset(tmp_path, {"a": [10]})
        options = {"wf": "any", "json": "none", "executor": executor, "outputdir": tmp_path, **options}
        running.execute(resolve(**options).settings, observer=said, fileset=fileset)

    go.said = said
    return go


def loaded(*_):
    return workflow.Workflow("Any", lambda events: {"n": len(events)}, "here", {})


def test_it_is_asked_during_the_import(run, monkeypatch):
    site = Site(monkeypatch, [WARNING])
    site.go.clear()

    def load(*_):
        assert site.begun.wait(WAIT), "nobody asks while the workflow is imported"
        site.go.set()
        return loaded()

    with pytest.raises(Stopped):
        run(load)
    assert len(site.asked) == 1
    assert ("warning", "space: only little is free → remove something") in run.said.messages


def test_a_refusal_is_asked_for_again(run, monkeypatch, tmp_path):
    """What the workflow sets on import may mend it, and only then the folder is known."""
    site = Site(monkeypatch, SiteError("no credential"), [])
    with pytest.raises(Stopped):
        run(loaded)
    assert site.asked[0] == tmp_path
    assert site.asked[1].parent == tmp_path
    assert site.asked[1].name.startswith("hist_Any")


def test_a_refusal_that_stays(run, monkeypatch, tmp_path):
    Site(monkeypatch, SiteError("no credential"), SiteError("no credential at all"))
    with pytest.raises(SiteError, match="at all"):
        run(loaded)
    assert not list(tmp_path.glob("hist_*"))


def test_an_error_of_use_does_not_wait(run, monkeypatch):
    site = Site(monkeypatch, [])
    site.go.clear()  # the batch system hangs

    def load(*_):
        assert site.begun.wait(WAIT)
        raise UsageError("no such workflow")

    with pytest.raises(UsageError, match="no such workflow"):
        run(load)
    site.go.set()


@pytest.mark.parametrize("options", [{"executor": "dask/local"}, {"check": False}], ids=str)
def test_nobody_is_asked(run, monkeypatch, options):
    site = Site(monkeypatch)
    with pytest.raises(Stopped):
        run(loaded, **options)
    assert site.asked == []
