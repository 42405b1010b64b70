"""What ``--only`` and ``--limit`` leave of a fileset; a word that names nothing is an error.

Datasets keep the index they have in the whole fileset. Nothing is read here but ``@lists`` of names.
"""

from __future__ import annotations

import fnmatch
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from executors import addresses
from executors.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from executors.fileset import Fileset


def limit(fileset: Fileset, files: int | None) -> Fileset:
    """The first ``files`` files of each dataset."""
    if files is None:
        return fileset
    if files < 1:
        raise UsageError(f"--limit {files}: expected at least 1")
    return replace(fileset, datasets=tuple(replace(d, files=d.files[:files]) for d in fileset.datasets))


def only(fileset: Fileset, wanted: Sequence[str]) -> Fileset:
    """What ``--only`` names, in the fileset's own order: datasets, indices, globs, input files, @lists."""
    if not wanted:
        return fileset
    names: set[str] = set()
    paths: dict[str, set[str]] = {}
    for word in _words(wanted):
        found, files = _chosen(fileset, word)
        names |= found
        for name, path in files:
            paths.setdefault(name, set()).add(path)
    kept = []
    for dataset in fileset.datasets:
        if dataset.name in names:
            kept.append(dataset)
        elif dataset.name in paths:
            some = paths[dataset.name]
            kept.append(replace(dataset, files=tuple(f for f in dataset.files if f.path in some)))
    return replace(fileset, datasets=tuple(kept))


def _words(wanted: Sequence[str]) -> Iterator[str]:
    for word in wanted:
        if not word.startswith("@"):
            yield str(word)
            continue
        try:
            lines = Path(word[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UsageError(f"--only {word}: cannot read the list: {error}") from error
        listed = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not listed:
            raise UsageError(f"--only {word}: the list is empty")
        yield from listed


def _chosen(fileset: Fileset, word: str) -> tuple[set[str], list[tuple[str, str]]]:
    names = [dataset.name for dataset in fileset.datasets]
    if word in names:
        return {word}, []
    if word.isascii() and word.isdigit():
        index = word.lstrip("0") or "0"  # as text: int() refuses thousands of digits
        found = {dataset.name for dataset in fileset.datasets if str(dataset.index) == index}
        if found:
            return found, []
        raise UnknownNameError(
            f"--only {word}: there is no dataset {word}; they go from 0 to {len(names) - 1}"
        )
    matched = {name for name in names if fnmatch.fnmatchcase(name, word)}
    if matched:
        return matched, []
    files = _files_called(fileset, word)
    if files:
        return set(), files
    raise UnknownNameError.of("dataset (--only)", word, names, "(it is no input file of the fileset either)")


def _files_called(fileset: Fileset, word: str) -> list[tuple[str, str]]:
    if "/" not in word and not word.endswith(".root"):
        return []
    try:
        path = word if addresses.is_remote(word) else addresses.absolute(addresses.local_name(word), None)[0]
    except UnknownNameError:
        return []
    same = addresses.identity(path)
    return [(d.name, f.path) for d in fileset.datasets for f in d.files if addresses.identity(f.path) == same]
