"""Mutated command lines, configuration and filesets: a clear error at once or success, never a traceback.

Every case is made from its number alone, so that a failure can be run again by itself.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

import runner
from executors import selection
from executors.errors import ExecutorsError, UsageError
from executors.fileset import read_fileset
from executors.options import ENVIRONMENT, options
from executors.work.report import Outcome

REPOSITORY = Path(__file__).parents[2]
CASES = 1000
AT_MOST = 1.0  # seconds a case

FILESET: dict[str, Any] = {
    "dy": ["/nope/a.root", "/nope/b.root:Events", "root://host.cern.ch:1094//store/c.root"],
    "ttbar": {
        "files": {
            "/nope/d.root": "Events",
            "/nope/e.root": {
                "object_path": "Events",
                "steps": [[0, 10], [10, 25]],
                "num_entries": 25,
                "uuid": "12345678-1234-1234-1234-123456789abc",
            },
        },
        "metadata": {"xsec": 1.5, "is_mc": True, "tags": ["a", {"b": None}]},
        "treename": "Events",
    },
    "single": {"files": "/nope/f.root", "metadata": {}},
}
YAML = """# a fileset
dy: &dy
  - /nope/a.root
  - "/nope/b.root:Events"
ttbar:
  files:
    /nope/d.root: Events
    /nope/e.root: {object_path: Events, steps: [[0, 10], [10, 25]], num_entries: 25}
  metadata: &meta {xsec: 1.5, is_mc: yes, era: '2022'}
  treename: Events
other:
  files: *dy
  metadata: {<<: *meta, more: 1e3}
"""
TOML = """wf = "dimuon"
json = "set.json"
executor = "futures"
workers = 4
chunk = 100_000
only = ["dy", "0"]
index = [0, 1, 2, 3]
outputdir = "out"
retries = 3
chunk_timeout = 12.5
skipbadfiles = false
log_level = "info"
columns = ["Muon_*"]
[wf_arg]
year = "2022"
cut = 20.0
list = [1, 2]
"""
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    10**30,
    -(10**30),
    1e308,
    "",
    " ",
    "\n",
    "\x00",
    "\x1b[31m",
    "é𝕏",
    "\u202e",
    "a" * 5000,
    "../../../etc/passwd",
    "~",
    "~nobody/x",
    "$HOME",
    "`id`",
    "$(id)",
    ";id",
    "*",
    "[",
    "file://",
    "file:",
    "root://",
    "x://y",
    "root://h//" + "a/" * 500,
    "http://[::1",
    "http://h:99999999/x",
    ".root:",
    "a.root:Events;1",
    "@",
    "-",
    "--",
    "%s",
    "{}",
    "nan",
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"files": None},
    {"files": []},
    {"files": {"x": []}},
    {"a": {"b": {"c": {}}}},
    {"steps": [[0]]},
    {"object_path": 1},
    [0, 0],
    [[5, 1]],
    {"dataset": 1},
    "9" * 5000,
    "\ud800",
)
TOKENS = (
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"',
    "'",
    "\\",
    "&",
    "*",
    "!!python/object:os.system",
    "<<",
    "#",
    "\t",
    "\n",
    "NaN",
    "Infinity",
    "1e999",
    "\\ud800",
    "\\u0000",
    "=",
    "true",
    "\ufeff",
    "- ",
    "? ",
    "---",
    "...",
    "!!binary x",
    "|",
    ">",
    "2022-13-45",
    "0x",
    "1_0",
    "0o8",
    "1979-05-27T07:32:00Z",
    "inf",
    '"""',
)


def mutated_text(rng: random.Random, text: str) -> bytes:
    """The text after a few edits such as people, editors and disks make."""
    raw = bytearray(text.encode())
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(raw) + 1)
        end = min(len(raw), at + rng.choice((1, 1, 2, 5, 40)))
        kind = rng.randrange(7)
        if kind == 0:
            del raw[at:end]
        elif kind == 1:
            raw[at:at] = rng.choice(TOKENS).encode()
        elif kind == 2 and raw:
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        elif kind == 3:
            raw[at:at] = raw[at:end] * rng.choice((1, 2, 50))
        elif kind == 4:
            del raw[at:]
        elif kind == 5:
            raw[at:end] = bytes(rng.randrange(256) for _ in range(end - at))
        else:
            other = rng.randrange(len(raw) + 1)
            raw[other:other] = raw[at:end]
    return bytes(raw)


def mutated_value(rng: random.Random, value: Any, chance: float = 0.08) -> Any:
    """The structure with hostile values in some places."""
    if rng.random() < chance:
        return rng.choice(HOSTILE)
    if isinstance(value, dict):
        return {
            hashable(rng.choice(HOSTILE)) if rng.random() < chance / 2 else key: mutated_value(
                rng, item, chance
            )
            for key, item in value.items()
            if rng.random() > chance / 4
        }
    if isinstance(value, list):
        return [
            mutated_value(rng, item, chance) for item in value for _ in range(1 + (rng.random() < chance / 4))
        ]
    return value


def hashable(value: Any) -> Any:
    return value if not isinstance(value, dict | list) else str(value)


def with_text_keys(value: Any) -> Any:
    """The structure as JSON can hold it."""
    if isinstance(value, dict):
        return {str(hashable(k)): with_text_keys(v) for k, v in value.items()}
    return [with_text_keys(item) for item in value] if isinstance(value, list) else value


def mutated_argv(rng: random.Random) -> list[str]:
    words = ["--wf", "dimuon", "--json", "set.json"]
    for each in rng.sample(options(), rng.randrange(6)):
        flag = rng.choice(each.flags)
        flag = (
            flag
            if rng.random() > 0.1
            else flag[: rng.randrange(1, len(flag) + 1)] + rng.choice(("", "x", "-", "="))
        )
        value = rng.choice(
            ("3", "0", "-1", "x", "a=b", "0,1", "2.5", *(h for h in HOSTILE if isinstance(h, str)))
        )
        words += [flag] if each.switch else [f"{flag}={value}"] if rng.random() < 0.5 else [flag, value]
    for _ in range(rng.choice((0, 0, 1, 2))):
        words.insert(rng.randrange(len(words) + 1), str(rng.choice(HOSTILE)))
    if rng.random() < 0.2:
        del words[rng.randrange(len(words))]
    # These would look outside, wait for a person, or fill the screen.
    return ["x" if word in ("-", "--json=-", "-h", "--help") else word for word in words]


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with good files, and a run that reads its input and stops there."""

    def execute(settings: Any, **_: Any) -> Outcome:
        read = read_fileset(settings.json)
        selection.limit(selection.only(read, settings.only), settings.limit)
        return Outcome()

    module = types.ModuleType("executors.running")
    for name in ("execute", "plan_only", "profile_memory"):
        setattr(module, name, execute)
    for name in ("merge_dirs", "status", "inspect"):
        setattr(module, name, lambda *_, **__: Outcome())
    monkeypatch.setitem(sys.modules, "executors.running", module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "set.json").write_text(json.dumps(FILESET))
    (tmp_path / "set.yaml").write_text(YAML)
    (tmp_path / "run.toml").write_text(TOML)
    return tmp_path


def command(argv: list[str]) -> tuple[int, str, float]:
    """Exit code, what was said, and seconds of CPU (others use the box as well)."""
    out, err = io.StringIO(), io.StringIO()
    began = time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = runner.main(argv)
    return code, out.getvalue() + err.getvalue(), time.process_time() - began


def check(case: int, argv: list[str]) -> int:
    code, said, seconds = command(argv)
    assert code in (0, 2), (case, argv, said)
    assert "Traceback" not in said, (case, argv, said)
    assert (code == 2) == ("runner.py: error: " in said), (case, argv, said)
    assert all(char == "\n" or char.isprintable() for char in said), (case, argv, said)
    assert len(said) < 20_000, (case, argv)
    assert seconds < AT_MOST, (case, argv, seconds)
    return code


def test_what_is_mutated_is_good_to_begin_with(reading: Path) -> None:
    assert check(0, ["--wf", "w", "--json", "set.json"]) == 0
    assert check(0, ["--wf", "w", "--json", "set.yaml"]) == 0
    assert check(0, ["--config", "run.toml"]) == 0


@pytest.mark.parametrize("kind", ["set.json", "set.yaml"])
def test_mutated_text_of_filesets(reading: Path, kind: str) -> None:
    codes = []
    good = (reading / kind).read_text()
    for case in range(CASES // 2):
        (reading / kind).write_bytes(mutated_text(random.Random(f"{kind}{case}"), good))
        codes.append(check(case, ["--wf", "w", "--json", kind]))
    assert 0 < codes.count(0) < len(codes)


def test_mutated_values_of_filesets(reading: Path) -> None:
    codes = []
    for case in range(CASES):
        value = with_text_keys(mutated_value(random.Random(case), FILESET))
        (reading / "set.json").write_text(json.dumps(value))
        codes.append(check(case, ["--wf", "w", "--json", "set.json", "--limit", "1"]))
    assert 0 < codes.count(0) < len(codes)


def test_mutated_python_objects(reading: Path) -> None:
    outcomes = set()
    for case in range(CASES):
        rng = random.Random(case)
        value = mutated_value(
            rng,
            {k: (tuple(v) if isinstance(v, list) else v) for k, v in FILESET.items()}
            if case % 2
            else FILESET,
        )
        began = time.process_time()
        try:
            read = read_fileset(
                {hashable(k): v for k, v in value.items()} if isinstance(value, dict) else [value]
            )
            json.dumps([dict(d.metadata) for d in read.datasets])
            outcomes.add("read")
        except UsageError:
            outcomes.add("refused")
        assert time.process_time() - began < AT_MOST, case
    assert outcomes == {"read", "refused"}


def test_mutated_configuration(reading: Path) -> None:
    codes = []
    for case in range(CASES):
        (reading / "run.toml").write_bytes(mutated_text(random.Random(case), TOML))
        codes.append(check(case, ["--config", "run.toml", "--show-config"]))
    assert 0 < codes.count(0) < len(codes)


def test_mutated_command_lines(reading: Path) -> None:
    codes = [check(case, mutated_argv(random.Random(case))) for case in range(CASES)]
    assert 0 < codes.count(0) < len(codes)


def test_mutated_environment(reading: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [each.variable for each in options()]
    codes = []
    for case in range(CASES // 4):
        rng = random.Random(case)
        name = (
            rng.choice(names)
            if rng.random() < 0.9
            else ENVIRONMENT + rng.choice(("X", "CHUNKS", "_OURS", "é"))
        )
        value = str(
            rng.choice([h for h in HOSTILE if not isinstance(h, str) or ("\x00" not in h and h != "\ud800")])
        )
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            codes.append(check(case, ["--wf", "w", "--json", "set.json"]))
    assert 0 < codes.count(0) < len(codes)


def test_arguments_of_a_workflow(reading: Path) -> None:
    from executors.values import Spelled
    from executors.workflow import make_processor

    class Flow:
        def __init__(
            self,
            a: int = 1,
            b: list[float] | None = None,
            c: str = "",
            d: dict[str, int] | None = None,
            e: Any = 0,
        ):
            self.got = (a, b, c, d, e)

        def process(self, events: Any) -> Any:
            return {}

    for case in range(CASES):
        rng = random.Random(case)
        names = rng.sample(["a", "b", "c", "d", "e", "f", "process", "self", ""], rng.randrange(4))
        given = {n: Spelled(h) if isinstance(h := rng.choice(HOSTILE), str) else h for n in names}
        with contextlib.suppress(ExecutorsError):
            make_processor(Flow, given, "flow")


@pytest.mark.parametrize("case", range(6))
def test_mutations_through_the_real_command(tmp_path: Path, case: int) -> None:
    rng = random.Random(f"real{case}")
    local = {"dy": FILESET["dy"][:2], **{name: FILESET[name] for name in ("ttbar", "single")}}
    good = json.dumps(local)
    (tmp_path / "set.json").write_bytes(mutated_text(rng, good) if case % 3 == 0 else good.encode())
    flow = "class P:\n    def process(self, events):\n        return {}\n"
    (tmp_path / "flow.py").write_bytes(mutated_text(rng, flow) if case % 3 == 1 else flow.encode())
    (tmp_path / "run.toml").write_bytes(mutated_text(rng, TOML) if case % 3 == 2 else b"retries = 0\n")
    argv = ["plan", "--config", "run.toml", "--wf", "flow.py:P", "--json", "set.json"]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "runner.py"), *argv],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
        check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert done.returncode in (0, 2, 3), done.stderr
    assert "Traceback" not in done.stderr + done.stdout
