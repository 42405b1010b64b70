"""A certificate and key for one opened engine, made in its private folder; nothing else may enter."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from executors.errors import EngineError

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """[req]
distinguished_name = name
x509_extensions = use
prompt = no
[name]
CN = coffea-scaleout
[use]
basicConstraints = critical, CA:TRUE
keyUsage = critical, digitalSignature, keyCertSign
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = DNS:localhost, IP:127.0.0.1
"""


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Paths of a new self-signed certificate and its key, readable by this user only."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise EngineError(
            "the engine encrypts its connections and needs the program openssl to make a key; "
            "install it: conda install openssl, or apt-get install openssl"
        )
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise EngineError(f"the folder for keys is not private: chmod 700 {folder}")
    config, certificate, key = folder / "openssl.cnf", folder / "certificate.pem", folder / "key.pem"
    config.write_text(CONFIG)
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    out = ["-keyout", str(key), "-out", str(certificate)]
    command = [openssl, "req", "-x509", *curve, "-nodes", "-days", "365", "-config", str(config), *out]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)  # noqa: S603
    if done.returncode:
        raise EngineError(f"openssl did not make a key: {done.stderr.strip()[-500:]}")
    key.chmod(0o600)
    return certificate, key
