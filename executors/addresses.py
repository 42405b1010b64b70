"""Where an input file is: local or remote, whether two spellings mean the same file, what a glob stands for.

It looks at names and folders only; no input file is opened here.
"""

from __future__ import annotations

import functools
import glob
import os
import re
from pathlib import Path

from executors.errors import FilesetError, UnknownNameError
from executors.redact import secret_name

SCHEMES = ("root", "roots", "xroot", "xroots", "http", "https", "dav", "davs", "s3")
MOST_FOLDERS = 10_000  # a home directory is a mistake, and searching it would take for ever
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")
_TREE = re.compile(r"(.*\.root):([A-Za-z_][\w./;-]*)", re.DOTALL)
_PORTS = {"root": 1094, "http": 80, "https": 443}
_SAME_SCHEME = {"xroot": "root", "xroots": "roots", "dav": "http", "davs": "https"}
_MAGIC = re.compile(r"[*?[]")
_WHO = ("authz", "sig", "signature")  # parts of a query, beside those whose names speak of tokens or keys


def is_remote(path: str) -> bool:
    """Whether a path is the address of a file on a server; an unknown kind of address is refused."""
    match = _SCHEME.match(path)
    if match is None or match[1].lower() == "file":
        return False
    if not path.startswith("//", match.end() - 1):
        return False  # 'data:/x' is a local name, however odd
    if match[1].lower() not in SCHEMES:
        raise UnknownNameError.of("kind of address", match[1], (*SCHEMES, "file"), f"in {path}")
    return True


def split_tree(path: str) -> tuple[str, str | None]:
    """``file.root:tree`` in its parts; a file that really has such a name is left alone."""
    match = _TREE.fullmatch(path)
    if match is None or (not is_remote(path) and Path(path).exists()):
        return path, None
    return match[1], match[2]


def local_name(path: str) -> str:
    """A local path without ``file:`` before it."""
    if path[:5].lower() != "file:":
        return path
    rest = path[5:]
    return "/" + rest.lstrip("/") if rest.startswith("/") else rest


def absolute(path: str, beside: Path | None) -> tuple[str, bool]:
    """A local path made absolute, and whether it was found beside the fileset, not in the current folder."""
    here = os.path.abspath(os.path.expanduser(path) if path.startswith("~") else path)  # noqa: PTH100, PTH111
    if beside is None or os.path.isabs(path) or path.startswith("~") or _there(here):  # noqa: PTH117
        return here, False
    there = os.path.abspath(beside / path)  # noqa: PTH100 - resolve() would follow symbolic links
    return (there, True) if there != here and _there(there) else (here, False)


def _there(path: str) -> bool:
    if _MAGIC.search(path) and not os.path.lexists(path):
        return next(glob.iglob(path, recursive=True), None) is not None  # noqa: PTH207
    return os.path.lexists(path)


def expand(path: str) -> list[str] | None:
    """The files that a local glob or directory stands for, sorted; None for a plain file, there or not."""
    # A directory that is called like a file stands where a file should: a bad input, not a folder of them.
    # And no file server is asked about a hundred thousand such names.
    if not path.rstrip("/").endswith(".root") and os.path.isdir(path):  # noqa: PTH112
        found = sorted(_root_files(path))
        if not found:
            raise FilesetError(f"the directory {path} holds no .root file")
        return found
    if not _MAGIC.search(path) or os.path.lexists(path):
        return None
    found = sorted(name for name in glob.iglob(path, recursive=True) if not os.path.isdir(name))  # noqa: PTH112, PTH207
    if not found:
        raise FilesetError(f"nothing matches {path}")
    return found


def _root_files(folder: str) -> list[str]:
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        try:
            status = os.stat(place)  # noqa: PTH116
        except OSError:
            continue
        if (status.st_dev, status.st_ino) in seen:  # a symbolic link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if len(seen) > MOST_FOLDERS:
            raise FilesetError(
                f"{folder} holds over {MOST_FOLDERS:,} folders; say more exactly which, or use a glob"
            )
        found += [os.path.join(place, name) for name in names if name.endswith(".root")]  # noqa: PTH118
    return found


def public(path: str) -> str:
    """An address without what only says who asks: tokens, signatures, a password. What records may name."""
    scheme, _, rest = path.partition("://")
    if _SCHEME.fullmatch(f"{scheme}:/") is None or not ("?" in rest or "@" in rest):
        return path
    server, slash, name = rest.partition("/")
    user, at, host = server.rpartition("@")
    name, question, query = name.partition("?")
    kept = "&".join(part for part in query.split("&") if not _says_who(part))
    return f"{scheme}://{user.partition(':')[0]}{at}{host}{slash}{name}{question if kept else ''}{kept}"


def _says_who(part: str) -> bool:
    key = part.partition("=")[0].lower()
    return key in _WHO or key.startswith(("x-amz-", "x-goog-")) or secret_name(key)


def identity(path: str) -> str:
    """One text for all spellings of the same file."""
    if not is_remote(path):
        folder, name = os.path.split(path)
        real = os.path.join(_real_folder(folder), name)  # noqa: PTH118
        return os.path.realpath(real) if os.path.islink(real) else real  # noqa: PTH114
    scheme, _, rest = path.partition("://")
    host, _, name = rest.partition("/")
    name, _, query = name.partition("?")
    scheme = _SAME_SCHEME.get(scheme.lower(), scheme.lower())
    host = host.rpartition("@")[2].lower().removesuffix(f":{_PORTS.get(scheme, '')}")
    query = "&".join(part for part in query.split("&") if part and not _says_who(part))
    return f"{scheme}://{host}/{re.sub('/+', '/', name).lstrip('/')}{'?' + query if query else ''}"


def forget() -> None:
    """Look at the folders anew: symbolic links may have changed since."""
    _real_folder.cache_clear()


@functools.lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)
