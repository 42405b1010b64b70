"""The files that local code names and will open where it runs: corrections and maps beside it.

Only source text is read. A text counts where a file of that name is there, beside the module or in the
current folder; a part that is put in when the code runs stands for anything.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

LARGEST: Final = 16 << 20  # of one file, or of all files of one folder
LARGEST_OF_ALL: Final = 48 << 20
MOST: Final = 500  # files of one folder or pattern
LONGEST: Final = 200
CODE: Final = (".py", ".pyc", ".so", ".ipynb")
RESULTS: Final = (
    ".root",
    ".coffea",
)  # of a folder: what lies there may be anything; named itself, it is meant
OPENERS: Final = {"Path", "open", "join", "joinpath", "glob", "iglob", "listdir", "iterdir", "with_name"}
_SKIPPED: Final = {"__pycache__", "node_modules"}
_MAGIC: Final = re.compile(r"[*?\[]")


class Named(NamedTuple):
    """A text of the source that may name a file, and whether it was used as a path."""

    text: str
    path: bool


class Source(NamedTuple):
    """A file of code, and the folder it has where it arrives; None for one that arrives without a file."""

    path: Path
    above: str | None


class Companions(NamedTuple):
    """What code names: to be sent along, by where it has to lie; what is not sent, and why."""

    files: dict[str, Path]
    left: dict[str, str]
    here: bool  # whether some are opened from the current folder


def companions(sources: Iterable[Source], packages: Sequence[Path]) -> Companions:
    """What sources name; whatever lies in these packages travels anyway."""
    files: dict[str, Path] = {}
    left: dict[str, str] = {}
    cwd, here, room = Path.cwd(), False, LARGEST_OF_ALL
    for source in sources:
        tree = _parsed(source.path)
        if tree is None:
            continue
        bases = [(cwd, "")] + ([] if source.above is None else [(source.path.parent, source.above)])
        for base, above in bases:
            found = Found(base, {}, {})
            _search(tree, found)
            left |= found.left
            for inner, path in found.files.items():
                place = f"{above}/{inner}" if above else inner
                room -= 0 if place in files else path.stat().st_size
                if room < 0:
                    left[str(path)] = f"all that is named is more than {LARGEST_OF_ALL >> 20} MB"
                    continue
                here = here or (base == cwd and not above)
                files[place] = path
    return Companions(files, {p: why for p, why in left.items() if not _travels(Path(p), packages)}, here)


def _parsed(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_bytes()) if path.suffix == ".py" else None
    except (OSError, SyntaxError, ValueError):
        return None


def _travels(place: Path, packages: Sequence[Path]) -> bool:
    return place.suffix not in RESULTS and any(each == place or each in place.parents for each in packages)


class Found(NamedTuple):
    """What one source names below one folder, by its place there."""

    base: Path
    files: dict[str, Path]
    left: dict[str, str]


def _search(tree: ast.AST, found: Found) -> None:
    for name in sorted(set(named(tree))):
        if name.text.startswith(("/", "~")):
            _far(name.text, found)
        elif _plausible(name.text):
            with contextlib.suppress(OSError):  # a folder that may not be looked into
                _near(name, found)


def named(tree: ast.AST) -> Iterator[Named]:
    """The texts of a source that may name files: literals, and what ``/`` and ``join`` make of several."""
    for node in ast.walk(tree):
        text = _text(node)
        if text:
            yield Named(text, False)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            parts = _chain(node)
        elif isinstance(node, ast.Call) and _called(node) in OPENERS:
            parts = [_text(part) for part in node.args]
        else:
            continue
        for first in range(len(parts)):
            known = _leading(parts[first:])
            if known:
                yield Named("/".join(known), True)


def _text(node: ast.AST) -> str:
    """The text of a literal; with ``*`` for what is put into it."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if not isinstance(node, ast.JoinedStr):
        return ""
    parts = [str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values]
    known = [part for part in parts if part != "*"]
    return "".join(parts) if sum(map(len, known)) > len(".json") - 1 else ""


def _chain(node: ast.expr) -> list[str]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return [*_chain(node.left), _text(node.right)]
    return [_text(node)]


def _leading(parts: list[str]) -> list[str]:
    return parts[: parts.index("")] if "" in parts else parts


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _plausible(text: str) -> bool:
    parts = text.split("/")
    printable = len(text) <= LONGEST and text.isprintable() and "://" not in text
    return printable and not any(part.startswith(".") or part in _SKIPPED for part in parts)


def _near(name: Named, found: Found) -> None:
    place = found.base / name.text
    if _MAGIC.search(name.text):
        _take(_matching(found.base, name.text), name.text, found)
    elif place.is_file():
        if place.suffix not in CODE:
            _take([place], name.text, found)
    elif name.path and place.is_dir() and not (place / "__init__.py").exists():
        _take(_inside(place), name.text, found)


def _matching(base: Path, pattern: str) -> list[Path]:
    if "**" in pattern or _MAGIC.match(pattern):  # anything at all is no name
        return []
    try:
        return sorted(path for path in base.glob(pattern) if path.is_file() and path.suffix not in CODE)
    except (ValueError, OSError):
        return []


def _inside(folder: Path) -> list[Path]:
    files: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(each for each in folders if not each.startswith(".") and each not in _SKIPPED)
        shown = (Path(place) / name for name in sorted(names) if not name.startswith("."))
        files += [path for path in shown if path.suffix not in (*CODE, *RESULTS) and path.is_file()]
        if len(files) > MOST:
            break
    return files


def _take(paths: list[Path], text: str, found: Found) -> None:
    size = sum(path.stat().st_size for path in paths)
    if len(paths) > MOST:
        found.left[str(found.base / text)] = f"more than {MOST} files"
    elif size > LARGEST:
        found.left[str(found.base / text)] = f"{size >> 20} MB, more than {LARGEST >> 20} MB"
    else:
        found.files.update({path.relative_to(found.base).as_posix(): path for path in paths})


def _far(text: str, found: Found) -> None:
    """A whole path into the user's own folders: what lies on CVMFS or EOS may well be seen by workers."""
    if not text.isprintable() or len(text) > LONGEST:
        return
    place = Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises for unknown users
    own = (Path(os.path.expanduser("~")), Path.cwd(), found.base)  # noqa: PTH111
    if place.is_absolute() and place.is_file() and any(folder in place.parents for folder in own):
        found.left[str(place)] = "an absolute path"


def said(left: Mapping[str, str]) -> str:
    """What is not sent, for people; empty if there is nothing."""
    listed = "".join(f"\n  {place} ({why})" for place, why in sorted(left.items()))
    if not listed:
        return ""
    return (
        "the code names files that are not sent to the workers, which may not see them:"
        f"{listed}\nPut small files beside the module that opens them, by a relative name; large ones where "
        "the workers can read them (CVMFS, EOS, a server)"
    )
