"""One input file held open: its tree parsed once, the events of any of its entry ranges for next to nothing.

Opening refuses a file that is not the planned one. No processor is called here and nothing is counted.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
from typing import TYPE_CHECKING, Any

import coffea.nanoevents
import uproot
from coffea.nanoevents import BaseSchema, NanoAODSchema

from executors.coffea.classify import ChangedFileError, InputError, remote
from executors.coffea.count import identity, refuse_cut, seconds, tree_key
from executors.coffea.reads import Reads
from executors.coffea.template import public_events, template_for
from executors.coffea.xrootd import forgotten_if_failing
from executors.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from executors.coffea.columns import Columns
    from executors.work.model import FileSlice

IDS = ("run", "luminosityBlock", "event")


def schema_named(name: str | type) -> Any:
    """A schema by coffea's name for it, or as ``module:Class``; a class is itself."""
    if isinstance(name, type):
        found: Any = name
    elif ":" in name:
        found = _imported(name)
    else:
        known = {n: kind for n, kind in vars(coffea.nanoevents).items() if _is_schema(kind)}
        if name not in known:
            raise UnknownNameError.of("schema", name, known, "(or give module:Class)")
        found = known[name]
    if not _is_schema(found):
        raise UsageError(f"schema {name!r} is no subclass of coffea.nanoevents.BaseSchema")
    return found


def _is_schema(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseSchema)


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"schema {name!r} cannot be imported: {error}", schema=name) from error


class Input:
    """An open file that gives the events of its entry ranges, as coffea would."""

    def __init__(
        self,
        file: Any,
        piece: FileSlice,
        *,
        schema: Any,
        columns: Columns | None,
        dataset: str,
        metadata: Mapping[str, Any],
        lazy: bool,
        ahead: bool,
    ) -> None:
        self._file, self._schema, self._ahead = file, schema, ahead
        tree_key(piece.path, file, piece.treename)
        self._tree = file[piece.treename]
        self._piece = piece
        self._refuse_another()
        self._names: frozenset[str] | None = None
        if columns is not None:
            self._names = columns.chosen(self._tree.keys(), (*IDS, *getattr(schema, "event_ids", ())))
        self._template = self._made_template() if lazy else None
        self._reads: Reads | None = None
        self._frozen = False
        self.failed = False  # whether anything went wrong with it: it is then not used again
        self._begin(piece, dataset, metadata, width=self.width)

    def serve(self, piece: FileSlice, dataset: str, metadata: Mapping[str, Any]) -> None:
        """Be the input of another slice of the same file."""
        self._piece = piece
        self._refuse_another()
        self._begin(piece, dataset, metadata, width=0)

    def _begin(self, piece: FileSlice, dataset: str, metadata: Mapping[str, Any], width: int) -> None:
        self._dataset, self._metadata = dataset, dict(metadata)
        if self._template is not None and piece.parts == 1:  # else even one chunk was too much at once
            self._reads = Reads(self._tree, piece.ranges, self._template.read, dataset)
            if self._ahead or remote(piece.address):
                self._reads.look_ahead()
        _aside.freeze(width)
        self._frozen = True

    def rest(self) -> None:
        """Nothing of it is used for now: let nothing read on, and garbage be collected as ever."""
        reads, self._reads = self._reads, None
        if reads is not None:
            reads.close()
        if self._frozen:
            self._frozen = False
            _aside.release()

    @property
    def bytes_read(self) -> int:
        """Bytes asked for from the file so far."""
        return int(self._file.file.source.num_requested_bytes)

    @property
    def width(self) -> int:
        """How many branches the tree has, not counting those within others."""
        return len(self._tree.branches if hasattr(self._tree, "branches") else self._tree.field_records)

    @property
    def lazy(self) -> bool:
        """Whether slices are made from a template, not by coffea one by one."""
        return self._template is not None

    def hidden(self) -> list[str]:
        """The branches that a declaration of columns keeps from the analysis."""
        return [] if self._names is None else [name for name in self._tree.keys() if name not in self._names]  # noqa: SIM118

    def events(self, start: int, stop: int) -> Any:
        """The events of entries ``start`` to ``stop``; columns are read when they are used."""
        piece = self._piece
        if not 0 <= start <= stop <= piece.entries:
            text = f"{piece.path}: it has no entries {start} to {stop}: there are {piece.entries}"
            raise ChangedFileError(text, path=piece.path)
        uuid = self._tree.file.hex_uuid
        metadata = {
            "dataset": self._dataset,
            "filename": piece.path,
            "treename": piece.treename,
            "entrystart": start,
            "entrystop": stop,
            "fileuuid": uuid,
            # A copy: what one chunk does to it must not be seen by the next.
            **copy.deepcopy(self._metadata),
        }
        if self._template is not None:
            return self._template.events(self._file, self._tree, start, stop, metadata, reads=self._reads)
        return public_events(
            self._file, self._tree, (start, stop), schema=self._schema, metadata=metadata, names=self._names
        )

    def _made_template(self) -> Any:
        try:
            return template_for(self._file, self._tree, self._schema, self._names)
        except (RuntimeError, LookupError, TypeError, AttributeError, StopIteration) as error:
            if not self._schema.__module__.startswith("coffea."):
                raise  # the user's own schema: the user's own mistake
            # A file without the event numbers is bad where others have them; if none has, it is the schema.
            said = " ".join(f"{type(error).__name__}: {error}".split())
            text = f"{self._piece.path}: {self._schema.__name__} cannot be made of it: {said}"
            raise InputError(f"{text} (if all files say so, choose another with --schema)") from error

    def _refuse_another(self) -> None:
        piece, uuid = self._piece, self._tree.file.uuid.hex
        if piece.uuid and uuid != piece.uuid.replace("-", ""):
            text = f"{piece.path}: it is another file than was planned: its uuid is {uuid}, not {piece.uuid}"
            raise ChangedFileError(text, path=piece.path)
        if self._tree.num_entries != piece.entries:
            text = f"{piece.path}: {piece.treename} has {self._tree.num_entries} entries, not {piece.entries}"
            raise ChangedFileError(text, path=piece.path)


@contextlib.contextmanager
def open_input(
    piece: FileSlice,
    schema: Any,
    columns: Columns | None = None,
    *,
    dataset: str = "",
    metadata: Mapping[str, Any] | None = None,
    timeout: float = 60,
    options: Mapping[str, Any] | None = None,
    lazy: bool = True,
    ahead: bool = False,
) -> Iterator[Input]:
    """Open the file of a slice, refusing one that is not the planned one.

    ``lazy=False`` makes every slice by coffea's own ``from_root``. ``ahead=True`` reads ahead in local files,
    too: of use only where a core is free.
    """
    NanoAODSchema.warn_missing_crossrefs = False  # else 17 lines on each worker for what most files lack
    found = identity(piece.address)
    with contextlib.ExitStack() as stack:
        with _still(), forgotten_if_failing(piece.address):
            file = stack.enter_context(
                uproot.open(
                    {piece.address: None}, timeout=seconds(timeout), array_cache=None, **(options or {})
                )
            )
            if found is not None:
                refuse_cut(piece.path, file.file.fEND, found[1])
            source = Input(
                file,
                piece,
                schema=schema,
                columns=columns,
                dataset=dataset,
                metadata=metadata or {},
                lazy=lazy,
                ahead=ahead,
            )
        stack.callback(source.rest)
        yield source


class _Aside:
    """Objects kept out of the garbage collector's way while a file is open.

    An open wide tree is some 100,000 objects, walked by every collection unless set aside. A closed one is
    full of cycles, and the next file would set it aside again before a collection comes by: so after a few
    files one is made, at a cost that is small beside opening them.
    """

    MOST = 10_000  # branches of closed files, of some 50 objects each

    def __init__(self) -> None:
        self._open = 0
        self._left = 0

    def freeze(self, branches: int) -> None:
        """Set aside all there is, for a file of so many branches."""
        self._open += 1
        # Counted by branches, because to ask how many objects are frozen takes longer than the rest of this.
        self._left += branches + 50
        gc.freeze()

    def release(self) -> None:
        """Back to normal when the last open file is closed."""
        self._open -= 1
        if self._open:
            return
        gc.unfreeze()
        if self._left > self.MOST:
            gc.collect()
            self._left = 0


_aside = _Aside()


@contextlib.contextmanager
def _still() -> Iterator[None]:
    """No garbage collection meanwhile: parsing a tree starts dozens, each of all that was parsed so far."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
