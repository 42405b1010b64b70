"""Names resolve to engines and sites, lazily; every mistake is an error that says what is wrong."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from executors import registry
from executors.engines.base import Capabilities
from executors.errors import EngineError, UnknownNameError, UsageError


class Good:
    """A good engine."""

    name = "good"
    capabilities = Capabilities()

    def open(self, site, want):
        raise NotImplementedError


class Without:
    name = "without"
    capabilities = Capabilities()


class Wrong:
    name = "wrong"
    capabilities = "remote"

    def open(self, site, want):
        raise NotImplementedError


instance = Good()


@pytest.fixture
def others(monkeypatch):
    def register(**targets):
        points = [EntryPoint(name, target, registry.GROUP) for name, target in targets.items()]
        monkeypatch.setattr(registry, "entry_points", lambda group: points)

    sys.modules["registry_test_module"] = sys.modules[__name__]
    yield register
    del sys.modules["registry_test_module"]


def test_the_table_is_sorted_and_read_only():
    assert list(registry.ENGINES) == sorted(registry.ENGINES)
    assert all(":" in target for target in registry.ENGINES.values())
    with pytest.raises(TypeError):
        registry.ENGINES["mine"] = "x:y"


def test_names():
    found = registry.names()
    assert found == sorted(found)
    assert {"dask/local", "futures", "iterative", "parsl/local", "dask/lxplus", "parsl/condor"} <= set(found)
    assert {"dask", "parsl", "futures/local", "dask/ospool"} & set(found) == set()


@pytest.mark.parametrize(
    ("name", "engine", "site"),
    [
        ("futures", "futures", "local"),
        ("futures/local", "futures", "local"),
        ("dask", "dask", "local"),
        ("dask/local", "dask", "local"),
        ("parsl/local", "parsl", "local"),
        ("iterative", "iterative", "local"),
    ],
)
def test_resolve(name, engine, site):
    found, place = registry.resolve(name)
    assert (found.name, place.name) == (engine, site)
    described = registry.describe(name)
    assert (described.engine, described.site, described.needs) == (engine, site, {})
    assert described.capabilities == found.capabilities
    assert name in str(described)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("future", "futures"),
        ("dsk", "dask"),
        ("dask/locl", "local"),
        ("parsl/", "local"),
        ("", "known"),
        ("/local", "known"),
    ],
)
def test_unknown_names_show_what_is_near(name, near):
    with pytest.raises(UnknownNameError, match=near):
        registry.resolve(name)
    with pytest.raises(UnknownNameError, match=near):
        registry.describe(name)


def test_importing_the_registry_imports_no_engine():
    heavy = ["dask", "distributed", "parsl", "coffea", "numpy", "uproot", "cloudpickle"]
    code = (
        "import sys; from executors import registry; registry.names();"
        f"print([one for one in {heavy} if one in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"


def test_a_third_party_adds_an_engine(others):
    others(good="registry_test_module:Good")
    assert "good" in registry.names()
    assert isinstance(registry.resolve("good")[0], Good)
    assert registry.describe("good").summary.startswith("A good engine")


def test_a_built_in_name_cannot_be_taken_over(others):
    others(dask="registry_test_module:Good")
    assert registry.resolve("dask")[0].name == "dask"


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("not_a_module_at_all:Engine", "not there"),
        ("registry_test_module:Nothing", "Nothing"),
        ("registry_test_module:Without", "no open"),
        ("registry_test_module:Wrong", "Capabilities"),
        ("registry_test_module:instance", "must be a class"),
        ("registry_test_broken:Engine", "SyntaxError|RuntimeError"),
    ],
)
def test_a_wrong_engine_is_a_clear_error(others, target, says, tmp_path, monkeypatch):
    (tmp_path / "registry_test_broken.py").write_text("raise RuntimeError('no')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    others(odd=target)
    assert "odd" in registry.names()  # names are listed without importing anything
    for act in (registry.resolve, registry.describe):
        with pytest.raises(EngineError, match=says) as caught:
            act("odd")
        assert "odd" in str(caught.value)


def test_a_missing_package_answers_with_the_command(monkeypatch):
    real = registry.importlib.util.find_spec
    without = lambda one: None if one == "parsl" else real(one)  # noqa: E731
    monkeypatch.setattr(registry.importlib.util, "find_spec", without)
    with pytest.raises(UsageError, match="pip install 'parsl"):
        registry.resolve("parsl/local")
    assert "pip install" in str(registry.describe("parsl/local"))
    assert registry.resolve("dask")[0].name == "dask"


def test_an_engine_needs_to_be_meant_for_the_site():
    with pytest.raises(UsageError, match="dask/brux"):
        registry.resolve("futures/brux")


def test_what_is_asked_of_a_site_is_in_the_profile():
    engine, site = registry.resolve("dask/slurm", overrides={"job.queue": "q"})
    assert (engine.name, site.job.queue) == ("dask", "q")
