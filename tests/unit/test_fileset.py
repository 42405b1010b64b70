"""Filesets: every form people have, nothing counted twice, and mistakes that name their place."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from executors.errors import FilesetError, UnknownNameError, UsageError
from executors.fileset import Fileset, parse_fileset, read_fileset
from executors.selection import limit, only

HEX = "12345678123412341234123456789abc"
REPOSITORY = Path(__file__).parents[2]


def paths(fileset: Fileset, dataset: int = 0) -> list[str]:
    return [file.path for file in fileset.datasets[dataset].files]


def names(fileset: Fileset) -> list[str]:
    return [dataset.name for dataset in fileset.datasets]


# -- forms ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [
        ["/d/a.root", "/d/b.root"],
        ("/d/a.root", "/d/b.root"),
        {"files": ["/d/a.root", "/d/b.root"]},
        {"files": {"/d/a.root": None, "/d/b.root": None}},
        {"files": {"/d/a.root": {}, "/d/b.root": {"object_path": None, "steps": None}}},
        {"/d/a.root": None, "/d/b.root": None},
        [Path("/d/a.root"), Path("/d/b.root")],
        {"files": ["/d/a.root", "/d/b.root"], "metadata": None, "format": "root", "did": None},
        ["file:///d/a.root", "file:/d/b.root"],
    ],
)
def test_files_in_every_form(files: Any) -> None:
    read = read_fileset({"dy": files})
    assert paths(read) == ["/d/a.root", "/d/b.root"]
    assert read.warnings == ()
    assert all(
        file.treename is file.steps is file.entries is file.uuid is None for file in read.datasets[0].files
    )


def test_trees_are_said_in_every_form() -> None:
    for files in (
        {"files": ["/a.root"], "treename": "T"},
        {"files": {"/a.root": "T"}},
        {"files": {"/a.root": {"object_path": "T"}}},
        {"files": {"/a.root": "T"}, "treename": "T"},
        {"/a.root": "T"},
        ["/a.root:T"],
        "/a.root:T",
    ):
        assert read_fileset({"x": files}).datasets[0].files[0].treename == "T"


def test_what_coffea_preprocess_gives() -> None:
    file = {
        "object_path": "Events",
        "steps": [[0, 10], [10, 25]],
        "num_entries": 30,
        "uuid": str(UUID(HEX)),
        "format": "root",
        "num_selected_entries": 25,
    }
    read = read_fileset({"dy": {"files": {"/a.root": file}, "metadata": {"xs": 1.5}, "compressed_form": "x"}})
    found = read.datasets[0].files[0]
    assert found.steps == ((0, 10), (10, 25))
    assert (found.entries, found.uuid, found.treename) == (30, HEX, "Events")
    assert read.datasets[0].metadata == {"xs": 1.5}
    assert read.warnings == ()


def test_steps_as_offsets() -> None:
    read = read_fileset({"dy": {"files": {"/a.root": {"steps": [0, 10, 25]}}}})
    assert read.datasets[0].files[0].steps == ((0, 10), (10, 25))


def test_coffeas_own_objects() -> None:
    script = """
import json
from coffea.dataset_tools.filespec import DataGroupSpec
from executors.fileset import read_fileset
full = {"object_path": "Events", "steps": [[0, 10]], "num_entries": 10, "uuid": "UUID"}
one = {"files": {"/a.root": full}, "metadata": {"x": 1}}
group = DataGroupSpec({"a": one, "b": {"files": {"/b.root": "T"}}})
parts = {"a": group["a"], "b": group["b"]}
for source in (group, parts, group.model_dump(), json.loads(group.model_dump_json())):
    read = read_fileset(source)
    assert [d.name for d in read.datasets] == ["a", "b"], read
    assert read.datasets[0].files[0].steps == ((0, 10),), read
    assert read.datasets[0].metadata == {"x": 1}
    assert read.datasets[1].files[0].treename == "T"
    assert read.warnings == (), read.warnings
print("fine")
""".replace("UUID", str(UUID(HEX)))
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.stdout.strip() == "fine", done.stderr


def test_a_document_in_every_wrapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"é": ["/a b:c.root"], "two": {"files": {"/x.root": "T"}, "metadata": {"k": [1, {"z": None}]}}}
    text = json.dumps(content)
    yaml = 'é:\n  - "/a b:c.root"\ntwo:\n  files: {/x.root: T}\n  metadata: {k: [1, {z: null}]}\n'
    documents = {
        "plain.json": text.encode(),
        "bom.json": b"\xef\xbb\xbf" + text.encode(),
        "packed.json.gz": gzip.compress(text.encode()),
        "yaml.yaml": yaml.encode(),
        "yaml.yml": yaml.encode(),
        "noname": text.encode(),
        "loose": yaml.encode(),
    }
    expected = None
    for name, raw in documents.items():
        (tmp_path / name).write_bytes(raw)
        read = read_fileset(tmp_path / name)
        assert read.name == name.split(".")[0]
        expected = expected or read.datasets
        assert read.datasets == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    read = read_fileset("-")
    assert (read.name, read.datasets) == ("stdin", expected)


def test_names_keep_their_inner_dots(tmp_path: Path) -> None:
    (tmp_path / "v1.2.data.json").write_text('{"a": ["/x.root"]}')
    assert read_fileset(tmp_path / "v1.2.data.json").name == "v1.2.data"
    assert read_fileset({"a": ["/x.root"]}, name="mine").name == "mine"


# -- local files ------------------------------------------------------------------------------------


def touch(folder: Path, *files: str) -> None:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"root")


def test_globs_and_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "d/b.root", "d/a.root", "d/notes.txt", "d/sub/c.root", "odd[1].root", "e/x.txt")
    (tmp_path / "d" / "loop").symlink_to(tmp_path / "d")
    here = str(tmp_path)
    assert paths(read_fileset({"x": ["d/*.root"]})) == [f"{here}/d/a.root", f"{here}/d/b.root"]
    assert paths(read_fileset({"x": "d"})) == [f"{here}/d/{n}" for n in ("a.root", "b.root", "sub/c.root")]
    assert len(paths(read_fileset({"x": ["d/s*/**/*.root"]}))) == 1
    assert paths(read_fileset({"x": ["odd[1].root"]})) == [f"{here}/odd[1].root"]
    tree = read_fileset({"x": {"files": {"d/?.root": "T"}}})
    assert [file.treename for file in tree.datasets[0].files] == ["T", "T"]
    for wrong in ("d/*.rot", "e", "none/*.root"):
        with pytest.raises(FilesetError, match=r"nothing matches|holds no"):
            read_fileset({"x": [wrong]})
    with pytest.raises(FilesetError, match="belong to one file"):
        read_fileset({"x": {"files": {"d/*.root": {"num_entries": 3}}}})
    assert paths(read_fileset({"x": ["absent.root"]})) == [f"{here}/absent.root"]  # the plan deals with it


def test_a_directory_of_everything_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executors.addresses.MOST_FOLDERS", 5)
    for i in range(4):
        touch(tmp_path, f"{i}/x.root")
    assert len(paths(read_fileset({"x": [str(tmp_path)]}))) == 4
    touch(tmp_path, "4/x.root", "5/x.root")
    with pytest.raises(FilesetError, match=r"dataset 'x'.*over 5 folders"):
        read_fileset({"x": [str(tmp_path)]})


def test_relative_paths_are_of_the_current_directory_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("here", "there"):
        touch(tmp_path / folder, "both.root")
    touch(tmp_path / "there", "a.root", "sub/b.root")
    monkeypatch.chdir(tmp_path / "here")
    document = tmp_path / "there" / "set.json"
    document.write_text('{"x": ["both.root", "a.root", "sub/*.root", "nowhere.root"]}')
    read = read_fileset(document)
    where = [Path(path).relative_to(tmp_path).as_posix() for path in paths(read)]
    assert where == ["here/both.root", "there/a.root", "there/sub/b.root", "here/nowhere.root"]
    assert "2 relative paths were found beside the fileset" in read.warnings[0]


def test_a_colon_in_a_real_name_is_no_tree(tmp_path: Path) -> None:
    touch(tmp_path, "a.root:T")
    file = read_fileset({"x": [str(tmp_path / "a.root:T")]}).datasets[0].files[0]
    assert (file.path, file.treename) == (str(tmp_path / "a.root:T"), None)


# -- duplicates -------------------------------------------------------------------------------------


def test_no_file_is_counted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a.root", "d/b.root")
    (tmp_path / "link.root").symlink_to("a.root")
    (tmp_path / "e").symlink_to("d")
    same = [
        [
            "a.root",
            "./a.root",
            str(tmp_path / "a.root"),
            f"file://{tmp_path}/a.root",
            "d/../a.root",
            "link.root",
            "*a.root",
        ],
        ["d/b.root", "e/b.root", "d"],
        [
            "root://Host.cern.ch//s/f.root",
            "root://host.cern.ch:1094//s/f.root",
            "xroot://host.cern.ch/s//f.root",
        ],
        ["root://h//s/f.root", "root://h//s/f.root?authz=abc"],
        ["https://h:443/f.root", "https://h/f.root"],
    ]
    for files in same:
        read = read_fileset({"x": files})
        assert len(paths(read)) == 1, files
        assert len(read.warnings) >= len(files) - 1
        assert "counted once" in read.warnings[0]
    different = [
        "root://h:1095//f.root",
        "root://h//f.root",
        "root://g//f.root",
        "http://h/f?x=1",
        "http://h/f?x=2",
    ]
    different += ["root://h//a#1.root", "root://h//a#2.root"]
    read = read_fileset({"x": different})
    assert (len(paths(read)), read.warnings) == (len(different), ())


def test_contradicting_duplicates_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for one, other in (("T", "U"), ("T", {"object_path": "T", "steps": [[0, 5]]}), ("T", None)):
        with pytest.raises(FilesetError, match=r"dataset 'x'.*stands there twice, with different"):
            read_fileset({"x": {"files": {"a.root": one, "./a.root": other}}})
    with pytest.raises(FilesetError, match="treename is 'T', but"):
        read_fileset({"x": {"files": {"a.root": "U"}, "treename": "T"}})


def test_a_file_in_two_datasets_is_said() -> None:
    read = read_fileset(
        {"a": ["/x.root", "/y.root", "/z.root"], "b": ["/y.root", "/x.root"], "c": ["/w.root"]}
    )
    assert read.files == 6
    assert read.warnings == ("datasets 'a' and 'b' share '/y.root' and 1 more; both count them",)


def test_warnings_do_not_flood() -> None:
    read = read_fileset({"x": [f"/{i // 2}.root" for i in range(200)]})
    assert read.files == 100
    assert len(read.warnings) == 21
    assert "80 more" in read.warnings[-1]


# -- mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\ufeff", "is empty"),
        ("{}", "no dataset"),
        ("[]", "not a list"),
        ('["/a.root"]', 'give the list a name, as in {"data"'),
        ("3", "not a number"),
        ("null", "not nothing"),
        ('{"a": ["/x"]} x', "line 1, column 15: not JSON: Extra data"),
        ('{"a": ["/x",]}', "a comma after the last item?"),
        ('{"a": ["/x"]', "line 1, column 13"),
        ("{'a': ['/x']}", "line 1, column 2"),
        ('{"a": ["/x"], "a": ["/y"]}', "the key 'a' stands twice"),
        ('{"a": {"files": ["/x"], "files": ["/y"]}}', "the key 'files' stands twice"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": {"files": ["/x"], "metadata": {"k": 1e999}}}', "too large"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ('{"a": []}', "dataset 'a' has no files"),
        ('{"a": {"files": {}}}', "dataset 'a' has no files"),
        ('{"a": {}}', "dataset 'a' has no files"),
        ('{"a": null}', "dataset 'a': 'files' must be a list or a table, not nothing"),
        ('{"a": 5}', "dataset 'a': 'files' must be a list or a table, not a number"),
        ('{"": ["/x"]}', "dataset number 0 has an empty name"),
        ('{"a\\n": ["/x"]}', "control characters"),
        ('{"a": ["/x\\u0000"]}', "control characters"),
        ('{"a": ["/x\\ud800"]}', "lone surrogate"),
        ('{"\\ud800": ["/x"]}', "lone surrogate"),
        ('{"a": [""]}', "empty name"),
        ('{"a": [1]}', "dataset 'a': a file must be text, not a number: 1"),
        ('{"a": [["/x"]]}', "must be text, not a list"),
        ('{"a": {"file": ["/x"]}}', "did you mean 'files'?"),
        ('{"a": {"Files": ["/x"]}}', "did you mean 'files'?"),
        ('{"a": {"files": ["/x"], "metdata": {}}}', "did you mean 'metadata'?"),
        ('{"a": {"files": ["/x"], "treename": 3}}', "a tree's name must be text, not 3"),
        ('{"a": {"files": {"/x": ["T"]}}}', "dataset 'a', file '/x': a tree's name must be text"),
        ('{"a": {"files": {"/x": {"objectpath": "T"}}}}', "did you mean 'object_path'?"),
        ('{"a": {"files": {"/x": {"steps": []}}}}', "steps must be a list"),
        ('{"a": {"files": {"/x": {"steps": [[0, 5], [3, 9]]}}}}', "step [3, 9] goes back, or overlaps"),
        ('{"a": {"files": {"/x": {"steps": [[5, 0]]}}}}', "step [5, 0] goes back"),
        ('{"a": {"files": {"/x": {"steps": [[0, 5.5]]}}}}', "a step must be [start, stop]"),
        ('{"a": {"files": {"/x": {"steps": [[-1, 5]]}}}}', "a step must be [start, stop]"),
        ('{"a": {"files": {"/x": {"steps": [[0, 9]], "num_entries": 5}}}}', "goes beyond its 5 entries"),
        ('{"a": {"files": {"/x": {"num_entries": true}}}}', "num_entries must be a whole number"),
        ('{"a": {"files": {"/x": {"uuid": "xyz"}}}}', "not a uuid: 'xyz'"),
        ('{"a": {"files": {"/x": {"uuid": 5}}}}', "not a uuid: 5"),
        ('{"a": {"files": {"/x": {"format": "parquet"}}}}', "only ROOT files"),
        ('{"a": ["/x.parquet"]}', "only ROOT files"),
        ('{"a": {"files": ["/x"], "metadata": [1]}}', "metadata must be a table, not a list"),
        ('{"a": {"files": ["/x"], "metadata": {"dataset": 1}}}', "metadata may not be called 'dataset'"),
        ('{"a": {"files": ["/x"], "metadata": {"uuid": 1}}}', "metadata may not be called 'uuid'"),
        ('{"a": ["rooot://h//x.root"]}', "dataset 'a', file 'rooot://h//x.root': unknown kind of address"),
        ('{"a": ["root://h//*.root"]}', "globs are for local files"),
        ("a: [/x]\nb: [/y]\na: [/z]\n", "line 1: the key 'a' stands twice"),
        ("a: [/x", "line 2, column 1: not YAML"),
        ("a: !!python/object/apply:os.system [echo]", "not YAML: could not determine a constructor"),
        ("2022: [/x]", "the name must be text: put it in quotes"),
        ("yes: [/x]", "the name must be text: put it in quotes"),
        ("a: {files: [/x], metadata: {day: 2022-01-01}}", "a date cannot be kept: put it in quotes"),
        ("a: {files: [/x], metadata: {2016: 1}}", "metadata key 2016 must be text"),
        ("a: {files: [/x], metadata: {k: .nan}}", "not a number that JSON can keep"),
        ("a: [2022-99-99]", "not YAML|month must be"),
        ("? [a, b]\n: [/x]", "not YAML|unhashable"),
        ("&a [*a]", "not a list"),
        ("just text", "not text"),
        ("\t- x", "not YAML"),
        ("a: " + "9" * 5000, "."),
    ],
)
def test_mistakes_name_their_place(text: str, message: str, tmp_path: Path) -> None:
    import re

    document = tmp_path / "set"
    document.write_text(text, encoding="utf-8", errors="surrogatepass")
    pattern = message if "|" in message or message == "." else re.escape(message)
    with pytest.raises(FilesetError, match=pattern) as caught:
        read_fileset(document)
    assert str(document) in str(caught.value)
    assert caught.value.exit_code == 2


def test_unreadable_documents(tmp_path: Path) -> None:
    with pytest.raises(FilesetError, match="No such file"):
        read_fileset(tmp_path / "none.json")
    with pytest.raises(FilesetError, match="is a directory"):
        read_fileset(tmp_path)
    with pytest.raises(FilesetError, match="not a file"):
        read_fileset("/dev/zero")
    with pytest.raises(FilesetError, match="null byte"):
        read_fileset("a\x00b")
    for name, raw, message in (
        ("x.json", b"root\x00\x00", "is a ROOT file, not a fileset"),
        ("x.json", b"\xff\xfe{", "byte 0 is not UTF-8"),
        ("x.json", '{"a": 1}'.encode("utf-16"), "not UTF-8"),
        ("x.json.gz", gzip.compress(b'{"a": ["/x"]}')[:-9], "cannot read the fileset"),
        ("x.json.gz", b"\x1f\x8b\x08rubbish", "cannot read the fileset"),
    ):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(FilesetError, match=message):
            read_fileset(tmp_path / name)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executors.document.LARGEST", 100_000)
    (tmp_path / "bomb.json.gz").write_bytes(gzip.compress(b" " * 10_000_000))
    with pytest.raises(FilesetError, match="this is not a fileset"):
        read_fileset(tmp_path / "bomb.json.gz")


def test_a_yaml_bomb_is_not_walked(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    text = "d:\n  files: [/x]\n  metadata:\n" + "\n".join("    " + line for line in lines)
    with pytest.raises(FilesetError, match="too much"):
        parse_fileset(text)


def test_sets_have_no_order_and_are_refused() -> None:
    with pytest.raises(FilesetError, match="must be a list or a table, not a set"):
        read_fileset({"x": {"/a.root", "/b.root"}})
    with pytest.raises(FilesetError, match="must be text, not a bytes"):
        read_fileset({"x": [b"/a.root"]})


def test_unknown_keys_beside_files_are_said() -> None:
    read = read_fileset({"x": {"files": ["/a.root"], "nevts": 3}})
    assert read.warnings == ("dataset 'x': the key 'nevts' means nothing here; put it into 'metadata'",)


def test_metadata_is_what_json_keeps() -> None:
    import numpy as np

    read = read_fileset(
        {"x": {"files": ["/a.root"], "metadata": {"a": np.float64(2), "b": (1, np.arange(2)), "c": {}}}}
    )
    assert read.datasets[0].metadata == {"a": 2.0, "b": [1, [0, 1]], "c": {}}
    assert json.loads(json.dumps(read.datasets[0].metadata)) == read.datasets[0].metadata


def test_a_large_fileset_is_read_quickly() -> None:
    import time

    big = {f"d{i}": [f"root://host//store/{i}/{j}.root" for j in range(1000)] for i in range(50)}
    began = time.process_time()
    assert read_fileset(big).files == 50_000
    assert time.process_time() - began < 5


# -- selection --------------------------------------------------------------------------------------


def selection() -> Fileset:
    content = {
        "dy_1": ["/a.root", "/b.root"],
        "dy_2": ["/c.root"],
        "tt": ["/a.root", "/d.root"],
        "3": ["/e.root"],
    }
    return read_fileset(content)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tt"], {"tt": 2}),
        (["0"], {"dy_1": 2}),
        (["3"], {"3": 1}),  # a name goes before an index
        (["dy*"], {"dy_1": 2, "dy_2": 1}),
        (["tt", "dy_?"], {"dy_1": 2, "dy_2": 1, "tt": 2}),  # the fileset's own order
        (["/a.root"], {"dy_1": 1, "tt": 1}),
        (["/b.root", "tt"], {"dy_1": 1, "tt": 2}),
        (["dy_1", "/b.root"], {"dy_1": 2}),
        ([], {"dy_1": 2, "dy_2": 1, "tt": 2, "3": 1}),
    ],
)
def test_only(words: list[str], expected: dict[str, int]) -> None:
    chosen = only(selection(), words)
    assert {d.name: len(d.files) for d in chosen.datasets} == expected
    assert {d.name: d.index for d in chosen.datasets} == {
        n: i for n, i in {"dy_1": 0, "dy_2": 1, "tt": 2, "3": 3}.items() if n in expected
    }


@pytest.mark.parametrize("word", ["dy_3", "9", "x*", "/none.root", "", "DY_1", "foo://x/y", "-1"])
def test_only_refuses_what_names_nothing(word: str) -> None:
    with pytest.raises(UnknownNameError, match="--only"):
        only(selection(), [word])


def test_only_reads_a_list_of_names(tmp_path: Path) -> None:
    listed = tmp_path / "names.txt"
    listed.write_text("# wanted\n\ndy_2\n  tt \n")
    assert names(only(selection(), [f"@{listed}"])) == ["dy_2", "tt"]
    listed.write_text("dy_2\nttt\n")
    with pytest.raises(UnknownNameError, match="'tt'"):
        only(selection(), [f"@{listed}"])
    listed.write_text("\n")
    with pytest.raises(UsageError, match="is empty"):
        only(selection(), [f"@{listed}"])
    with pytest.raises(UsageError, match="cannot read the list"):
        only(selection(), ["@/none"])


def test_a_dataset_may_hold_glob_characters() -> None:
    read = read_fileset({"a[1]": ["/a.root"], "a1": ["/b.root"], "*": ["/c.root"]})
    assert names(only(read, ["a[1]"])) == ["a[1]"]
    assert names(only(read, ["*"])) == ["*"]


def test_limit_takes_the_first_files() -> None:
    assert [len(d.files) for d in limit(selection(), 1).datasets] == [1, 1, 1, 1]
    assert limit(selection(), None) == selection()
    assert limit(selection(), 99) == selection()
    with pytest.raises(UsageError, match="at least 1"):
        limit(selection(), 0)


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths(read_fileset({"x": ["~/a.root"]})) == [str(tmp_path / "a.root")]
