"""What travels to workers that see no file of the runner: local modules and what lies beside them."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from executors import companions, luggage
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


# --- what the code names --------------------------------------------------------------------------


SCRIPT = """
import json, os
from pathlib import Path
HERE = Path(__file__).parent
def beside(year):
    return [
        json.loads((HERE / "corrections.json").read_text()), json.loads((HERE / "maps" / f"sf_{year}.json").read_text()),
        open(os.path.join(os.path.dirname(__file__), "deep", "er.txt")).read(),
    ]
def relative():
    return open("relative/one.csv").read()
"""


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """A module that is in no package, and files beside it; the current folder is another one."""
    folder, here = tmp_path / "plain", tmp_path / "here"
    for name, text in {
        "luggage_plain.py": SCRIPT, "corrections.json": "1", "maps/sf_2022.json": "2", "maps/sf_2023.json": "3",
        "maps/.hidden": "", "deep/er.txt": "4", "other.json": "never", "results/a.coffea": "never",
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (here / "relative").mkdir(parents=True)
    (here / "relative" / "one.csv").write_text("5")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(here)
    return folder


def inside(data: bytes) -> set[str]:
    return set(zipfile.ZipFile(io.BytesIO(data)).namelist())


def test_files_that_a_module_names_arrive_beside_it_or_in_the_current_folder(plain, tmp_path):
    data = luggage.pack(["luggage_plain"])
    assert inside(data) == {
        "luggage_plain.py", "corrections.json", "maps/sf_2022.json", "maps/sf_2023.json", "deep/er.txt",
        "relative/one.csv",
    }  # fmt: skip
    assert luggage.left_behind(["luggage_plain"]) == ""
    said = elsewhere(data, tmp_path, "import luggage_plain as p; print(p.beside(2022), p.relative())")
    assert said == "[1, 2, '4'] 5"


def test_what_is_named_but_not_sent_is_said(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(companions, "LARGEST", 1000)
    (plain / "corrections.json").write_text("1" * 2_000_000)
    (plain / "far.json").write_text("1")
    (plain / "luggage_plain.py").write_text(SCRIPT + f"\nFAR = {str(plain / 'far.json')!r}, '/etc/passwd'\n")
    assert "corrections.json" not in inside(luggage.pack(["luggage_plain"]))
    said = luggage.left_behind(["luggage_plain"])
    assert f"{plain}/corrections.json (1 MB, more than 0 MB)" in said
    assert f"{plain}/far.json (an absolute path)" in said
    assert "passwd" not in said


def test_what_travels_with_its_package_is_not_said_to_stay(project, monkeypatch):
    monkeypatch.setattr(companions, "LARGEST", 1)
    assert "luggage_trip/data/map.json" in inside(luggage.pack(["luggage_trip", "luggage_trip.sums"]))
    assert luggage.left_behind(["luggage_trip", "luggage_trip.sums"]) == ""


def test_modules_of_a_package_without_a_file_of_its_own(tmp_path, monkeypatch):
    """As Python allows; what they name comes along too."""
    folder = tmp_path / "project" / "luggage_space" / "inner"
    (folder / "data").mkdir(parents=True)
    (folder / "sums.py").write_text(
        "from pathlib import Path\nfrom luggage_space.inner.deep import FIVE\nFIVE += 0\n"
        "TEXT = (Path(__file__).parent / 'data' / 'weights.root').read_text()\n"
    )
    (folder / "deep.py").write_text("FIVE = 5\n")
    (folder / "data" / "weights.root").write_text("w")
    monkeypatch.syspath_prepend(str(tmp_path / "project"))
    data = luggage.pack(["luggage_space.inner.sums", "luggage_space.inner.deep"])
    assert elsewhere(data, tmp_path, "import luggage_space.inner.sums as s; print(s.FIVE, s.TEXT)") == "5 w"


def test_what_a_script_names_is_found_from_the_current_folder(plain, tmp_path):
    (plain / "main.py").write_text("open('relative/one.csv'); open('corrections.json')")
    data = luggage.pack([], plain / "main.py")
    assert inside(data) == {"relative/one.csv"}
    assert elsewhere(data, tmp_path, "print(open('relative/one.csv').read())") == "5"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "../x",
        "*",
        "**",
        "*.json",
        "[",
        "\0",
        "a" * 5000,
        "maps",
        "x\ny",
        "~",
        "/",
        "~nobody/x",
    ],
)
def test_texts_that_name_nothing(plain, text):
    (plain / "luggage_plain.py").write_text(f"X = {text!r}\nY = open({text!r})\nZ = X / {text!r}\n")
    named = inside(luggage.pack(["luggage_plain"])) - {"luggage_plain.py"}
    assert named == ({"maps/sf_2022.json", "maps/sf_2023.json"} if text == "maps" else set())
    assert luggage.left_behind(["luggage_plain"]) == ""


def test_a_folder_counts_only_as_a_path(plain):
    (plain / "luggage_plain.py").write_text("DATASET = 'maps'\n")
    assert inside(luggage.pack(["luggage_plain"])) == {"luggage_plain.py"}


def test_named_files_together_have_a_bound(plain, monkeypatch):
    monkeypatch.setattr(companions, "LARGEST_OF_ALL", 2)
    assert len(inside(luggage.pack(["luggage_plain"]))) == 3
    assert luggage.left_behind(["luggage_plain"]).count("all that is named is more than") == 3
