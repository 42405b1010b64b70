"""Another user of the same machine, while an engine runs: every port, every file, and nothing to be had.

The other one is ``nobody``. What it may read anyway (command lines) holds no secret.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from real.lab import Lab, accounted
from real.servers import condor as condor_pool
from real.servers import processes

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two other users"),
]
PLACES = [
    "here dask",
    "here parsl",
    "here futures",
    "slurm dask",
    "slurm parsl",
    "condor dask",
    "condor parsl",
]
OTHER = "nobody"

# What somebody tries who finds an open port. Whatever is answered is printed.
PROBE = """
import json, socket, ssl, sys

def said(sock, send=b""):
    sock.settimeout(2)
    got = b""
    try:
        if send:
            sock.sendall(send)
        while len(got) < 4096:
            more = sock.recv(4096)
            if not more:
                break
            got += more
    except (OSError, ssl.SSLError):
        pass
    return got

def tls(port, context):
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as raw, context.wrap_socket(raw) as sock:
            # With TLS 1.3 the server looks at our certificate only now.
            return said(sock, b"\\x01" + bytes(7) + b"GET / HTTP/1.0\\r\\n\\r\\n")
    except (OSError, ssl.SSLError):
        return b""

def zmq_answer(port):
    import zmq
    with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
        sock.setsockopt(zmq.LINGER, 0)
        sock.connect(f"tcp://127.0.0.1:{port}")
        sock.send_multipart([b"", b"hello"])
        return sock.recv() if sock.poll(2000) else b""

def dask_answer(port, scheme):
    import asyncio
    from distributed.comm import connect
    from distributed.security import Security
    context = ssl.create_default_context(); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
    async def ask():
        more = {"ssl_context": context, "require_encryption": True} if scheme == "tls" else {}
        comm = await connect(f"{scheme}://127.0.0.1:{port}", timeout=4, **more)
        await comm.write({"op": "identity", "reply": True})
        return await asyncio.wait_for(comm.read(), 4)
    try:
        return repr(asyncio.run(ask())).encode()
    except Exception:
        return b""

bare = ssl.create_default_context(); bare.check_hostname = False; bare.verify_mode = ssl.CERT_NONE
own = ssl.create_default_context(); own.check_hostname = False; own.verify_mode = ssl.CERT_NONE
own.load_cert_chain(sys.argv[1], sys.argv[2])
found = {}
for port in map(int, sys.argv[3:]):
    answers = {}
    for name, first in (("silence", b""), ("http", b"GET / HTTP/1.0\\r\\n\\r\\n")):
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as sock:
                answers[name] = said(sock, first)
        except OSError:
            answers[name] = b""
    answers |= {"tls": tls(port, bare), "own certificate": tls(port, own), "zmq": zmq_answer(port)}
    answers |= {f"dask {scheme}": dask_answer(port, scheme) for scheme in ("tcp", "tls")}
    found[port] = {name: answer.decode("latin-1") for name, answer in answers.items() if answer}
print(json.dumps(found))
"""
# Says only which sort of lock is on the door: 0xff, eight zeros, 0x7f, version, "CURVE". Nobody gets behind it.
GREETING = "\xff\0\0\0\0\0\0\0\x01\x7f"


@pytest.fixture
def place(request, tmp_path_factory):
    kind, engine = request.param.split()
    if kind == "here":
        # Not pytest's folder: that one is closed to others as a whole, and would hide an open door.
        batch = request.getfixturevalue("slurm")
        one = Lab(batch, engine, "here")
        one.elsewhere = engine if engine == "futures" else f"{engine}/local"
    else:
        one = Lab(request.getfixturevalue(kind), engine, "second")
        one.elsewhere = ""
    try:
        yield one
        one.finish()
    finally:
        one.close()
        one.batch.clear()


@pytest.fixture
def stranger(tmp_path_factory):
    """A certificate of the other user's own, and its key."""
    from real.servers import certificates, session

    with session.folder() as folder:
        files = certificates.self_signed(folder, "stranger")
        for path in files:
            condor_pool.give(path, OTHER)
        yield [str(path) for path in files]


def listening(pids):
    found = {}
    for pid in pids:
        try:
            for one in psutil.Process(pid).net_connections("tcp"):
                if one.status == "LISTEN":
                    found[one.laddr.port] = one.laddr.ip
        except psutil.Error:
            continue
    return found


def secrets(place, pids):
    """Files of the run that hold a key, wherever its processes have their folders."""
    roots = {place.folder, place.batch.folder / "spool", place.batch.folder / "execute"}
    for pid in pids:
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                said = Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
                roots |= {Path(top) for top in re.findall(r"/tmp/[\w.-]+", said)}
    files = (Path(folder, name) for root in roots for folder, _, names in os.walk(root) for name in names)
    return {path for path in files if is_key(path)}


def is_key(path):
    try:
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > 20_000:
            return False
        text = path.read_bytes()
    except OSError:
        return False
    return re.search(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\n|secret-key = .{40}", text) is not None


@pytest.mark.parametrize("place", PLACES, indirect=True, ids=lambda name: name.replace(" ", "/"))
def test_another_user_gets_nothing(place, stranger):
    place.data(dy=[10_000])
    gate = place.folder / "gate"
    more = ["--wf-arg", f"gate={gate}", "--task-seconds", "1"]
    process = place.start(place.command(*more, wf="Paced", on=place.elsewhere))
    place.until_working(process, 2, wf="Paced")
    pids = place.left()
    doors = listening(pids)
    assert doors or place.elsewhere == "futures"
    assert {ip.removeprefix("::ffff:") for ip in doors.values()} <= {"127.0.0.1"}, (
        "only the address that was asked for"
    )
    probe = [*condor_pool.as_user(OTHER), sys.executable, "-c", PROBE, *stranger, *map(str, doors)]
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    done = subprocess.run(probe, capture_output=True, text=True, timeout=200, cwd="/", env=env, check=False)
    assert done.returncode == 0, done.stderr
    for port, answers in json.loads(done.stdout).items():
        for how, answer in answers.items():
            assert answer.startswith(GREETING), (port, how, answer)
            assert "CURVE" in answer[:64] or len(answer) <= 11, (port, how, answer)
            assert len(answer) <= 64, (port, how, answer)
    keys = [path for path in secrets(place, pids) if path.exists()]
    assert keys or place.elsewhere == "futures", "this test looks in the wrong places"
    who = pwd.getpwnam(OTHER)
    plain = ["setpriv", f"--reuid={who.pw_uid}", f"--regid={who.pw_gid}", "--clear-groups"]
    for path in keys:
        got = subprocess.run([*plain, "cat", str(path)], capture_output=True, check=False)
        assert got.returncode != 0 or not path.exists(), f"anybody can read {path}"
        assert path.stat().st_mode & 0o077 == 0, f"{path} is kept by its folder alone"
    spoken = "".join(" ".join(psutil.Process(pid).cmdline()) for pid in pids if psutil.pid_exists(pid))
    for path in keys:
        for line in path.read_text(errors="replace").splitlines():
            word = line.strip().removeprefix("secret-key = ").strip('"')
            assert len(word) < 30 or word not in spoken, "a key in a command line"
    assert process.poll() is None
    gate.touch()
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    accounted(place.manifest(wf="Paced"), 10_000)
    assert processes.wait_for(lambda: not any(path.exists() for path in keys), 30), "keys outlive the run"
