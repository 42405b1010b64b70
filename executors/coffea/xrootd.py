"""The XRootD client of this process: how long it waits, and that it forgets a file which it could not read.

Its Python file system keeps handles of open files for half a minute, good or broken: who tries a file again
would be given the broken one. Nothing is opened or read here.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PROTOCOL = "root://"
CLOSING = 5  # seconds in which a server may still be told


def settle(values: Mapping[str, str]) -> None:
    """Give the client its time-outs; variables that were set when it was loaded stay as they are."""
    try:
        client = importlib.import_module("XRootD.client")
    except ImportError:
        return  # opening the first file says what is missing and how to get it
    for name, value in values.items():
        if value.isdecimal():
            client.EnvPutInt(name, int(value))


@contextlib.contextmanager
def forgotten_if_failing(url: str) -> Iterator[None]:
    """Whatever goes wrong in the block, the file is opened anew by whoever reads it next."""
    try:
        yield
    except BaseException:
        forget(url)
        raise


def forget(url: str) -> None:
    """Let go of the handle of one file."""
    if not url.startswith(PROTOCOL):
        return
    # What that package keeps to itself may change; the failure that brought us here matters more.
    with contextlib.suppress(AttributeError, LookupError, TypeError, ValueError):
        for system in _systems():
            host = system._get_kwargs_from_urls(url)["hostid"]  # noqa: SLF001
            if host == system.hostid:
                _let_go(system, system.unstrip_protocol(system._strip_protocol(url)))  # noqa: SLF001


def _systems() -> list[Any]:
    module = sys.modules.get("fsspec_xrootd.xrootd")
    if module is None:
        return []
    return list(getattr(module.XRootDFileSystem, "_cache", {}).values())


def _let_go(system: Any, key: str) -> None:
    cache = getattr(system, "_readonly_filehandle_cache", None)
    item = getattr(cache, "_cache", {}).pop(key, None)
    if item is None:
        return
    handle = item.handle

    def closed(*_: object) -> None:
        # Refers to the handle, which must live until it is closed: its end would wait for the server.
        handle.is_open  # noqa: B018

    with contextlib.suppress(Exception):  # a broken handle cannot be closed, in many ways
        handle.close(timeout=CLOSING, callback=closed)
