"""Saved files: coffea reads them, equal values give equal bytes, and no half file has the final name."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import cloudpickle
import coffea.util
import hist
import lz4.frame
import numpy as np
import pytest
from coffea.processor import column_accumulator, set_accumulator

from executors.coffea import constants
from executors.coffea import save as saving
from executors.coffea.pack import pack, unpack
from executors.coffea.save import file_digest, load, save, verify
from executors.errors import DamagedError, UsageError


def output(n=1000):
    h = hist.Hist(hist.axis.Regular(50, 0, 1, name="x"), storage=hist.storage.Weight())
    return {
        "dy": {"h": h.fill(np.linspace(0, 1, n)), "n": n},
        "runs": {(1, 2), (3, 4)},
        "column": column_accumulator(np.arange(n)),
        "names": set_accumulator({"a", "b"}),
    }


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "out.coffea"
    save(output(), path)
    return path


def names(folder):
    return [path.name for path in folder.iterdir()]


def same(one, two):
    return pack(one).digest() == pack(two).digest()


def test_coffea_reads_it(saved):
    back = coffea.util.load(str(saved))
    assert same(back, output())
    assert type(back["names"]) is set_accumulator
    assert same(load(saved), output())


def test_we_read_what_coffea_writes(tmp_path):
    path = tmp_path / "theirs.coffea"
    coffea.util.save(output(), str(path))
    assert same(load(path), output())
    verify(path)


def test_the_digest_is_of_the_file(saved):
    digest = save(output(), saved)
    assert digest == file_digest(saved)
    assert len(digest) == 40
    assert digest != save(output(999), saved)
    assert names(saved.parent) == [saved.name]


def test_the_frame_has_a_content_checksum(saved):
    assert lz4.frame.get_frame_info(saved.read_bytes())["content_checksum"]


def test_large_arrays_survive(tmp_path):
    value = {"a": np.arange(400_000.0), "b": np.asfortranarray(np.ones((300, 500)))}
    save(value, tmp_path / "x.coffea")
    back = load(tmp_path / "x.coffea")
    assert all(np.array_equal(back[k], value[k]) for k in value)


def test_equal_values_equal_bytes(tmp_path):
    packed = pack(output())
    assert save(unpack(packed), tmp_path / "a") == save(unpack(packed), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


PROGRAM = """
import sys, collections, hist, numpy as np
from coffea.processor import set_accumulator
from executors.coffea.pack import pack, unpack
from executors.coffea.save import save
class Own:
    pass
Own.__module__ = "nowhere"
value = {"s": {f"k{i}" for i in range(40)}, "t": [({"a", "b", 1, None}, frozenset("xyz"))],
    "n": set_accumulator(map(str, range(9))), "d": collections.defaultdict(lambda: {"q", "r", "s"}),
    "h": hist.Hist(hist.axis.StrCategory(["b", "a"], name="x", growth=True), storage="weight"),
    frozenset("pqr"): {"deep": [[{"u", "v", "w"}]]}}
print(save(unpack(pack(value)), sys.argv[1]), save(value, sys.argv[1]))
"""


def test_equal_bytes_in_every_process(tmp_path):
    seen = []
    for seed in ("0", "1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "x.coffea")],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        seen.append(run.stdout.split())
    assert [len({row[i] for row in seen}) for i in (0, 1)] == [1, 1]
    assert load(tmp_path / "x.coffea")["t"] == [({"a", "b", 1, None}, frozenset("xyz"))]


def test_the_steady_pickle_keeps_what_the_usual_one_keeps():
    shared = [1]
    ring: dict = {"s": {1, 2}, "l": shared, "m": shared}
    ring["me"] = ring
    back = cloudpickle.loads(constants.dumps(ring))
    assert back["me"] is back
    assert back["l"] is back["m"]
    double = cloudpickle.loads(constants.dumps(lambda x: 2 * x))
    assert double(4) == 8

    class Local:
        tags = frozenset("ab")

        def get(self):
            return self.tags

    assert cloudpickle.loads(constants.dumps(Local())).get() == {"a", "b"}


def test_the_steady_pickle_does_not_see_which_strings_are_one_object():
    one, two = (str(b"muon", "ascii") for _ in range(2))
    assert one is not two
    assert constants.dumps([one, {one: one}]) == constants.dumps([one, {two: two}])


def test_every_flipped_bit_is_noticed(saved):
    good = saved.read_bytes()
    rng = np.random.default_rng(3)
    accepted = 0
    for at in {*rng.integers(0, len(good), 300).tolist(), *range(20), *range(len(good) - 12, len(good))}:
        bad = bytearray(good)
        bad[at] ^= 1 << int(rng.integers(0, 8))
        saved.write_bytes(bad)
        try:
            verify(saved)
            accepted += 1
        except DamagedError:
            pass
        with pytest.raises(DamagedError):
            load(saved)
    assert accepted == 0


def test_every_truncation_is_noticed(saved):
    good = saved.read_bytes()
    for size in [*range(40), *range(40, len(good), 13), len(good) - 1]:
        saved.write_bytes(good[:size])
        with pytest.raises(DamagedError):
            load(saved)
    saved.write_bytes(good + b"\0")
    with pytest.raises(DamagedError, match="behind its end"):
        load(saved)
    saved.write_bytes(good + good)
    with pytest.raises(DamagedError, match="behind its end"):
        load(saved)


def test_a_sound_frame_that_is_no_pickle(tmp_path):
    path = tmp_path / "x.coffea"
    path.write_bytes(lz4.frame.compress(b"hello"))
    with pytest.raises(DamagedError, match=r"not a \.coffea"):
        load(path)


def test_pipes_and_folders_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UsageError, match="not a regular file"):
            load(path, trust=True)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing")


def test_the_files_of_others_are_refused(saved, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: saved.stat().st_uid + 1)
    with pytest.raises(UsageError, match="executors.load"):
        load(saved)
    assert same(load(saved, trust=True), output())
    verify(saved)


class Interrupting:
    """Interrupts its own pickling."""

    def __reduce__(self):
        raise KeyboardInterrupt


@pytest.mark.parametrize("before", [True, False])
def test_no_half_file_after_an_interruption(tmp_path, before):
    path = tmp_path / "x.coffea"
    digest = save(output(), path) if before else None
    with pytest.raises(KeyboardInterrupt):
        save({"a": np.arange(100_000), "b": Interrupting()}, path)
    assert names(tmp_path) == (["x.coffea"] if before else [])
    assert not before or file_digest(path) == digest


@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.ESTALE])
def test_disk_errors_come_through_as_they_are(tmp_path, monkeypatch, call, code):
    path = tmp_path / "x.coffea"
    digest = save(output(), path)

    def fail(*_args, **_keywords):
        raise OSError(code, os.strerror(code))

    target = {
        "fsync": (os, "fsync"),
        "replace": (saving.Path, "replace"),
        "write": (saving._Frame, "_emit"),
    }[call]
    with monkeypatch.context() as patch:
        patch.setattr(*target, fail)
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            save(output(5), path)
    assert caught.value.errno == code
    assert names(tmp_path) == ["x.coffea"]
    assert file_digest(path) == digest


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "ours", lambda *_: os.open("/dev/full", os.O_WRONLY))
    with pytest.raises(OSError, match="space"):
        save({"a": np.random.default_rng(0).random(500_000)}, tmp_path / "x.coffea")
    assert names(tmp_path) == []


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(FileNotFoundError):
        save({}, tmp_path / "no" / "x.coffea")


def test_a_long_name_fits(tmp_path):
    path = tmp_path / ("n" * 248 + ".coffea")
    save({}, path)
    assert load(path) == {}
