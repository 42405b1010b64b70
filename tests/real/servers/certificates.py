"""Certificates and proxies for tests, made by the program openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path

EXTENSIONS = """
[user]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature,keyEncipherment
[proxy]
keyUsage = critical,digitalSignature,keyEncipherment
proxyCertInfo = critical,language:id-ppl-inheritAll,pathlen:1
"""


def self_signed(folder: Path, name: str = "facility") -> tuple[Path, Path]:
    """A certificate that is its own authority, and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    _openssl(
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/O=Test/CN={name}",
        "-keyout", str(key), "-out", str(certificate),
    )  # fmt: skip
    key.chmod(0o600)
    return certificate, key


def proxy(path: Path) -> Path:
    """An x509 proxy for two days, of a user that does not exist."""
    parts = path.parent / f".{path.name}.parts"
    parts.mkdir()
    authority = self_signed(parts, "authority")
    user = _signed(parts, "user", "/O=Test/CN=user", authority)
    certificate, key = _signed(parts, "proxy", "/O=Test/CN=user/CN=4711", user)
    path.touch(0o600)
    path.write_text(certificate.read_text() + key.read_text() + user[0].read_text())
    return path


def _signed(parts: Path, kind: str, subject: str, by: tuple[Path, Path]) -> tuple[Path, Path]:
    key, request, certificate, extensions = (parts / f"{kind}.{end}" for end in ("key", "req", "pem", "cnf"))
    extensions.write_text(EXTENSIONS)
    _openssl(
        "req",
        "-new",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        subject,
        "-keyout",
        str(key),
        "-out",
        str(request),
    )
    _openssl(
        "x509", "-req", "-in", str(request), "-CA", str(by[0]), "-CAkey", str(by[1]), "-set_serial", "4711",
        "-days", "2", "-extfile", str(extensions), "-extensions", kind, "-out", str(certificate),
    )  # fmt: skip
    return certificate, key


def _openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)
