"""The folders of an opened engine: a private one that vanishes on leaving, and one for logs."""

from __future__ import annotations

import getpass
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from executors.errors import SiteError, UsageError
from sites.check_folders import kind_of
from sites.scene import below, place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from executors.engines.base import Resources


HIDDEN = ".coffea-scaleout"
# Access lists, the server or the mount decide there who may read, whatever the mode says.
MODELESS = frozenset({"afs", "cifs", "exfat", "fuse.eosxd", "fuse.sshfs", "msdos", "smb3", "vfat"})


class Places:
    """``private`` is new, 0700 and removed on leaving; ``logs`` stays where the caller named a place."""

    def __init__(self, engine: str, want: Resources, allowed: Sequence[str] = ()) -> None:
        """``allowed``: the only folders from below which the site takes jobs; none: any."""
        if want.workers < 1:
            raise UsageError(f"workers must be at least 1, not {want.workers}")
        base = _allowed_base(allowed) if allowed and want.scratch is None else want.scratch
        try:
            if base is not None:
                base.mkdir(mode=0o700, parents=True, exist_ok=True)
            _require_kept(Path(base or tempfile.gettempdir()).resolve())
            self.private = Path(tempfile.mkdtemp(prefix=f"{engine}-", dir=base)).resolve()
            _require_private(self.private)
            self.logs = (want.log_dir or self.private).resolve()
            self.logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            where = error.filename or base or tempfile.gettempdir()
            raise SiteError(
                f"the engine {engine!r} cannot make its folder at {where}: {error.strerror}"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.private, ignore_errors=True)


def _require_private(folder: Path) -> None:
    """Refuse a folder for keys on a file system where modes say nothing, or are not what was asked for."""
    probe = folder / "probe"
    probe.touch(mode=0o600)
    modes = [each.stat().st_mode & 0o077 for each in (folder, probe)]
    probe.unlink()
    kind = kind_of(folder)
    if any(modes) or kind in MODELESS:
        folder.rmdir()
        raise SiteError(
            f"keys cannot be kept secret in {folder.parent}: on its file system ({kind}) modes do not keep "
            "others out. Use another --outputdir, or for batch systems that carry files, another TMPDIR"
        )


def _require_kept(base: Path) -> None:
    """Refuse a place where anybody could put their folder in the place of ours: jobs run what is in it."""
    for folder in (base, *base.parents):
        mode = folder.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise SiteError(
                f"{folder} can be written by everybody, who could exchange keys and programs below it: "
                f"chmod o-w {folder} (or +t), or use another folder (--outputdir, TMPDIR)"
            )


def _allowed_base(allowed: Sequence[str]) -> Path | None:
    """Where a private folder may lie: the system's own place if that is allowed, else the first that can."""
    if below(Path(tempfile.gettempdir()), tuple(allowed)):
        return None
    tried = []
    for folder in map(place, allowed):
        # Where a folder is everybody's, those below it belong to one user each.
        base = folder / HIDDEN if folder == Path.home() else folder / getpass.getuser() / HIDDEN
        try:
            folder.stat()  # whatever is missing below it may be made, it may not
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            tried.append(f"{folder}: {error.strerror}")
            continue
        if os.access(base, os.W_OK | os.X_OK):
            return base
        tried.append(f"{base} cannot be written to")
    raise SiteError(f"jobs are taken from below some folders only, and none can be used: {'; '.join(tried)}")
