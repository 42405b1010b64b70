"""The question whether a site can be used, asked while the runner still imports the workflow.

Both take about half a second, and neither needs the other. Nothing is started or submitted here.
"""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from typing import TYPE_CHECKING

from executors.checking import before_run
from executors.errors import ExecutorsError

if TYPE_CHECKING:
    from pathlib import Path

    from executors.where import Where
    from sites.checks import Check


class Ahead:
    """The checks before a run, on their way; a good answer counts, a bad one is asked for again."""

    def __init__(self, spot: Where, folder: Path, *, insecure: bool = False) -> None:
        self._ask = partial(before_run, spot, insecure=insecure)
        self._found: list[Check] | None = None
        # A daemon: a batch system that does not answer must not keep an error of use from ending the program.
        self._thread = threading.Thread(target=self._look, args=(folder,), name="preflight", daemon=True)
        self._thread.start()

    def _look(self, folder: Path) -> None:
        with contextlib.suppress(ExecutorsError, OSError):
            self._found = self._ask(folder)

    def warnings(self, folder: Path) -> list[Check]:
        """The warnings; SiteError with the commands that mend it, if the run would fail in this folder."""
        self._thread.join()
        # The workflow may have set what was missed, and names the folder: a refusal is sure only now.
        return self._ask(folder) if self._found is None else self._found
