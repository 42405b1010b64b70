"""The rooms and who may enter: imports run one way, heavy libraries stay where they belong.

The rule is in docs/architecture.md. Read from the source, so that an import inside a function counts too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*ROOT.glob("executors/**/*.py"), *ROOT.glob("sites/**/*.py"), ROOT / "runner.py"])

# Which rooms a room may import, itself always. 'executors.*' stands for the modules beside the rooms.
MAY: dict[str, set[str]] = {
    "executors.errors": set(),
    "sites": {"executors.errors"},
    "executors.work": {"executors.errors"},
    "executors.batch": {"sites", "executors.errors"},
    "executors.engines": {"sites", "executors.batch", "executors.errors"},
    "executors.coffea": {"executors.work", "executors.errors"},
    "executors.memory": {"executors.*", "executors.errors", "executors.work", "executors.engines", "sites"},
    "executors.*": {
        "executors",
        "executors.memory",
        "executors.errors",
        "executors.work",
        "executors.engines",
        "executors.coffea",
        "executors.batch",
        "sites",
    },
    "executors": {
        "executors.*",
        "executors.errors",
        "executors.work",
        "executors.engines",
        "executors.coffea",
    },
    "runner": {"executors", "executors.*", "executors.errors", "executors.memory", "executors.work"},
}
# The drop-in for coffea's Runner is a door of the API that has to stand in the coffea room: only there may
# coffea's base class be imported. It opens engines by name, through the registry.
DOORS = {
    ("executors.coffea.adapter", "executors.pools"),
    ("executors.coffea.adapter_session", "executors.pools"),
    # Only to know where the package lies, for workers that must find the same one.
    ("executors.engines.parsl_host", "executors"),
}
HEAVY = {
    "coffea",
    "uproot",
    "awkward",
    "awkward_cpp",
    "hist",
    "boost_histogram",
    "dask_awkward",
    "fsspec_xrootd",
}
DASK = {
    f"executors.engines.dask_{part}"
    for part in ("host", "parts", "remote", "node", "foreign", "lodging", "cluster", "class")
}
HOSTS = {
    "dask": DASK,
    "distributed": DASK,
    "parsl": {f"executors.engines.parsl_{part}" for part in ("host", "exchange", "remote", "task")},
    "rich": {"executors.show"},
    "pytest": {"executors.contract", "executors.contract_tasks"},
}
# Imported by 'import executors', by 'import runner' or by 'runner.py --help': none of these.
NEVER_EARLY = {
    "awkward", "boost_histogram", "cloudpickle", "coffea", "dask", "distributed", "hist", "lz4", "numba",
    "numpy", "pandas", "parsl", "pytest", "rich", "scipy", "uproot", "yaml",
}  # fmt: skip


class Import(NamedTuple):
    """One import statement: in which module, of which module, in which line."""

    by: str
    what: str
    line: int

    def __str__(self) -> str:
        return f"{self.by} line {self.line} imports {self.what}"


def module_name(path: Path) -> str:
    """The dotted name of a source file."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in SOURCES}


def imports(path: Path, text: str | None = None) -> list[Import]:
    """Every import of a file, also within functions and under TYPE_CHECKING."""
    by = module_name(path)
    package = by if path.name == "__init__.py" else by.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(text if text is not None else path.read_text())):
        if isinstance(node, ast.Import):
            found += [Import(by, alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.append(Import(by, whole if whole in MODULES else base, node.lineno))
    return found


def room(module: str) -> str:
    """The room a module of the project is in."""
    parts = module.split(".")
    if parts[0] != "executors":
        return parts[0]
    if len(parts) == 1 or module == "executors.errors":
        return module
    return (
        ".".join(parts[:2]) if parts[1] in ("work", "engines", "coffea", "batch", "memory") else "executors.*"
    )


def ours(module: str) -> bool:
    return module.split(".", maxsplit=1)[0] in ("executors", "sites", "runner", "configs")


def trespasses(found: list[Import]) -> list[str]:
    """Those of the imports that the rule forbids."""
    out = []
    for one in found:
        if not ours(one.what):
            continue
        here, there = room(one.by), room(one.what)
        if here == there or there in MAY[here]:
            continue
        if (one.by, one.what) in DOORS:
            continue
        out.append(str(one))
    return out


ALL = [one for path in SOURCES for one in imports(path)]


def test_the_sources_are_found() -> None:
    rooms = {room(name) for name in MODULES}
    assert rooms == set(MAY), "a new room needs a line in MAY and in docs/architecture.md"
    assert len(ALL) > 200


def test_imports_run_one_way() -> None:
    assert trespasses(ALL) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("executors/work/drive.py", "from executors.engines.base import WorkerDied"),
        ("executors/work/drive.py", "import executors.coffea.pack"),
        ("executors/work/drive.py", "from executors import registry"),
        ("executors/work/drive.py", "def f():\n    from ..engines import futures"),
        ("executors/engines/pool.py", "from executors.work.model import Task"),
        ("executors/batch/crew.py", "from executors.engines.base import WorkerDied"),
        ("sites/profile.py", "from executors.batch.spec import JobSpec"),
        ("executors/engines/pool.py", "from executors.options import Settings"),
        ("executors/coffea/pack.py", "from executors import running"),
        ("executors/coffea/pack.py", "from executors.engines import base"),
        ("executors/errors.py", "from executors.redact import redact"),
        ("sites/profile.py", "import executors.registry"),
        ("runner.py", "from executors.coffea import pack"),
        ("runner.py", "import sites"),
        ("executors/running.py", "import runner"),
        ("executors/running.py", "from configs import dimuon"),
    ],
)
def test_the_rule_sees_a_trespass(path: str, line: str) -> None:
    assert trespasses(imports(ROOT / path, line))


def test_doors_are_used() -> None:
    for by, what in DOORS:
        assert any((one.by, one.what) == (by, what) for one in ALL), (
            f"{by} no longer imports {what}: close it"
        )


def test_heavy_libraries_stay_in_the_coffea_room() -> None:
    found = [
        str(one) for one in ALL if one.what.split(".")[0] in HEAVY and room(one.by) != "executors.coffea"
    ]
    assert found == []


def test_engines_libraries_stay_in_their_hosts() -> None:
    found = [str(one) for one in ALL if (top := one.what.split(".")[0]) in HOSTS and one.by not in HOSTS[top]]
    assert found == []


def test_the_api_imports_the_coffea_room_only_when_it_is_needed() -> None:
    """At the top of a module, outside TYPE_CHECKING, it would cost a second at every start."""
    early = []
    for path in SOURCES:
        if room(module_name(path)) not in ("executors", "executors.*", "runner"):
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                early += [f"{path.name}: {name}" for name in names if name.startswith("executors.coffea")]
    assert early == []


@pytest.mark.parametrize(
    "code",
    [
        "import executors",
        "import executors; dir(executors); executors.ExecutorsError, executors.UsageError",
        "import executors; executors.names()",
        "import runner",
        "import runner; runner.main(['--help'])",
        "import runner; runner.main(['merge', '--help'])",
        "import runner; runner.main(['--wf', 'x', '--json', 'y', '--show-config'])",
        "import runner; runner.main(['--nonsense'])",
    ],
)
def test_nothing_heavy_is_imported_early(code: str) -> None:
    script = f"import sys\n{code}\nprint('imported:', *sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.rpartition("imported:")[2].split())
    assert "executors" in loaded
    assert loaded & NEVER_EARLY == set()


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        path.name for path in SOURCES if not (ast.get_docstring(ast.parse(path.read_text())) or "").strip()
    ]
    assert silent == []


def test_no_wildcard_and_no_relative_imports() -> None:
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.level or any(a.name == "*" for a in node.names)):
                found.append(f"{path.name} line {node.lineno}")
    assert found == []
