"""Workflows: every way to name one, what is made of it, and mistakes found before anything starts."""

from __future__ import annotations

import functools
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from executors import sources
from executors.errors import UnknownNameError, UsageError
from executors.values import Spelled
from executors.workflow import from_object, load_workflow, slug

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]

ANA = """
from __future__ import annotations
import enum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Optional
if TYPE_CHECKING:
    from nowhere import Unknown

class Era(enum.Enum):
    EARLY = "early"
    LATE = "late"

class Processor:
    def __init__(self, year: str, cut: float = 20, n: int = 1, flag=False, mode: Literal["a", "b"] = "a",
                 names: Optional[list[str]] = None, era: Era = Era.EARLY, where: Path = Path("x"), ratio=0.5,
                 free=None):
        self.got = dict(year=year, cut=cut, n=n, flag=flag, mode=mode, names=names, era=era, where=where,
                        ratio=ratio, free=free)
    def process(self, events):
        return {}

class Open:
    def __init__(self, **options):
        self.options = options
    def process(self, events):
        return {}

class Half:
    def __init__(self, other: Unknown = None, n: int = 1):
        self.n = n
    def process(self, events):
        return {}

class Abstract:
    def __init__(self):
        raise ValueError("no such table")
    def process(self, events):
        return {}

class NotOne:
    pass

instance = Processor("2018")
value = 3

def analyse(events): return {}
def cutting(events, cut=20): return {}
def reweighted(table, events): return {}
def make(year: str) -> Processor: return Processor(year)
def build(): return Processor("2016")
def wrong(): return 3
def maker(settings) -> Processor: return Processor("2016")
def named(*, year): return Processor(year)
def lots(*args): return {}
two = lambda a, b: {}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "ana_wf.py").write_text(ANA)
    monkeypatch.chdir(tmp_path)
    before, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = before
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def args(**values: str) -> dict[str, Any]:
    return {key: Spelled(value) for key, value in values.items()}


def test_arguments_take_the_types_of_the_signature(project: Path) -> None:
    found = load_workflow(
        "ana_wf:Processor",
        args(
            year="2022",
            cut="30",
            n="2",
            flag="yes",
            mode="b",
            names="x,y",
            era="late",
            where="/d",
            ratio="1",
            free="[1]",
        ),
    )
    got = found.processor.got
    assert got.pop("era").value == "late"
    assert got == {
        "year": "2022",
        "cut": 30.0,
        "n": 2,
        "flag": True,
        "mode": "b",
        "names": ["x", "y"],
        "where": Path("/d"),
        "ratio": 1.0,
        "free": [1],
    }
    assert found.name == "Processor"
    assert found.origin == str(project / "ana_wf.py")
    assert type(found.arguments["year"]) is str


def test_values_of_a_file_are_checked_not_read(project: Path) -> None:
    assert load_workflow("ana_wf:Processor", {"year": "2022", "free": "3"}).processor.got["free"] == "3"
    assert load_workflow("ana_wf:Processor", {"year": 2022, "cut": 3}).processor.got["year"] == "2022"
    with pytest.raises(UsageError, match="--wf-arg n=3: expected a whole number"):
        load_workflow("ana_wf:Processor", {"year": "2022", "n": "3"})


@pytest.mark.parametrize(
    ("spec", "given", "message"),
    [
        ("ana_wf:Processor", {}, "missing argument year: add --wf-arg year="),
        (
            "ana_wf:Processor",
            {"year": "1", "cutt": "3"},
            "unknown argument of ana_wf:Processor 'cutt': did you mean 'cut'",
        ),
        ("ana_wf:Processor", {"year": "1", "cut": "x"}, "--wf-arg cut=x: expected a number"),
        ("ana_wf:Processor", {"year": "1", "n": "1.5"}, "--wf-arg n=1.5: expected a whole number"),
        ("ana_wf:Processor", {"year": "1", "flag": "x"}, "--wf-arg flag=x: expected true or false"),
        ("ana_wf:Processor", {"year": "1", "mode": "c"}, "--wf-arg mode=c: expected one of a, b"),
        ("ana_wf:Processor", {"year": "1", "era": "x"}, "expected one of EARLY, LATE"),
        ("ana_wf:Half", {"n": "x"}, "expected a whole number"),
        ("ana_wf:Abstract", {}, "ana_wf:Abstract could not be made: ValueError: no such table"),
        ("ana_wf:NotOne", {}, "a class without a method process(events)"),
        ("ana_wf:value", {}, "is a int, neither a processor nor a function"),
        ("ana_wf:instance", {"year": "1"}, "already made; it takes no --wf-arg"),
        ("ana_wf:make", {}, "missing argument year"),
        ("ana_wf:maker", {}, "missing argument settings"),
        ("ana_wf:named", {}, "missing argument year"),
        ("ana_wf:two", {}, "missing arguments a, b"),
        ("ana_wf:wrong", {}, "made a int, not a processor"),
        ("ana_wf:cutting", {"cot": "1"}, "did you mean 'cut'"),
        ("ana_wf:Procesor", {}, "did you mean 'Processor'"),
        ("ana_wf:instance.gone", {}, "unknown object in"),
        ("ana_wf:", {}, "names no object in it: write ana_wf::Processor"),
        ("ana_wf.py", {}, "write ana_wf.py:Processor"),
        ("ana_wf", {}, "for the file write ana_wf.py:object"),
        ("anna_wf:Processor", {}, "unknown module 'anna_wf': did you mean 'ana_wf'"),
        ("ana_wf.sub:Processor", {}, "cannot import ana_wf.sub"),
        ("anna_wf.py:Processor", {}, "did you mean 'ana_wf.py'"),
        ("no/such/ana.py:P", {}, "unknown workflow file"),
        ("", {}, "no workflow is named"),
        ("dimuo", {}, "did you mean 'dimuon'"),
        ("a b:c", {}, "is not the name of a module"),
        (":c", {}, "is not the name of a module"),
    ],
)
def test_mistakes_are_found_before_the_run(
    project: Path, spec: str, given: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        load_workflow(spec, args(**given))
    assert caught.value.exit_code == 2


def test_functions_of_the_events_and_functions_that_make(project: Path) -> None:
    plain = load_workflow("ana_wf:analyse")
    assert plain.processor.__name__ == "analyse"
    cutting = load_workflow("ana_wf:cutting", args(cut="30"))
    assert isinstance(cutting.processor, functools.partial)
    assert cutting.processor.keywords == {"cut": 30}
    assert cutting.processor("events") == {}
    with pytest.raises(UsageError, match="the events must be its first parameter, before table"):
        load_workflow("ana_wf:reweighted", args(table="x"))
    assert load_workflow("ana_wf:make", args(year="2017")).processor.got["year"] == "2017"
    assert load_workflow("ana_wf:build").processor.got["year"] == "2016"
    assert (
        load_workflow("ana_wf:named", args(year="2017")).processor.got["year"] == 2017
    )  # nothing is declared
    assert load_workflow("ana_wf:instance").processor.got["year"] == "2018"
    assert load_workflow("ana_wf:Open", args(a="1", b="x")).processor.options == {"a": 1, "b": "x"}
    assert load_workflow("ana_wf:Half", args(n="2")).processor.n == 2


def test_a_file_is_loaded_like_the_module_it_is(project: Path) -> None:
    found = load_workflow("./ana_wf.py:Processor", args(year="1"))
    assert type(found.processor).__module__ == "ana_wf"
    assert load_workflow(f"{project}/ana_wf.py:Processor", args(year="1")).origin == found.origin


def test_a_file_in_a_package_keeps_its_relative_imports(project: Path) -> None:
    package = project / "lib" / "pack" / "sub"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package.parent / "common.py").write_text("X = 7\n")
    (package / "flow.py").write_text("from ..common import X\ndef analyse(events): return X\n")
    found = load_workflow("lib/pack/sub/flow.py:analyse")
    assert found.processor.__module__ == "pack.sub.flow"
    assert found.processor(None) == 7


@pytest.mark.parametrize("name", ["my-analysis.py", "json.py", "2022.py"])
def test_a_file_whose_name_is_no_free_module_travels_by_value(project: Path, name: str) -> None:
    import cloudpickle

    (project / "own").mkdir()
    (project / "own" / name).write_text("Y = 5\nclass P:\n    def process(self, events): return Y\n")
    found = load_workflow(f"own/{name}:P")
    assert found.processor.process(None) == 5
    payload = project / "payload"
    payload.write_bytes(cloudpickle.dumps(found.processor))
    script = "import pickle, sys; print(pickle.loads(open(sys.argv[1], 'rb').read()).process(None))"
    done = subprocess.run(
        [sys.executable, "-c", script, payload],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        check=False,
    )
    assert done.stdout.strip() == "5", done.stderr


def test_siblings_are_found_and_pythons_own_modules_not_hidden(project: Path) -> None:
    folder = project / "elsewhere"
    folder.mkdir()
    (folder / "sibling_of_flow.py").write_text("X = 3\n")
    (folder / "queue.py").write_text("raise RuntimeError('not this one')\n")
    (folder / "flow_of_siblings.py").write_text(
        "import sibling_of_flow\ndef analyse(events): return sibling_of_flow.X\n"
    )
    assert load_workflow("elsewhere/flow_of_siblings.py:analyse").processor(None) == 3
    assert sys.path.index(str(folder)) > 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def f(:\n", "SyntaxError"),
        ("import does_not_exist_xyz\n", "ModuleNotFoundError: No module named 'does_not_exist_xyz'"),
        ("def inner():\n    return 1 / 0\ninner()\n", "ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(0)\n", "SystemExit"),
        ("class Odd(Exception):\n    pass\nraise Odd('x')\n", "Odd: x"),
    ],
)
def test_a_module_that_does_not_import_shows_the_users_lines(project: Path, body: str, message: str) -> None:
    (project / "broken_wf.py").write_text("# a comment\n" + body)
    for spec in ("broken_wf:P", "broken_wf.py:P"):
        with pytest.raises(UsageError, match=re.escape(message)) as caught:
            load_workflow(spec)
        text = str(caught.value)
        assert "broken_wf.py:" in text
        assert "importlib" not in text
        assert "sources.py" not in text
    if "inner" in body:
        assert "in inner: return 1 / 0" in text
        assert text.index("in <module>") < text.index("in inner")


def test_what_a_module_does_to_signals_is_undone(project: Path) -> None:
    """Importing dask-jobqueue is enough to make Ctrl-C a ``sys.exit()``: the end of a run, without a word."""
    (project / "handler_wf.py").write_text(
        "import signal\nfor number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):\n"
        "    signal.signal(number, lambda *_: exit())\ndef analyse(events): return {}\n"
    )
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    assert callable(load_workflow("handler_wf.py:analyse").processor)
    assert [signal.getsignal(number) for number in numbers] == before
    (project / "late_wf.py").write_text(
        "import signal\nsignal.signal(signal.SIGINT, lambda *_: exit())\nsignal.raise_signal(signal.SIGINT)\n"
    )
    with pytest.raises(KeyboardInterrupt):
        load_workflow("late_wf.py:analyse")
    assert [signal.getsignal(number) for number in numbers] == before


def test_an_import_that_fails_leaves_nothing_behind(project: Path) -> None:
    (project / "twice-wf.py").write_text("raise ValueError\n")
    with pytest.raises(UsageError):
        load_workflow("twice-wf.py:P")
    (project / "twice-wf.py").write_text("def analyse(events): return {}\n")
    assert callable(load_workflow("twice-wf.py:analyse").processor)


def test_registered_workflows_are_known_without_an_installation() -> None:
    known = sources.registered()
    assert known["dimuon"] == "configs.dimuon:DimuonProcessor"
    assert list(known) == sorted(known)


def test_a_registered_name_is_the_name(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "registered", lambda: {"mine": "ana_wf:build"})
    found = load_workflow("mine")
    assert (found.name, found.processor.got["year"]) == ("mine", "2016")
    with pytest.raises(UnknownNameError, match="mine"):
        load_workflow("mina")


def test_objects_from_python(project: Path) -> None:
    class Own:
        def process(self, events: Any) -> dict[str, Any]:
            return {}

    def analyse(events: Any) -> dict[str, Any]:
        return {}

    assert from_object(Own()).name == "Own"
    assert isinstance(from_object(Own).processor, Own)
    assert from_object(analyse).name == "analyse"
    assert from_object(functools.partial(analyse)).name == "analyse"
    assert from_object(lambda events: {}).name == "lambda"
    assert from_object(Own(), "my name").name == "my_name"
    assert from_object("ana_wf:build").processor.got["year"] == "2016"
    assert from_object(from_object(Own())).name == "Own"
    assert from_object(len).name == "len"
    for wrong in (3, None, dict, lambda a, b: {}, {"x": 1}):
        with pytest.raises(UsageError):
            from_object(wrong)


def test_slugs_stand_in_any_file_name() -> None:
    assert slug("a/b c:é..x") == "a_b_c_..x"
    assert slug("../../etc") == "_.._etc"
    assert slug("") == slug("é") == "_"
    assert slug("-x") == "x"
    assert len(slug("x" * 500)) == 80
    for text in ("a", "a-b_c.1", "dimuon"):
        assert slug(text) == text


def test_it_imports_nothing_heavy() -> None:
    script = textwrap.dedent("""
        import sys
        from executors.workflow import load_workflow
        try:
            load_workflow("nope")
        except Exception:
            pass
        heavy = {"numpy", "coffea", "uproot", "dask", "parsl", "hist", "rich"}
        print(sorted({m.split(".")[0] for m in sys.modules} & heavy))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stderr
