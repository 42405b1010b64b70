"""Counting from headers: equal to the full parse, cheap, and clear about what is no tree."""

from __future__ import annotations

import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import uproot
from coffea.nanoevents import BaseSchema

from executors.coffea import count as counting
from executors.coffea.classify import ChangedFileError, InputError, MissingTreeError
from executors.coffea.count import Count, Uncounted, count, count_many, identity, seconds, trees
from executors.coffea.events import open_input
from executors.errors import UsageError
from executors.work.model import FileSlice, Kind
from tests.data import KINDS, LAZY, corrupt, mend, write_events

if TYPE_CHECKING:
    from pathlib import Path

RNTUPLE = pytest.mark.parametrize("rntuple", [False, True], ids=["TTree", "RNTuple"])
COMPRESSIONS = [uproot.ZLIB(1), uproot.ZLIB(9), uproot.LZMA(1), uproot.LZ4(1), uproot.ZSTD(1), None]


def full(path: Path, tree: str) -> tuple[int, str]:
    with uproot.open({str(path): None}) as file:
        return file[tree].num_entries, file.file.uuid.hex


@RNTUPLE
@pytest.mark.parametrize("entries", [0, 1, 99, 1234])
def test_equals_the_full_parse(tmp_path: Path, entries: int, rntuple: bool) -> None:
    path = write_events(tmp_path / "a.root", entries, cluster=100, rntuple=rntuple)
    found = count(str(path), "Events")
    assert (found.entries, found.uuid) == full(path, "Events") == (entries, found.uuid)
    assert found.kind == ("RNTuple" if rntuple else "TTree")
    assert found.size == path.stat().st_size
    assert len(found.uuid) == 32


@RNTUPLE
@pytest.mark.parametrize("compression", COMPRESSIONS, ids=repr)
@pytest.mark.parametrize("branches", [3, 700])
def test_every_compression(tmp_path: Path, compression: object, branches: int, rntuple: bool) -> None:
    path = tmp_path / "a.root"
    data = {f"branch_with_a_rather_long_name_{i}": np.arange(17) for i in range(branches)}
    with uproot.recreate(path, compression=compression) as file:
        if rntuple:
            file.mkrntuple("Events", data)
        else:
            file.mktree("Events", {k: v.dtype for k, v in data.items()}).extend(data)
    assert count(str(path)).entries == 17


class Stored:
    """A record of a file, as the counter asks for it: uproot itself stores those of trees uncompressed."""

    def __init__(self, record: bytes, length: int) -> None:
        self.record, self.file, self.asked = record, self, 0
        self.fSeekKey, self.fKeylen, self.fNbytes, self.fObjlen = 1000, 60, 60 + len(record), length

    def chunk(self, start: int, stop: int) -> SimpleNamespace:
        self.asked += stop - start
        return SimpleNamespace(raw_data=self.record[start - 1060 : stop - 1060])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The record of a tree with very many branches, uncompressed."""
    path = tmp_path_factory.mktemp("plain") / "a.root"
    names = [f"branch_{i:04d}_{i * 2654435761 % (1 << 48):x}" for i in range(1500)]
    with uproot.recreate(path) as file:
        file.mktree("Events", dict.fromkeys(names, "f4")).extend({n: np.zeros(17, "f4") for n in names})
    with uproot.open({str(path): None}) as file:
        key = file.key("Events")
        return bytes(file.file.chunk(key.fSeekKey + key.fKeylen, key.fSeekKey + key.fNbytes).raw_data)


@pytest.mark.parametrize("head", [200, 64 << 10])
@pytest.mark.parametrize("compression", COMPRESSIONS[:-1], ids=repr)
def test_a_compressed_record_is_read_only_as_far_as_needed(
    monkeypatch: pytest.MonkeyPatch, compression: object, head: int, plain: bytes
) -> None:
    stored = Stored(uproot.compression.compress(plain, compression), len(plain))
    assert len(stored.record) < len(plain)
    monkeypatch.setattr(counting, "HEAD", head)
    found = counting._head(stored, stored)
    assert plain.startswith(found[:4096])
    assert counting._entries_in(found) == 17
    assert counting._whole(stored.record, len(plain)) == plain
    whole = isinstance(compression, uproot.LZ4) or head < 64 << 10
    assert stored.asked <= (head + len(stored.record) if whole else head)


def test_a_compression_that_nobody_knows() -> None:
    with pytest.raises(InputError, match="no compression that ROOT writes"):
        counting._head(*[Stored(b"??" + bytes(100), 500)] * 2)
    with pytest.raises(InputError, match="no compression that ROOT writes"):
        counting._whole(b"??" + bytes(100), 500)


def test_a_title_longer_than_the_head(tmp_path: Path) -> None:
    path = tmp_path / "a.root"
    with uproot.recreate(path, compression=uproot.ZLIB(1)) as file:
        file.mktree("Events", {"x": "f4"}, title="t" * 5000).extend({"x": np.zeros(5, "f4")})
    assert count(str(path)).entries == 5


def test_the_highest_cycle_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.root"
    with uproot.recreate(path) as file:
        for entries in (5, 9):
            file.mktree("Events", {"x": "f4"}).extend({"x": np.zeros(entries, "f4")})
        assert len(file.keys()) == 2
    assert count(str(path), "Events").entries == 9
    assert count(str(path)).entries == 9
    assert count(str(path), "Events;1").entries == 5


class Pages(SimpleHTTPRequestHandler):
    """A server of ranges that notes what it is asked for."""

    def __init__(self, asked: list[tuple[int, int]], *args: object, **more: object) -> None:
        self.asked = asked
        super().__init__(*args, **more)

    def do_GET(self) -> None:
        start, stop = self.headers["Range"].removeprefix("bytes=").split("-")
        with open(self.translate_path(self.path), "rb") as file:
            content = file.read()
        body = content[int(start) : int(stop) + 1]
        self.asked.append((int(start), int(stop) + 1))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{int(start) + len(body) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


def test_a_remote_file_takes_three_small_reads(tmp_path: Path) -> None:
    """Its header, its list of keys, the head of the tree: whatever the file holds."""
    with uproot.recreate(tmp_path / "a.root") as file:
        names = [f"branch_{i}" for i in range(700)]
        file.mktree("Events", dict.fromkeys(names, "f8")).extend({n: np.zeros(100) for n in names})
    assert (tmp_path / "a.root").stat().st_size > 10 * counting.HEAD
    asked: list[tuple[int, int]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Pages, asked, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        found = count(f"http://127.0.0.1:{server.server_port}/a.root")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert (found.entries, found.treename) == (100, "Events")
    assert len(asked) == 3
    assert sum(stop - start for start, stop in asked) < counting.HEAD + 2000


def test_a_tree_in_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.root"
    with uproot.recreate(path) as file:
        file.mktree("deep/down/Tree", {"x": "f4"}).extend({"x": np.zeros(7, "f4")})
    assert count(str(path)) == count(str(path), "deep/down/Tree")
    assert count(str(path)).treename == "deep/down/Tree"


def test_which_tree(tmp_path: Path) -> None:
    path = tmp_path / "a.root"
    with uproot.recreate(path) as file:
        for name in ("Runs", "Trees"):
            file.mktree(name, {"x": "f4"}).extend({"x": np.zeros(7, "f4")})
    with pytest.raises(UsageError, match=r"which tree\? it holds 'Runs', 'Trees'.*--treename"):
        count(str(path))
    with pytest.raises(UsageError, match="which tree"):
        list(count_many([(str(path), None)]))
    with uproot.update(path) as file:
        file.mktree("Events", {"x": "f4"}).extend({"x": np.zeros(3, "f4")})
    assert count(str(path)).treename == "Events"


def test_a_missing_tree_says_what_there_is(tmp_path: Path) -> None:
    path = write_events(tmp_path / "a.root", 10)
    with pytest.raises(MissingTreeError, match="no tree 'Evens'; it holds 'Events'") as caught:
        count(str(path), "Evens")
    assert caught.value.about["trees"] == ["Events"]
    corrupt("not-a-tree", path)
    with pytest.raises(MissingTreeError, match="is no tree but a TH1D; it holds no tree at all"):
        count(str(path), "Events")
    with pytest.raises(MissingTreeError, match="holds no tree at all"):
        count(str(path))


def test_a_file_cut_short_is_found_without_reading_it(tmp_path: Path) -> None:
    path = write_events(tmp_path / "a.root", 1000)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ChangedFileError, match=f"cut short: its header says {size} bytes, it has {size - 1}"):
        count(str(path))


@RNTUPLE
def test_many_files_each_with_an_answer(tmp_path: Path, rntuple: bool) -> None:
    good = write_events(tmp_path / "good.root", 500, cluster=100, rntuple=rntuple)
    files = []
    for kind in KINDS:
        path = mend(tmp_path / f"{kind}.root", good)
        corrupt(kind, path)
        files.append((str(path), "Events"))
    files.append((str(good), "Events"))
    answers = dict(count_many(files, workers=3))
    assert sorted(answers) == list(range(len(files)))
    for kind, index in zip(KINDS, range(len(KINDS)), strict=True):
        answer = answers[index]
        if kind in (*LAZY, "no-ids", "changed"):
            assert isinstance(answer, Count), (kind, answer)  # headers do not show it
        else:
            assert isinstance(answer, Uncounted), (kind, answer)
            assert answer.kind is Kind.BAD, (kind, answer)
            assert answer.message, kind
    assert answers[len(KINDS)].entries == 500


def test_none_and_early_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(count_many([])) == []
    path = write_events(tmp_path / "a.root", 5)
    real = counting.count
    monkeypatch.setattr(counting, "count", lambda *a, **k: time.sleep(0.05) or real(*a, **k))
    answers = count_many([(str(path), None)] * 1000, workers=2)
    assert next(answers)[1].entries == 5
    answers.close()
    deadline = time.monotonic() + 5
    while any(t.name == "count" for t in threading.enumerate()):
        assert time.monotonic() < deadline, "counting goes on after nobody asks any more"
        time.sleep(0.01)


def test_an_unreachable_server_is_not_a_bad_file() -> None:
    # Port 9 of this machine: nothing listens there.
    ((_, answer),) = count_many([("http://127.0.0.1:9/a.root", "Events")], timeout=2)
    assert answer.kind is Kind.PASSING, answer


def test_identity(tmp_path: Path) -> None:
    path = write_events(tmp_path / "a.root", 5)
    before = identity(str(path))
    assert before == (str(path), path.stat().st_size, path.stat().st_mtime_ns)
    assert identity(f"file://{path}")[1:] == before[1:]
    write_events(path, 6)
    assert identity(str(path)) != before
    assert identity("root://somewhere//a.root") is None
    assert identity(str(tmp_path / "no.root")) is None


@pytest.mark.parametrize(
    "name", ["c:d.root", "a b.root", "häß.root", "100%.root", "a;1.root", "a.root:Events"]
)
def test_odd_names(tmp_path: Path, name: str) -> None:
    path = write_events(tmp_path / "a:b" / name, 5)
    assert count(str(path)).entries == 5
    piece = FileSlice(0, str(path), "Events", count(str(path)).uuid, 5, 0, ())
    with open_input(piece, BaseSchema) as source:
        assert len(source.events(0, 5).run) == 5


def test_a_file_url(tmp_path: Path) -> None:
    path = write_events(tmp_path / "a.root", 5)
    assert count(f"file://{path}").entries == 5
    assert count(f"file://{path}").size == path.stat().st_size


def test_time_out_is_an_integer() -> None:
    assert [seconds(x) for x in (0.2, 5, 5.1, 60.0)] == [1, 5, 6, 60]
    assert all(isinstance(seconds(x), int) for x in (0.2, 60.0))


@RNTUPLE
def test_damage_anywhere_in_the_headers_never_gives_a_wrong_count_of_a_tuple(
    tmp_path: Path, rntuple: bool
) -> None:
    """A flipped byte in the record that is counted from: an error, or the right number."""
    path = write_events(tmp_path / "a.root", 321, cluster=100, rntuple=rntuple)
    good = path.read_bytes()
    with uproot.open({str(path): None}) as file:
        key = file.key("Events")
        if rntuple:
            tree = file["Events"]
            start, length = tree.member("fSeekFooter"), tree.member("fNBytesFooter")
        else:
            start, length = key.fSeekKey + key.fKeylen, 40
    wrong = []
    for place in range(start, start + length):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :])
        ((_, answer),) = count_many([(str(path), "Events")], workers=1)
        if isinstance(answer, Count) and answer.entries != 321:
            wrong.append(place)
    # A TTree's record has no checksum over its first bytes; a worker reads all of it and refuses the file.
    assert not wrong or not rntuple
    assert len(wrong) < 20


def test_names_of_all_trees(tmp_path: Path) -> None:
    path = write_events(tmp_path / "a.root", 5)
    with uproot.open({str(path): None}) as file:
        assert trees(file) == ["Events"]


def test_far_cheaper_than_the_full_parse(tmp_path: Path) -> None:
    path = write_events(tmp_path / "wide.root", 10, wide=400)

    def best(what: object) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            what()
            times.append(time.perf_counter() - began)
        return min(times)

    assert best(lambda: count(str(path))) * 20 < best(lambda: full(path, "Events"))
