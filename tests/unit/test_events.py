"""Slices filled on demand show an analysis exactly what coffea's own events show it."""

from __future__ import annotations

import dataclasses
import functools
import gc
import http.server
import os
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np
import pytest
import uproot
from coffea.nanoevents import BaseSchema, NanoAODSchema, NanoEventsFactory

from executors.coffea import events as reading
from executors.coffea import records, template
from executors.coffea.classify import ChangedFileError, InputError, classify
from executors.coffea.columns import Columns
from executors.coffea.count import Uncounted, count, count_many
from executors.coffea.events import open_input, schema_named
from executors.errors import UnknownNameError, UsageError
from executors.work.model import FileSlice, Kind
from tests.data import columns, corrupt, write_columns, write_events
from tests.same_events import differences

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRIES = 1000
RANGES = [(0, ENTRIES), (0, 1), (137, 742), (300, 600), (ENTRIES - 1, ENTRIES), (500, 500), (0, 0)]
SAMPLES = [
    ("nano_dy", "NanoAODSchema"),
    ("nano_dimuon", "NanoAODSchema"),
    ("nano_tree", "NanoAODSchema"),
    ("nano_tt_v12", "NanoAODSchema"),
    ("nano_tt_v15", "NanoAODSchema"),
    ("nano_dy", "BaseSchema"),
    ("pfnano", "PFNanoAODSchema"),
    ("scouting_nano", "ScoutingNanoAODSchema"),
    ("treemaker", "TreeMakerSchema"),
    ("PHYSLITE_example", "PHYSLITESchema"),
    ("delphes", "DelphesSchema"),
    ("test_FCC_Spring2021", "FCCSchema"),
    ("p8_ee_WW_ecm240_edm4hep", "FCCSchema_edm4hep1"),
    ("edm4hep_example_v01-01_podio_v01-07", "EDM4HEPSchema"),
    ("pduneana", "PDUNESchema"),
    ("nano_dy_rntuple", "NanoAODSchema"),
    ("pfnano_rntuple", "PFNanoAODSchema"),
    ("treemaker_rntuple", "TreeMakerSchema"),
]
TREES = {"edm4hep_example_v01-01_podio_v01-07": "events", "test_FCC_Spring2021": "events"}


def piece_of(path: Path, tree: str | None = None) -> FileSlice:
    found = count(str(path), tree)
    return FileSlice(0, str(path), found.treename, found.uuid, found.entries, 0, ())


@pytest.fixture(autouse=True)
def no_template_is_left() -> Iterator[None]:
    template.forget()
    yield
    template.forget()


@pytest.fixture(scope="module", params=[False, True], ids=["TTree", "RNTuple"])
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_events(
        tmp_path_factory.mktemp("good") / "good.root", ENTRIES, cluster=300, wide=6, rntuple=request.param
    )


@pytest.mark.parametrize("span", RANGES, ids=str)
@pytest.mark.parametrize("schema", [NanoAODSchema, BaseSchema])
def test_equal_to_coffeas(good: Path, schema: type, span: tuple[int, int]) -> None:
    about = {"dataset": "dy", "metadata": {"xsec": 1.5, "nested": {"year": 2022}}}
    piece = piece_of(good)
    with open_input(piece, schema, **about) as lazy, open_input(piece, schema, lazy=False, **about) as public:
        assert lazy.lazy
        assert not public.lazy
        assert differences(lazy.events(*span), public.events(*span)) == []


def test_equal_to_what_coffeas_own_runner_hands_out(good: Path) -> None:
    """Against coffea's call itself, not against our other path."""
    piece = piece_of(good)
    metadata = {
        "dataset": "dy",
        "filename": str(good),
        "treename": "Events",
        "entrystart": 100,
        "entrystop": 300,
        "xsec": 1.5,
    }
    with uproot.open({str(good): None}) as file:
        metadata["fileuuid"] = str(file.file.uuid)
        own = NanoEventsFactory.from_root(
            file, treepath="Events", entry_start=100, entry_stop=300, metadata=dict(metadata), access_log=[]
        ).events()
        with open_input(piece, NanoAODSchema, dataset="dy", metadata={"xsec": 1.5}) as source:
            ours = source.events(100, 300)
            assert ours.metadata == {**metadata, "version": "latest"} == own.metadata
            assert differences(ours, own) == [
                f for f in differences(ours, own) if f.startswith("metadata order")
            ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "schema"), SAMPLES)
def test_equal_on_coffeas_samples(name: str, schema: str) -> None:
    folder = os.environ.get("COFFEA_SAMPLES")
    if not folder:
        pytest.skip("COFFEA_SAMPLES does not name tests/samples of coffea's source distribution")
    piece = piece_of(Path(folder) / f"{name}.root", TREES.get(name))
    span = (piece.entries // 4, piece.entries - piece.entries // 5)
    kind = schema_named(schema)
    with open_input(piece, kind) as lazy, open_input(piece, kind, lazy=False) as public:
        assert lazy.lazy
        assert differences(lazy.events(*span), public.events(*span)) == []


def test_nothing_is_read_that_is_not_used(good: Path) -> None:
    with open_input(piece_of(good), NanoAODSchema) as source:
        before = source.bytes_read
        events = source.events(0, 500)
        assert "genWeight" in events.fields
        assert not hasattr(events, "nothing")
        assert source.bytes_read == before
        assert ak.sum(events.genWeight) == ak.sum(columns(ENTRIES, wide=6)["genWeight"][:500])
        assert source.bytes_read > before


def test_one_trigger_does_not_build_all(good: Path) -> None:
    with open_input(piece_of(good), NanoAODSchema) as source:
        events = source.events(0, 50)
        assert len(events.HLT.x3) == 50
        built = [len([c for c in list.__iter__(r) if c is not None]) for r in _contents(events.layout)]
        assert built == [1, 1], "of the events' fields, and of the triggers"


def _contents(layout: Any) -> list[Any]:
    own = [layout.contents] if isinstance(layout.contents, records.Contents) else []
    below = [c for c in list.__iter__(layout.contents) if isinstance(getattr(c, "contents", None), list)]
    return own + [found for c in below for found in _contents(c)]


def test_slices_of_a_file_are_independent(good: Path) -> None:
    whole = columns(ENTRIES, wide=6)
    with open_input(piece_of(good), NanoAODSchema) as source:
        slices = [(span, source.events(*span)) for span in RANGES]
        for (start, stop), events in reversed(slices):
            assert events.event.tolist() == whole["event"][start:stop].tolist()
            assert events.Muon.pt.tolist() == whole["Muon_pt"][start:stop].tolist()
            assert (events.metadata["entrystart"], events.metadata["entrystop"]) == (start, stop)


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("span", [(-1, 5), (0, ENTRIES + 1), (7, 3), (ENTRIES + 5, ENTRIES + 9)])
def test_a_range_that_is_not_there(good: Path, span: tuple[int, int], lazy: bool) -> None:
    with (
        open_input(piece_of(good), NanoAODSchema, lazy=lazy) as source,
        pytest.raises(ChangedFileError, match="it has no entries"),
    ):
        source.events(*span)


# --- templates ------------------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files for which coffea was asked to walk all branches."""
    walks: list[str] = []
    real = template.public_events

    def counted(file: Any, *args: Any, **options: Any) -> Any:
        walks.append(Path(file.file_path).name)
        return real(file, *args, **options)

    monkeypatch.setattr(template, "public_events", counted)
    return walks


def seen(path: Path, schema: Any = NanoAODSchema, names: Columns | None = None) -> list[str]:
    with open_input(piece_of(path), schema, names) as source:
        assert source.lazy
        events = source.events(0, 10)
        assert differences(events, source.events(0, 10), values=False) == []
        return sorted(events.fields)


@pytest.mark.parametrize("rntuple", [False, True], ids=["TTree", "RNTuple"])
def test_files_of_one_structure_share_a_template(tmp_path: Path, made: list[str], rntuple: bool) -> None:
    for i in range(3):
        path = write_events(tmp_path / f"{i}.root", 10 + i, seed=i, rntuple=rntuple)
        with open_input(piece_of(path), NanoAODSchema) as source:
            assert source.events(0, 10 + i).Muon.pt.tolist() == columns(10 + i, i)["Muon_pt"].tolist()
    assert made == ["0.root"]


@pytest.mark.parametrize("rntuple", [False, True], ids=["TTree", "RNTuple"])
def test_files_that_differ_do_not(tmp_path: Path, made: list[str], rntuple: bool) -> None:
    data = columns(20)
    variants = {
        "same": data,
        "more": {**data, "Tau_pt": data["Muon_pt"], "nTau": data["nMuon"]},
        "less": {k: v for k, v in data.items() if k != "genWeight"},
        "type": {**data, "genWeight": data["genWeight"].astype("f8")},
        "shape": {**data, "genWeight": data["genWeight"].reshape(20, 1)},
        "sign": {**data, "genWeight": np.arange(20, dtype="i4")},
        "no sign": {**data, "genWeight": np.arange(20, dtype="u4")},
        "order": dict(reversed(data.items())),
    }
    for name, these in variants.items():
        if rntuple and name == "shape":
            continue
        path = tmp_path / f"{name}.root"
        write_columns(path, these, 50, rntuple)
        piece = piece_of(path)
        with open_input(piece, NanoAODSchema) as lazy, open_input(piece, NanoAODSchema, lazy=False) as public:
            assert differences(lazy.events(3, 17), public.events(3, 17)) == [], name
    assert len(set(made)) == len(made), "a template was made twice"
    assert {"same.root", "more.root", "less.root", "type.root"} <= set(made)


def test_a_schema_whose_switches_were_changed_makes_another(
    tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_events(tmp_path / "a.root", 20)
    seen(path)
    monkeypatch.setitem(NanoAODSchema.mixins, "Muon", "NanoCollection")
    with open_input(piece_of(path), NanoAODSchema) as source:
        assert type(source.events(0, 5).Muon).__name__ == "NanoCollectionArray"
    assert made == ["a.root"] * 2


def test_a_users_own_schema(tmp_path: Path) -> None:
    class Mine(NanoAODSchema):
        """With a field of its own."""

        def __init__(self, base_form: Any) -> None:
            super().__init__(base_form)
            i = self._form["fields"].index("genWeight")
            self._form["fields"].append("twin")
            self._form["contents"].append(self._form["contents"][i])

    path = write_events(tmp_path / "a.root", 20)
    assert "twin" in seen(path, Mine)
    assert "twin" not in seen(path)


def test_only_so_many_templates_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "KEPT", 2)
    for i in range(4):
        seen(write_events(tmp_path / f"{i}.root", 10, wide=i))
        assert len(template._kept) <= 2


@pytest.mark.parametrize(
    "fault",
    [
        lambda *_: (_ for _ in ()).throw(TypeError("this awkward copies")),
        lambda self, file, tree, start, stop, metadata: ak.Array([]),
    ],
    ids=["raises", "differs"],
)
def test_where_lazy_slices_differ_coffea_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Any
) -> None:
    monkeypatch.setattr(template.Template, "events", fault)
    path = write_events(tmp_path / "a.root", 20)
    for _ in range(2):
        with open_input(piece_of(path), NanoAODSchema) as source:
            assert not source.lazy
            assert source.events(5, 15).Muon.pt.tolist() == columns(20)["Muon_pt"][5:15].tolist()
    assert caplog.text.count("events are made by coffea alone") == 1


# --- declared columns -----------------------------------------------------------------------------


@pytest.mark.parametrize("lazy", [True, False])
def test_what_is_declared_is_all_there_is(good: Path, lazy: bool) -> None:
    with open_input(piece_of(good), NanoAODSchema, Columns(["Muon_pt", "HLT_x?"]), lazy=lazy) as source:
        events = source.events(10, 500)
        assert sorted(events.fields) == ["HLT", "Muon", "event", "luminosityBlock", "run"]
        assert sorted(events.HLT.fields) == [f"x{i}" for i in range(6)]
        assert sorted(events.Muon.fields) == ["charge", "eta", "mass", "phi", "pt"]
        assert "genWeight" not in events.fields
        assert events.Muon.pt.tolist() == columns(ENTRIES, wide=6)["Muon_pt"][10:500].tolist()
        assert ak.all((events.Muon + events.Muon).pt >= 0)
        assert "genWeight" in source.hidden()
        assert "Muon_pt" not in source.hidden()


def test_columns_are_part_of_a_template(good: Path) -> None:
    assert "genWeight" in seen(good)
    assert "genWeight" not in seen(good, names=Columns(["Muon_pt"]))
    assert "genWeight" in seen(good, names=Columns(["gen*"]))
    assert "Muon" not in seen(good, names=Columns(["gen*"]))
    assert "genWeight" in seen(good)


def test_nothing_is_hidden_without_a_declaration(good: Path) -> None:
    with open_input(piece_of(good), NanoAODSchema) as source:
        assert source.hidden() == []


# --- files ----------------------------------------------------------------------------------------


def test_a_file_is_opened_once_for_all_its_ranges(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    piece = piece_of(good)
    opened = []
    real = uproot.open
    monkeypatch.setattr(uproot, "open", lambda *a, **k: opened.append(a) or real(*a, **k))
    with open_input(piece, NanoAODSchema) as source:
        for start in range(0, ENTRIES, 100):
            ak.sum(source.events(start, start + 100).Muon.pt)
    assert opened == [({str(good): None},)]


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = write_events(tmp_path / "a.root", 20)
    piece = piece_of(path)
    dashed = FileSlice(0, str(path), "Events", "-".join([piece.uuid[:8], piece.uuid[8:]]), 20, 0, ())
    with open_input(dashed, NanoAODSchema):
        pass
    longer = dataclasses.replace(piece, entries=21)
    with pytest.raises(ChangedFileError, match="has 20 entries, not 21"), open_input(longer, NanoAODSchema):
        pass
    corrupt("changed", path)
    with (
        pytest.raises(ChangedFileError, match="another file than was planned"),
        open_input(piece, NanoAODSchema),
    ):
        pass


def test_a_schema_that_does_not_fit_says_so(tmp_path: Path) -> None:
    path = write_events(tmp_path / "a.root", 20)
    corrupt("no-ids", path)
    with (
        pytest.raises(InputError, match=r"a\.root: NanoAODSchema cannot be made of it.*--schema"),
        open_input(piece_of(path), NanoAODSchema),
    ):
        pass
    with open_input(piece_of(path), BaseSchema) as source:
        assert "Muon_pt" in source.events(0, 20).fields


def test_a_mistake_in_a_users_schema_is_the_users(tmp_path: Path) -> None:
    class Wrong(NanoAODSchema):
        def __init__(self, base_form: Any) -> None:
            raise KeyError("oops")

    path = write_events(tmp_path / "a.root", 20)
    with pytest.raises(KeyError, match="oops") as caught, open_input(piece_of(path), Wrong):
        pass
    assert classify(caught.value, str(path)) is Kind.USER


def test_garbage_collection_is_as_before(good: Path) -> None:
    piece = piece_of(good)
    frozen = gc.get_freeze_count()
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with open_input(piece, NanoAODSchema):
                assert gc.isenabled() is enabled
                assert gc.get_freeze_count() > 1000
            assert gc.isenabled() is enabled
            assert gc.get_freeze_count() <= frozen
            other = FileSlice(0, piece.path, "Events", "0" * 32, 1, 0, ())
            with pytest.raises(ChangedFileError), open_input(other, NanoAODSchema):
                pass
            assert gc.isenabled() is enabled
            assert gc.get_freeze_count() <= frozen
        finally:
            gc.enable()


def test_a_slice_is_gone_when_nobody_holds_it(good: Path) -> None:
    """Without the garbage collector's help: columns are large, and it rarely comes by."""
    with open_input(piece_of(good), NanoAODSchema) as source:
        gc.disable()
        try:
            events = source.events(0, ENTRIES)
            ak.sum(events.Muon[events.Muon.pt > 3].pt)
            last, factory = weakref.ref(events), weakref.ref(events.attrs["@events_factory"])
            assert factory().events() is events
            del events
            assert last() is None
            assert factory() is None
        finally:
            gc.enable()


def test_closed_files_are_freed(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each set aside what the last one left: a worker of a thousand files must not keep a thousand trees."""
    monkeypatch.setattr(reading._Aside, "MOST", 500)
    piece = piece_of(good)
    most = []
    for _ in range(2):
        for _ in range(25):
            with open_input(piece, NanoAODSchema) as source:
                source.events(0, 10)
        most.append(len(gc.get_objects()))
    assert most[1] - most[0] < 20_000


# --- schemas by name ------------------------------------------------------------------------------


def test_schemas_by_name() -> None:
    assert schema_named("NanoAODSchema") is NanoAODSchema
    assert schema_named("BaseSchema") is BaseSchema
    assert schema_named(BaseSchema) is BaseSchema
    assert schema_named("coffea.nanoevents.schemas.nanoaod:PFNanoAODSchema").__name__ == "PFNanoAODSchema"


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("NanoAODShema", UnknownNameError, "did you mean 'NanoAODSchema'"),
        ("Nanoaod", UnknownNameError, "module:Class"),
        ("nowhere.at.all:Schema", UsageError, "cannot be imported"),
        ("coffea.nanoevents:Nothing", UsageError, "cannot be imported"),
        ("pathlib:Path", UsageError, "no subclass"),
        ("NanoEventsFactory", UnknownNameError, "unknown schema"),
    ],
)
def test_schemas_that_are_none(name: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        schema_named(name)


def test_no_warnings_about_what_most_files_lack(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NanoAODSchema, "warn_missing_crossrefs", True)
    with open_input(piece_of(good), NanoAODSchema) as source:  # warnings are errors in these tests
        source.events(0, 5)


# --- through a network ----------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Files of a folder, and under /status/N the answer N."""

    daemon_threads = True


class Pages(http.server.SimpleHTTPRequestHandler):
    def send_head(self) -> Any:
        if self.path.startswith("/status/"):
            self.send_error(int(self.path.split("/")[2]))
            return None
        found = Path(self.translate_path(self.path))
        if not found.is_file():
            self.send_error(404)
            return None
        return self._ranged(found)

    def _ranged(self, found: Path) -> Any:
        size = found.stat().st_size
        asked = self.headers.get("Range", "")
        start, _, stop = asked.removeprefix("bytes=").partition("-")
        first, last = int(start or 0), min(int(stop or size - 1), size - 1)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        file = found.open("rb")
        file.seek(first)
        self._left = last - first + 1
        return file

    def copyfile(self, source: Any, outputfile: Any) -> None:
        outputfile.write(source.read(self._left))

    def log_message(self, *_args: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    server = Server(("127.0.0.1", 0), functools.partial(Pages, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield tmp_path, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_remote_file(served: tuple[Path, str]) -> None:
    folder, url = served
    write_events(folder / "a.root", 500, cluster=100)
    where = f"{url}/a.root"
    found = count(where)
    assert (found.entries, found.size) == (500, None)
    piece = FileSlice(0, where, "Events", found.uuid, 500, 0, ())
    with open_input(piece, NanoAODSchema) as source:
        assert source.events(50, 350).Muon.pt.tolist() == columns(500)["Muon_pt"][50:350].tolist()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("missing.root", Kind.PASSING),
        ("status/503/a.root", Kind.PASSING),
        ("status/403/a.root", Kind.SITE),
        ("status/401/a.root", Kind.SITE),
        ("html.root", Kind.BAD),
        ("garbage.root", Kind.BAD),
        ("no-tree.root", Kind.BAD),
    ],
)
def test_what_a_server_says(served: tuple[Path, str], name: str, kind: Kind) -> None:
    folder, url = served
    if "/" not in name and name != "missing.root":
        corrupt(name.removesuffix(".root"), write_events(folder / name, 500))
    ((_, answer),) = count_many([(f"{url}/{name}", "Events")], timeout=10)
    assert isinstance(answer, Uncounted)
    assert answer.kind is kind, answer
    piece = FileSlice(0, f"{url}/{name}", "Events", "", 500, 0, ())
    # Anything may be raised; what matters is its kind.
    with pytest.raises(Exception) as caught, open_input(piece, NanoAODSchema, timeout=10):  # noqa: PT011
        pass
    assert classify(caught.value, f"{url}/{name}") is kind


def test_reading_module_is_named_as_the_classifier_knows_it() -> None:
    """Errors are told apart by the names of these files."""
    from executors.coffea import classify as told

    for module in (reading, template):
        assert Path(module.__file__).name in told._READERS
    from executors.coffea import analysis

    assert callable(getattr(analysis, told.CALL))
