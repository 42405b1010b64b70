"""Which site this machine belongs to, by its full host name and by files that exist only there.

A guess is never made: what no profile recognises is no site.
"""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from executors.errors import UsageError
from sites.find import layers, names
from sites.profile import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sites.profile import Layer, SiteProfile

PATIENCE = 2.0  # for the name service, which may be unreachable where nothing else is wrong


@dataclass(frozen=True, slots=True)
class Detected:
    """The site of this machine, and how it was recognised."""

    site: str
    why: str
    others: tuple[str, ...] = ()  # sites that match as well, but less closely


def detect(
    hostname: str | None = None,
    exists: Callable[[str], bool] = os.path.exists,
    among: list[Layer] | None = None,
) -> Detected | None:
    """The site whose profile fits this machine best; None where none does."""
    looked = layers() if among is None else among
    host = full_hostname() if hostname is None else hostname
    found: list[tuple[bool, int, str, str]] = []
    for profile in _profiles(looked):
        if why := fits(profile, host, exists):
            matched = max((len(one) for one in profile.detect.hostname if _matches(host, one)), default=0)
            own = any(profile.name in layer.files for layer in looked if not layer.trusted)
            found.append((own, matched, profile.name, why))
    if not found:
        return None
    # One's own before the built-in, then the longest pattern; a tie goes by name, to be the same each time.
    found.sort(key=lambda one: (not one[0], -one[1], one[2]))
    return Detected(found[0][2], found[0][3], tuple(one[2] for one in found[1:]))


def fits(profile: SiteProfile, host: str, exists: Callable[[str], bool] = os.path.exists) -> str:
    """Why the machine is one of the site's, or nothing."""
    for pattern in profile.detect.hostname:
        if _matches(host, pattern):
            return f"the host {host} matches {pattern}"
    for marker in profile.detect.marker:
        if exists(marker):
            return f"{marker} is there"
    return ""


def _matches(host: str, pattern: str) -> bool:
    return fnmatchcase(host.lower().rstrip("."), pattern.lower())


def _profiles(among: list[Layer]) -> Iterable[SiteProfile]:
    for name in names(among):
        try:
            yield load(name, among).profile
        except UsageError:
            continue  # a profile that cannot be read is said by ``sites``; the others still count


def full_hostname() -> str:
    """The name of this machine with its domain, as far as that can be found in two seconds."""
    short = socket.gethostname()
    if "." in short:
        return short
    answer: list[str] = []
    asking = threading.Thread(target=lambda: answer.append(socket.getfqdn(short)), daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return answer[0] if answer else short
