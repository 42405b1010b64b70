"""What a user shows at a door: x509 proxies, bearer tokens, Kerberos tickets, each found and judged.

Nothing here makes, renews or sends a credential, and no text ever holds a part of one.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from executors.errors import SiteError, UnknownNameError
from sites.finding import KINDS, Finding, read_private, span_text
from sites.proxies import check_x509, judge_proxy, x509_path
from sites.tokens import check_kerberos, check_token, judge_token, token_path

if TYPE_CHECKING:
    from pathlib import Path

    from sites.profile import SiteProfile

__all__ = [
    "Finding", "check", "check_kerberos", "check_token", "check_x509", "judge_proxy", "judge_token",
    "private_copy", "span_text", "token_path", "x509_path",
]  # fmt: skip


def check(kind: str, site: SiteProfile | None = None, need: float = 0.0) -> Finding:
    """How the user's credential of a kind stands, which is to last ``need`` seconds."""
    if kind not in KINDS:
        raise UnknownNameError.of("kind of credential", kind, KINDS)
    if kind == "kerberos":
        return check_kerberos(need)
    return check_token(site, need) if kind == "token" else check_x509(site, need)


def private_copy(path: Path, folder: Path, name: str = "x509up") -> Path:
    """A copy for this user alone, in a folder that nobody else can enter; an older one is replaced."""
    place = folder.lstat()
    if not stat.S_ISDIR(place.st_mode) or place.st_uid != os.getuid() or place.st_mode & 0o077:
        raise SiteError(f"the folder for credentials is not private: chmod 700 {folder}")
    data, bad = read_private(path, "credential", "make a new one")
    if bad is not None:
        raise SiteError(f"{bad.says}. To mend it: {bad.mend}")
    target, passing = folder / name, folder / f".{name}.{os.getpid()}.{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(passing, flags, 0o600), "wb") as out:
            if os.fstat(out.fileno()).st_mode & 0o077:
                raise SiteError(f"{folder} keeps no modes, so others could read {name}: use another folder")
            out.write(data.encode("utf-8", "surrogateescape"))
            out.flush()
            os.fsync(out.fileno())
        passing.replace(target)
    finally:
        passing.unlink(missing_ok=True)
    return target
