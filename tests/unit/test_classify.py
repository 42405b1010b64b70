"""Whose fault is it: a table over real damaged files, and over what the analysis does wrong itself."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import pickle
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np
import pytest
import uproot
from coffea.nanoevents import NanoAODSchema
from coffea.processor import IterativeExecutor, Runner

from executors.coffea.analysis import CoffeaAnalysis
from executors.coffea.classify import ColumnError, InputError, chain, classify, forbidden_by_mode, frames
from executors.coffea.count import count, count_many
from executors.errors import AnalysisError, EngineError, SiteError
from executors.work.model import FileSlice, Kind
from tests.data import DENIED, KINDS, LAZY, corrupt, mend, write_events

if TYPE_CHECKING:
    from collections.abc import Iterator

RNTUPLE = pytest.mark.parametrize("rntuple", [False, True], ids=["TTree", "RNTuple"])
LAZILY = pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "public"])


def plain(events: Any) -> Any:
    return {"n": len(events), "pt": float(ak.sum(events.Muon.pt)), "w": float(ak.sum(events.genWeight))}


def through_operations(events: Any) -> Any:
    muons = events.Muon[events.Muon.pt > 20]
    pairs = ak.combinations(muons, 2)
    return ak.sum((pairs["0"] + pairs["1"]).mass)


def unread(events: Any) -> Any:
    """Gives back columns that nobody has read yet."""
    return {"pt": events.Muon.pt}


def piece_of(path: Path) -> FileSlice:
    found = count(str(path), "Events")
    return FileSlice(0, str(path), found.treename, found.uuid, found.entries, 0, ((0, found.entries),))


def raised(piece: FileSlice, processor: Any, lazy: bool = True, **options: Any) -> tuple[CoffeaAnalysis, Any]:
    """The exception that a worker would see for a piece, and the analysis that it would ask."""
    analysis = CoffeaAnalysis(processor, {"dy": {}}, lazy=lazy, **options)
    try:
        with analysis.open("dy", piece) as file:
            analysis.pack(file.process(*piece.ranges[0]))
    except BaseException as error:
        # A worker's frames are ours and the library's: without those of this test, which are a user's.
        while error.__traceback__ and error.__traceback__.tb_frame.f_code is raised.__code__:
            error.__traceback__ = error.__traceback__.tb_next
        return analysis, error
    return analysis, None


@pytest.fixture(scope="module", params=[False, True], ids=["TTree", "RNTuple"])
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(
        tmp_path_factory.mktemp("good") / "good.root", 1000, cluster=300, rntuple=request.param
    )


@LAZILY
@pytest.mark.parametrize("processor", [plain, through_operations, unread])
@pytest.mark.parametrize("kind", KINDS)
def test_every_damage_is_the_inputs(
    good: Path, tmp_path: Path, kind: str, processor: Any, lazy: bool
) -> None:
    path = mend(tmp_path / "bad.root", good)
    piece = piece_of(path)
    assert raised(piece, processor, lazy)[1] is None
    corrupt(kind, path)
    analysis, error = raised(piece, processor, lazy)
    assert error is not None, f"{kind} was not noticed"
    assert analysis.classify(error) is Kind.BAD, repr(error)
    if kind in LAZY:
        # Read inside the analysis, which sees coffea's and uproot's own error.
        assert not isinstance(error, InputError)


@pytest.mark.parametrize("kind", KINDS)
def test_every_damage_is_the_inputs_through_coffeas_own_runner(good: Path, tmp_path: Path, kind: str) -> None:
    """The drop-in executor asks about errors of coffea's own work function, which has no frame of ours."""
    if kind in {"short", "changed"}:
        pytest.skip("coffea itself does not notice it")
    NanoAODSchema.warn_missing_crossrefs = False
    run = Runner(IterativeExecutor(status=False, retries=0), schema=NanoAODSchema)
    chunks = list(run.preprocess({"dy": {"files": {str(good): "Events"}}}, treename="Events"))
    path = mend(tmp_path / "bad.root", good)
    chunk = dataclasses.replace(chunks[0], filename=str(path))
    corrupt(kind, path)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - coffea wraps everything
        run([chunk], plain)
    inner = list(chain(caught.value))[-1]
    assert classify(inner, str(path)) is Kind.BAD, repr(inner)
    assert classify(caught.value, str(path)) is Kind.BAD, repr(inner)


@pytest.mark.parametrize("number", range(5))
def test_the_users_own_through_coffeas_own_runner(good: Path, number: int) -> None:
    processor = USER[number]
    NanoAODSchema.warn_missing_crossrefs = False
    run = Runner(IterativeExecutor(status=False, retries=0), schema=NanoAODSchema)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - coffea wraps everything
        run({"dy": [str(good)]}, processor, treename="Events")
    assert classify(caught.value) is Kind.USER
    assert frames(caught.value)[-1].startswith("test_classify.py:")


def test_refusals_name_the_file(good: Path, tmp_path: Path) -> None:
    path = mend(tmp_path / "bad.root", good)
    piece = piece_of(path)
    for kind, text in {
        "changed": "another file than was planned",
        "no-tree": "no tree 'Events'; it holds 'Runs'",
        "short": "cut short",
        "no-ids": "another file",
    }.items():
        corrupt(kind, mend(path, good))
        _, error = raised(piece, plain)
        assert str(path) in str(error), kind
        assert text in str(error), kind
    fresh = piece_of(corrupt("no-ids", mend(path, good)))
    analysis, error = raised(fresh, plain)
    assert "NanoAODSchema cannot be made of it" in str(error)
    assert "missing event ID fields" in str(error)
    assert analysis.classify(error) is Kind.BAD


def test_other_entries_under_the_same_uuid(good: Path) -> None:
    piece = piece_of(good)
    wrong = FileSlice(0, piece.path, "Events", piece.uuid, 999, 0, ((0, 999),))
    analysis, error = raised(wrong, plain)
    assert "has 1000 entries, not 999" in str(error)
    assert analysis.classify(error) is Kind.BAD


def test_a_range_past_the_end_is_not_clamped_in_silence(good: Path) -> None:
    piece = piece_of(good)
    beyond = FileSlice(0, piece.path, "Events", piece.uuid, piece.entries, 0, ((900, 1100),))
    for lazy in (True, False):
        analysis, error = raised(beyond, plain, lazy)
        assert error is not None, "100 events that are not there were counted"
        assert analysis.classify(error) is Kind.BAD


# --- what the analysis does itself ----------------------------------------------------------------


def missing_correction(_events: Any) -> Any:
    return Path("/nowhere/correction.json").read_text()


def own_root_file(_events: Any) -> Any:
    with uproot.open("/nowhere/weights.root") as file:
        return file["h"]


def garbage_of_its_own(_events: Any) -> Any:
    return zlib.decompress(b"garbage")


def no_such_field(events: Any) -> Any:
    return events.Muon.nonsense


def no_such_collection(events: Any) -> Any:
    return events.Tau.pt


def awkward_nonsense(events: Any) -> Any:
    return events.Muon.pt + ak.Array([1, 2, 3])


def handled_and_wrong(events: Any) -> Any:
    try:
        return Path("/nowhere/correction.json").read_text()
    except OSError as error:
        msg = "no correction"
        raise RuntimeError(msg) from error


def leaves(_events: Any) -> Any:
    raise SystemExit(3)


def endless(events: Any) -> Any:
    return endless(events)


def own_timeout(_events: Any) -> Any:
    msg = "I waited long enough"
    raise TimeoutError(msg)


def nothing(_events: Any) -> None:
    return None


USER = [
    missing_correction,
    own_root_file,
    garbage_of_its_own,
    no_such_field,
    no_such_collection,
    awkward_nonsense,
    handled_and_wrong,
    leaves,
    endless,
    own_timeout,
]


@LAZILY
@pytest.mark.parametrize("processor", [*USER, nothing])
def test_the_users_own(good: Path, processor: Any, lazy: bool) -> None:
    analysis, error = raised(piece_of(good), processor, lazy)
    assert analysis.classify(error) is Kind.USER, repr(error)
    if processor is nothing:
        assert isinstance(error, AnalysisError)
        assert "returned None" in str(error)
    else:
        (*_, last) = analysis.frames(error)
        assert last.startswith("test_classify.py:"), last
        assert f"in {processor.__name__}: " in last
        assert all("site-packages" not in frame for frame in analysis.frames(error))


def test_frames_have_the_source_line(good: Path) -> None:
    analysis, error = raised(piece_of(good), no_such_field)
    line = no_such_field.__code__.co_firstlineno + 1
    assert analysis.frames(error) == (
        f"test_classify.py:{line} in no_such_field: return events.Muon.nonsense",
    )


def test_frames_of_an_installed_processor(tmp_path: Path) -> None:
    """A processor out of site-packages is the user's nonetheless."""
    place = tmp_path / "site-packages" / "mylab" / "ana.py"
    source = "def process(events):\n    return 1 / 0\n"
    place.parent.mkdir(parents=True)
    place.write_text(source)
    space: dict[str, Any] = {"__name__": "mylab.ana"}
    exec(compile(source, str(place), "exec"), space)
    with pytest.raises(ZeroDivisionError) as caught:
        space["process"](None)
    assert not any("ana.py" in f for f in frames(caught.value))
    assert frames(caught.value, ("mylab",))[-1] == "ana.py:2 in process: return 1 / 0"


def test_mistakes_of_an_installed_processor_are_not_the_inputs(good: Path, tmp_path: Path) -> None:
    file = f"{os.sep}site-packages{os.sep}mylab{os.sep}ana.py"
    source = """
import uproot
def own_file(events): return open("/nowhere/correction.json")
def own_root(events): return uproot.open("/nowhere/weights.root")
def reads(events): return float(events.Muon.pt[0, 0])
"""
    space: dict[str, Any] = {"__name__": "mylab.ana"}
    exec(compile(source, file, "exec"), space)
    for name in ("own_file", "own_root"):
        analysis, error = raised(piece_of(good), space[name])
        assert isinstance(error, FileNotFoundError)
        assert analysis.classify(error) is Kind.USER
        assert any(f"in {name}" in frame for frame in analysis.frames(error))
    path = mend(tmp_path / "bad.root", good)
    piece = piece_of(path)
    corrupt("zeroed", path)
    analysis, error = raised(piece, space["reads"])
    assert analysis.classify(error) is Kind.BAD


def test_a_read_error_that_the_user_wraps_is_still_the_inputs(good: Path, tmp_path: Path) -> None:
    def wraps(events: Any) -> Any:
        try:
            return ak.sum(events.Muon.pt)
        except Exception as error:
            msg = "my selection failed"
            raise RuntimeError(msg) from error

    path = mend(tmp_path / "bad.root", good)
    piece = piece_of(path)
    corrupt("flipped", path)
    analysis, error = raised(piece, wraps)
    assert str(error) == "my selection failed"
    assert analysis.classify(error) is Kind.BAD


def _raise(error: BaseException) -> Any:
    def process(_events: Any) -> Any:
        raise error

    return process


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), Kind.MEMORY),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), Kind.MEMORY),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), Kind.SITE),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/tmp/x"), Kind.SITE),
        (SiteError("the proxy has expired"), Kind.SITE),
        (EngineError("gone"), Kind.SITE),
        (OSError(errno.ESTALE, "Stale file handle", "/afs/corrections.json"), Kind.PASSING),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), Kind.PASSING),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), Kind.USER),
        (ConnectionError("my own words"), Kind.USER),
        (ZeroDivisionError(), Kind.USER),
        (KeyError("Muon_pt"), Kind.USER),
        (UnicodeDecodeError("utf8", b"", 0, 1, "x"), Kind.USER),
        (AnalysisError("x"), Kind.USER),
        (KeyboardInterrupt(), Kind.USER),
    ],
    ids=repr,
)
def test_raised_by_the_analysis(good: Path, error: BaseException, kind: Kind) -> None:
    analysis, seen = raised(piece_of(good), _raise(error))
    assert seen is error
    assert analysis.classify(seen) is kind


def test_memory_asked_for_by_numpy(good: Path) -> None:
    def greedy(events: Any) -> Any:
        return np.zeros((1 << 50, 8))

    analysis, error = raised(piece_of(good), greedy)
    assert analysis.classify(error) is Kind.MEMORY

    def within_awkward(events: Any) -> Any:
        return ak.firsts(np.zeros((1 << 50, 8)) + events.Muon.pt)

    analysis, error = raised(piece_of(good), within_awkward)
    assert analysis.classify(error) is Kind.MEMORY


# --- troubles of reading that no test machine has -------------------------------------------------


def reading(error: BaseException, monkeypatch: pytest.MonkeyPatch, path: Path, on: str) -> Kind:
    """What is said of an error that the reader raises, when opening or when a column is fetched."""
    piece = piece_of(path)

    space: dict[str, Any] = {"error": error}
    source = f"{os.sep}site-packages{os.sep}uproot{os.sep}reading.py"
    exec(compile("def fail(*args, **options):\n    raise error", source, "exec"), space)
    fail = space["fail"]
    with monkeypatch.context() as patch:
        if on == "open":
            patch.setattr(uproot, "open", fail)
        else:
            patch.setattr(uproot.behaviors.TBranch.TBranch, "array", fail)
            patch.setattr(uproot.behaviors.TBranch.HasBranches, "arrays", fail)
            patch.setattr(uproot.models.RNTuple.RField, "array", fail)
        analysis, seen = raised(piece, plain)
        assert seen is error
    return analysis.classify(seen)


@pytest.mark.parametrize("on", ["open", "column"])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError("timed out"), Kind.PASSING),
        (ConnectionResetError("reset"), Kind.PASSING),
        (OSError(errno.ESTALE, "Stale file handle"), Kind.PASSING),
        (OSError(errno.EIO, "Input/output error"), Kind.PASSING),
        (OSError(errno.EMFILE, "Too many open files"), Kind.PASSING),
        (FileNotFoundError(errno.ENOENT, "No such file", "/data/a.root"), Kind.BAD),
        (PermissionError(errno.EACCES, "Permission denied"), Kind.SITE),
        (ModuleNotFoundError("No module named 'XRootD'"), Kind.SITE),
        (OverflowError("size too big for unsigned long"), Kind.BAD),
        (NotImplementedError("memberwise"), Kind.BAD),
        (MemoryError(), Kind.MEMORY),
    ],
    ids=repr,
)
def test_raised_by_the_reader(
    good: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, kind: Kind, on: str
) -> None:
    assert reading(error, monkeypatch, good, on) is kind


def said_by_the_reader(text: str, kind: type[Exception] = OSError) -> BaseException:
    """An exception with this text, out of code that lies where the reader does."""
    file = f"{os.sep}site-packages{os.sep}fsspec_xrootd{os.sep}xrootd.py"
    try:
        exec(compile("raise kind(text)", file, "exec"), {"kind": kind, "text": text})
    except Exception as error:
        error.__traceback__ = error.__traceback__.tb_next  # without this test's own frame
        return error
    raise RuntimeError


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (
            "File did not open properly: [ERROR] Server responded with an error: [3011] Unable to open",
            Kind.PASSING,
        ),
        ("[ERROR] Server responded with an error: [3010] Unable to open /x; permission denied", Kind.SITE),
        ("[FATAL] Auth failed: No protocols left to try", Kind.SITE),
        ("[ERROR] Operation expired", Kind.PASSING),
        ("[FATAL] Connection error", Kind.PASSING),
        ("[FATAL] Socket timeout", Kind.PASSING),
        ("[3005] Unable to open /x; connection refused", Kind.PASSING),
        ("[3011] No servers are available to read the file.", Kind.PASSING),
        ("Failed to submit: [FATAL] Invalid address", Kind.PASSING),
        ("[ERROR] Server responded with an error: [3005] Unable to readv /x; illegal seek", Kind.BAD),
        ("403, message='Forbidden', url='https://x/a.root'", Kind.SITE),
        ("401, message='Unauthorized'", Kind.SITE),
        ("503, message='Service Unavailable'", Kind.PASSING),
        ("expected Chunk of length 403, received 0 bytes", Kind.BAD),
        ("something else altogether", Kind.BAD),
        ("unrecognized algorithm in file root://x//store/user/forbidden/timeout/certificate.root", Kind.BAD),
        (
            "[ERROR] Server responded with an error: [3011] Unable to open /permission denied/a.root",
            Kind.PASSING,
        ),
    ],
)
def test_what_remote_readers_say(text: str, kind: Kind) -> None:
    assert classify(said_by_the_reader(text), "root://xrootd.example//store/a.root") is kind


def test_remote_by_type() -> None:
    where = "https://example.org/a.root"
    assert classify(said_by_the_reader(where, FileNotFoundError), where) is Kind.PASSING
    assert classify(said_by_the_reader("Protocol not known: roots", ValueError), "roots://x//a") is Kind.SITE
    assert classify(said_by_the_reader("not a ROOT file: first four bytes", ValueError), where) is Kind.BAD
    # Without being told the path: it is in the text, as uproot says it.
    text = f"Operation expired\nin file {where}"
    assert classify(said_by_the_reader(text)) is Kind.PASSING


def test_a_mode_that_forbids_is_the_files(tmp_path: Path) -> None:
    path = write_events(tmp_path / "a.root", 5)
    assert not forbidden_by_mode(str(path))
    path.chmod(0)
    assert forbidden_by_mode(str(path))
    refused = said_by_the_reader("", PermissionError)
    refused.errno, refused.filename = errno.EACCES, str(path)
    assert classify(refused, str(path)) is Kind.BAD
    path.chmod(0o600)  # allowed by mode: then a token has expired, and no file is bad
    assert classify(refused, str(path)) is Kind.SITE
    assert classify(refused, "root://x//a.root") is Kind.SITE
    assert not forbidden_by_mode(str(tmp_path / "no.root"))


@contextlib.contextmanager
def ordinary_rights() -> Iterator[None]:
    """For root, who may read everything, the rights of one who may not."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_may_not_be_read(good: Path) -> None:
    piece = piece_of(good)
    with tempfile.TemporaryDirectory() as folder:
        open_folder, closed_folder = Path(folder), Path(folder) / "closed"
        open_folder.chmod(0o755)
        closed_folder.mkdir()
        refused = corrupt(DENIED, mend(open_folder / "a.root", good))
        behind = mend(closed_folder / "b.root", good)
        closed_folder.chmod(0)
        with ordinary_rights():
            for where, kind in ((refused, Kind.BAD), (behind, Kind.SITE)):
                analysis, error = raised(dataclasses.replace(piece, path=str(where)), plain)
                assert isinstance(error, PermissionError)
                assert analysis.classify(error) is kind
                ((_, answer),) = count_many([(str(where), "Events")], workers=1)
                assert answer.kind is kind, answer
        closed_folder.chmod(0o700)


def test_errors_travel() -> None:
    error = InputError("a.root: bad", path="a.root", kind=Kind.PASSING)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.kind, again.about) == (
        InputError,
        "a.root: bad",
        Kind.PASSING,
        error.about,
    )
    assert InputError("x").kind is Kind.BAD
    assert classify(again) is Kind.PASSING
    assert isinstance(pickle.loads(pickle.dumps(ColumnError("x", columns=["a"]))), AnalysisError)


def test_an_error_without_any_traceback() -> None:
    assert classify(ValueError("x")) is Kind.USER
    assert frames(ValueError("x")) == ()


def test_a_chain_that_bites_its_tail() -> None:
    one, two = ValueError("1"), ValueError("2")
    one.__cause__, two.__cause__ = two, one
    assert classify(one) is Kind.USER
