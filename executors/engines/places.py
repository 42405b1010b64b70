"""The folders of an opened engine: a private one that vanishes on leaving, and one for logs."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from executors.errors import SiteError, UsageError

if TYPE_CHECKING:
    from executors.engines.base import Resources


class Places:
    """``private`` is new, 0700 and removed on leaving; ``logs`` stays where the caller named a place."""

    def __init__(self, engine: str, want: Resources) -> None:
        if want.workers < 1:
            raise UsageError(f"workers must be at least 1, not {want.workers}")
        base = want.scratch
        try:
            if base is not None:
                base.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.private = Path(tempfile.mkdtemp(prefix=f"{engine}-", dir=base)).resolve()
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
