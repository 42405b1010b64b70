"""Ports picked as they will be bound, holders named, addresses found; with real sockets and real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from executors.errors import SiteError, UsageError
from sites import ports

LOOPBACK = "127.0.0.1"
LISTEN = """
import socket, sys, time
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind((sys.argv[1], int(sys.argv[2])))
server.listen()
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def listening(host=LOOPBACK, port=0, script=LISTEN, name=None, uid=None, cwd=None):
    """A process of its own that listens; its pid and port."""
    words = [sys.executable if uid is None else "/usr/bin/python3"]
    words += [str(name)] if name else ["-c", script]
    if uid is not None:
        words = ["setpriv", f"--reuid={uid}", "--clear-groups", *words]
    process = subprocess.Popen(
        [*words, host, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd
    )
    try:
        yield process.pid, int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(timeout=20)
        process.stdout.close()


def free_range(size):
    """A range in which nothing listens, well away from what others use."""
    for first in range(21_000 + os.getpid() % 500 * 10, 30_000, size):
        if all(ports.can_bind(port, LOOPBACK) for port in range(first, first + size)):
            return first, first + size - 1
    raise AssertionError("no free range on this machine")


def test_the_first_free_port_of_a_range():
    span = free_range(3)
    assert ports.pick(span, LOOPBACK) == span[0]
    with listening(port=span[0]):
        assert ports.pick(span, LOOPBACK) == span[0] + 1
        assert ports.pick(span, LOOPBACK, skip=(span[0] + 1,)) == span[0] + 2


def test_without_a_range_any_port():
    port = ports.pick(None, LOOPBACK)
    assert ports.can_bind(port, LOOPBACK)


def test_a_taken_port_names_its_holder(tmp_path):
    with listening(cwd=tmp_path) as (pid, port):
        with pytest.raises(SiteError) as caught:
            ports.pick((port, port), LOOPBACK, hint="try another node: ssh example.org")
    said = str(caught.value)
    assert f"port {port} is taken on {LOOPBACK}" in said
    assert f"pid {pid} of you" in said
    assert str(tmp_path) in said
    assert f"kill {pid}" in said
    assert said.endswith("try another node: ssh example.org")
    assert caught.value.exit_code == 4
    assert (caught.value.about["port"], caught.value.about["pid"]) == (port, pid)


@pytest.mark.parametrize("deep", [0, 4], ids=["", "in a long path"])
def test_another_run_is_recognised_by_the_process_above(tmp_path, deep):
    """What listens is a child of the runner; people know only the runner."""
    tmp_path = tmp_path.joinpath(*["a folder of a long name"] * deep)
    tmp_path.mkdir(parents=True, exist_ok=True)
    (tmp_path / "listen.py").write_text(LISTEN)
    parent = tmp_path / "runner.py"
    parent.write_text(
        textwrap.dedent("""
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "listen.py", *sys.argv[1:]])
        child.wait()
        """)
    )
    with listening(name=parent, cwd=tmp_path) as (pid, port):
        found = ports.holder(port, LOOPBACK)
    assert found.run
    assert found.pid == pid
    assert f"another run, pid {pid} of you" in str(found)
    assert "runner.py 127.0.0.1 0" in found.command
    assert len(found.command) <= ports.LONGEST


def test_a_folder_of_that_name_makes_no_run(tmp_path):
    script = tmp_path / "coffea-scaleout" / "serve.py"
    script.parent.mkdir()
    script.write_text(LISTEN)
    with listening(name=script) as (_, port):
        assert not ports.holder(port, LOOPBACK).run


def test_a_full_range_says_so():
    first, last = free_range(2)
    with listening(port=first) as (pid, _), listening(port=last):
        with pytest.raises(SiteError, match=rf"the 2 ports from {first} to {last} are all taken.*pid {pid}"):
            ports.pick((first, last), LOOPBACK)


def test_this_process_itself_holds_it():
    with closing(socket.create_server((LOOPBACK, 0))) as server:
        port = server.getsockname()[1]
        with pytest.raises(SiteError, match="Close the engine that this process opened before"):
            ports.pick((port, port), LOOPBACK)


def test_a_listener_on_every_address_holds_it_here_too():
    with listening(host="0.0.0.0") as (pid, port):
        assert not ports.can_bind(port, LOOPBACK)
        assert ports.holder(port, LOOPBACK).pid == pid


def test_a_listener_on_another_address_does_not():
    # Not one of the ports that any connection of this machine may happen to come from.
    with listening(host="127.0.0.2", port=free_range(1)[0]) as (pid, port):
        assert ports.can_bind(port, LOOPBACK)
        assert ports.holder(port, LOOPBACK).pid is None
        assert ports.holder(port).pid == pid


def test_a_port_just_released_is_free():
    """A test without SO_REUSEADDR refuses for a minute after one's own run."""
    with closing(socket.create_server((LOOPBACK, 0))) as server:
        port = server.getsockname()[1]
        client = socket.create_connection((LOOPBACK, port))
        accepted, _ = server.accept()
        accepted.close()  # the server's side closes first: its address stays in TIME_WAIT
        client.close()
    with closing(socket.socket()) as plain, pytest.raises(OSError, match="in use"):
        plain.bind((LOOPBACK, port))
    assert ports.pick((port, port), LOOPBACK) == port


def test_one_that_is_bound_and_does_not_listen_yet_is_seen():
    with closing(socket.socket()) as other:
        other.bind((LOOPBACK, 0))
        port = other.getsockname()[1]
        assert not ports.can_bind(port, LOOPBACK)
        other.listen()
        assert not ports.can_bind(port, LOOPBACK)


def test_the_probe_leaves_nothing_open():
    port = ports.pick(None, LOOPBACK)
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(5):
        assert ports.can_bind(port, LOOPBACK)
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user")
def test_of_another_user_the_name_at_least(monkeypatch, tmp_path):
    """As an ordinary user sees it: the files of other people's processes are closed."""
    with listening(uid=65534) as (_, port):
        real = ports.PROC
        hidden = tmp_path / "proc"
        (hidden / "net").mkdir(parents=True)
        for table in ("tcp", "tcp6"):
            (hidden / "net" / table).write_text((real / "net" / table).read_text())
        monkeypatch.setattr(ports, "PROC", hidden)
        found = ports.holder(port, LOOPBACK)
        assert (found.uid, found.pid) == (65534, None)
        assert str(found) == "by a process of user nobody, which cannot be looked into"
        with pytest.raises(SiteError, match=r"Use another machine of the site; ssh elsewhere"):
            ports.pick((port, port), LOOPBACK, hint="ssh elsewhere")


def test_where_nothing_can_be_seen(monkeypatch, tmp_path):
    with listening() as (_, port):
        monkeypatch.setattr(ports, "PROC", tmp_path)
        assert str(ports.holder(port, LOOPBACK)) == "by whom cannot be seen from here"


def test_a_hostile_command_line_cannot_draw_on_the_terminal(tmp_path):
    nasty = tmp_path / "a\x1b[2Jb\nc\u202e.py"
    nasty.write_text(LISTEN)
    with listening(name=nasty) as (_, port):
        said = ports.holder(port, LOOPBACK).command
    assert said.isprintable()
    assert len(said) <= ports.LONGEST


def test_an_address_of_another_machine():
    with pytest.raises(SiteError, match="not of this machine"):
        ports.pick((40_000, 40_010), "198.51.100.7")


@pytest.mark.skipif(os.getuid() == 0, reason="root may bind every port")
def test_a_reserved_port():
    with pytest.raises(SiteError, match="below 1024"):
        ports.pick((80, 80), LOOPBACK)


@pytest.mark.parametrize("spec", ["loopback", "127.0.0.1", "127.0.0.2", "interface:lo", "localhost"])
def test_addresses_of_the_loopback(spec):
    found = ports.address(spec)
    assert found.startswith("127.0.0.")
    assert ports.can_bind(ports.pick(None, found), found)


def test_ipv6():
    if "::1" not in ports.interfaces().get("lo", []):
        pytest.skip("no IPv6 here")
    assert ports.address("::1") == "::1"
    with closing(socket.create_server(("::1", 0), family=socket.AF_INET6)) as server:
        port = server.getsockname()[1]
        assert not ports.can_bind(port, "::1")
        assert ports.holder(port, "::1").pid == os.getpid()


def test_no_such_interface_lists_those_there_are():
    with pytest.raises(SiteError, match=r"no network interface 'eth99'.*interface:lo \(127\.0\.0\.1\)"):
        ports.address("interface:eth99")


def test_a_name_or_address_of_another_machine(monkeypatch):
    """As behind an alias: the address is good, but nothing here can listen on it."""
    with pytest.raises(SiteError, match=r"not of this machine.*interface:lo"):
        ports.address("198.51.100.7")
    found = [(socket.AF_INET, 1, 6, "", ("198.51.100.7", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: found)
    with pytest.raises(SiteError, match="not of this machine"):
        ports.address("cluster.example.org")


@pytest.mark.parametrize("spec", ["0.0.0.0", "::"])
def test_never_on_every_interface(spec):
    with pytest.raises(UsageError, match="every interface"):
        ports.address(spec)


@pytest.mark.parametrize(
    "spec", ["no-such-host.invalid", "", "a b", "-x", "ex\x00ample", "ü" * 80, "." * 300]
)
def test_names_without_an_address(spec):
    with pytest.raises((SiteError, UsageError), match="has no address|every interface"):
        ports.address(spec)


def test_a_name_that_is_only_this_machines(monkeypatch):
    found = [(socket.AF_INET, 1, 6, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: found)
    monkeypatch.setattr(socket, "gethostname", lambda: "node7")
    with pytest.raises(SiteError, match=r"'node7' is 127\.0\.1\.1: only this machine reaches it.*interface:"):
        ports.address("hostname")


def test_a_name_with_several_addresses_gives_one_that_workers_reach(monkeypatch):
    found = [
        (socket.AF_INET6, 1, 6, "", ("2001:db8::7", 0, 0, 0)),
        (socket.AF_INET, 1, 6, "", ("127.0.1.1", 0)),
        (socket.AF_INET, 1, 6, "", ("192.0.2.77", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: found)
    monkeypatch.setattr(ports, "_free", lambda host: 1)
    assert ports.address("fqdn") == "192.0.2.77"


def test_ranges_that_do_not_overlap():
    parts = ports.parted((10_000, 10_100), 4)
    assert parts == [(10_000, 10_024), (10_025, 10_049), (10_050, 10_074), (10_075, 10_099)]
    assert ports.parted((5, 5), 1) == [(5, 5)]


@pytest.mark.parametrize("parts", [0, -1, 102])
def test_ranges_too_small(parts):
    with pytest.raises(UsageError, match="do not fit"):
        ports.parted((10_000, 10_100), parts)


def test_nothing_is_looked_up_at_import():
    code = "import sys, sites.ports; print('psutil' in sys.modules, 'ssl' in sys.modules)"
    root = Path(ports.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == ["False", "False"]
