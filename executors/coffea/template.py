"""What all slices of files of one structure have in common, made once; a slice then walks no branches.

The template comes from coffea's own public ``from_root`` and every use of it is checked against that once;
where they differ, or anything is not as expected, slices are made by ``from_root`` itself.
"""

from __future__ import annotations

import functools
import logging
import sys
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import awkward as ak
import uproot
from coffea.nanoevents import BaseSchema, NanoAODSchema, NanoEventsFactory
from coffea.nanoevents.mapping import TrivialUprootOpener, UprootSourceMapping
from coffea.nanoevents.mapping.base import Accessed
from coffea.nanoevents.util import quote, tuple_to_key

from executors.coffea.reads import content, flat, offsets, offsets_of_counts
from executors.coffea.records import lazy_record

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from executors.coffea.reads import Group, Reads, Take
    from executors.work.model import Range

log = logging.getLogger(__name__)

KEPT = 16  # templates in a process; about 2 MB each for the widest files
_BYTEORDER = "<" if sys.byteorder == "little" else ">"
# What a branch of objects says of their class.
ELEMENT = (
    "fClassName",
    "fParentName",
    "fClonesName",
    "fCheckSum",
    "fClassVersion",
    "fID",
    "fType",
    "fStreamerType",
)
# How the key of a buffer goes on after the name of its column, and what it then is.
LOAD = quote(",!load")
TAKES: Mapping[str, Take] = {
    "": flat,
    quote(",!content"): content,
    quote(",!offsets"): offsets,
    quote(",!counts2offsets,!skip,!offsets"): offsets_of_counts,
}
_kept: OrderedDict[Hashable, Template | None] = OrderedDict()


class _Made:
    """What coffea's factory asks of a schema, for one that has done its work."""

    def __init__(self, form: Mapping[str, Any], behavior: Any) -> None:
        self.form, self._behavior = form, behavior

    def behavior(self) -> Any:
        return self._behavior


class SliceMapping(UprootSourceMapping):  # type: ignore[misc]
    """Coffea's way to a file's columns, which looks first at what was read for several chunks."""

    span: Range
    log: list[Any]
    group: Group | None = None

    def __getitem__(self, key: str) -> Any:
        """What makes the buffer of a key: coffea's steps in one, where they are the usual ones."""
        longer = super().__getitem__(key)
        column, _, steps = key.rpartition("/")[2].partition(LOAD)
        take = TAKES.get(steps)
        if take is None or self.group is None or not self.group.foresees(column):
            return longer
        return functools.partial(self._taken, key, column, take, longer)

    def _taken(self, key: str, column: str, take: Take, longer: Callable[[], Any]) -> Any:
        buffer = self.group.part(column, self.span, take) if self.group is not None else None
        if buffer is None:
            return longer()
        self.log.append(Accessed(branch=column, buffer_key=key))
        return buffer

    def get_column_handle(self, columnsource: Any, name: str, allow_missing: bool) -> Any:
        """The branch, or what answers for it."""
        handle = super().get_column_handle(columnsource, name, allow_missing)
        return handle if self.group is None or handle is None else self.group.column(name, handle)


class SliceFactory(NanoEventsFactory):  # type: ignore[misc]
    """A factory of one slice whose events are filled field by field."""

    def __init__(
        self, template: Template, mapping: Any, key: str, form: Mapping[str, Any], length: int
    ) -> None:
        super().__init__(_Made(form, template.behavior), mapping, key, mode="virtual")
        self._template, self._container, self._key = template, mapping, key
        self._slice_form, self._length = form, length
        self._made: Any = lambda: None

    def __len__(self) -> int:
        return self._length

    def events(self) -> Any:
        """The events of the slice: the same object as long as somebody holds it."""
        events = self._made()
        if events is not None:
            return events
        template, form = self._template, self._slice_form
        key = functools.partial(template.key_function, self._key)

        def make(field: Any) -> Any:
            return ak.from_buffers(
                field,
                self._length,
                self._container,
                buffer_key=key,
                backend="cpu",
                byteorder=_BYTEORDER,
                allow_noncanonical_form=False,
                enable_virtualarray_caching=True,
                highlevel=False,
            )

        layout = lazy_record(template.form, form["parameters"], self._length, make)
        attrs = {"@events_factory": self, "@form": form, "@buffer_key": key}
        events = ak.Array(layout, behavior=template.behavior, attrs=attrs)
        self._made = weakref.ref(events)
        return events


class Template:
    """The form of the events of one file structure, under one schema."""

    def __init__(self, whole: Any) -> None:
        self.form_dict = whole.attrs["@form"]
        self.behavior = whole.behavior
        self.key_function = whole.attrs["@buffer_key"].func
        self.added = dict(self.form_dict["parameters"].get("metadata") or {})  # by the schema
        self.form = ak.forms.from_dict(self.form_dict)
        self.read: dict[str, frozenset[str]] = {}  # by dataset, what the last chunks read

    def events(
        self,
        file: Any,
        tree: Any,
        start: int,
        stop: int,
        metadata: Mapping[str, Any],
        *,
        reads: Reads | None = None,
    ) -> Any:
        """The events of one entry range of a file of this structure."""
        uuid = str(tree.file.uuid)
        log: list[Any] = []
        mapping = SliceMapping(
            TrivialUprootOpener({uuid: tree.file.file_path}),
            start,
            stop,
            cache={},
            access_log=log,
            file_handle=file,
            use_ak_forth=True,
            virtual=True,
        )
        mapping.span, mapping.log = (start, stop), log
        if reads is not None:
            mapping.group = reads.group((start, stop), log)
        mapping.preload_column_source(uuid, tree.object_path, tree)
        parameters = {**self.form_dict["parameters"], "metadata": {**metadata, **self.added}}
        form = {**self.form_dict, "parameters": parameters}
        key = tuple_to_key((uuid, tree.object_path, f"{start}-{stop}"))
        return SliceFactory(self, mapping, key, form, stop - start).events()


def public_events(
    file: Any,
    tree: Any,
    entries: tuple[int, int],
    *,
    schema: Any,
    metadata: Mapping[str, Any],
    names: frozenset[str] | None,
) -> Any:
    """The events of one entry range as coffea itself makes them."""
    options = {} if names is None else {"filter_name": names.__contains__}
    return NanoEventsFactory.from_root(
        file,
        treepath=tree.object_path,
        mode="virtual",
        entry_start=entries[0],
        entry_stop=entries[1],
        schemaclass=schema,
        metadata=dict(metadata),
        iteritems_options=options,
        access_log=[],
    ).events()


def template_for(file: Any, tree: Any, schema: Any, names: frozenset[str] | None) -> Template | None:
    """The template for a file, kept from an earlier one of the same structure if there was one.

    None where a template would not show exactly what coffea shows: then use ``public_events``.
    """
    key = structure(tree), _schema_key(schema, tree), names
    if key in _kept:
        _kept.move_to_end(key)
        return _kept[key]
    whole = public_events(file, tree, (0, 0), schema=schema, metadata={}, names=names)
    template = _checked(whole, file, tree)
    _kept[key] = template
    while len(_kept) > KEPT:
        _kept.popitem(last=False)
    return template


def forget() -> None:
    """Drop all templates of this process."""
    _kept.clear()


def _checked(whole: Any, file: Any, tree: Any) -> Template | None:
    """A template, if an empty slice of it equals coffea's own."""
    try:
        template = Template(whole)
        lazy = template.events(file, tree, 0, 0, {})
        difference = _difference(lazy, whole)
    except (TypeError, KeyError, AttributeError, ValueError, AssertionError) as error:
        difference = f"{type(error).__name__}: {error}"
    if difference:
        log.warning("events are made by coffea alone, which is slower: lazy slices differ in %s", difference)
        return None
    return template


def _difference(lazy: Any, whole: Any) -> str:
    checks = {
        "their fields": lazy.fields == whole.fields,
        "their length": len(lazy) == len(whole),
        "their class": type(lazy) is type(whole),
        "their form": lazy.layout.form == whole.layout.form,
        "their parameters": lazy.layout.parameters == whole.layout.parameters,
        "their attributes": lazy.attrs.keys() == whole.attrs.keys(),
        "their type": str(lazy.type) == str(whole.type),
    }
    return ", ".join(what for what, same in checks.items() if not same)


# --- which files are alike ------------------------------------------------------------------------


def structure(tree: Any) -> Hashable:
    """What decides the form of a file's events: equal for files that can share a template."""
    if isinstance(tree, uproot.behaviors.RNTuple.RNTuple):
        if tree.footer.extension_links.field_records:
            return str(tree.file.uuid.hex)  # fields that were added while writing: rare, not shared
        # The checksum is over the whole description of the fields and columns.
        return tree.object_path, tree.description, tree.header.checksum
    return tree.object_path, tree.title, tuple(_branch(branch) for branch in tree.branches)


def _branch(branch: Any) -> Hashable:
    leaves = tuple(
        (leaf.classname, *(leaf.member(name) for name in ("fTitle", "fLen", "fLenType", "fIsUnsigned")))
        for leaf in branch.member("fLeaves")
    )
    element = tuple(branch.member(name) for name in ELEMENT) if branch.has_member("fClassName") else ()
    own = (branch.name, branch.title, branch.classname)
    return (*own, leaves, element, tuple(_branch(b) for b in branch.branches))


def _schema_key(schema: Any, tree: Any) -> Hashable:
    """A schema and its switches, which analyses may set; the file too, if it looks at more than branches."""
    known = isinstance(schema, type) and (schema is BaseSchema or issubclass(schema, NanoAODSchema))
    switches = tuple(
        (kind.__qualname__, name, repr(value))
        for kind in getattr(schema, "__mro__", ())
        if kind is not object
        for name, value in vars(kind).items()
        if not name.startswith("__") and isinstance(value, bool | int | str | list | tuple | dict | set)
    )
    return schema, switches, None if known else tree.file.uuid.hex
