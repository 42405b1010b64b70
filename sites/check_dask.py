"""Checks of a Dask scheduler that the site runs already: its TLS files, and that it answers."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sites.scene import Check, place

if TYPE_CHECKING:
    from pathlib import Path

    from sites.scene import Scene

PATIENCE = 3.0  # seconds for the connection and again for the handshake
SCHEMES = ("tls", "tcp", "wss", "ws")


def scheduler(scene: Scene) -> list[Check]:
    """Whether the scheduler answers at its address, encrypted."""
    if scene.site.scheduler != "existing":
        return []
    text = scene.site.dask.address
    if text is None:
        return [Check("scheduler", False, "the address of its Dask scheduler is not known", _where(scene))]
    scheme, host, port = _parts(text)
    if scheme not in SCHEMES or host is None or port is None:
        return [
            Check("scheduler", False, f"{text[:100]!r} is not an address as tls://host:port", _where(scene))
        ]
    if scheme in ("tcp", "ws") and not scene.insecure:
        says = f"{text} is not encrypted: whoever sees the connection can run code as you"
        return [Check("scheduler", False, says, "ask for a tls:// address, or accept it: --insecure")]
    return [_reached(scene, host, port, encrypted=scheme in ("tls", "wss"))]


def files(scene: Scene) -> list[Check]:
    """Whether the certificates and the key for it can be read, and the key by nobody else."""
    if scene.site.scheduler != "existing":
        return []
    dask = scene.site.dask
    named = {"tls_ca": dask.tls_ca, "tls_cert": dask.tls_cert, "tls_key": dask.tls_key}
    found = [_readable(name, place(value)) for name, value in named.items() if value is not None]
    bad = [one for one in found if one is not None]
    if bad or not any(named.values()):
        return bad
    try:
        _context(scene)
    except (OSError, ValueError) as error:
        return [
            Check(
                "tls",
                False,
                f"the TLS files do not fit together: {error}",
                "compare dask.tls_cert and dask.tls_key",
            )
        ]
    return [Check("tls", True, "the TLS files can be read")]


def _parts(text: str) -> tuple[str, str | None, int | None]:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return "", None, None
    return parts.scheme, parts.hostname, port


def _where(scene: Scene) -> str:
    return f"copy it from the Dask panel of {scene.site.name}: --scheduler-address tls://…"


def _readable(name: str, path: Path) -> Check | None:
    try:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            file.read(1)
    except OSError as error:
        mend = "are you at the site? Otherwise say it in a site file of your own (--site-file)"
        return Check("tls", False, f"dask.{name} {path} cannot be read: {error.strerror}", mend)
    if name == "tls_key" and info.st_uid == os.getuid() and stat.S_IMODE(info.st_mode) & 0o077:
        return Check("tls", None, f"others may read the key {path}", f"chmod 600 {path}")
    return None


def _context(scene: Scene) -> ssl.SSLContext:
    """As Dask connects: the certificate has to be of the site's own authority, its name does not matter."""
    dask = scene.site.dask
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if dask.tls_ca is not None:
        context.load_verify_locations(place(dask.tls_ca))
    if dask.tls_cert is not None:
        key = place(dask.tls_key) if dask.tls_key is not None else None
        context.load_cert_chain(place(dask.tls_cert), key, password=lambda: "")
    return context


def _reached(scene: Scene, host: str, port: int, *, encrypted: bool) -> Check:
    where = f"{host}:{port}"
    try:
        with socket.create_connection((host, port), timeout=PATIENCE) as plain:
            if not encrypted or scene.site.dask.tls_ca is None:
                return Check("scheduler", True, f"something listens at {where}")
            try:
                context = _context(scene)
            except (OSError, ValueError):
                return Check(
                    "scheduler", None, f"something listens at {where}; without TLS files no more can be seen"
                )
            with context.wrap_socket(plain):
                return Check(
                    "scheduler", True, f"a scheduler answers at {where}, and its certificate is trusted"
                )
    except ssl.SSLError as error:
        why = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else error.reason
        return Check(
            "scheduler", False, f"{where} does not speak TLS as expected: {why}", "check dask.tls_ca"
        )
    except TimeoutError:
        return Check("scheduler", False, f"{where} does not answer within {PATIENCE:.0f} s", _where(scene))
    except OSError as error:
        return Check(
            "scheduler", False, f"nothing listens at {where}: {error.strerror or error}", _start(scene)
        )


def _start(scene: Scene) -> str:
    return f"start a cluster in the Dask panel of {scene.site.name}, or give --scheduler-address"
