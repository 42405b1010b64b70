"""What the documents say exists: commands, options, names, files; their code runs or at least parses.

``python tests/unit/test_docs.py`` writes the table of options into docs/guide.md anew.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import executors  # noqa: E402
from executors import options as declared  # noqa: E402
from executors.command import LATER, PROCESSOR, RENAMED, VERBS, read_command  # noqa: E402
from executors.errors import UsageError  # noqa: E402

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
GUIDE = ROOT / "docs" / "guide.md"
BEGIN = "<!-- options: begin (made by: python tests/unit/test_docs.py) -->"
END = "<!-- options: end -->"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
WORD = re.compile(r"(?<![\w-])(--[A-Za-z][\w-]*)")


def blocks(language: str) -> list[tuple[str, str]]:
    """The code blocks of one language in all documents, with where they are."""
    return [
        (f"{path.name}:{path.read_text()[: m.start()].count(chr(10)) + 1}", m[2])
        for path in DOCUMENTS
        for m in FENCE.finditer(path.read_text())
        if m[1] == language
    ]


def flags() -> set[str]:
    """Every option of every verb."""
    own = {flag for each in declared.options() for flag in each.flags}
    return own | {"--help", "--as-json", "--no-postprocess", "--canary", "--schema", "--plot"}


def options_table() -> str:
    """The options as the guide shows them, from their declarations."""
    lines: list[str] = []
    group = ""
    for each in declared.options():
        if each.about["group"] != group:
            group = each.about["group"]
            lines += [
                "",
                f"**{group[0].upper()}{group[1:]}**",
                "",
                "| key | option | default | |",
                "| --- | --- | --- | --- |",
            ]
        value = "" if each.switch else f" {each.about['metavar']}"
        spelt = ", ".join(f"`{flag}`" for flag in each.flags[:-1]) + (", " if len(each.flags) > 1 else "")
        shown = (
            "-"
            if each.default in (None, (), {}, "")
            else str(each.default).lower()
            if each.switch
            else str(each.default)
        )
        key = "-" if each.about.get("scope") else f"`{each.name}`"
        text = each.about["help"].replace("|", r"\|")
        lines.append(f"| {key} | {spelt}`{each.flags[-1]}{value}` | {shown} | {text} |")
    return "\n".join(lines[1:])


def with_table(text: str) -> str:
    """The guide with the table as it should be."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{options_table()}\n\n{END}{rest.partition(END)[2]}"


def test_the_documents_are_found() -> None:
    assert {"README.md", "CHANGELOG.md", "guide.md", "architecture.md", "reliability.md"} <= {
        p.name for p in DOCUMENTS
    }
    assert len(blocks("bash")) >= 4
    assert len(blocks("python")) >= 6


def test_the_guides_table_of_options_is_the_declared_one() -> None:
    text = GUIDE.read_text()
    assert text == with_table(text), "run: python tests/unit/test_docs.py"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_options_named_exist(path: Path) -> None:
    text = path.read_text()
    known = flags()
    if path.name == "original.md":  # it speaks of the original's as well
        known |= {f"--{name}" for name in (*LATER, *PROCESSOR, *RENAMED)}
    # pip's and pytest's options, in lines that are theirs.
    text = "\n".join(line for line in text.splitlines() if not re.search(r"\b(pip|pytest|apt-get)\b", line))
    assert set(WORD.findall(text)) - known == set()


@pytest.mark.parametrize(
    "option", ["--wf", "--json", "--fsize", "--index", "--skipbadfiles", "--retries", "--max"]
)
def test_the_originals_options_are_explained(option: str) -> None:
    assert f"`{option}`" in (ROOT / "docs" / "original.md").read_text()


def test_every_option_that_comes_later_is_in_the_table_of_the_original() -> None:
    text = (ROOT / "docs" / "original.md").read_text()
    original = {name for name in LATER if name not in ("walltime", "queue")}  # these two are new here
    assert {name for name in (*original, *PROCESSOR, *RENAMED) if f"--{name}`" not in text} == set()


def commands() -> list[tuple[str, list[str]]]:
    """Every command line of this project's program in a bash block, taken apart."""
    found = []
    for where, block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["python", "runner.py"]:
                found.append((where, words[2:]))
            elif words[:1] == ["coffea-scaleout"]:
                found.append((where, words[1:]))
    return found


def test_there_are_commands() -> None:
    assert len(commands()) >= 8
    assert {words[0] for _, words in commands() if not words[0].startswith("-")} == set(VERBS)


@pytest.mark.parametrize(
    ("where", "words"), commands(), ids=[f"{w} {' '.join(c)[:40]}" for w, c in commands()]
)
def test_command_lines_are_understood(where: str, words: list[str]) -> None:
    if where.startswith("original.md") and "--year" in words:
        with pytest.raises(UsageError, match="year=2022"):  # the command as it was: told how it is now
            read_command(words)
        return
    command = read_command(words)
    if command.verb == "run":
        from executors.settings import resolve

        values = {k: v for k, v in command.values.items() if k != "as_json"}
        assert resolve(values, env={}).settings.wf


def test_verbs_are_explained() -> None:
    text = GUIDE.read_text()
    assert [verb for verb in VERBS if f"runner.py {verb}" not in text] == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = {
        t
        for path in DOCUMENTS
        for t in re.findall(r"`?make ([a-z-]+)`|^make ([a-z-]+)", path.read_text(), re.MULTILINE)
        for t in t
        if t
    }
    assert used
    assert used <= targets
    assert {"demo", "test", "test-full", "bench", "lint", "venv"} <= targets


def test_every_public_name_is_documented() -> None:
    text = "".join(path.read_text() for path in DOCUMENTS)
    missing = [n for n in executors.__all__ if f"executors.{n}" not in text and f"`{n}`" not in text]
    assert missing == []


def test_names_of_the_interface_exist() -> None:
    text = "".join(path.read_text() for path in DOCUMENTS)
    called = set(re.findall(r"executors\.(\w+)\(", text))
    assert called
    assert called <= set(executors.__all__)


def test_exit_codes_are_those_of_the_errors() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (\w+)", GUIDE.read_text(), re.MULTILINE))
    codes = {getattr(executors, name).exit_code for name in executors.__all__ if name.endswith("Error")}
    assert codes | {0, 70} == {int(code) for code in rows}
    for name, code in re.findall(
        r"^\| ((?:`\w+Error`(?:, )?)+) \| (\d+) \|", GUIDE.read_text(), re.MULTILINE
    ):
        for one in re.findall(r"\w+", name):
            assert getattr(executors, one).exit_code == int(code), one


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_resolve(path: Path) -> None:
    broken = []
    for target in LINK.findall(path.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(target)
    assert broken == []


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_paths_named_exist(path: Path) -> None:
    """Files of this project that are named in the text: a slash, and a known beginning."""
    named = set(re.findall(r"`((?:executors|tests|sites|configs|docs|\.ci)/[\w/.-]*)`", path.read_text()))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(("where", "code"), blocks("python"), ids=[w for w, _ in blocks("python")])
def test_python_parses(where: str, code: str) -> None:
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("executors", "sites"):
            module = __import__(node.module or "", fromlist=["*"])
            assert [a.name for a in node.names if not hasattr(module, a.name)] == [], where


@pytest.mark.parametrize(("where", "text"), blocks("json"), ids=[w for w, _ in blocks("json")])
def test_filesets_are_read(where: str, text: str) -> None:
    from executors.fileset import parse_fileset

    assert parse_fileset(text).files >= 1, where


@pytest.mark.parametrize(("where", "text"), blocks("toml"), ids=[w for w, _ in blocks("toml")])
def test_toml_is_read(where: str, text: str, tmp_path: Path) -> None:
    content = tomllib.loads(text)
    if "inherits" in content:
        from sites.profile import FOLDER, load_site

        for path in FOLDER.glob("*.toml"):
            (tmp_path / path.name).write_text(path.read_text())
        (tmp_path / "large.toml").write_text(text)
        assert load_site("large", tmp_path).engines, where


def test_examples_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from executors.fileset import read_fileset
    from executors.settings import resolve

    text = (ROOT / "configs" / "example.json").read_text()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    for pattern in re.findall(r"demo/[^\"]+", text):
        (tmp_path / pattern.replace("*", "0")).touch()
    fileset = read_fileset(str(ROOT / "configs" / "example.json"))
    assert {d.name for d in fileset.datasets} == set(json.loads(text))
    assert resolve(config_file=ROOT / "configs" / "example.toml", env={}).settings.wf


def test_the_first_python_example_runs(tmp_path: Path) -> None:
    """README's call, with the demo's processor and two small files."""
    example = next(
        code for where, code in blocks("python") if where.startswith("README") and "executors.run" in code
    )
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import json
from pathlib import Path
from configs.dimuon import DimuonProcessor as MyProcessor
from configs.make_data import make
fileset = json.loads(make(Path("data"), 2000).read_text())
{example.replace("workers=8", "workers=2")}
assert sum(found["events"] for found in result.values()) == 2000, result
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_guides_function_runs(tmp_path: Path) -> None:
    """The workflow that the guide shows, through the command."""
    code = next(code for where, code in blocks("python") if where.startswith("guide") and "def muons" in code)
    (tmp_path / "analysis.py").write_text(code)
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from configs.make_data import make
make(Path("data"), 2000)
import runner
words = "--wf analysis.py:muons --wf-arg min_pt=25 --json data/fileset.json --executor iterative"
sys.exit(runner.main(words.split()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "hist_muons_fileset" / "hist_muons_fileset.coffea").exists()


def test_plain_text_without_machine_paths() -> None:
    found = [path.name for path in DOCUMENTS if re.search(r"(?<!\w)/(work|root|tmp)/", path.read_text())]
    assert found == []


if __name__ == "__main__":
    GUIDE.write_text(with_table(GUIDE.read_text()))
    print(f"{GUIDE} is up to date")
