"""The store: what is not exactly what was written, under its own name, is never given out."""

import errno
import os
import random

import pytest

from executors.errors import DamagedError
from executors.work import store as module
from executors.work.model import Node
from executors.work.store import Store, check_bytes, frame, object_name, parse_name, sweep, write_whole

NODE = Node(3, 0, 2, 0, -1)
ID = "ab" * 20
NOISE = random.Random(1).randbytes(3000)
SECTIONS = [
    ("skeleton", memoryview(b"{}" * 40)),
    ("region <f8", memoryview(NOISE)),
    ("blob 0", memoryview(b"")),
]


@pytest.fixture
def store(memory_path):
    found = Store(memory_path / "store")
    found.put(NODE, ID, {"entries": 7}, SECTIONS)
    return found


def refused(store, node=NODE, identity=ID):
    try:
        store.get(node, identity)
    except DamagedError:
        return True
    return False


def test_gives_back_what_was_put(store):
    header, sections = store.get(NODE, ID)
    assert sections == {name: bytes(view) for name, view in SECTIONS}
    assert header.about["entries"] == 7
    assert store.head(NODE, ID) == header
    assert list(store.scan()) == [(NODE, ID)]


def test_many_blocks(memory_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 100)
    store = Store(memory_path)
    store.put(NODE, ID, {}, SECTIONS)
    assert store.get(NODE, ID)[1]["region <f8"] == NOISE
    assert len(store.head(NODE, ID).sections[1][1]) == 30


def test_every_bit_of_the_head_and_random_bits(store, scale):
    path = store.path(NODE, ID)
    whole = path.read_bytes()
    head = len(whole) - len(NOISE) - 100
    rng = random.Random(2)
    bits = [*range(200 * 8), *(rng.randrange(len(whole) * 8) for _ in range(scale(600, 2000)))]
    for bit in bits:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        assert refused(store), bit
        if bit // 8 < head:
            with pytest.raises(DamagedError):
                store.head(NODE, ID)
        with pytest.raises(DamagedError):
            check_bytes(bytes(data), NODE, ID)
    path.write_bytes(whole)
    assert not refused(store)


def test_every_truncation_and_anything_appended(store):
    path = store.path(NODE, ID)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedError):
            store.head(NODE, ID)
        assert refused(store), size
    for tail in (b"\0", b"x" * 5000, whole):
        path.write_bytes(whole + tail)
        with pytest.raises(DamagedError):
            store.head(NODE, ID)


def test_swapped(store):
    other = NODE._replace(split=4)
    store.put(other, "cd" * 20, {"entries": 7}, SECTIONS)
    one, two = store.path(NODE, ID), store.path(other, "cd" * 20)
    aside = one.with_name("aside")
    one.rename(aside), two.rename(one), aside.rename(two)
    for node, identity in ((NODE, ID), (other, "cd" * 20)):
        with pytest.raises(DamagedError, match="another object"):
            store.head(node, identity)
        assert refused(store, node, identity)


@pytest.mark.parametrize(
    "kind", ["folder", "pipe", "link", "dangling", "empty", "text", "zeros", "gone", "foreign"]
)
def test_foreign(store, kind, tmp_path):
    path = store.path(NODE, ID)
    whole = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        (tmp_path / "real").write_bytes(whole)
        path.symlink_to(tmp_path / "real")
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "foreign":
        head = b'["another","format"]'
        path.write_bytes(module.PROLOGUE.pack(module.MAGIC, len(head), module._digest(head, 20)) + head)
    elif kind != "gone":
        path.write_bytes({"empty": b"", "text": b"hello " * 900, "zeros": bytes(len(whole))}[kind])
    with pytest.raises(DamagedError):
        store.head(NODE, ID)
    assert refused(store)
    store.set_aside(NODE, ID)
    store.drop(NODE, ID)
    store.put(NODE, ID, {"entries": 7}, SECTIONS)
    assert not refused(store)


def test_dropping_a_folder_in_the_place_of_an_object(store):
    path = store.path(NODE, ID)
    path.unlink()
    (path / "inside").mkdir(parents=True)
    store.drop(NODE, ID)
    assert list(store.scan()) == []


def test_foreign_names_are_passed_over(store):
    root = store.root
    (root / "000009").write_text("a file where a folder should be")
    (root / "notes").mkdir()
    for name in (
        "x.part",
        "0.1.0.1.part",
        "-1.2.a.-1.id.part",
        f"0.2.0.-1.{ID}.part.bak",
        f"00.2.0.-1.{ID}.part",
    ):
        (root / "000003" / name).write_text("")
    (root / "٠٠٠٠٠١").mkdir()
    assert list(store.scan()) == [(NODE, ID)]
    store.sweep()


@pytest.mark.parametrize(
    "node", [NODE, Node(0, -1, 12, 0, -1), Node(999999, 5, 6, 3, 4), Node(1234567, 0, 1, 0, 0)]
)
def test_names_tell_the_node(node):
    assert parse_name(object_name(node, ID)) == (node, ID)


def test_bytes_are_checked_before_they_are_put(memory_path):
    store = Store(memory_path)
    pieces, stamp = frame({"id": ID, "node": list(NODE)}, SECTIONS)
    data = b"".join(pieces)
    assert store.put_bytes(NODE, ID, data) == stamp
    with pytest.raises(DamagedError):
        store.put_bytes(NODE._replace(split=9), ID, data)
    with pytest.raises(DamagedError):
        store.put_bytes(NODE, "00" * 20, data)
    assert list(store.scan()) == [(NODE, ID)]


def test_too_few_open_files_is_no_damage(store, monkeypatch):
    def full(*args, **kw):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(module.os, "open", full)
    with pytest.raises(OSError, match="Too many") as caught:
        store.head(NODE, ID)
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
def test_a_network_file_system_is_asked_twice(store, monkeypatch, number):
    real, left = os.open, [1]

    def once(path, *args, **kw):
        if str(path).endswith(".part") and left:
            left.pop()
            raise OSError(number, os.strerror(number))
        return real(path, *args, **kw)

    monkeypatch.setattr(module.os, "open", once)
    assert store.head(NODE, ID).about["entries"] == 7


def test_unreadable_disk_block_is_damage(store, monkeypatch):
    def broken(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module.os, "pread", broken)
    with pytest.raises(DamagedError, match="Input/output"):
        store.head(NODE, ID)


def test_sweep_takes_what_is_half_written_and_nothing_else(store):
    folder = store.path(NODE, ID).parent
    (folder / ".0.2.0.-1.abab.0123.tmp").write_text("half")
    (folder / "visible.tmp").write_text("somebody's")
    store.sweep()
    assert sorted(p.name for p in folder.iterdir()) == sorted([store.path(NODE, ID).name, "visible.tmp"])
    (folder / ".plan.json.1.tmp").write_text("")
    (folder / ".other.json.1.tmp").write_text("")
    sweep(folder, "plan.json")
    assert not (folder / ".plan.json.1.tmp").exists()
    assert (folder / ".other.json.1.tmp").exists()


def test_long_names_of_many_bytes(memory_path):
    path = memory_path / ("漢" * 80)
    assert write_whole(path, [b"abc", memoryview(b"def")]) == 6
    assert path.read_bytes() == b"abcdef"
