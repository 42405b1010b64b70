"""The fileset: which files make up which dataset, in every form in which people have it, as one form.

No input file is opened here and nothing is dropped in silence: what cannot be meant is a ``FilesetError``
that names the dataset and the place, what was mended is a warning.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from executors import addresses, fields
from executors.document import parse, read_document, stem
from executors.errors import FilesetError, UnknownNameError

_DATASET_KEYS = ("files", "metadata", "treename", "preload")
_IGNORED_DATASET_KEYS = ("format", "form", "compressed_form", "did")  # coffea's own notes
_FILE_KEYS = ("object_path", "steps", "num_entries", "uuid")
_IGNORED_FILE_KEYS = ("format", "lfn", "pfn", "num_selected_entries", "saved_form")
_MOST_WARNINGS = 20


@dataclass(frozen=True, slots=True)
class File:
    """One input file. What the fileset does not say is None."""

    path: str  # absolute, or an address
    treename: str | None = None
    steps: fields.Steps | None = None  # entry ranges; None is the whole file
    entries: int | None = None
    uuid: str | None = None  # 32 hex digits
    # The address as it was given, with its token, which changes from run to run and is in no record.
    address: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Dataset:
    """One dataset; ``index`` is its place in the whole fileset, whatever was left out."""

    name: str
    index: int
    files: tuple[File, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    treename: str | None = None


@dataclass(frozen=True, slots=True)
class Fileset:
    """Datasets in their order, and what had to be mended to read them."""

    datasets: tuple[Dataset, ...]
    name: str = "fileset"  # the document's stem
    warnings: tuple[str, ...] = ()

    @property
    def files(self) -> int:
        """How many files there are in all."""
        return sum(len(dataset.files) for dataset in self.datasets)


def read_fileset(source: Any, *, name: str | None = None) -> Fileset:
    """The fileset in a JSON or YAML file, or in a Python object of the same forms, coffea's own included."""
    addresses.forget()
    beside = None
    if isinstance(source, Fileset):
        return source if name is None else replace(source, name=name)
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        content = read_document(path)
        beside = Path(path).absolute().parent if path != "-" else None
        name = name or stem(path)
        try:
            return _Reading(beside).fileset(content, name)
        except FilesetError as error:
            raise FilesetError(f"{path}: {error.message}", **error.about) from None
    return _Reading(beside).fileset(source, name or "fileset")


def parse_fileset(text: str, *, name: str = "fileset") -> Fileset:
    """The fileset in a text of JSON or YAML."""
    addresses.forget()
    return _Reading(None).fileset(parse(text, name), name)


class _Reading:
    """One pass over one fileset; collects what is to be said of it."""

    def __init__(self, beside: Path | None) -> None:
        self.beside = beside
        self.warnings: list[str] = []
        self.found_beside = 0
        self.identities: dict[str, str] = {}

    def identity(self, path: str) -> str:
        """One text for all spellings of a file, found out once."""
        if path not in self.identities:
            self.identities[path] = addresses.identity(path)
        return self.identities[path]

    def fileset(self, content: Any, name: str) -> Fileset:
        table = fields.as_table(content)
        if table is None:
            kind = fields.kind(content) + _list_hint(content)
            raise FilesetError(f'expected {{"dataset": [files]}}, not {kind}')
        if not table:
            raise FilesetError("there is no dataset in it")
        datasets = tuple(self.dataset(key, value, i) for i, (key, value) in enumerate(table.items()))
        self.shared_files(datasets)
        if self.found_beside:
            self.warnings.append(
                f"{self.found_beside} relative paths were found beside the fileset, in {self.beside},"
                " not in the current directory"
            )
        return Fileset(datasets, name, _capped(self.warnings))

    def dataset(self, key: Any, value: Any, index: int) -> Dataset:
        where = f"dataset {key!r}"
        if not isinstance(key, str):
            raise FilesetError(f"{where} (number {index}): the name must be text: put it in quotes")
        fields.clean(key, where)
        if not key.strip():
            raise FilesetError(f"dataset number {index} has an empty name")
        table = fields.as_table(value)
        if table is None:
            files, about = value, {}
        elif "files" in table:
            files, about = table["files"], table
        else:
            files, about = _bare_files(table, where), {}
        self.unknown_keys(about, where)
        treename = fields.treename(about.get("treename"), where)
        metadata = fields.metadata(about.get("metadata"), where)
        listed = [file for item in _entries(files, where) for file in self.file(*item, where)]
        if not listed:
            raise FilesetError(f"{where} has no files")
        named = [_with_tree(file, treename, where) for file in listed]
        return Dataset(key, index, self.once(named, where), metadata, treename)

    def unknown_keys(self, about: Mapping[str, Any], where: str) -> None:
        for key in about:
            if key in _DATASET_KEYS or key in _IGNORED_DATASET_KEYS:
                continue
            if near := _near(key):
                raise FilesetError(f"{where}: unknown key {key!r}: did you mean {near!r}?")
            self.warnings.append(f"{where}: the key {key!r} means nothing here; put it into 'metadata'")

    def file(self, path: Any, about: Any, where: str) -> Iterator[File]:
        """The file, or the files of a glob or directory, that one entry of a list or table stands for."""
        name = _file_name(path, where)
        where = f"{where}, file {name!r}"
        said = _about_file(about, where)
        with _placed(where):
            remote = addresses.is_remote(name)
        if said.treename is None:
            name, tree = addresses.split_tree(name)
            said = said if tree is None else replace(said, treename=tree)
        if remote:
            if "*" in name:
                raise FilesetError(f"{where}: globs are for local files; list these one by one")
            yield replace(said, path=addresses.public(name), address=name)
            return
        name, beside = addresses.absolute(addresses.local_name(name), self.beside)
        self.found_beside += beside
        with _placed(where):
            many = addresses.expand(name)
        if many is not None and (said.steps, said.entries, said.uuid) != (None, None, None):
            raise FilesetError(
                f"{where}: steps, num_entries and uuid belong to one file, and this stands for more"
            )
        for each in many or [name]:
            fields.clean(each, where)
            yield File(each, said.treename, said.steps, said.entries, said.uuid)

    def once(self, files: list[File], where: str) -> tuple[File, ...]:
        """The files without those that stand there twice; refused where two entries contradict."""
        kept: dict[str, File] = {}
        for file in files:
            same = kept.setdefault(self.identity(file.path), file)
            if same is file:
                continue
            if replace(file, path=same.path) != same:
                how = "with different trees, steps, entries or uuids"
                raise FilesetError(f"{where}: {same.path!r} stands there twice, {how}")
            also = "" if same.path == file.path else f" (also spelt {file.path!r})"
            self.warnings.append(f"{where}: {same.path!r} stood there twice{also}; it is counted once")
        return tuple(kept.values())

    def shared_files(self, datasets: tuple[Dataset, ...]) -> None:
        first: dict[str, str] = {}
        shared: dict[tuple[str, str], list[str]] = {}
        for dataset in datasets:
            for file in dataset.files:
                owner = first.setdefault(self.identity(file.path), dataset.name)
                if owner != dataset.name:
                    shared.setdefault((owner, dataset.name), []).append(file.path)
        for (one, other), paths in shared.items():
            some = f"{paths[0]!r}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
            self.warnings.append(f"datasets {one!r} and {other!r} share {some}; both count them")


@contextlib.contextmanager
def _placed(where: str) -> Iterator[None]:
    """Say where in the fileset a mistake is that was found by looking at a name alone."""
    try:
        yield
    except (UnknownNameError, FilesetError) as error:
        raise FilesetError(f"{where}: {error.message}") from None


def _capped(warnings: list[str]) -> tuple[str, ...]:
    if len(warnings) <= _MOST_WARNINGS:
        return tuple(warnings)
    return (*warnings[:_MOST_WARNINGS], f"… and {len(warnings) - _MOST_WARNINGS} more of the kind")


def _with_tree(file: File, treename: str | None, where: str) -> File:
    """The file with its dataset's tree; coffea would let that override the file's own without a word."""
    if treename is None or file.treename == treename:
        return file
    if file.treename is not None:
        raise FilesetError(
            f"{where}: its treename is {treename!r}, but {file.path!r} is said to hold {file.treename!r}"
        )
    return replace(file, treename=treename)


def _list_hint(value: Any) -> str:
    return ': give the list a name, as in {"data": [...]}' if isinstance(value, list) else ""


def _bare_files(table: dict[Any, Any], where: str) -> dict[Any, Any]:
    """``{path: tree}`` without the key 'files' around it, unless that key was merely misspelt."""
    for key in table:
        if (near := _near(key)) and not str(key).endswith(".root"):
            meant = "" if near == key else f": did you mean {near!r}?"
            raise FilesetError(f"{where}: there is no 'files' in it, but {key!r}{meant}")
    return table


def _near(key: Any) -> str | None:
    found = difflib.get_close_matches(str(key).lower(), _DATASET_KEYS, n=1, cutoff=0.66)
    return found[0] if found else None


def _entries(files: Any, where: str) -> Iterator[tuple[Any, Any]]:
    """``(path, what is said of it)`` for each entry of 'files'."""
    table = fields.as_table(files)
    if table is not None:
        yield from table.items()
    elif isinstance(files, str | os.PathLike):
        yield files, None
    elif isinstance(files, Sequence) and not isinstance(files, bytes | bytearray):
        for item in files:
            yield item, None
    else:
        raise FilesetError(f"{where}: 'files' must be a list or a table, not {fields.kind(files)}")


def _file_name(path: Any, where: str) -> str:
    if isinstance(path, os.PathLike):
        path = os.fspath(path)
    if not isinstance(path, str):
        raise FilesetError(f"{where}: a file must be text, not {fields.kind(path)}: {fields.brief(path)}")
    if not path.strip():
        raise FilesetError(f"{where}: a file has an empty name")
    fields.clean(path, where)
    if path.endswith((".parquet", ".pq")):
        raise FilesetError(f"{where}: {path!r} is a parquet file; only ROOT files are read")
    return path


def _about_file(about: Any, where: str) -> File:
    table = fields.as_table(about)
    if table is None:
        return File("", fields.treename(about, where))
    for key in table:
        if key not in _FILE_KEYS and key not in _IGNORED_FILE_KEYS:
            raise FilesetError(f"{where}: {UnknownNameError.of('key', str(key), _FILE_KEYS).message}")
    if table.get("format") not in (None, "root"):
        raise FilesetError(f"{where}: format {fields.brief(table['format'])}: only ROOT files are read")
    entries = table.get("num_entries")
    if entries is not None and not fields.counts(entries):
        raise FilesetError(f"{where}: num_entries must be a whole number from 0, not {fields.brief(entries)}")
    treename = fields.treename(table.get("object_path"), where)
    steps = fields.steps(table.get("steps"), entries, where)
    return File("", treename, steps, entries, fields.uuid(table.get("uuid"), where))
