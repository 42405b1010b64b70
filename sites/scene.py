"""What a check looks at, and what it answers. No check and nothing that acts may enter."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sites.commands import ask
from sites.detect import full_hostname

if TYPE_CHECKING:
    from collections.abc import Callable

    from sites.commands import Answer
    from sites.profile import SiteProfile

FAR = 30 * 86400.0  # no job lasts longer than this many seconds where nobody says otherwise


@dataclass(frozen=True, slots=True)
class Check:
    """One answer of the preflight.

    ``ok``: True, as it should be; False, a run will fail; None, it could not be seen from here, or it is a
    warning if ``mend`` says what to do.
    """

    name: str
    ok: bool | None
    says: str
    mend: str = ""

    @property
    def warns(self) -> bool:
        """Whether it does not stop a run and should be known all the same."""
        return self.ok is None and bool(self.mend)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What is to be checked: a site, an engine, folders; and how this machine is asked."""

    site: SiteProfile
    engine: str = ""
    folder: Path = field(default_factory=Path.cwd)  # of the run
    logs: Path | None = None  # of the jobs; default: in the run's folder
    lanes: int = 1  # worker processes in all
    quick: bool = True  # before a run: what is slow and seldom wrong is left out
    insecure: bool = False  # the user typed it
    packages: tuple[str, ...] = ()  # what the workflow imports besides
    python: str = sys.executable
    fqdn: Callable[[], str] = full_hostname
    ask: Callable[..., Answer] = ask

    @property
    def batch(self) -> bool:
        """Whether jobs are submitted to a batch system."""
        return self.site.scheduler not in (None, "existing")

    @property
    def patience(self) -> float:
        """How many seconds a program of the site may take to answer."""
        return 5.0 if self.quick else 20.0

    @property
    def need(self) -> float:
        """How many seconds a credential must last: what the site says, else as long as a job."""
        return self.site.proxy.lifetime or self.site.resources.walltime or 0.0

    @property
    def workers_python(self) -> str:
        """The interpreter that workers are started with."""
        return self.site.job.python or self.python


def place(text: str) -> Path:
    """A folder that a profile names: ``$NAME``, ``~``, ``{uid}`` and ``{user}`` are filled in."""
    user = os.environ.get("USER", "")
    filled = os.path.expandvars(text.replace("{uid}", str(os.getuid())).replace("{user}", user))
    return Path(filled).expanduser()


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists already."""
    at = folder.absolute()
    while not at.exists() and at != at.parent:
        at = at.parent
    return at


def below(path: Path, folders: tuple[str, ...]) -> bool:
    """Whether a path lies in one of a profile's folders, links followed."""
    real = Path(os.path.realpath(path))
    return any(
        real.is_relative_to(os.path.realpath(place(one))) or path.is_relative_to(place(one))
        for one in folders
    )


def finite(seconds: float) -> float:
    """A time without an infinity, for arithmetic and text."""
    return seconds if math.isfinite(seconds) else FAR
