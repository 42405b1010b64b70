"""Proxies, tokens and tickets in every state, each really made; and nothing of them in any text."""

from __future__ import annotations

import base64
import json
import os
import random
import stat
import sys
import time
from pathlib import Path

import pytest

from executors.errors import SiteError, UnknownNameError
from sites import credentials, finding, proxies, tokens
from sites.certificates import BadCertificateError, read_chain
from sites.profile import load_site

sys.path.insert(0, str(Path(__file__).parents[1]))
from proxies import HOUR, OPENSSL, make_authority  # the tests' own, beside this folder

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="the program openssl makes the proxies")
UID = os.getuid()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(autouse=True)
def nothing_of_the_users(monkeypatch, tmp_path):
    """No credential of whoever runs the tests."""
    for name in ("X509_USER_PROXY", "BEARER_TOKEN", "BEARER_TOKEN_FILE", "XDG_RUNTIME_DIR", "KRB5CCNAME"):
        monkeypatch.delenv(name, raising=False)
    empty = tmp_path / "tmp"
    empty.mkdir()
    for module in (finding, proxies, tokens):
        monkeypatch.setattr(module, "TEMPORARY", str(empty), raising=False)
    return empty


@pytest.fixture
def written(made, tmp_path):
    """Writes a proxy of these parts."""

    def write(*parts, mode=0o600, name="proxy", text=None):
        path = tmp_path / name
        path.write_text(made.text(*parts) if text is None else text)
        path.chmod(mode)
        return path

    return write


def site_with(tmp_path, text):
    (tmp_path / "there.toml").write_text(text)
    return load_site("there", tmp_path)


GOOD = ("good.pem", "good.key", "user.pem")


def test_a_good_proxy(written):
    path = written(*GOOD)
    found = credentials.judge_proxy(path, need=11 * HOUR)
    assert (found.state, found.ok, found.path, found.mend) == ("good", True, path, "")
    assert 11.9 * HOUR < found.left <= 12 * HOUR
    assert "11 h 59 min" in found.says
    assert "/O=Farm/CN=Ada Example" in found.says


@pytest.mark.parametrize(
    ("parts", "need", "state", "says"),
    [
        (GOOD, 13 * HOUR, "short", "13 h 00 min are needed"),
        (("old.pem", "old.key", "user.pem"), 0, "expired", "expired 1 h 00 min ago"),
        (("young.pem", "young.key", "user.pem"), 0, "early", "valid only from"),
        (
            ("ofold.pem", "ofold.key", "old.pem", "user.pem"),
            0,
            "expired",
            "expired 1 h",
        ),  # the least of the chain
        (("second.pem", "second.key", "good.pem", "user.pem"), 13 * HOUR, "short", "11 h 59 min more"),
        (("voms.pem", "voms.key", "user.pem"), 3 * HOUR, "short", "VOMS attributes"),
        (("good.pem", "user.pem"), 0, "keyless", "no usable private key"),
        (("good.pem", "old.key", "user.pem"), 0, "mismatched", "another certificate"),
        (("user.pem", "user.key"), 0, "plain", "is no proxy"),
        (("good.pem", "good.key"), 0, "broken", "user's own certificate is missing"),
        (("second.pem", "second.key", "user.pem"), 0, "broken", "do not follow"),
        (("second.pem", "second.key", "user.pem", "good.pem"), 0, "broken", "do not follow"),
        (("good.pem", "good.key", "stranger.pem"), 0, "broken", "signatures do not hold"),
        (("good.key",), 0, "cut", "no certificate"),
    ],
)
def test_states_of_a_proxy(written, parts, need, state, says):
    found = credentials.judge_proxy(written(*parts), need)
    assert found.state == state
    assert found.ok is False
    assert says in found.says
    assert found.mend


def test_a_proxy_of_a_proxy_is_good(written):
    found = credentials.judge_proxy(written("second.pem", "second.key", "good.pem", "user.pem"))
    assert found.ok
    assert "without VOMS" in found.says


def test_voms_attributes_are_seen(written):
    found = credentials.judge_proxy(written("voms.pem", "voms.key", "user.pem"), HOUR)
    assert found.ok
    assert "VOMS attributes" in found.says
    assert 1.9 * HOUR < found.left < 2 * HOUR


def test_without_openssl_only_the_signatures_are_not_checked(written, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert credentials.judge_proxy(written("good.pem", "good.key", "stranger.pem")).ok
    assert credentials.judge_proxy(written("good.pem", "old.key", "user.pem")).state == "mismatched"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o601])
def test_open_to_others(written, mode):
    path = written(*GOOD, mode=mode)
    found = credentials.judge_proxy(path)
    assert found.state == "open"
    assert f"{mode:04o}" in found.says
    assert found.mend == f"chmod 600 {path}"
    path.chmod(0o600)  # what the command does
    assert credentials.judge_proxy(path).ok


def test_read_only_is_private_enough(written):
    assert credentials.judge_proxy(written(*GOOD, mode=0o400)).ok


@pytest.mark.parametrize("part", [0.05, 0.3, 0.5, 0.8, 0.97])
def test_cut_anywhere(written, made, part):
    whole = made.text(*GOOD)
    found = credentials.judge_proxy(written(text=whole[: int(len(whole) * part)]))
    assert found.ok is False
    assert found.state in ("cut", "keyless", "broken"), part


def test_cut_behind_what_is_needed(written, made):
    """Whoever wrote it was interrupted: what follows may have been of importance."""
    found = credentials.judge_proxy(written(text=made.text(*GOOD) + made.text("ca.pem")[:200]))
    assert found.state == "cut"


def test_with_the_authority_itself(written):
    assert credentials.judge_proxy(written(*GOOD, "ca.pem")).ok


def test_bytes_that_changed(written, made):
    """Wherever one character changes, the answer is a finding and never an exception."""
    chance, whole = random.Random(7), made.text(*GOOD)
    states = set()
    for _ in range(150):
        at = chance.randrange(len(whole))
        text = whole[:at] + chance.choice("A/+=-\n\x00ü") + whole[at + 1 :]
        states.add(credentials.judge_proxy(written(text=text)).state)
    assert states <= {"good", "cut", "keyless", "broken", "mismatched", "plain", "expired", "early"}
    assert {"cut", "broken"} <= states


def test_forged_certificates_are_refused_quickly():
    def pem(data):
        return f"-----BEGIN CERTIFICATE-----\n{base64.b64encode(data).decode()}\n-----END CERTIFICATE-----\n"

    chance = random.Random(8)
    deep = b"\x30\x84\xff\xff\xff\xff" * 1000
    nested = b""
    for _ in range(3000):
        nested = b"\x30\x84" + len(nested).to_bytes(4, "big") + nested
    hostile = [b"", b"\x30", b"\x30\x80", b"\x30\x89" + b"\xff" * 20, deep, nested, bytes(1000)]
    hostile += [chance.randbytes(chance.randrange(200)) for _ in range(300)]
    begin = time.monotonic()
    for data in hostile:
        with pytest.raises(BadCertificateError):
            read_chain(pem(data))
    assert time.monotonic() - begin < 2


def test_a_key_behind_a_password_does_not_ask(written, made, tmp_path):
    locked = tmp_path / "locked.key"
    made.openssl(
        "ec", "-in", str(made.folder / "good.key"), "-aes256", "-passout", "pass:x", "-out", str(locked)
    )
    path = written(text=made.text("good.pem") + locked.read_text() + made.text("user.pem"))
    assert credentials.judge_proxy(path).state == "keyless"


def test_missing(tmp_path):
    found = credentials.judge_proxy(tmp_path / "none")
    assert (found.state, found.ok) == ("missing", False)
    assert found.mend == f"voms-proxy-init --voms cms --valid 12:00 --out {tmp_path / 'none'}"


def test_the_command_asks_for_long_enough(tmp_path):
    assert "--valid 49:00" in credentials.judge_proxy(tmp_path / "none", need=48 * HOUR).mend


def test_not_a_file(tmp_path):
    pipe, link, closed = tmp_path / "pipe", tmp_path / "link", tmp_path / "a\0b"
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "gone")
    for path in (pipe, link, tmp_path):
        assert credentials.judge_proxy(path).state == "irregular", path
    assert credentials.judge_proxy(closed).state == "unreadable"
    assert credentials.judge_proxy(tmp_path / ("x" * 300)).state == "unreadable"


@pytest.mark.skipif(UID != 0, reason="only root can give a file away")
def test_of_another_user(written):
    path = written(*GOOD)
    os.chown(path, 65534, 65534)
    found = credentials.judge_proxy(path)
    assert found.state == "foreign"
    assert "nobody" in found.says


def test_where_a_proxy_is_looked_for(written, tmp_path, monkeypatch, nothing_of_the_users):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    site = site_with(tmp_path, '[proxy]\nkind = "x509"\npath = "$HOME/x509up_u{uid}"\n')
    wanted, usual = home / f"x509up_u{UID}", nothing_of_the_users / f"x509up_u{UID}"
    assert credentials.x509_path(site) == wanted
    assert credentials.x509_path() == usual

    usual.write_bytes(written(*GOOD).read_bytes())
    usual.chmod(0o600)
    found = credentials.check("x509", site)
    assert found.state == "unseen"  # a good one, in a place that workers do not see
    assert found.mend == f"install -m 600 {usual} {wanted} && export X509_USER_PROXY={wanted}"
    assert credentials.check("x509").ok

    wanted.write_bytes(usual.read_bytes())
    wanted.chmod(0o600)
    assert credentials.check("x509", site).ok
    named = written("old.pem", "old.key", "user.pem", name="named")
    monkeypatch.setenv("X509_USER_PROXY", str(named))
    assert credentials.check("x509", site).path == named
    monkeypatch.setenv("X509_USER_PROXY", "")
    assert credentials.check("x509", site).path == wanted


def test_an_unknown_kind():
    with pytest.raises(UnknownNameError, match="did you mean 'token'"):
        credentials.check("tokn")


def test_every_state_has_a_meaning():
    assert set(finding.STATES.values()) == {True, None, False}


# Tokens


def jwt(claims, head=None):
    parts = [head or {"alg": "RS256"}, claims]
    coded = [base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=").decode() for one in parts]
    return ".".join([*coded, "c2lnbmF0dXJl"])


class From(int):
    """Seconds from when the test runs: parameters are made long before it, when the tests are collected."""


def dated(value):
    return time.time() + value if isinstance(value, From) else value


@pytest.mark.parametrize(
    ("claims", "state"),
    [
        ({"exp": From(7200)}, "good"),
        ({"exp": From(1800)}, "short"),
        ({"exp": From(-60)}, "expired"),
        ({"exp": From(7200), "nbf": From(3600)}, "early"),
        ({}, "opaque"),
        ({"exp": "tomorrow"}, "opaque"),
        ({"exp": True}, "opaque"),
        ({"exp": 1e300}, "opaque"),
        ({"exp": -1e300}, "expired"),
        ([1, 2], "cut"),
        (7, "cut"),
    ],
)
def test_states_of_a_token(claims, state, monkeypatch):
    if isinstance(claims, dict):
        claims = {name: dated(value) for name, value in claims.items()}
    monkeypatch.setenv("BEARER_TOKEN", f" {jwt(claims)}\n")
    found = credentials.check("token", need=HOUR)
    assert found.state == state
    assert "BEARER_TOKEN" in found.says


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("", "cut"),
        ("  \n", "cut"),
        ("MDAxY2xvY2F0aW9uIGh0", "opaque"),  # a macaroon
        ("a.b.c", "cut"),
        ("ey.ey.ey", "cut"),
        ("one two", "cut"),
        ("one\x1b[2J", "cut"),
        ("x" * 2_000_000, "opaque"),
        (jwt({"exp": 9e9})[:-40], "cut"),
        ("e30." + base64.urlsafe_b64encode(b"[" * 100_000).decode() + ".e30", "cut"),
    ],
)
def test_files_of_tokens(text, state, tmp_path, monkeypatch):
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(0o600)
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(path))
    assert credentials.check("token").state == state


def test_a_token_that_others_may_read_is_refused_by_servers_without_a_word(tmp_path, monkeypatch):
    path = tmp_path / "token"
    path.write_text(jwt({"exp": time.time() + HOUR}))
    path.chmod(0o644)
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(path))
    found = credentials.check("token")
    assert (found.state, found.mend) == ("open", f"chmod 600 {path}")


def test_where_a_token_is_looked_for(tmp_path, monkeypatch, nothing_of_the_users):
    places = [tmp_path / "run", tmp_path / "site", tmp_path / "named"]
    for folder in places:
        folder.mkdir()
    text = jwt({"exp": time.time() + HOUR})

    def put(path):
        path.write_text(text)
        path.chmod(0o600)
        return path

    site = site_with(tmp_path, f'[proxy]\nkind = "token"\npath = "{tmp_path}/site/access_token"\n')
    found = credentials.check("token", site)
    assert found.state == "missing"
    assert str(nothing_of_the_users / f"bt_u{UID}") in found.says
    assert credentials.token_path(site) is None
    last = put(nothing_of_the_users / f"bt_u{UID}")
    assert credentials.token_path(site) == last
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(places[0]))
    run = put(places[0] / f"bt_u{UID}")
    assert credentials.token_path(site) == run
    own = put(places[1] / "access_token")
    assert credentials.token_path(site) == own
    monkeypatch.setenv("BEARER_TOKEN_FILE", str(put(places[2] / "t")))
    assert credentials.token_path(site) == places[2] / "t"
    monkeypatch.setenv("BEARER_TOKEN", text)
    assert credentials.check("token", site).path is None


@pytest.mark.skipif(UID != 0, reason="only root can give a file away")
def test_a_planted_token_is_not_taken(nothing_of_the_users):
    path = nothing_of_the_users / f"bt_u{UID}"
    path.write_text(jwt({"exp": time.time() + HOUR}))
    path.chmod(0o600)
    os.chown(path, 65534, 65534)
    assert credentials.check("token").state == "foreign"


def test_a_stale_proxy_is_in_the_way_of_a_token(written, tmp_path, monkeypatch):
    """XRootD then answers 'invalid login response' to a good token."""
    monkeypatch.setenv("BEARER_TOKEN", jwt({"exp": time.time() + HOUR}))
    for path in (tmp_path / "gone", written(*GOOD, mode=0o644)):
        monkeypatch.setenv("X509_USER_PROXY", str(path))
        found = credentials.check("token")
        assert (found.state, found.mend) == ("stale", "unset X509_USER_PROXY")
    expired = written("old.pem", "old.key", "user.pem", name="old")  # that one does not disturb
    monkeypatch.setenv("X509_USER_PROXY", str(expired))
    assert credentials.check("token").ok


# Kerberos, by a program that answers as klist does

HEAD = "Ticket cache: FILE:/tmp/krb5cc_1\nDefault principal: ada@CERN.CH\n\n"


@pytest.fixture
def klist(tmp_path, monkeypatch):
    def make(body, status=0):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        path = folder / "klist"
        (folder / "answer").write_text(body)
        path.write_text(f'#!/bin/sh\n[ "$1" = -s ] && exit {status}\n/bin/cat {folder}/answer\n')
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))

    return make


@pytest.mark.parametrize(
    "form", ["%m/%d/%Y %H:%M:%S", "%m/%d/%y %H:%M:%S", "%Y-%m-%d %H:%M:%S", "%b %d %H:%M:%S %Y"]
)
@pytest.mark.parametrize(("ends", "state"), [(7200, "good"), (1800, "short")])
def test_tickets(klist, form, ends, state):
    begin, end = (time.strftime(form, time.localtime(time.time() + one)) for one in (-60, ends))
    later = time.strftime(form, time.localtime(time.time() + 700_000))
    klist(
        f"{HEAD}{begin}  {end}  krbtgt/CERN.CH@CERN.CH\n\trenew until {later}\n{begin}  {later}  afs/cern.ch@CERN.CH\n"
    )
    found = credentials.check("kerberos", need=HOUR)
    assert found.state == state
    assert abs(found.left - ends) < 5


def test_no_ticket(klist):
    klist("", status=1)
    found = credentials.check("kerberos")
    assert (found.state, found.mend) == ("missing", "kinit")


def test_a_ticket_in_an_unknown_form(klist):
    klist("Karten: eine, bis übermorgen krbtgt/X@X\n")
    assert credentials.check("kerberos", need=HOUR).state == "good"


def test_without_klist_nobody_knows(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert credentials.check("kerberos").ok is None


# Copies


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_private_copy(written, tmp_path, mask):
    source = written(*GOOD)
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    before = os.umask(mask)
    try:
        copy = credentials.private_copy(source, folder)
    finally:
        os.umask(before)
    assert copy.read_bytes() == source.read_bytes()
    assert stat.S_IMODE(copy.lstat().st_mode) == 0o600
    assert os.listdir(folder) == ["x509up"]


def test_a_copy_is_renewed_and_does_not_follow_a_link(written, tmp_path):
    folder, victim = tmp_path / "keys", tmp_path / "victim"
    folder.mkdir(mode=0o700)
    victim.write_text("precious")
    (folder / "x509up").symlink_to(victim)
    copy = credentials.private_copy(written(*GOOD), folder)
    assert victim.read_text() == "precious"
    assert not copy.is_symlink()
    assert credentials.private_copy(written("voms.pem", "voms.key", "user.pem"), folder) == copy
    assert credentials.judge_proxy(copy).left < 3 * HOUR


def test_no_copy_into_an_open_folder(written, tmp_path):
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o750)
    with pytest.raises(SiteError, match=f"chmod 700 {folder}"):
        credentials.private_copy(written(*GOOD), folder)
    link = tmp_path / "link"
    folder.chmod(0o700)
    link.symlink_to(folder)
    with pytest.raises(SiteError, match="not private"):
        credentials.private_copy(written(*GOOD), link)


def test_no_copy_of_what_others_may_read(written, tmp_path):
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    with pytest.raises(SiteError, match="chmod 600"):
        credentials.private_copy(written(*GOOD, mode=0o644), folder)
    assert os.listdir(folder) == []


def test_nothing_secret_in_any_text(written, made, monkeypatch):
    """Whatever the state, no line of a key and no part of a token is said."""
    secret = [
        line
        for line in made.text("good.key", "user.key").splitlines()
        if len(line) > 20 and "---" not in line
    ]
    said = []
    for parts in (
        GOOD,
        ("good.pem", "user.key", "user.pem"),
        ("good.key", "good.pem"),
        ("good.pem", "good.key"),
    ):
        for need in (0, 20 * HOUR):
            said.append(repr(credentials.judge_proxy(written(*parts), need)))
    cut = written(text=made.text("good.key")[:150])
    said.append(repr(credentials.judge_proxy(cut)))
    for claims in ({"exp": 1}, {"exp": time.time() + 9999}, {}, 3):
        token = jwt(claims)
        secret += [token, token.split(".")[1]]
        for value in (token, token + " x", token[:-9] + "\x00"):
            said.append(repr(tokens.judge_token(value, None, HOUR)))
    for one in secret:
        assert not any(one in text for text in said)
