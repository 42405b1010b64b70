"""Certificates and proxies for tests, really made, by the program openssl."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

OPENSSL = shutil.which("openssl")
HOUR = 3600.0

CONFIG = """
[ca]
default_ca = it
[it]
database = {folder}/index.txt
rand_serial = yes
new_certs_dir = {folder}
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
organizationName = optional
[req]
distinguished_name = any_name
prompt = no
[any_name]
CN = x
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[user]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature, keyEncipherment
[proxy]
keyUsage = critical, digitalSignature, keyEncipherment
proxyCertInfo = critical, language:id-ppl-inheritAll
[voms]
keyUsage = critical, digitalSignature, keyEncipherment
proxyCertInfo = critical, language:id-ppl-inheritAll
1.3.6.1.4.1.8005.100.100.5 = ASN1:SEQUENCE:lists
[lists]
one = SEQUENCE:acs
[acs]
one = SEQUENCE:ac
[ac]
info = SEQUENCE:info
[info]
version = INTEGER:1
holder = UTF8String:somebody
period = SEQUENCE:period
[period]
start = GENTIME:{voms_start}
end = GENTIME:{voms_end}
"""


def stamp(moment: float, long: bool = True) -> str:
    return time.strftime("%Y%m%d%H%M%SZ", time.gmtime(moment))


class Authority:
    """A folder in which a user's certificate and proxies of it are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def openssl(self, *words: str) -> None:
        assert OPENSSL is not None
        done = subprocess.run([OPENSSL, *words], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr

    def sign(
        self,
        name: str,
        subject: str,
        kind: str,
        issuer: str | None,
        start: float,
        end: float,
        voms_end: float = 0,
    ) -> None:
        """Make NAME.key and NAME.pem; ``start`` and ``end`` in seconds from now."""
        now = time.time()
        config = self.folder / "openssl.cnf"
        config.write_text(
            CONFIG.format(folder=self.folder, voms_start=stamp(now - HOUR), voms_end=stamp(now + voms_end))
        )
        (self.folder / "index.txt").write_text("")
        (self.folder / "index.txt.attr").unlink(missing_ok=True)
        key, request, out = (str(self.folder / f"{name}{end_}") for end_ in (".key", ".csr", ".pem"))
        self.openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
        self.openssl("req", "-new", "-key", key, "-subj", subject, "-config", str(config), "-out", request)
        by = issuer or name
        who = ["-selfsign"] if issuer is None else ["-cert", str(self.folder / f"{issuer}.pem")]
        self.openssl(
            "ca", "-batch", "-notext", "-preserveDN", "-config", str(config), *who,
            "-keyfile", str(self.folder / f"{by}.key"), "-in", request, "-out", out, "-extensions", kind,
            "-startdate", stamp(now + start), "-enddate", stamp(now + end),
        )  # fmt: skip

    def text(self, *names: str) -> str:
        """The files of these names, one behind the other: ``proxy.pem``, ``proxy.key``, ``user.pem``."""
        return "".join((self.folder / name).read_text() for name in names)


def make_authority(folder: Path) -> Authority:
    """A user, and proxies: ``good`` of 12 h, ``old``, ``young``, ``second`` of the good one, ``voms``, ``stranger``."""
    made = Authority(folder)
    user, proxy = "/O=Farm/CN=Ada Example", "/O=Farm/CN=Ada Example/CN={}"
    made.sign("ca", "/O=Farm/CN=Farm CA", "authority", None, -HOUR, 900 * 24 * HOUR)
    made.sign("user", user, "user", "ca", -HOUR, 400 * 24 * HOUR)
    made.sign("good", proxy.format(1), "proxy", "user", -60, 12 * HOUR)
    made.sign("old", proxy.format(2), "proxy", "user", -2 * HOUR, -HOUR)
    made.sign("young", proxy.format(3), "proxy", "user", HOUR, 2 * HOUR)
    made.sign("second", proxy.format("1/CN=9"), "proxy", "good", -60, 24 * HOUR)
    made.sign("ofold", proxy.format("2/CN=9"), "proxy", "old", -60, 24 * HOUR)
    made.sign("voms", proxy.format(4), "voms", "user", -60, 24 * HOUR, voms_end=2 * HOUR)
    made.sign("stranger", user, "user", "ca", -HOUR, 400 * 24 * HOUR)  # the same name, another key
    return made
