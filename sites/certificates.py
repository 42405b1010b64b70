"""Reads X.509 certificates from a PEM file: who, until when, a proxy or not; with the standard library alone.

Only what a check of a credential needs is read, and nothing is trusted for it. What finds or judges a
credential may not enter.
"""

from __future__ import annotations

import base64
import binascii
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,40})-----((?:(?!-----).)*)-----END \1-----", re.DOTALL)
BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]{1,40}-----")
SEQUENCE, OID, UTC_TIME, LONG_TIME = 0x30, 0x06, 0x17, 0x18
VERSION, EXTENSIONS = 0xA0, 0xA3  # the tagged parts of a certificate
DEEPEST = 12  # of nested values: a forged file must not exhaust the stack

# Object identifiers as they are encoded: RFC 3820, the draft before it, and the attributes of VOMS.
PROXY_KINDS = (bytes.fromhex("2b0601050507010e"), bytes.fromhex("2b060104019b5001815e"))
VOMS = bytes.fromhex("2b06010401be45646405")
LEGACY = ("proxy", "limited proxy")  # the last CN of proxies before both
NAMES = {
    bytes.fromhex("550403"): "CN",
    bytes.fromhex("550406"): "C",
    bytes.fromhex("55040a"): "O",
    bytes.fromhex("55040b"): "OU",
    bytes.fromhex("0992268993f22c640119"): "DC",
}


class BadCertificateError(ValueError):
    """The text is not a certificate, or only a part of one."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What one certificate says of itself; times are seconds since 1970."""

    subject: tuple[tuple[str, str], ...]
    issuer: tuple[tuple[str, str], ...]
    start: float
    end: float
    proxy: bool
    voms_end: float | None  # when the attributes of the experiment end, which may be before the proxy does
    pem: str

    @property
    def name(self) -> str:
        """The subject on one line, as grid tools write it."""
        return "".join(f"/{key}={value}" for key, value in self.subject)


def read_chain(text: str) -> list[Certificate]:
    """The certificates of a PEM file in their order; BadCertificateError if any is cut or damaged."""
    whole = list(BLOCK.finditer(text))
    if len(whole) != len(BEGIN.findall(text)):
        raise BadCertificateError("it is cut off: a block begins and does not end")
    return [_certificate(one[0], _decoded(one[2])) for one in whole if one[1] == "CERTIFICATE"]


def linked(chain: list[Certificate]) -> bool:
    """Whether each certificate names the next one as its issuer."""
    return all(_folded(one.issuer) == _folded(above.subject) for one, above in pairwise(chain))


def unsigned(path: Path, chain: list[Certificate], timeout: float = 5.0) -> str:
    """Why the signatures of the chain do not hold, by openssl; empty if they do or nobody can say."""
    openssl = shutil.which("openssl")
    if openssl is None or len(chain) < 2:
        return ""
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as top:
        top.write(chain[-1].pem + "\n")
        top.flush()
        # The last certificate is taken as trusted and times are left out: they are judged elsewhere.
        how = ["-allow_proxy_certs", "-partial_chain", "-no_check_time", "-auth_level", "0"]
        command = [openssl, "verify", *how, "-trusted", top.name, "-untrusted", str(path), str(path)]
        try:
            done = subprocess.run(  # noqa: S603
                command,
                capture_output=True,
                check=False,
                stdin=subprocess.DEVNULL,
                timeout=timeout,
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
    found = re.search(
        r"error \d+ at \d+ depth lookup: *([^\n]{1,100})",
        (done.stderr + done.stdout).decode("utf-8", "replace"),
    )
    return found[1].strip() if done.returncode and found else ""


def _folded(name: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    return [(key, " ".join(value.lower().split())) for key, value in name]


def _decoded(body: str) -> bytes:
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadCertificateError(f"it is damaged: {error}") from None


def _certificate(pem: str, data: bytes) -> Certificate:
    try:
        parts = list(_items(next(_items(next(_items(data))[1]))[1]))
        if parts[0][0] == VERSION:
            parts = parts[1:]
        issuer, validity, subject = (parts[at][1] for at in (2, 3, 4))
        start, end = (_time(*one) for one in _items(validity))
        extensions = dict(_extensions(parts))
        named, by = _name(subject), _name(issuer)
    except (IndexError, StopIteration, ValueError, OverflowError) as error:
        raise BadCertificateError(f"it is damaged: {error or 'an unexpected end'}") from None
    proxy = any(kind in extensions for kind in PROXY_KINDS) or (
        bool(named) and named[-1][0] == "CN" and named[-1][1].lower() in LEGACY
    )
    return Certificate(named, by, start, end, proxy, _voms_end(extensions.get(VOMS)), pem)


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each value in turn."""
    at = 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length >= 0x80:
            wide = length & 0x7F
            if not 1 <= wide <= 4:
                raise ValueError("a length that makes no sense")
            length, at = int.from_bytes(data[at : at + wide], "big"), at + wide
        if at + length > len(data):
            raise ValueError("a value ends behind the end")
        yield tag, data[at : at + length]
        at += length


def _time(tag: int, content: bytes) -> float:
    written = content.decode("ascii", "replace")
    shape = {UTC_TIME: "%y%m%d%H%M%SZ", LONG_TIME: "%Y%m%d%H%M%SZ"}.get(tag, "no time")
    if tag == UTC_TIME and written[:2] >= "50":  # RFC 5280; Python would change the century at 69
        written, shape = "19" + written, "%Y%m%d%H%M%SZ"
    return datetime.strptime(written, shape).replace(tzinfo=UTC).timestamp()


def _name(data: bytes) -> tuple[tuple[str, str], ...]:
    found = []
    for _, members in _items(data):
        for _, pair in _items(members):
            (_, oid), (_, value) = _items(pair)
            shown = value.decode("utf-8", "replace")
            shown = "".join(char if char.isprintable() else "?" for char in shown)[:200]
            found.append((NAMES.get(oid, oid.hex()), shown))
    return tuple(found)


def _extensions(parts: list[tuple[int, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    for tag, content in parts:
        if tag == EXTENSIONS:
            for _, extension in _items(next(_items(content))[1]):
                inner = list(_items(extension))
                if inner[0][0] == OID:
                    yield inner[0][1], inner[-1][1]


def _voms_end(data: bytes | None) -> float | None:
    """The earliest end of the attribute certificates within."""
    if data is None:
        return None
    try:
        return min(_periods(data, 0), default=None)
    except (ValueError, IndexError, OverflowError):
        return None


def _periods(data: bytes, depth: int) -> Iterator[float]:
    for tag, content in _items(data):
        if not tag & 0x20 or depth > DEEPEST:  # holds no further values
            continue
        inner = list(_items(content))
        if tag == SEQUENCE and [one[0] for one in inner] == [LONG_TIME, LONG_TIME]:
            yield _time(*inner[1])
        else:
            yield from _periods(content, depth + 1)
