"""What a credential was found to be: its states told apart, its file read as carefully as a secret is.

Nothing here looks for one or knows what is inside.
"""

from __future__ import annotations

import os
import pwd
import stat
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sites.profile import SiteProfile


KINDS: Final = ("kerberos", "token", "x509")
LARGEST: Final = 1_000_000  # bytes of a file that may be a credential
TEMPORARY: Final = "/tmp"  # noqa: S108 - the place grid tools agreed on; owner and mode are checked
# True: usable, None: nobody can say, False: not usable.
STATES: Final[Mapping[str, bool | None]] = {
    "good": True,
    "opaque": None,  # usable as far as can be seen, but its end cannot
    "unknown": None,
    "missing": False,
    "unseen": False,  # good, but where the workers do not look
    "irregular": False,  # a folder, a pipe, a link to nothing
    "foreign": False,  # another user's
    "open": False,  # others may read it
    "unreadable": False,
    "cut": False,
    "broken": False,  # the certificates do not follow from each other
    "keyless": False,
    "mismatched": False,  # another certificate's key
    "plain": False,  # a certificate that is no proxy
    "early": False,
    "expired": False,
    "short": False,
    "stale": False,  # an old proxy in the way of a good token
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One credential as it was found; ``left`` is how many seconds it lasts."""

    kind: str
    state: str
    says: str
    mend: str = ""
    path: Path | None = None
    left: float | None = None

    @property
    def ok(self) -> bool | None:
        """True: usable for the time asked; False: not; None: nobody can say."""
        return STATES[self.state]


def place_of(site: SiteProfile | None) -> Path | None:
    """Where the site wants the credential, if it says so: ``$NAME`` and ``{uid}`` are filled in."""
    if site is None or site.proxy.path is None:
        return None
    filled = os.path.expandvars(site.proxy.path.replace("{uid}", str(os.getuid())))
    return Path(filled).expanduser()


def read_private(path: Path, kind: str, make: str, *, trusted: bool = False) -> tuple[str, Finding | None]:
    """What a file holds, read only if it is regular, this user's and nobody else's to read."""
    name = {"x509": "proxy"}.get(kind, kind)

    def bad(state: str, says: str, mend: str = make) -> tuple[str, Finding]:
        return "", Finding(kind if kind in KINDS else "x509", state, says, mend, path)

    try:
        # Without O_NONBLOCK a pipe of that name would stop us for ever.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        links = "a link to nothing" if path.is_symlink() else "not there"
        return bad("irregular" if path.is_symlink() else "missing", f"the {name} {path} is {links}")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        return bad("unreadable", f"the {name} {path} cannot be read: {why}")
    info = os.fstat(number)
    if not stat.S_ISREG(info.st_mode):
        os.close(number)
        return bad("irregular", f"the {name} {path} is not a regular file")
    with os.fdopen(number, "rb") as file:
        if info.st_uid != os.getuid() and not (trusted and info.st_uid == 0):
            return bad("foreign", f"the {name} {path} belongs to {user_name(info.st_uid)}, not to you")
        mode = stat.S_IMODE(info.st_mode)
        if mode & 0o077 and not (trusted and info.st_uid == 0):
            return bad("open", f"others may read the {name} {path} (mode {mode:04o})", f"chmod 600 {path}")
        return file.read(LARGEST).decode("utf-8", "surrogateescape"), None


def aged(
    kind: str, what: str, path: Path | None, times: tuple[float, float, float], mend: str, *, whose: str = ""
) -> Finding:
    """The finding for what is valid from, until, and is needed for so many seconds from now on."""
    start, end, need = times
    now = time.time()
    left = end - now
    if start > now:
        says = f"{what} is valid only from {_clock(start)}; the clock of this machine says {_clock(now)}"
        return Finding(kind, "early", says, "date -u (is the clock right?)", path, left)
    if left <= 0:
        return Finding(kind, "expired", f"{what} expired {span_text(-left)} ago", mend, path, left)
    if left < need:
        says = f"{what} lasts {span_text(left)} more, and {span_text(need)} are needed"
        return Finding(kind, "short", says, mend, path, left)
    return Finding(kind, "good", f"{what} lasts {span_text(left)} more{whose}", "", path, left)


def span_text(seconds: float) -> str:
    """A time as people say it."""
    minutes = max(int(seconds // 60), 0)
    if minutes >= 48 * 60:
        return f"{minutes // 1440} days"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def _clock(moment: float) -> str:
    try:
        return datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return "a day far away"


def user_name(uid: int) -> str:
    """The name of a user, or the number where nobody knows it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
