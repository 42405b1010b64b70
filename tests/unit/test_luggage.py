"""What travels to workers that see no file of the runner: local modules and what lies beside them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from executors import luggage
from executors.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    package = tmp_path / "project" / "luggage_trip"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "sums.py").write_text("from pathlib import Path\nfrom .deep import FIVE\n"
                                     "TEXT = (Path(__file__).parent / 'data' / 'map.json').read_text()\n")  # fmt: skip
    (package / "deep.py").write_text("FIVE = 5\n")
    (package / "unused.py").write_text("raise RuntimeError\n")
    (package / "data" / "map.json").write_text('{"a": 1}')
    (package / ".secret").write_text("no")
    monkeypatch.syspath_prepend(str(package.parent))
    return package


def elsewhere(data: bytes, tmp_path: Path, code: str) -> str:
    file = tmp_path / "luggage.bin"
    file.write_bytes(data)
    script = f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        from executors import luggage
        luggage.unpack(Path({str(file)!r}).read_bytes())
    """
    text = textwrap.dedent(script) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-P", "-c", text], capture_output=True, text=True, cwd="/", timeout=60,
        env={"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_modules_and_their_data_arrive(project, tmp_path):
    data = luggage.pack(["luggage_trip", "luggage_trip.sums", "luggage_trip.deep", "json", "numpy"])
    said = elsewhere(
        data, tmp_path,
        "import luggage_trip.sums as s; print(s.FIVE, s.TEXT);"
        f"print(Path(s.__file__).is_relative_to({str(project.parent)!r}))",
    )  # fmt: skip
    assert said.splitlines() == ['5 {"a": 1}', "False"]


def test_only_what_is_reached_travels_and_nothing_hidden(project):
    import io
    import zipfile

    data = luggage.pack(["luggage_trip", "luggage_trip.deep"])
    names = set(zipfile.ZipFile(io.BytesIO(data)).namelist())
    assert names == {"luggage_trip/__init__.py", "luggage_trip/deep.py", "luggage_trip/data/map.json"}


def test_equal_code_gives_equal_bytes(project):
    first = luggage.pack(["luggage_trip", "luggage_trip.deep"])
    (project / "deep.py").touch()
    assert luggage.pack(["luggage_trip.deep", "luggage_trip"]) == first
    (project / "deep.py").write_text("FIVE = 6\n")
    assert luggage.pack(["luggage_trip", "luggage_trip.deep"]) != first


def test_libraries_and_nothing_stay_at_home():
    assert luggage.pack(["json", "numpy", "no_such_module_at_all"]) == b""
    luggage.unpack(b"")


def test_too_much_is_refused_by_name(project, monkeypatch):
    monkeypatch.setattr(luggage, "LARGEST", 1000)
    (project / "data" / "big.bin").write_bytes(b"x" * 2000)
    with pytest.raises(UsageError, match=r"big\.bin"):
        luggage.pack(["luggage_trip"])
