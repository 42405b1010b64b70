"""Finds and judges an x509 proxy: its file, its key, and the whole chain of certificates. It makes none."""

from __future__ import annotations

import math
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from sites.certificates import BadCertificateError, Certificate, linked, read_chain, unsigned
from sites.finding import TEMPORARY, Finding, aged, place_of, read_private

if TYPE_CHECKING:
    from sites.profile import SiteProfile


LONGEST = 190 * 3600.0  # seconds: no VOMS server gives more


def x509_path(site: SiteProfile | None = None) -> Path:
    """Where the proxy is: ``X509_USER_PROXY``, else the site's place, else the temporary folder."""
    named = os.environ.get("X509_USER_PROXY")
    if named:
        return Path(named)
    places = [path for path in (place_of(site), Path(TEMPORARY) / f"x509up_u{os.getuid()}") if path]
    return next((path for path in places if path.exists()), places[0])


def check_x509(site: SiteProfile | None = None, need: float = 0.0) -> Finding:
    """How the proxy of this user stands: its file, its key, its whole chain."""
    path, wanted = x509_path(site), place_of(site)
    found = judge_proxy(path, need, _make_proxy(wanted or path, need))
    if found.state != "good" or wanted is None or not _unseen(path, wanted, site):
        return found
    mend = f"install -m 600 {path} {wanted} && export X509_USER_PROXY={wanted}"
    says = f"the proxy {path} is good, but workers do not see it there"
    return Finding("x509", "unseen", says, mend, path, found.left)


def judge_proxy(path: Path, need: float = 0.0, make: str = "") -> Finding:
    """How one proxy file stands; ``make`` is the command that makes a new one."""
    make = make or _make_proxy(path, need)
    text, bad = read_private(path, "x509", make)
    if bad is not None:
        return bad
    try:
        chain = read_chain(text)
    except BadCertificateError as error:
        return Finding("x509", "cut", f"the proxy {path} cannot be read: {error}", make, path)
    if not chain:
        return Finding("x509", "cut", f"{path} holds no certificate", make, path)
    if why := _key_fault(path):
        return Finding("x509", why[0], f"the proxy {path} {why[1]}", make, path)
    state, says = _chain_fault(path, chain)
    if state:
        return Finding("x509", state, f"the proxy {path} {says}", make, path)
    start = max(one.start for one in chain)
    end = min(one.end for one in chain)
    voms = [one.voms_end for one in chain if one.voms_end is not None]
    whose = next((f" for {one.name}" for one in chain if not one.proxy), "")
    whose += "" if voms else ", without VOMS attributes"
    what = f"the proxy {path}"
    if voms and min(voms) < end:
        end, what = min(voms), f"the VOMS attributes of the proxy {path}"
    return aged("x509", what, path, (start, end, need), make, whose=whose)


def _key_fault(path: Path) -> tuple[str, str] | None:
    """What is wrong with the key of the first certificate, as OpenSSL sees it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # proxies of 1024 bits are for the server to refuse
    try:
        context.load_cert_chain(path, password=lambda: "")  # never ask on the terminal
    except ssl.SSLError as error:
        if "MISMATCH" in str(error.reason or ""):
            return "mismatched", "holds the key of another certificate"
        return "keyless", "holds no usable private key (or one behind a password)"
    except (OSError, ValueError) as error:
        return "unreadable", f"cannot be read: {error}"
    return None


def _chain_fault(path: Path, chain: list[Certificate]) -> tuple[str, str]:
    if not chain[0].proxy:
        return "plain", f"is no proxy but the certificate of {chain[0].name}, which must not travel"
    if not linked(chain):
        return (
            "broken",
            "holds certificates that do not follow from each other: wrong order, or one is missing",
        )
    if all(one.proxy for one in chain):
        return "broken", "ends in a proxy: the user's own certificate is missing"
    if why := unsigned(path, chain):
        return "broken", f"holds a chain whose signatures do not hold: {why}"
    return "", ""


def _make_proxy(path: Path, need: float) -> str:
    hours = max(12, math.ceil(need / 3600) + 1) if need < LONGEST else 192
    out = "" if path == Path(TEMPORARY) / f"x509up_u{os.getuid()}" else f" --out {path}"
    return f"voms-proxy-init --voms cms --valid {hours}:00{out}"


def _unseen(path: Path, wanted: Path, site: SiteProfile | None) -> bool:
    folders = [
        Path(TEMPORARY),
        *(Path(os.path.expandvars(one)) for one in (site.paths.unseen if site else ())),
    ]
    return path != wanted and any(path.is_relative_to(one) for one in folders)
