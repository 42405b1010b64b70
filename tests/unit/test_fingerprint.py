"""Fingerprints: what changes results changes them, what does not does not, and every process agrees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from executors.canonical import Canonical
from executors.closure import Closure
from executors.fingerprint import Fingerprint, changes, fingerprint

REPOSITORY = Path(__file__).parents[2]

PROJECT = {
    "ana_fp.py": '''
"""An analysis."""
import helper_fp
from pack_fp import tools
CUT = 20

class Processor:
    """Counts."""

    def __init__(self, year="2022", scale=1.0):
        self.year, self.scale = year, scale
        self.weights = {"a", "b", "c", "d"}

    def process(self, events):
        """Count."""
        from pack_fp.sub import late
        return helper_fp.count(events) * CUT

def make(k):
    class Inner:
        def process(self, events):
            return k
    return Inner()

def closed(k):
    def analyse(events):
        return k
    return analyse

named = lambda events: 1
other = lambda events: 2
''',
    "helper_fp.py": "import deep_fp, lonely_fp.inner.mod\ndef count(events):\n    return deep_fp.X\n",
    "deep_fp.py": "X = 1\n",
    "pack_fp/__init__.py": "from . import base\n",
    "pack_fp/base.py": "B = 1\n",
    "pack_fp/tools.py": "from .other import O\n",
    "pack_fp/other.py": "O = 1\n",
    "pack_fp/sub/__init__.py": "",
    "pack_fp/sub/late.py": "from ..lately import L\nimport importlib\n"
    "m = importlib.import_module('dynamic_fp')\n",
    "pack_fp/lately.py": "L = 1\n",
    "pack_fp/unused.py": "U = 1\n",
    "dynamic_fp.py": "D = 1\n",
    "unrelated_fp.py": "Z = 1\n",
    "lonely_fp/__init__.py": "P = 1\n",
    "lonely_fp/inner/__init__.py": "",
    "lonely_fp/inner/mod.py": "M = 1\n",
}

SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import ana_fp
from executors.canonical import Canonical
from executors.closure import Closure
from executors.fingerprint import fingerprint
print(json.dumps(dict(fingerprint({call}).parts)))
"""


def write_project(folder: Path) -> Path:
    for name, text in PROJECT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(tmp_path)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The parts of the project before anything is edited; where it lies makes no difference."""
    return parts(write_project(tmp_path_factory.mktemp("before")))


@pytest.fixture(scope="module")
def main_before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return main(write_project(tmp_path_factory.mktemp("before")))


def run(code: str, folder: Path, stdin: str | None = None, **env: str) -> str:
    """The output of Python code in a process of its own."""
    command = [sys.executable, *(["-c", code] if stdin is None else ["-"]), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", **env}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        cwd=folder,
        input=stdin,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def parts(project: Path, call: str = "ana_fp.Processor()", **env: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(run(SCRIPT.replace("{call}", call), project, **env))
    return found


def edit(project: Path, name: str, old: str, new: str) -> None:
    text = (project / name).read_text()
    assert old in text
    (project / name).write_text(text.replace(old, new))


def test_every_process_agrees(project: Path) -> None:
    call = "ana_fp.Processor(), columns=['b', 'a']"
    first = parts(project, call, PYTHONHASHSEED="1")
    assert first == parts(project, call, PYTHONHASHSEED="2")
    modules = {name.removeprefix("module ") for name in first if name.startswith("module ")}
    assert modules == {
        "ana_fp",
        "helper_fp",
        "deep_fp",
        "dynamic_fp",
        "pack_fp",
        "pack_fp.base",
        "pack_fp.tools",
        "pack_fp.other",
        "pack_fp.sub",
        "pack_fp.sub.late",
        "pack_fp.lately",
        "lonely_fp",
        "lonely_fp.inner",
        "lonely_fp.inner.mod",
    }
    assert first["attribute year"] == "'2022'"
    assert first["Python"] == ".".join(map(str, sys.version_info[:2]))
    assert {"coffea", "awkward", "uproot", "numpy", "hist", "boost-histogram", "vector"} <= first.keys()


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("ana_fp.py", "* CUT", "+ CUT", "module ana_fp changed"),
        ("ana_fp.py", "CUT = 20", "CUT = 21", "module ana_fp changed"),
        ("helper_fp.py", "deep_fp.X", "deep_fp.X + 1", "module helper_fp changed"),
        ("deep_fp.py", "X = 1", "X = 2", "module deep_fp changed"),
        ("pack_fp/__init__.py", "base", "other", "module pack_fp changed"),
        ("pack_fp/base.py", "B = 1", "B = 2", "module pack_fp.base changed"),
        ("pack_fp/other.py", "O = 1", "O = 2", "module pack_fp.other changed"),
        ("pack_fp/sub/__init__.py", "", "S = 1", "module pack_fp.sub changed"),
        ("pack_fp/lately.py", "L = 1", "L = 2", "module pack_fp.lately changed"),
        ("dynamic_fp.py", "D = 1", "D = 2", "module dynamic_fp changed"),
        ("helper_fp.py", "import deep_fp,", "import unrelated_fp, deep_fp,", "module unrelated_fp is new"),
    ],
)
def test_a_change_of_code_is_seen_and_named(
    project: Path, before: dict[str, str], file: str, old: str, new: str, said: str
) -> None:
    edit(project, file, old, new)
    after = parts(project)
    assert said in changes(before, after)
    assert all("module" in text for text in changes(before, after))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("ana_fp.py", "CUT = 20", "# why 20?\n\nCUT  =  20  # because"),
        ("ana_fp.py", '"""Counts."""', '"""Counts events."""'),
        ("ana_fp.py", '"""Count."""', '"""Counts them."""'),
        ("ana_fp.py", '"""An analysis."""\n', "\n\n\n"),
        ("unrelated_fp.py", "Z = 1", "Z = 2"),
        ("pack_fp/unused.py", "U = 1", "U = 2"),
    ],
)
def test_what_changes_no_result_changes_nothing(
    project: Path, before: dict[str, str], file: str, old: str, new: str
) -> None:
    edit(project, file, old, new)
    assert changes(before, parts(project)) == []


def test_moving_the_project_changes_nothing(project: Path, before: dict[str, str]) -> None:
    assert parts(project) == before


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("ana_fp.Processor()", "ana_fp.Processor(year='2023')", ["attribute year '2022' -> '2023'"]),
        ("ana_fp.Processor()", "ana_fp.Processor(scale=1)", ["attribute scale 1.0 -> 1"]),
        ("ana_fp.Processor()", "ana_fp.Processor(scale=[1])", ["attribute scale changed"]),
        ("ana_fp.make(1)", "ana_fp.make(2)", ["class changed"]),
        ("ana_fp.closed(1)", "ana_fp.closed(2)", ["state changed"]),
        ("ana_fp.named", "ana_fp.other", ["state changed"]),
        ("ana_fp.Processor(), schema='A'", "ana_fp.Processor(), schema='B'", ["schema A -> B"]),
        (
            "ana_fp.Processor(), columns=['a']",
            "ana_fp.Processor(), columns=['b']",
            ["declared columns changed"],
        ),
        ("ana_fp.Processor(), columns=['a', 'b']", "ana_fp.Processor(), columns=['b', 'a']", []),
        (
            "ana_fp.Processor(), arguments={'y': 1}",
            "ana_fp.Processor(), arguments={'y': 2}",
            ["argument y 1 -> 2"],
        ),
    ],
)
def test_a_change_of_values_is_seen_and_named(project: Path, one: str, other: str, said: list[str]) -> None:
    assert changes(parts(project, one), parts(project, other)) == said


def test_what_else_is_imported_does_not_count(project: Path) -> None:
    """Who imports Dask has exceptions pickled in another way."""
    alone = parts(project, "ana_fp.Processor(), columns=[ValueError(1)]")
    assert alone != parts(project, "ana_fp.Processor(), columns=[ValueError(2)]")
    beside = "(__import__('distributed'), ana_fp.Processor())[1]"
    assert alone == parts(project, f"{beside}, columns=[ValueError(1)]")


def test_a_partial_has_arguments(project: Path) -> None:
    one, other = (parts(project, f"__import__('functools').partial(ana_fp.closed, k={k})") for k in (1, 2))
    assert changes(one, other) == ["argument k 1 -> 2"]


def test_a_value_from_the_environment_is_seen(project: Path) -> None:
    text = (
        "import os, time\nERA = os.environ.get('ERA_FP', 'x')\nHERE = os.path.dirname(__file__)\nSEEN = 0\n"
    )
    text += "def count(events):\n    global SEEN\n    SEEN += 1\n    return ERA, HERE\n"
    (project / "helper_fp.py").write_text(text)
    one, other = parts(project, ERA_FP="a"), parts(project, ERA_FP="b")
    assert changes(one, other) == ["module helper_fp: the value of ERA changed"]
    assert parts(project, ERA_FP="a") == one


def test_code_edited_after_its_import_is_not_taken_for_the_new_one(project: Path) -> None:
    script = """
import sys, pathlib, json
sys.path.insert(0, sys.argv[1])
import ana_fp, importlib
from executors.canonical import Canonical
from executors.closure import Closure
from executors.fingerprint import fingerprint
out = [fingerprint(ana_fp.Processor())]
path = pathlib.Path(sys.argv[1], "ana_fp.py")
path.write_text(path.read_text().replace("* CUT", "+ CUT"))
out.append(fingerprint(ana_fp.Processor()))
importlib.reload(ana_fp)
out.append(fingerprint(ana_fp.Processor()))
print(json.dumps([[o.digest, o.notes] for o in out]))
"""
    (old, _), (mixed, notes), (new, none) = json.loads(run(script, project))
    assert len({old, mixed, new}) == 3
    assert "module ana_fp was changed after it was imported" in notes[0]
    assert none == []


MAIN = """
import sys
sys.path.insert(0, sys.argv[1])
import helper_fp
from executors.canonical import Canonical
from executors.closure import Closure
from executors.fingerprint import fingerprint
FACTOR = 2
TABLE = {"x": [1, 2]}
def scaled(x):
    "Doc."
    return x * FACTOR
class Base:
    def common(self):
        return TABLE
class P(Base):
    limit = 5
    def __init__(self):
        self.cut = lambda x: x > FACTOR
        self.me = self
    def process(self, events):
        "What it does."
        import pack_fp.tools
        if events in {"aa", "bb", "cc", "dd", "ee"}:
            return None
        return scaled(helper_fp.count(events))
import json
print(json.dumps(dict(fingerprint(P()).parts)))
"""


def main(project: Path, old: str = "", new: str = "", stdin: bool = False) -> dict[str, str]:
    assert old in MAIN
    code = MAIN.replace(old, new) if old else MAIN
    found: dict[str, str] = json.loads(run(code, project, stdin=code if stdin else None))
    return found


def test_code_without_a_file(project: Path) -> None:
    first = main(project)
    assert main(project, stdin=True) == first
    assert (
        json.loads(run(MAIN, project, PYTHONHASHSEED="1"))
        == json.loads(run(MAIN, project, PYTHONHASHSEED="2"))
        == first
    )
    (project / "script_fp.py").write_text("\n\n# moved down\n" + MAIN)
    done = run(
        "import runpy; runpy.run_path('script_fp.py', None, '__main__')",
        project,
    )
    assert json.loads(done) == first
    assert {
        "class P",
        "class Base",
        "function scaled",
        "value FACTOR",
        "value TABLE",
        "module helper_fp",
    } <= first.keys()
    assert {"module deep_fp", "module pack_fp.other"} <= first.keys()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("x * FACTOR", "x + FACTOR", ["function scaled changed"]),
        ("return TABLE", "return TABLE, 1", ["class Base changed"]),
        ("limit = 5", "limit = 6", ["class P changed"]),
        (
            "scaled(helper_fp.count(events))",
            "helper_fp.count(events)",
            ["class P changed", "function scaled is gone"],
        ),
        ("FACTOR = 2", "FACTOR = 3", ["value FACTOR 2 -> 3"]),
        ('"x": [1, 2]', '"x": [1, 3]', ["value TABLE changed"]),
        ("x > FACTOR", "x >= FACTOR", ["class P changed", "attribute cut changed", "attribute me changed"]),
        ('"What it does."', '"What else it does."', []),
        ('"Doc."', '"Docs."', []),
        ("import helper_fp\n", "import helper_fp\n# a comment\n\n", []),
    ],
)
def test_changes_of_code_without_a_file(
    project: Path, main_before: dict[str, str], old: str, new: str, said: list[str]
) -> None:
    assert changes(main_before, main(project, old, new)) == said


def test_a_helper_of_code_without_a_file_is_followed(project: Path, main_before: dict[str, str]) -> None:
    edit(project, "deep_fp.py", "X = 1", "X = 2")
    assert changes(main_before, main(project)) == ["module deep_fp changed"]


def notebook_like(source: str, cell: str) -> Any:
    """A processor from a notebook's cell: its code has a made-up file name, its module is __main__."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, f"/tmp/ipykernel_1/{cell}.py", "exec"), namespace)
    return namespace["P"]()


def test_a_cell_run_again_is_the_same_and_edited_is_not() -> None:
    source = "K = 3\nclass P:\n    def process(self, events):\n        return [K, lambda: K]\n"
    one = fingerprint(notebook_like(source, "111"))
    assert fingerprint(notebook_like("\n" + source, "222")).digest == one.digest
    assert changes(one, fingerprint(notebook_like(source.replace("3", "4"), "333"))) == ["value K 3 -> 4"]
    assert (
        changes(one, fingerprint(notebook_like(source.replace("[K,", "(K,").replace("K]", "K)"), "444")))
        != []
    )


class Holder:
    def __init__(self, value: Any) -> None:
        self.value = value

    def process(self, events: Any) -> Any:
        return {}


CLOSURE = Closure()  # shared: reading the modules that this one imports takes longer than all the rest


def value_part(value: Any) -> str:
    return Canonical(CLOSURE).text(value)


def test_every_kind_of_value_counts() -> None:
    import collections
    import functools
    import re

    import boost_histogram as bh
    import hist
    import numpy as np

    def hists(weight: float, storage: Any) -> Any:
        made = hist.Hist.new.Reg(4, 0, 1, name="x").StrCat([], growth=True, name="c").Weight()
        made.fill(x=[0.1], c="a", weight=weight)
        return made, bh.Histogram(bh.axis.Regular(4, 0, weight), storage=storage)

    structured = np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])
    pairs: list[tuple[Any, Any]] = [
        (1, 2),
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        (None, False),
        ("a", b"a"),
        ("1", 1),
        (10**5000, 10**5000 + 1),
        ([1], (1,)),
        ([1, 2], [2, 1]),
        ({1, 2}, {1, 3}),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        ([], {}),
        ([[1], 2], [1, [2]]),
        (["ab", "c"], ["a", "bc"]),
        (np.arange(3), np.arange(4)),
        (np.arange(3), np.arange(3.0)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.float64(1), np.float32(1)),
        (structured, np.array([(1, 3.0)], dtype=structured.dtype)),
        (np.array([1, "a"], dtype=object), np.array([1, "b"], dtype=object)),
        (np.dtype("f4"), np.dtype("f8")),
        (np.add, np.subtract),
        (np.random.default_rng(1), np.random.default_rng(2)),
        (hists(1, bh.storage.Double()), hists(2, bh.storage.Double())),
        (hists(1, bh.storage.Double())[1], hists(1, bh.storage.Int64())[1]),
        (hist.axis.Regular(4, 0, 1), hist.axis.Regular(4, 0, 1, circular=True)),
        (re.compile("a"), re.compile("a", re.IGNORECASE)),
        (Path("a"), Path("b")),
        (range(3), range(4)),
        (collections.defaultdict(list, a=[1]), collections.defaultdict(list, a=[2])),
        (collections.deque([1]), collections.deque([2])),
        (collections.Counter("a"), collections.Counter("b")),
        (functools.partial(int, base=2), functools.partial(int, base=3)),
        (len, max),
        (int, float),
        (json, sys),
        (lambda x: x, lambda x: -x),
        (lambda x=1: x, lambda x=2: x),
        ("a".upper, "b".upper),
        (str.upper, str.lower),
        (Holder(1), Holder(2)),
        (Holder(1).process, Holder(2).process),
        (slice(1), slice(2)),
        (bytearray(b"a"), bytearray(b"b")),
        (json.dumps, json.loads),
        (Holder, Fingerprint),
        (NotImplemented, Ellipsis),
        (1j, 2j),
    ]
    for one, other in pairs:
        assert value_part(one) != value_part(other), (one, other)
        assert value_part(one) == value_part(one), one
    import copy

    for one, _ in pairs:
        if not callable(one) and one is not json:
            assert value_part(copy.deepcopy(one)) == value_part(one), one


def test_order_of_sets_and_tables_does_not_count_and_sharing_neither() -> None:
    assert value_part({"a": 1, "b": 2}) == value_part({"b": 2, "a": 1})
    shared = [1]
    assert value_part([shared, shared]) == value_part([[1], [1]])
    loop: list[Any] = [1]
    loop.append(loop)
    again: list[Any] = [1]
    again.append(again)
    assert value_part(loop) == value_part(again)


def test_corrections_count() -> None:
    schema = pytest.importorskip("correctionlib.schemav2")
    import correctionlib

    def table(value: float) -> Any:
        output = schema.Variable(name="o", type="real")
        one = schema.Correction(name="c", version=1, inputs=[], output=output, data=value)
        return correctionlib.CorrectionSet(schema.CorrectionSet(schema_version=2, corrections=[one]))

    assert value_part(table(1.0)) == value_part(table(1.0)) != value_part(table(2.0))
    assert value_part(table(1.0)["c"]) == value_part(table(1.0)["c"])


def test_what_cannot_be_counted_is_noted() -> None:
    import threading

    mark = fingerprint(Holder(threading.Lock()))
    assert mark.digest == fingerprint(Holder(threading.Lock())).digest
    assert mark.notes == ("of a _thread.lock only its type and attributes are counted",)
    assert fingerprint(Holder(open(os.devnull))).notes  # noqa: SIM115
    assert fingerprint(Holder(x for x in "a")).notes


def test_deep_nesting_is_an_error_not_a_crash() -> None:
    from executors.errors import UsageError

    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(UsageError, match="nested too deeply"):
        fingerprint(Holder(deep))
    while deep:  # taken apart by hand: freeing it at once would recurse as deep
        deep = deep[0]


def test_secrets_are_not_among_the_parts() -> None:
    class Secret:
        def __init__(self) -> None:
            self.api_token = "canary"
            self.note = "Bearer canary12345"

        def process(self, events: Any) -> Any:
            return {}

    mark = fingerprint(Secret(), arguments={"password": "canary"})
    assert "canary" not in json.dumps(dict(mark.parts))


def test_versions_are_told_in_words() -> None:
    old = {"coffea": "2026.9.0", "Python": "3.11", "module ana": "#1", "scipy": "1"}
    new = {"coffea": "2026.10.0", "Python": "3.12", "module ana": "#2", "module new": "#3"}
    assert changes(old, new) == [
        "module ana changed",
        "module new is new",
        "Python 3.11 -> 3.12",
        "coffea 2026.9.0 -> 2026.10.0",
        "scipy is gone",
    ]
    assert changes(old, old) == []


def test_imported_libraries_are_counted_by_version(project: Path) -> None:
    edit(project, "deep_fp.py", "X = 1", "import psutil, yaml.nodes\nX = 1")
    found = parts(project)
    assert {"psutil", "PyYAML"} <= found.keys()
    assert not any(name.startswith("module psutil") for name in found)


def test_it_is_quick_and_imports_no_coffea(project: Path) -> None:
    script = SCRIPT.replace("{call}", "ana_fp.Processor()")
    script += "heavy = {'coffea', 'numpy', 'uproot', 'hist', 'dask'}\n"
    script += "print('heavy:', sorted({m.split('.')[0] for m in sys.modules} & heavy))"
    assert run(script, project).splitlines()[-1] == "heavy: []"
