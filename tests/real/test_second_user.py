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
    "condor parsl",
    # What listens is each engine's own, wherever its workers are.
    pytest.param("slurm parsl", marks=pytest.mark.full, id="slurm/parsl"),
    pytest.param("condor dask", marks=pytest.mark.full, id="condor/dask"),
    # dask-jobqueue's own jobs, with workers, nannies and ports that are not of our making
    pytest.param("condor class", marks=pytest.mark.full, id="condor/class"),
]
CLASSES = {"condor": "dask_jobqueue:HTCondorCluster"}
OTHER = "nobody"

# What somebody tries who finds an open port. Whatever is answered is printed.
PROBE = """
import faulthandler, json, socket, ssl, sys, time
faulthandler.dump_traceback_later(100, exit=True)  # else nobody learns which question was never answered

def said(sock, send=b""):
    sock.settimeout(2)
    got, until = b"", time.monotonic() + 10
    try:
        if send:
            sock.sendall(send)
        while len(got) < 4096 and time.monotonic() < until:
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

def zmq_answer(port, keys):
    import zmq
    with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.SNDTIMEO, 2000)
        if keys:
            sock.curve_publickey, sock.curve_secretkey = zmq.curve_keypair()
            sock.curve_serverkey = zmq.curve_keypair()[0]
        sock.connect(f"tcp://127.0.0.1:{port}")
        try:
            sock.send_multipart([b"", b"hello"])
        except zmq.Again:  # already turned away: then there is nobody to send to, for ever
            return b""
        return sock.recv() if sock.poll(2000) else b""

# What a client, a worker and somebody who wants to do harm would say to a scheduler, a worker or a nanny.
WISHES = [
    {"op": "identity", "reply": True},
    {"op": "run", "function": b"", "reply": True},
    {"op": "register-worker", "address": "tls://127.0.0.1:9", "name": "mine", "nthreads": 1, "reply": True},
    {"op": "register-client", "client": "mine", "reply": True},
    {"op": "terminate", "reply": True},
]

async def dask_answer(port, context, wish):
    import asyncio
    from distributed.comm import connect
    scheme = "tls" if context else "tcp"
    more = {"ssl_context": context, "require_encryption": True} if context else {}
    try:
        comm = await connect(f"{scheme}://127.0.0.1:{port}", timeout=4, **more)
        await asyncio.wait_for(comm.write(wish), 4)
        return repr(await asyncio.wait_for(comm.read(), 4)).encode()
    except Exception:
        return b""

async def dask_answers(ports):
    import asyncio
    asked = {(port, f"dask {name} {wish['op']}"): dask_answer(port, context, wish)
             for port in ports for wish in WISHES
             for name, context in (("tcp", None), ("tls", bare), ("own certificate", own))}
    return dict(zip(asked, await asyncio.gather(*asked.values())))

def plain(port):
    answers = {}
    pages = {page: f"GET /{page} HTTP/1.0".encode() + b"\\r\\n\\r\\n" for page in ("metrics", "health", "status")}
    for name, first in (*pages.items(), ("silence", b""), ("http", b"GET / HTTP/1.0\\r\\n\\r\\n")):
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as sock:
                answers[name] = said(sock, first)
        except OSError:
            answers[name] = b""
    answers |= {"tls": tls(port, bare), "own certificate": tls(port, own)}
    return answers | {f"zmq {keys}": zmq_answer(port, keys) for keys in (False, True)}

bare = ssl.create_default_context(); bare.check_hostname = False; bare.verify_mode = ssl.CERT_NONE
own = ssl.create_default_context(); own.check_hostname = False; own.verify_mode = ssl.CERT_NONE
own.load_cert_chain(sys.argv[1], sys.argv[2])
import asyncio
from concurrent.futures import ThreadPoolExecutor
ports = [*map(int, sys.argv[3:])]
with ThreadPoolExecutor(16) as pool:
    found = dict(zip(ports, pool.map(plain, ports)))
for (port, name), answer in asyncio.run(dask_answers(ports)).items() if ports else ():
    found[port][name] = answer
found = {port: {name: answer.decode("latin-1") for name, answer in answers.items() if answer}
         for port, answers in found.items()}
print(json.dumps(found))
"""
# Says only which sort of lock is on the door: 0xff, eight zeros, 0x7f, version, "CURVE". Nobody gets behind it.
GREETING = "\xff\0\0\0\0\0\0\0\x01\x7f"


# What somebody finds who looks at files, and at what the kernel tells of processes.
LOOK = """
import json, os, stat, sys
tops, pids = json.loads(sys.argv[1]), json.loads(sys.argv[2])
found = {"write": [], "read": [], "environ": []}
for top in tops:
    for folder, folders, names in os.walk(top):
        for name in [".", *names]:
            path = os.path.join(folder, name)
            try:
                if os.path.islink(path) or stat.S_ISSOCK(os.lstat(path).st_mode):
                    continue  # who listens is looked at apart; Slurm's own have places in its spool folder
                everybodys = os.stat(path).st_mode & 0o1000  # as /tmp: the batch system's
            except FileNotFoundError:
                continue  # gone since its folder was read
            if os.access(path, os.W_OK) and not everybodys:
                found["write"].append(path)
            if name != "." and os.access(path, os.R_OK):
                found["read"].append(path)
for pid in pids:
    try:
        open(f"/proc/{pid}/environ", "rb").read()
        found["environ"].append(pid)
    except OSError:
        pass
print(json.dumps(found))
"""


@pytest.fixture
def place(request, tmp_path_factory):
    kind, engine = request.param.split()
    if kind == "here":
        # Not pytest's folder: that one is closed to others as a whole, and would hide an open door.
        batch = request.getfixturevalue("slurm")
        one = Lab(batch, engine, "here")
        one.elsewhere = engine if engine == "futures" else f"{engine}/local"
    else:
        one = Lab(request.getfixturevalue(kind), "dask" if engine == "class" else engine, "second")
        one.elsewhere = ""
    one.more = ["--site-set", f"dask.cluster={CLASSES[kind]}"] if engine == "class" else []
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


def other_doors(pids):
    """Sockets that are no TCP ones and that another user could speak to: of datagrams, or by a name.

    Of Python's processes: the batch system's own starter is among those of a job, too.
    """
    inodes = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            if "python" not in os.readlink(f"/proc/{pid}/exe"):
                continue
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes[str(fd.readlink()).removeprefix("socket:[").rstrip("]")] = pid
    rows = (row.split() for row in Path("/proc/net/unix").read_text().splitlines()[1:])
    for row in rows:
        listens = len(row) > 6 and row[6] in inodes and int(row[3], 16) & 0x10000
        # One without a place in a folder has no mode; the others are what their folder is.
        if listens and (len(row) < 8 or row[7][0] != "/" or Path(row[7]).parent.stat().st_mode & 0o077):
            yield row
    for table in ("udp", "udp6", "raw", "raw6"):
        rows = (row.split() for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:])
        yield from (row for row in rows if row[9] in inodes)


def tops(place, pids):
    """Folders of the run, wherever its processes have them."""
    roots = {place.folder, place.batch.folder / "spool", place.batch.folder / "execute"}
    for pid in pids:
        said = ""
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                said += Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace") + " "
        with contextlib.suppress(OSError):
            for link in [Path(f"/proc/{pid}/cwd"), *Path(f"/proc/{pid}/fd").iterdir()]:
                with contextlib.suppress(OSError):
                    said += f"{link.readlink()} "
        roots |= {Path(top) for top in re.findall(r"/tmp/[\w.-]+", said)}
    return roots


def secrets(place, pids):
    """Files of the run that hold a key."""
    roots = tops(place, pids)
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


def looked_at(place, pids, plain):
    """What somebody else can read or change of a run, as far as it is the run's own."""
    who = place.folder.stat().st_uid
    whole = {top for top in tops(place, pids) if top not in place.folder.parents and top.exists()}
    mine = [str(top) for top in whole if top.stat().st_uid == who]
    argv = [*plain, sys.executable, "-S", "-c", LOOK, json.dumps(mine), json.dumps(list(pids))]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd="/")
    if done.returncode:  # an interpreter that the other one cannot start
        argv[len(plain)] = "/usr/bin/python3"
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True, cwd="/")
    return json.loads(done.stdout)


@pytest.mark.parametrize("place", PLACES, indirect=True, ids=lambda name: name.replace(" ", "/"))
def test_another_user_gets_nothing(place, stranger):
    place.data(dy=[10_000])
    gate = place.folder / "gate"
    more = ["--wf-arg", f"gate={gate}", "--task-seconds", "1", *place.more]
    process = place.start(place.command(*more, wf="Paced", on=place.elsewhere))
    place.until_working(process, 2, wf="Paced")
    pids = place.left()
    doors = listening(pids)
    assert doors or place.elsewhere == "futures"
    # Workers of a class of others listen on every address of their node; what is said there, they say here.
    everywhere = {"::", "0.0.0.0"} if place.more else set()
    assert {ip.removeprefix("::ffff:") for ip in doors.values()} <= {"127.0.0.1"} | everywhere, (
        "only the address that was asked for"
    )
    assert list(other_doors(pids)) == []
    probe = [*condor_pool.as_user(OTHER), sys.executable, "-c", PROBE, *stranger, *map(str, doors)]
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    done = subprocess.run(probe, capture_output=True, text=True, timeout=200, cwd="/", env=env, check=False)
    assert done.returncode == 0, done.stderr
    for port, answers in json.loads(done.stdout).items():
        for how, answer in answers.items():
            if place.more and doors[int(port)] == "127.0.0.1" and answer.startswith("HTTP/1.1 404 "):
                continue  # their worker's web server, of which no page is left
            assert answer.startswith(GREETING), (port, how, answer)
            assert "CURVE" in answer[:64] or len(answer) <= 11, (port, how, answer)
            assert len(answer) <= 64, (port, how, answer)
    assert process.poll() is None, process.communicate()[0]
    keys = [path for path in secrets(place, pids) if path.exists()]
    there = [str(path) for path in place.folder.rglob("*") if "data" not in path.parts]
    assert keys or place.elsewhere == "futures", f"this test looks in the wrong places: {there}"
    who = pwd.getpwnam(OTHER)
    plain = ["setpriv", f"--reuid={who.pw_uid}", f"--regid={who.pw_gid}", "--clear-groups"]
    seen = looked_at(place, pids, plain)
    assert seen["write"] == []
    assert seen["environ"] == []
    kinds = re.compile(r"\.pkl|pickle|pilot\.json|job\.sh|outfit|parcel\.pyz|printed-|environment\.sh")
    assert [path for path in seen["read"] if kinds.search(Path(path).name)] == []
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
