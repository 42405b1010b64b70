"""Finds and judges a bearer token and a Kerberos ticket. It fetches none, and shows no part of one."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import shutil
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sites.commands import ask
from sites.finding import TEMPORARY, Finding, aged, place_of, read_private

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sites.profile import SiteProfile


AGES: Final = 400 * 86400.0  # a token that claims more than this many seconds has no end
PART: Final = re.compile(r"[A-Za-z0-9_-]+={0,2}", re.ASCII)


def check_token(site: SiteProfile | None = None, need: float = 0.0) -> Finding:
    """How the bearer token of this user stands, in the order in which clients look for it."""
    get = "get a new one: htgettoken, oidc-token, or the button of the facility"
    value, path = os.environ.get("BEARER_TOKEN", "").strip(), None
    if not value:
        path = token_path(site)
        if path is None:
            looked = "BEARER_TOKEN, BEARER_TOKEN_FILE, " + ", ".join(map(str, _token_places(site)))
            return Finding("token", "missing", f"there is no token; looked at {looked}", get)
        value, bad = read_private(path, "token", get, trusted=path == place_of(site))
        if bad is not None:
            return bad
    found = judge_token(value.strip(), path, need, get)
    return _stale_proxy(found) if found.ok is not False else found


def token_path(site: SiteProfile | None = None) -> Path | None:
    """The file the token is taken from; None where there is none."""
    named = os.environ.get("BEARER_TOKEN_FILE")
    if named:
        return Path(named)
    return next((path for path in _token_places(site) if os.path.lexists(path)), None)


def judge_token(value: str, path: Path | None, need: float, get: str = "get a new one") -> Finding:
    """How one token stands. Its signature is for the server to judge."""
    what = f"the token {path}" if path else "the token in BEARER_TOKEN"
    parts = value.split(".")
    if fault := _fault(value, parts):
        return Finding("token", "cut", f"{what} {fault}", get, path)
    claims = _claims(parts[1]) if len(parts) == 3 and all(map(PART.fullmatch, parts)) else {}
    if claims is None:
        return Finding("token", "cut", f"{what} is damaged", get, path)
    start, end = _moment(claims.get("nbf"), 0.0), _moment(claims.get("exp"), math.inf)
    if end - time.time() > AGES:
        return Finding("token", "opaque", f"{what} does not say when it ends", path=path)
    return aged("token", what, path, (start, end, need), get)


def check_kerberos(need: float = 0.0) -> Finding:
    """Whether there is a ticket, and until when as far as klist says so in a known form."""
    if shutil.which("klist") is None:
        return Finding(
            "kerberos", "unknown", "klist is not here, so nobody can say whether there is a ticket"
        )
    answer = ask(["klist", "-s"])
    if answer.slow:
        return Finding("kerberos", "unknown", f"klist: {answer.why}")
    if not answer.good:
        return Finding("kerberos", "missing", "there is no valid Kerberos ticket", "kinit")
    end = _ticket_end(ask(["klist"]).text)
    if end is None:
        return Finding("kerberos", "good", "there is a valid Kerberos ticket")
    return aged("kerberos", "the Kerberos ticket", None, (0.0, end, need), "kinit")


def _fault(value: str, parts: list[str]) -> str:
    """What shows that it is no whole token, without reading it."""
    if not value:
        return "is empty"
    if value.startswith("eyJ") and len(parts) < 3:  # every JSON web token begins so
        return "is cut off"
    blank = any(char.isspace() or not char.isprintable() for char in value)
    return "is none: it holds blanks" if blank else ""


def _claims(part: str) -> dict[str, Any] | None:
    try:
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, RecursionError):
        return None
    return claims if isinstance(claims, dict) else None


def _token_places(site: SiteProfile | None) -> list[Path]:
    own, runtime = place_of(site), os.environ.get("XDG_RUNTIME_DIR")
    name = f"bt_u{os.getuid()}"
    found = [own, Path(runtime) / name if runtime else None, Path(TEMPORARY) / name]
    return [path for path in found if path is not None]


def _stale_proxy(found: Finding) -> Finding:
    """A proxy that cannot be used makes XRootD refuse a good token, without saying why."""
    named = os.environ.get("X509_USER_PROXY")
    if not named:
        return found
    _, bad = read_private(Path(named), "x509", "")
    if bad is None:
        return found
    says = f"the token is good, but X509_USER_PROXY is in its way: {bad.says}"
    return Finding("token", "stale", says, "unset X509_USER_PROXY", found.path, found.left)


def _moment(value: object, default: float) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return default


def _ticket_end(text: str) -> float | None:
    """The latest end of a ticket for tickets; its place in the line and its form differ."""
    ends = []
    for line in text.splitlines():
        if "krbtgt/" not in line:
            continue
        stamps = list(_stamps(line))
        ends += stamps[1:2]
    return max(ends, default=None)


def _stamps(line: str) -> Iterator[float]:
    forms = {
        r"\d\d/\d\d/\d{4} \d\d:\d\d:\d\d": "%m/%d/%Y %H:%M:%S",
        r"\d\d/\d\d/\d\d \d\d:\d\d:\d\d": "%m/%d/%y %H:%M:%S",
        r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d": "%Y-%m-%d %H:%M:%S",
        r"[A-Z][a-z]{2} +\d+ \d\d:\d\d:\d\d \d{4}": "%b %d %H:%M:%S %Y",
    }
    for shape, form in forms.items():
        found = re.findall(rf"(?<!\d){shape}(?!\d)", line)
        if found:
            for one in found:
                yield (
                    datetime.strptime(" ".join(one.replace("T", " ").split()), form).astimezone().timestamp()
                )
            return
