"""Under coffea's ``Runner``: a file is opened where the site reads it, and keeps the name that the user gave.

``Runner`` opens a file by its name, which is also what the analysis, its checkpoints, ``processed`` and every
message call it. So the name stays in the item, and only uproot's reader is given another address.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

from executors.coffea.xrootd import PROTOCOL, forgotten_if_failing, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

OPTIONS = "uproot_options"


def elsewhere(read: Callable[[str], str] | None, items: Sequence[Any]) -> dict[str, str]:
    """Name → address of each file among the items that the site reads by another address."""
    if read is None:
        return {}
    names = {name for item in items if isinstance(name := getattr(item, "filename", None), str)}
    return {name: url for name in names if (url := read(name)) != name}


def can_lead(function: Callable[[Any], Any]) -> bool:
    """Whether it is a step of ``Runner``'s own that opens its file with uproot."""
    return _leading(function, "") is not None


def led(function: Callable[[Any], Any], url: str) -> Callable[[Any], Any]:
    """The same step, its file opened at the address given."""
    return _leading(function, url) or function


def _leading(function: Any, url: str) -> Callable[[Any], Any] | None:
    from coffea.processor import Runner

    if not isinstance(function, partial):
        return None
    args, named = function.args, function.keywords
    if function.func is getattr(Runner, "metadata_fetcher_root", None) and len(args) == 3 and not named:
        return partial(function.func, *args[:2], _options(args[2], url))
    work = getattr(Runner, "_work_function", None)
    if function.func is work and args[:1] == ("root",) and OPTIONS in named:
        return partial(work, *args, **{**named, OPTIONS: _options(named[OPTIONS], url)})
    return None


def _options(given: Mapping[str, Any] | None, url: str) -> dict[str, Any]:
    import uproot

    options = dict(given or {})
    kind = options.get("handler") or uproot.source.fsspec.FSSpecSource

    class Elsewhere(kind):  # type: ignore[misc, valid-type]
        """Uproot's reader, of that address instead of the name."""

        def __init__(self, _name: str, **about: Any) -> None:
            super().__init__(url, **about)

    return options | {"handler": Elsewhere}


@contextlib.contextmanager
def reached(address: object, client: Mapping[str, str]) -> Iterator[None]:
    """Read a file in the block: its client knows how long to wait, and a second try gets no broken handle."""
    if not isinstance(address, str) or not address.startswith(PROTOCOL):
        yield
        return
    settle(client)
    with forgotten_if_failing(address):
        yield
