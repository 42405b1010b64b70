"""The preflight: every check fails when what it looks at is really wrong, and says what mends it."""

from __future__ import annotations

import errno
import getpass
import io
import json
import os
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from executors import canary, checking, preflight
from executors.engines.tls import make_certificate
from executors.errors import SiteError, UsageError
from sites import check_account, check_batch, check_dask, check_folders, check_here, checks
from sites.commands import Answer, ask
from sites.profile import load_site
from sites.scene import Check, Scene, place

ROOT = Path(__file__).resolve().parents[2]
HOUR = 3600.0


@pytest.fixture(autouse=True)
def plain_surroundings(monkeypatch):
    for name in ("X509_USER_PROXY", "BEARER_TOKEN", "BEARER_TOKEN_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def site(tmp_path):
    """Makes a site of a text."""

    def make(text="", name="there"):
        folder = tmp_path / "sites"
        folder.mkdir(exist_ok=True)
        load_site.cache_clear()
        (folder / f"{name}.toml").write_text(text)
        return load_site(name, folder)

    return make


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Puts programs on PATH, and nothing else: a name, and what its shell script does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(**scripts):
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
        return folder

    return make


def one(found):
    assert len(found) == 1, found
    return found[0]


# Asking a program


def test_an_answer(programs):
    programs(hello='echo "$1 $LC_ALL"; echo complaint >&2; exit 3')
    found = ask(["hello", "a b; c"])
    assert (found.code, found.text, found.why, found.good) == (3, "a b; c C\n", "complaint", False)
    assert ask(["nobody"]).why == "nobody is not here"


def test_a_program_that_hangs_is_ended_with_its_children(programs, tmp_path):
    programs(slow=f"/bin/sleep 77.7 & echo $! > {tmp_path}/child; wait")
    begin = time.monotonic()
    found = ask(["slow"], timeout=2.0)
    assert found.slow
    assert "no answer within" in found.why
    assert time.monotonic() - begin < 6
    pid = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and running(pid):
        time.sleep(0.02)
    assert not running(pid)


def running(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_program_without_end_is_read_only_so_far(programs):
    programs(loud="exec /usr/bin/head -c 3000000 /dev/zero")
    assert len(ask(["loud"]).text) == 1_000_000


def test_a_program_that_cannot_be_started(programs):
    folder = programs(bad="")
    (folder / "bad").write_bytes(b"\x7fELF nonsense")
    assert "cannot be started" in ask(["bad"]).why


# The survey


def test_one_that_hangs_delays_no_other(tmp_path):
    stop = threading.Event()
    table = {
        "a": lambda scene: [Check("a", True, "fine")],
        "folder": lambda scene: stop.wait(30) or [],
        "c": lambda scene: [Check("c", None, "unknown")],
    }
    begin = time.monotonic()
    found = checks.survey(Scene(site=load_site("local"), folder=tmp_path), table, limit=0.3)
    assert time.monotonic() - begin < 2
    stop.set()
    assert [each.name for each in found] == ["a", "folder", "c"]
    assert found[1].warns
    assert f"ls {tmp_path}" in found[1].mend


def test_one_that_hangs_does_not_keep_the_program():
    code = (
        "import time\nfrom sites.checks import survey\nfrom sites.scene import Scene\n"
        "from sites.profile import load_site\n"
        "survey(Scene(site=load_site('local')), {'a': lambda scene: time.sleep(60)}, limit=0.1)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=20, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_that_breaks_says_so():
    def broken(scene):
        raise ZeroDivisionError("by nothing")

    def refused(scene):
        raise SiteError("no such thing: do that")

    found = checks.survey(Scene(site=load_site("local")), {"a": broken, "b": refused})
    assert (found[0].ok, found[0].says) == (None, "could not be checked: ZeroDivisionError: by nothing")
    assert (found[1].ok, found[1].says) == (False, "no such thing: do that")


def test_this_machine_is_fine_and_quick(tmp_path):
    took = []
    for _ in range(5):  # the fastest counts: what others write may hold one up
        begin = time.monotonic()
        found = checks.preflight(load_site("local"), "futures", tmp_path / "run")
        took.append(time.monotonic() - begin)
    assert min(took) < 0.5
    assert checks.stops(found) == []
    assert {each.name for each in found} >= {"folder", "space", "clock"}
    assert not (tmp_path / "run").exists()


def test_every_shipped_site_can_be_checked(tmp_path, programs):
    """On a machine that is none of them: no check breaks, and every failure says something to do."""
    programs()
    from sites.profile import site_names

    for name in site_names():
        for each in checks.preflight(load_site(name), "dask", tmp_path):
            assert "could not be checked" not in each.says, (name, each)
            assert each.says
            if each.ok is False:
                assert each.mend, (name, each)


def test_nothing_is_left_in_the_folder(tmp_path):
    checks.preflight(load_site("local"), "futures", tmp_path, quick=False)
    assert os.listdir(tmp_path) == []


# This machine


def test_the_machine_is_one_of_the_sites(site, tmp_path):
    there = site('[detect]\nhostname = ["login*.example.org"]\nmarker = ["/nonexistent/marker"]\n')
    at = Scene(site=there, fqdn=lambda: "Login7.example.org")
    assert one(check_here.site_fits(at)).ok is True
    elsewhere = one(check_here.site_fits(Scene(site=there, fqdn=lambda: "laptop.home")))
    assert elsewhere.warns
    assert "laptop.home does not look like there (login*.example.org" in elsewhere.says
    (tmp_path / "marker").touch()
    marked = site(f'[detect]\nmarker = ["{tmp_path}/marker"]\n')
    assert one(check_here.site_fits(Scene(site=marked, fqdn=lambda: "laptop.home"))).ok is True
    assert check_here.site_fits(Scene(site=load_site("local"))) == []


def test_the_address(site):
    at = site('scheduler = "slurm"\n[network]\naddress = "loopback"\n')
    assert "127.0.0.1" in one(check_here.address(Scene(site=at))).says
    bad = one(
        check_here.address(Scene(site=site('scheduler = "slurm"\n[network]\naddress = "interface:no9"\n')))
    )
    assert bad.ok is False
    assert "interface:lo" in bad.says
    assert "network.address" in bad.mend
    assert check_here.address(Scene(site=load_site("local"))) == []


def test_the_port(site):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        text = (
            f'scheduler = "condor"\n[network]\naddress = "loopback"\n[ports]\nscheduler = [{port}, {port}]\n'
        )
        taken = one(check_here.port(Scene(site=site(text + 'hint = "ssh other.example.org"\n'))))
        assert taken.ok is False
        assert f"port {port} is taken" in taken.says
        assert f"pid {os.getpid()}" in taken.says
        assert taken.mend.endswith("ssh other.example.org")
    assert one(check_here.port(Scene(site=site(text)))).ok is True
    assert check_here.port(Scene(site=load_site("local"))) == []


@pytest.mark.parametrize(("required", "ok"), [("true", False), ("false", None)])
def test_a_missing_credential_stops_only_where_it_is_needed(site, tmp_path, monkeypatch, required, ok):
    monkeypatch.setenv("X509_USER_PROXY", str(tmp_path / "none"))
    at = site(f'[resources]\nwalltime = "30h"\n[proxy]\nkind = "x509"\nrequired = {required}\n')
    found = one(check_here.credential(Scene(site=at)))
    assert found.ok is ok
    if required == "true":
        assert "--valid 31:00" in found.mend
    assert check_here.credential(Scene(site=load_site("local"))) == []


def test_a_bad_credential_is_warned_of_where_it_is_not_needed(site, tmp_path, monkeypatch):
    (tmp_path / "open").touch(0o644)
    monkeypatch.setenv("X509_USER_PROXY", str(tmp_path / "open"))
    found = one(check_here.credential(Scene(site=site('[proxy]\nkind = "x509"\n'))))
    assert found.warns
    assert found.mend == f"chmod 600 {tmp_path / 'open'}"


def test_open_files(monkeypatch):
    few = Scene(site=load_site("local"), engine="dask", lanes=1000)
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1024, 1024))
    found = one(check_here.open_files(few))
    assert found.ok is False
    assert "use at most 128 workers" in found.mend
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1024, 8192))
    assert one(check_here.open_files(few)).ok is True
    monkeypatch.setattr(resource, "getrlimit", lambda what: (1024, resource.RLIM_INFINITY))
    assert one(check_here.open_files(few)).ok is True


def test_the_clock(monkeypatch, tmp_path):
    scene = Scene(site=load_site("local"), folder=tmp_path)
    assert one(check_here.clock(scene)).ok is True
    monkeypatch.setattr(check_here, "_made", lambda number: time.time() + 300)
    late = one(check_here.clock(scene))
    assert late.warns
    assert "300 s ahead" in late.says
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert one(check_here.clock(scene)).ok is False


# Folders


def scene_at(folder, site=None, **more):
    return Scene(site=site or load_site("local"), folder=folder, **more)


def test_a_folder_that_is_still_to_be_made(tmp_path):
    assert one(check_folders.run_folder(scene_at(tmp_path / "a" / "b"))).ok is True


def test_a_folder_behind_a_file(tmp_path):
    (tmp_path / "file").touch()
    found = one(check_folders.run_folder(scene_at(tmp_path / "file" / "run")))
    assert found.ok is False
    assert "is not a folder" in found.says


def test_a_folder_in_which_nothing_can_be_made():
    found = one(check_folders.run_folder(scene_at(Path("/proc/run"))))
    assert found.ok is False
    assert "cannot be written to" in found.says


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_folder_of_somebody_else(tmp_path):
    code = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\nfrom sites import check_folders\nfrom sites.scene import Scene\n"
        "from sites.profile import load_site\nsite = load_site('local')\n"
        f"os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"print(check_folders.run_folder(Scene(site=site, folder=Path({str(ROOT)!r}))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "ok=False" in done.stdout, done.stderr
    assert "Permission denied" in done.stdout


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.ENOSPC, "No space left"), (errno.EDQUOT, "quota exceeded"), (errno.EIO, "Input/output error")],
)
def test_a_full_disk_shows_when_something_is_written(tmp_path, monkeypatch, number, says):
    def full(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    found = one(check_folders.run_folder(scene_at(tmp_path)))
    assert found.ok is False
    assert says.lower() in found.says.lower()
    assert found.mend


def test_folders_that_a_site_allows(site, tmp_path, monkeypatch):
    monkeypatch.setenv("WORK", str(tmp_path / "work"))
    at = site('scheduler = "condor"\n[paths]\nlogs = ["$WORK"]\noutputs = ["$WORK", "/data/{uid}"]\n')
    (tmp_path / "work").mkdir()
    assert one(check_folders.log_folder(scene_at(tmp_path / "work" / "run", at))).ok is True
    inside = check_folders.run_folder(scene_at(tmp_path / "work" / "run", at))
    assert checks.stops(inside) == []
    for found in (check_folders.log_folder, check_folders.run_folder):
        outside = one(found(scene_at(tmp_path / "workshop", at)))
        assert outside.ok is False
        assert f"{tmp_path}/work" in outside.says
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "work")
    assert one(check_folders.log_folder(scene_at(link, at))).ok is True


def test_folders_that_workers_do_not_see(site, tmp_path):
    at = site(f'scheduler = "condor"\n[paths]\nunseen = ["{tmp_path}"]\n')
    found = checks.stops(check_folders.run_folder(scene_at(tmp_path / "run", at)))
    assert "do not see" in one(found).says
    alone = site(f'scheduler = "condor"\nshares_store = false\n[paths]\nunseen = ["{tmp_path}"]\n')
    assert checks.stops(check_folders.run_folder(scene_at(tmp_path / "run", alone))) == []


def test_a_disk_of_this_machine_alone_is_warned_of(site, tmp_path, monkeypatch):
    at = scene_at(tmp_path, site('scheduler = "slurm"\n'))
    for kind, warned in (("xfs", True), ("tmpfs", True), ("nfs4", False), ("lustre", False), ("", False)):
        monkeypatch.setattr(check_folders, "kind_of", lambda path, kind=kind: kind)
        assert any(each.warns for each in check_folders.run_folder(at)) is warned, kind


def test_the_kind_of_a_file_system(tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "21 20 0:30 / /afs rw - afs AFS rw\n"
        "22 20 0:31 / /data rw - nfs4 server:/data rw\n"
        "23 22 0:32 / /data/my\\040disk rw shared:1 - xfs /dev/sdb rw\n"
        "broken line\n\n"
    )
    kinds = {
        "/etc": "ext4", "/afs/cern.ch/user": "afs", "/data/a": "nfs4", "/data/my disk/x": "xfs", "/database": "ext4",
    }  # fmt: skip
    for path, kind in kinds.items():
        assert check_folders.kind_of(Path(path), mounts) == kind, path
    assert check_folders.kind_of(tmp_path, tmp_path / "none") == ""
    assert check_folders.kind_of(Path("/proc/self")) == "proc"


AFS = """Access list for . is
Normal rights:
  system:administrators rlidwka
  {who} {rights}
  ada rlidwka
Negative rights:
  system:anyuser rl
"""


@pytest.mark.parametrize(
    ("who", "rights", "stops"),
    [
        ("system:anyuser", "rl", True),
        ("system:authuser", "rlk", True),
        ("system:anyuser", "l", False),
        ("bob", "rl", False),
    ],
)
def test_on_afs_the_list_of_the_folder_decides(programs, tmp_path, monkeypatch, who, rights, stops):
    monkeypatch.setattr(check_folders, "kind_of", lambda path: "afs")
    (tmp_path / "acl").write_text(AFS.format(who=who, rights=rights))
    programs(fs=f'[ "$1" = listacl ] && /bin/cat {tmp_path}/acl')
    bad = checks.stops(check_folders.run_folder(scene_at(tmp_path)))
    assert bool(bad) is stops
    if stops:
        assert bad[0].mend == f"fs setacl {tmp_path} {who} l"


def test_on_afs_without_its_command(programs, tmp_path, monkeypatch):
    programs()
    monkeypatch.setattr(check_folders, "kind_of", lambda path: "afs")
    assert check_folders.run_folder(scene_at(tmp_path))[-1].warns


def test_a_file_system_without_modes(tmp_path, monkeypatch):
    real = os.fstat

    def loose(number):
        info = list(real(number))
        return os.stat_result([info[0] | 0o666, *info[1:]])

    monkeypatch.setattr(check_folders.os, "fstat", loose)
    found = check_folders._private(scene_at(tmp_path), tmp_path)
    monkeypatch.undo()
    assert "keeps no modes" in one(found).says


@pytest.mark.parametrize(("free", "ok"), [(50_000_000, False), (900_000_000, None), (50_000_000_000, True)])
def test_space(tmp_path, monkeypatch, free, ok):
    monkeypatch.setattr(check_folders.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    found = one(check_folders.space(scene_at(tmp_path)))
    assert found.ok is ok
    assert bool(found.mend) is (ok is not True)


def test_a_quota_that_is_used_up(programs, tmp_path):
    programs(
        quota="echo 'Disk quotas for user ada (uid 5):'; echo '/dev/sda1  120*  100  110  6days  9  0  0'; exit 1"
    )
    found = check_folders.space(scene_at(tmp_path, quick=False))
    assert "over the quota of /dev/sda1" in found[-1].says


AFS_QUOTA = """Volume Name                    Quota       Used %Used   Partition
user.ada                 {quota:>12} {used:>10}   99%         80%
"""


@pytest.mark.parametrize(
    ("quota", "used", "ok"),
    [(10_000_000, 9_990_000, False), (10_000_000, 9_000_000, None), (10_000_000, 0, True)],
)
def test_the_quota_of_a_volume_of_afs(programs, tmp_path, monkeypatch, quota, used, ok):
    monkeypatch.setattr(check_folders, "kind_of", lambda path: "afs")
    (tmp_path / "said").write_text(AFS_QUOTA.format(quota=quota, used=used))
    programs(fs=f'[ "$1" = listquota ] && /bin/cat {tmp_path}/said')
    found = check_folders.space(scene_at(tmp_path, quick=False))
    assert found[-1].ok is ok
    assert ("fs listquota" in found[-1].mend) is (ok is not True)


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("lustre", "         /scratch  120  100  110  -  9*  5  8  6d"),
        ("lustre", "         /scratch  120*  100  110  6d  9  50  80  -"),
        ("nfs", "server:/scratch  120  200  210    9*  5  8  6days"),
    ],
)
def test_a_quota_of_files_counts_too(programs, tmp_path, monkeypatch, kind, line):
    monkeypatch.setattr(check_folders, "kind_of", lambda path: kind)
    programs(quota="", lfs="")
    assert len(check_folders.space(scene_at(tmp_path, quick=False))) == 1
    programs(**{"lfs" if kind == "lustre" else "quota": f"echo '{line}'"})
    found = check_folders.space(scene_at(tmp_path, quick=False))[-1]
    assert found.warns
    assert "/scratch" in found.says


# Batch systems

SLURM = {
    "sbatch": "", "squeue": "", "scancel": "",
    "scontrol": "echo 'Slurmctld(primary) at head is UP'",
    "sinfo": "echo 'main|up|infinite'; echo 'short|up|1:00:00'; echo 'old|inact|2-00:00:00'",
}  # fmt: skip


def slurm(site, queue=None, walltime=None, account=None):
    job = (f'queue = "{queue}"\n' if queue else "") + (f'account = "{account}"\n' if account else "")
    time_ = f'walltime = "{walltime}"\n' if walltime else ""
    return site(f'scheduler = "slurm"\n[job]\n{job}[resources]\n{time_}')


def test_no_commands(programs, site):
    programs(sbatch="")
    found = one(check_batch.scheduler(Scene(site=slurm(site))))
    assert found.ok is False
    assert found.says == "squeue and scancel are not here"


@pytest.mark.parametrize(
    ("queue", "walltime", "ok", "says", "mend"),
    [
        ("main", "30d", True, "is up", ""),
        ("short", "1h", True, "is up", ""),
        ("short", "61m", False, "allows 1 h 00 min", "--walltime 3600s"),
        ("shrt", None, False, "no partition 'shrt'", "--queue short"),
        ("zzz", None, False, "no partition", "one of: main, old, short"),
        ("old", None, None, "is inact", "sinfo --partition=old"),
    ],
)
def test_partitions(programs, site, queue, walltime, ok, says, mend):
    programs(**SLURM)
    answers, found = check_batch.scheduler(Scene(site=slurm(site, queue, walltime)))
    assert answers.ok is True
    assert found.ok is ok
    assert says in found.says
    assert mend in found.mend


def test_several_partitions(programs, site):
    programs(**SLURM)
    found = check_batch.scheduler(Scene(site=slurm(site, "main,nope")))
    assert [each.ok for each in found] == [True, True, False]


def test_a_controller_that_is_down(programs, site):
    programs(
        **SLURM | {"scontrol": "echo 'Slurmctld(primary) at head is DOWN'; exit 1", "sinfo": "/bin/sleep 9"}
    )
    begin = time.monotonic()
    found = one(check_batch.scheduler(Scene(site=slurm(site))))
    assert found.ok is False
    assert "head is DOWN" in found.says
    assert time.monotonic() - begin < 2


def test_a_backup_controller_is_enough(programs, site):
    both = "echo 'Slurmctld(primary) at a is DOWN'; echo 'Slurmctld(backup) at b is UP'"
    programs(**SLURM | {"scontrol": both})
    assert check_batch.scheduler(Scene(site=slurm(site)))[0].ok is True


def test_a_scheduler_that_complains(programs, site):
    complaint = "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1"
    programs(**SLURM | {"sinfo": complaint})
    found = one(check_batch.scheduler(Scene(site=slurm(site))))
    assert found.ok is False
    assert "Unable to contact slurm controller" in found.says


def test_a_busy_moment_does_not_stop_a_run(site, programs):
    """A schedd with ten thousand jobs takes its time; the engine has more patience than the preflight."""
    programs(**SLURM)
    silent = lambda *a, **k: Answer(None, "", "", 5.0, slow=True)  # noqa: E731
    assert one(check_batch.scheduler(Scene(site=slurm(site), ask=silent))).warns
    assert one(check_batch.scheduler(Scene(site=slurm(site), ask=silent, quick=False))).ok is False


@pytest.mark.parametrize("rows", ["", "|||", "\x00\x00", "no pipes at all", "a|b", "ü|up|1:00"])
def test_answers_that_make_no_sense(site, programs, rows):
    programs(**SLURM)
    strange = lambda *a, **k: Answer(0, rows, "", 0.1)  # noqa: E731
    found = check_batch.scheduler(Scene(site=slurm(site, "main"), ask=strange))
    assert found[-1].ok is False


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("infinite", None),
        ("1:00:00", 3600),
        ("2-00:00:00", 172800),
        ("30:00", 1800),
        ("0:30", 30),
        ("x", None),
    ],
)
def test_times_of_slurm(text, seconds):
    assert check_batch._seconds(text) == seconds


@pytest.mark.parametrize(
    ("script", "ok"),
    [
        ("echo cms; echo other", True),
        ("echo cmsx", False),
        ("echo 'You are not running a supported accounting_storage plugin' >&2; exit 1", None),
        ("", None),
    ],
)
def test_accounts(programs, site, script, ok):
    programs(**SLURM | {"sacctmgr": script})
    found = one(check_account.account(Scene(site=slurm(site, account="cms"), quick=False)))
    assert found.ok is ok
    if ok is False:
        assert found.mend == "--account cmsx"
    assert check_account.account(Scene(site=slurm(site, account="cms"))) == []


CONDOR = {"condor_submit": "", "condor_q": "echo 'Total for query: 0 jobs'", "condor_rm": ""}


def test_condor(programs, site, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    at = site('scheduler = "condor"\n')
    programs(**CONDOR)
    assert one(check_batch.scheduler(Scene(site=at))).ok is True
    programs(condor_ping="echo 'ERROR: denied' >&2; exit 1")
    assert one(check_batch.scheduler(Scene(site=at))).ok is True
    full = check_batch.scheduler(Scene(site=at, quick=False))
    assert full[1].warns
    assert "denied" in full[1].says
    programs(condor_q="echo 'Error: Collector has no record of schedd' >&2; exit 1")
    assert "no record of schedd" in one(check_batch.scheduler(Scene(site=at))).says
    monkeypatch.setattr(os, "getuid", lambda: 0)
    programs(**CONDOR)
    assert "root" in check_batch.scheduler(Scene(site=at))[1].says


def test_the_schedd_that_the_site_names_is_asked(programs, site, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    words = 'submit_options = ["-spool", "-name", "far.example", "-pool", "collector.example"]'
    programs(**CONDOR | {"condor_q": f'echo "$*" > {tmp_path}/asked'})
    check_batch.scheduler(Scene(site=site(f'scheduler = "condor"\n[job]\n{words}\n')))
    assert (tmp_path / "asked").read_text() == "-name far.example -pool collector.example -totals\n"
    remote = site('scheduler = "condor"\n[job]\nsubmit_options = ["-remote", "far.example"]\n', "remote")
    check_batch.scheduler(Scene(site=remote))
    assert (tmp_path / "asked").read_text() == "-name far.example -totals\n"


@pytest.mark.parametrize(
    ("memory", "machines", "ok"),
    [("4GB", 1, True), ("900GB", 1, None), ("900GB", 0, True), ("900GB", "broken", True)],
)
def test_a_job_larger_than_any_machine(programs, site, monkeypatch, memory, machines, ok):
    """Machines that come only when they are needed are not missed."""
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    status = 'case "$*" in *"TotalMemory >= 858306"*) exit 0;; esac; '
    status += {0: "exit 0", 1: "echo slot1@node", "broken": "echo no collector >&2; exit 1"}[machines]
    programs(**CONDOR | {"condor_status": status})
    at = Scene(site=site(f'scheduler = "condor"\n[resources]\nmemory = "{memory}"\n'), quick=False)
    found = [each for each in check_batch.scheduler(at) if each.name == "size"]
    assert [each.warns for each in found] == ([True] if ok is None else [])
    if found:
        assert "1 core and 900 GB" in found[0].says
        assert "--memory" in found[0].mend


@pytest.mark.parametrize(
    ("text", "ok", "says"),
    [
        ("group_cms, group_atlas", None, "knows no accounting group group_csm"),
        ("group_cms, group_csm", True, "group_csm.ada is known"),
        ("GROUP_CSM", True, "is known"),
        ("Not defined: GROUP_NAMES", None, "cannot be seen"),
        ("", None, "cannot be seen"),
    ],
)
def test_accounting_groups(programs, site, text, ok, says):
    programs(**CONDOR | {"condor_config_val": f"echo '{text}'"})
    for more in (
        '[job]\naccount = "group_csm.ada"\n',
        '[directives]\n"+AccountingGroup" = "group_csm.ada"\n',
    ):
        at = Scene(site=site(f'scheduler = "condor"\n{more}'), quick=False)
        found = one(check_account.account(at))
        assert found.ok is ok
        assert says in found.says
    if "knows no" in says:
        assert found.mend == "--account group_cms or group_atlas"
    assert check_account.account(Scene(site=site('scheduler = "condor"\n', "plain"), quick=False)) == []


@pytest.mark.parametrize(
    ("script", "ok", "mend"),
    [
        ("echo cms; echo atlas", True, ""),
        ("echo cmsx; echo atlas", False, "--account cmsx"),
        ("echo 'no project list defined' >&2; exit 1", False, "without --account"),
        ("echo 'unable to contact qmaster' >&2; exit 1", None, ""),
    ],
)
def test_projects_of_grid_engine(programs, site, script, ok, mend):
    programs(qsub="", qstat="", qdel="", qconf=script)
    at = Scene(site=site('scheduler = "sge"\n[job]\naccount = "cms"\n'), quick=False)
    found = one(check_account.account(at))
    assert found.ok is ok
    assert found.mend.startswith(mend)


# The job's text, read by the batch system's own parser


def spot_of(site, engine="dask"):
    return SimpleNamespace(
        engine=SimpleNamespace(name=engine), site=site, local=False, private_base=lambda folder: folder
    )


def rehearsed(site, quick=False):
    return preflight.job(spot_of(site), Scene(site=site, engine="dask", quick=quick))


@pytest.mark.parametrize(
    ("script", "ok", "says", "mend"),
    [
        ("echo 'Job 5 to start at 2026-11-21T12:00:00' >&2", True, "sbatch would take", ""),
        (
            "echo 'allocation failure: Invalid qos specification' >&2; exit 1",
            False, "Invalid qos specification", "--qos=NAME",
        ),
        (
            "echo 'allocation failure: Invalid account or account/partition combination specified' >&2; exit 1",
            False, "Invalid account", "--account",
        ),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", None, "did not say", ""),
        ('[ -d logs ] && /bin/cat job.sh >&2; exit 1', False, "#SBATCH", "sinfo"),
    ],
)  # fmt: skip
def test_sbatch_reads_the_job(programs, site, script, ok, says, mend):
    programs(**SLURM | {"sbatch": f'[ "$1" = --test-only ] || exit 9; {script}'})
    found = one(rehearsed(slurm(site)))
    assert found.ok is ok
    assert says in found.says
    assert mend in found.mend
    assert rehearsed(slurm(site), quick=True) == [], "before a run it is asked by submitting"


def test_qsub_reads_the_job(programs, site):
    at = site('scheduler = "sge"\n')
    none, some = 'echo "verification: no suitable queues"', 'echo "verification: found suitable queue(s)"'
    programs(qsub=none)
    found = one(rehearsed(at))
    assert found.warns, "it looks at no loads, or at a cluster that is full: nobody can be sure"
    assert "qhost" in found.mend
    for first, second in ((some, none), (none, some)):
        programs(qsub=f'case "$1 $2" in "-w v") {first};; "-w p") {second};; esac')
        assert one(rehearsed(at)).ok is True
    programs(qsub="echo 'job rejected: the requested project does not exist' >&2; exit 1")
    assert one(rehearsed(at)).ok is False


def test_a_text_that_cannot_be_written_is_told_before_a_run(programs, site):
    programs(**SLURM | {"sbatch": "exit 9"})
    at = site('scheduler = "slurm"\n[directives]\n"--output" = "here"\n')
    found = one(rehearsed(at, quick=True))
    assert found.ok is False
    assert "--output" in found.says


def test_condor_submit_reads_the_job(programs, site):
    at = site('scheduler = "condor"\n')
    dry = '[ "$1 $2" = "-dry-run -" ] || exit 9; '
    programs(condor_submit=f"{dry} echo 'ERROR: Parse error in expression: Requirements' >&2; exit 1")
    assert one(rehearsed(at)).mend == "--directive"
    programs(condor_submit=f"{dry} echo \"WARNING: the line 'foo = 1' was unused. Is it a typo?\" >&2")
    found = one(rehearsed(at))
    assert found.warns
    assert "'foo = 1' was unused" in found.says
    programs(condor_submit=f"{dry} exit 0")
    assert one(rehearsed(at)).ok is True


def test_a_value_that_no_text_may_hold(programs, site):
    programs(**SLURM)
    found = one(rehearsed(site('scheduler = "slurm"\n[directives]\n"--comment" = "a$(id)"\n')))
    assert found.ok is False
    assert "--comment" in found.says


def test_the_text_is_read_only_where_somebody_answers(programs, site, tmp_path):
    programs(**SLURM | {"sbatch": "echo asked >&2; exit 1"})
    at = slurm(site, "nosuch")
    found = preflight.scheduler(spot_of(at), Scene(site=at, engine="dask", quick=False))
    assert [(each.name, each.ok) for each in found] == [("scheduler", True), ("queue", False)]


def test_the_preflight_asks_the_schedd_of_a_run(programs, site, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    at = site('scheduler = "condor"\n[schedd]\nconstraint = "MaxJobsRunning =!= 0"\n')
    table = "echo 'one.example\t5'; echo 'two.example\t3'"
    programs(**CONDOR | {"condor_status": table, "condor_q": f'echo "$*" > {tmp_path}/asked'})
    found = preflight.schedd(Scene(site=at, engine="dask"))
    assert [each.ok for each in found] == [True, True]
    assert "two.example, the best of 2" in found[0].says
    assert (tmp_path / "asked").read_text() == "-name two.example -totals\n"
    programs(condor_status="exit 0")
    none = one(preflight.schedd(Scene(site=at, engine="dask")))
    assert none.ok is False
    assert "no schedd" in none.says
    assert none.mend.startswith("condor_status -schedd")
    programs(condor_status="/bin/sleep 9")
    monkeypatch.setattr(preflight, "QUICKLY", 0.3)
    assert one(preflight.schedd(Scene(site=at, engine="dask"))).ok is None, "a busy moment stops no run"


@pytest.mark.parametrize(
    ("name", "quick", "ok", "says"),
    [
        ("tidy:TidyCluster", False, True, "tidy:TidyCluster submits"),
        ("site", False, True, "tidy:TidyCluster submits"),
        ("tidy:OtherCluster", False, False, "has no attribute 'OtherCluster'"),
        ("torn:AnyCluster", False, False, "the bindings are of another time"),
        ("torn:AnyCluster", True, True, "submits"),
        ("no_such_package:AnyCluster", False, False, "is not installed"),
    ],
)
def test_a_cluster_class_is_imported_in_a_process_apart(site, tmp_path, monkeypatch, name, quick, ok, says):
    (tmp_path / "tidy.py").write_text("class TidyCluster: pass\n")
    (tmp_path / "torn.py").write_text("raise RuntimeError('the bindings are of another time')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = f'cluster = "{name}"\noffers = "tidy:TidyCluster"'
    at = site(f'scheduler = "condor"\n[dask]\n{words}\n')
    found = one(preflight.cluster(Scene(site=at, engine="dask", quick=quick)))
    assert found.ok is ok
    assert says in found.says
    assert bool(found.mend) is not ok
    assert "tidy" not in sys.modules


def test_the_command_makes_these_checks_too():
    every = preflight.checks_of(spot_of(load_site("slurm")))
    assert list(every) == list(checks.CHECKS)
    assert every["scheduler"].func is preflight.scheduler
    assert every["cluster"] is preflight.cluster


def test_programs_that_know_no_servers(programs, site):
    programs(
        **SLURM | {"sinfo": "echo 'sinfo: fatal: Could not establish a configuration source' >&2; exit 1"}
    )
    found = one(check_batch.scheduler(Scene(site=slurm(site))))
    assert found.says == "sinfo: fatal: Could not establish a configuration source"
    assert "module" in found.mend


@pytest.mark.parametrize(
    ("name", "scripts", "known"),
    [
        (
            "sge",
            {"qstat": "exit 0", "qconf": '[ "$1" = -sql ] && { echo all.q; exit 0; }; [ "$2" = all.q ]'},
            "all.q",
        ),
        ("pbs", {"qstat": '[ "$1" = -B ] || [ "$2" = batch ]'}, "batch"),
        (
            "lsf",
            {"bqueues": '[ "$#" = 1 ] || [ "$2" = normal ] || { echo "x: No such queue." >&2; exit 255; }'},
            "normal",
        ),
    ],
)
def test_other_batch_systems(programs, site, name, scripts, known):
    programs(**dict.fromkeys(check_batch.COMMANDS[name], "") | scripts)
    for queue, ok in ((known, True), ("nope", False)):
        at = site(f'scheduler = "{name}"\n[job]\nqueue = "{queue}"\n')
        found = check_batch.scheduler(Scene(site=at))
        assert [each.ok for each in found] == [True, ok]
        assert bool(found[1].mend) is not ok
    assert getpass.getuser()


PBS_QUEUE = """Queue              Max   Tot Ena Str   Que   Run   Hld   Wat   Trn   Ext Type
---------------- ----- ----- --- --- ----- ----- ----- ----- ----- ----- ----
batch                0     3 {} {}     0     3     0     0     0     0 Exec
"""
LSF_QUEUE = """QUEUE_NAME      PRIO STATUS          MAX JL/U JL/P JL/H NJOBS  PEND   RUN  SUSP
batch            30  {:<14}    -    -    -    -     0     0     0     0
"""


@pytest.mark.parametrize(
    ("name", "program", "says", "closed"),
    [
        ("pbs", "qstat", PBS_QUEUE.format("yes", "yes"), False),
        ("pbs", "qstat", PBS_QUEUE.format("no ", "yes"), True),
        ("pbs", "qstat", PBS_QUEUE.format("yes", "no "), True),
        ("lsf", "bqueues", LSF_QUEUE.format("Open:Active"), False),
        ("lsf", "bqueues", LSF_QUEUE.format("Open:Inact_Adm"), True),
        ("lsf", "bqueues", LSF_QUEUE.format("Closed:Active"), True),
    ],
)
def test_a_queue_that_is_closed(programs, site, tmp_path, name, program, says, closed):
    (tmp_path / "said").write_text(says)
    programs(**dict.fromkeys(check_batch.COMMANDS[name], "") | {program: f"/bin/cat {tmp_path}/said"})
    found = check_batch.scheduler(Scene(site=site(f'scheduler = "{name}"\n[job]\nqueue = "batch"\n')))[1]
    assert found.warns is closed
    assert found.ok is (None if closed else True)


@pytest.mark.parametrize(
    ("nodes", "ok"), [("0/0/4/4", None), ("3/0/1/4", True), ("0/1/3/4", True), ("odd", True)]
)
def test_a_partition_without_a_node(programs, site, nodes, ok):
    programs(**SLURM | {"sinfo": f"echo 'main|up|infinite|{nodes}'"})
    found = check_batch.scheduler(Scene(site=slurm(site, "main")))[1]
    assert found.ok is ok
    assert ("sinfo -R" in found.mend) is (ok is None)


def test_images(site, tmp_path):
    (tmp_path / "image.sif").touch()
    answers = {
        f"{tmp_path}/image.sif": True,
        f"{tmp_path}/no.sif": False,
        "docker://coffeateam/coffea": None,
        "coffeateam/coffea:latest": None,
    }
    if not Path("/cvmfs").is_dir():
        answers["/cvmfs/unpacked.cern.ch/x"] = None
    for image, ok in answers.items():
        assert one(check_batch.image(Scene(site=site(f'[job]\nimage = "{image}"\n')))).ok is ok, image
    assert check_batch.image(Scene(site=load_site("local"))) == []


def test_the_workers_python(site, tmp_path, programs):
    at = site('scheduler = "slurm"\n')
    assert one(check_batch.python(Scene(site=at))).ok is True
    gone = one(check_batch.python(Scene(site=site('scheduler = "slurm"\n[job]\npython = "/no/python"\n'))))
    assert (gone.ok, gone.mend) == (False, f"--worker-python {sys.executable}")
    unseen = site(
        f'scheduler = "slurm"\n[job]\npython = "{tmp_path}/python"\n[paths]\nunseen = ["{tmp_path}"]\n'
    )
    assert "do not see" in one(check_batch.python(Scene(site=unseen))).says
    later = site('scheduler = "slurm"\n[job]\npython = "python-of-a-module"\nsetup = ["module load py"]\n')
    assert one(check_batch.python(Scene(site=later))).ok is None
    boxed = site('scheduler = "slurm"\n[job]\npython = "/no/python"\nimage = "x"\n')
    assert check_batch.python(Scene(site=boxed)) == []


def test_before_a_run_packages_are_looked_for_and_not_imported(site, programs, tmp_path):
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without site-packages
    bare.chmod(0o755)
    at = site(f'scheduler = "slurm"\n[job]\npython = "{bare}"\n')
    found = one(check_batch.python(Scene(site=at, engine="dask")))
    assert found.ok is False
    assert "has no coffea, uproot, awkward, hist, distributed" in found.says
    assert (
        found.mend
        == f"{bare} -m pip install coffea uproot awkward hist distributed; or --worker-python {sys.executable}"
    )
    for name in ("coffea", "uproot", "awkward", "hist", "distributed"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('imported')\n")
    there = site(
        f'scheduler = "slurm"\n[job]\npython = "{bare}"\n[env]\nPYTHONPATH = "{tmp_path}"\n', "there2"
    )
    assert one(check_batch.python(Scene(site=there, engine="dask"))).ok is True
    bare.write_text("#!/bin/sh\necho broken >&2; exit 3\n")
    found = one(check_batch.python(Scene(site=at, engine="dask")))
    assert found.warns, "a wrapper may be at home on the nodes alone"
    assert "broken" in found.says


def test_a_python_that_cannot_import_what_is_needed(site, programs):
    folder = programs(mypython="echo \"ModuleNotFoundError: No module named 'uproot'\" >&2; exit 1")
    at = site(f'scheduler = "slurm"\n[job]\npython = "{folder}/mypython"\n')
    found = one(check_batch.python(Scene(site=at, quick=False)))
    assert found.ok is False
    assert found.mend == f"{folder}/mypython -m pip install uproot"


# A Dask scheduler that runs already


def existing(site, port, certificate=None, key=None, scheme="tls", ca=None):
    ca = ca or certificate
    files = f'tls_ca = "{ca}"\ntls_cert = "{certificate}"\ntls_key = "{key}"\n' if certificate else ""
    return site(f'scheduler = "existing"\n[dask]\naddress = "{scheme}://127.0.0.1:{port}"\n{files}')


class Listener:
    """A server that takes connections, with or without TLS, until it is closed."""

    def __init__(self, context=None):
        self.context = context
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        while True:
            try:
                taken, _ = self.server.accept()
            except OSError:
                return
            try:
                if self.context:
                    taken = self.context.wrap_socket(taken, server_side=True)
                else:
                    taken.sendall(b"hello, this is no TLS\n")
            except OSError:
                pass
            taken.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self.thread.join()


def server_context(certificate, key):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_a_scheduler_over_tls(site, tmp_path):
    certificate, key = make_certificate(tmp_path / "one")
    other, _ = make_certificate(tmp_path / "two")
    with Listener(server_context(certificate, key)) as server:
        at = existing(site, server.port, certificate, key)
        found = one(check_dask.scheduler(Scene(site=at)))
        assert found.ok is True
        assert "trusted" in found.says
        assert one(check_dask.files(Scene(site=at))).ok is True
        strange = existing(site, server.port, certificate, key, ca=other)
        found = one(check_dask.scheduler(Scene(site=strange)))
        assert found.ok is False
        assert "does not speak TLS as expected" in found.says


def test_a_scheduler_without_tls(site, tmp_path):
    certificate, key = make_certificate(tmp_path / "one")
    with Listener() as server:
        found = one(check_dask.scheduler(Scene(site=existing(site, server.port, certificate, key))))
        assert found.ok is False
        plain = existing(site, server.port, scheme="tcp")
        refused = one(check_dask.scheduler(Scene(site=plain)))
        assert refused.ok is False
        assert "--insecure" in refused.mend
        assert one(check_dask.scheduler(Scene(site=plain, insecure=True))).ok is True


def test_no_scheduler(site):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    found = one(check_dask.scheduler(Scene(site=existing(site, port))))
    assert found.ok is False
    assert f"nothing listens at 127.0.0.1:{port}" in found.says
    assert "--scheduler-address" in found.mend


@pytest.mark.parametrize(
    "text", ["localhost", "tls://", "tls://h", "tls://h:x", "tls://h:99999", "http://h:1", "tls://[:1"]
)
def test_addresses_that_are_none(site, text):
    at = site(f'scheduler = "existing"\n[dask]\naddress = "{text}"\n')
    found = one(check_dask.scheduler(Scene(site=at)))
    assert found.ok is False
    assert "--scheduler-address" in found.mend


def test_no_address_at_all(site):
    assert one(check_dask.scheduler(Scene(site=site('scheduler = "existing"\n')))).ok is False


def test_tls_files(site, tmp_path):
    certificate, key = make_certificate(tmp_path / "one")
    _, other = make_certificate(tmp_path / "two")
    gone = check_dask.files(Scene(site=existing(site, 1, tmp_path / "none", key)))
    assert [each.ok for each in gone] == [False, False]
    mixed = one(check_dask.files(Scene(site=existing(site, 1, certificate, other))))
    assert "do not fit together" in mixed.says
    key.chmod(0o644)
    loose = one(check_dask.files(Scene(site=existing(site, 1, certificate, key))))
    assert loose.mend == f"chmod 600 {key}"


# Words


def spot(name="local"):
    return SimpleNamespace(
        engine=SimpleNamespace(name="dask", capabilities=SimpleNamespace(shares_store=True)),
        site=load_site(name), why="", slots=3, shared=True, local=True,
    )  # fmt: skip


FOUND = [
    Check("engine", True, "distributed 2026.8.0"),
    Check("scheduler", False, "sinfo: " + "a long story " * 20, "sinfo --partition=" + "x" * 100),
    Check("folder", None, "is on a disk of its own", "use another"),
    Check("image", None, "\x1b[2Jnot checked\nhere\u202e"),
]


def test_text_fits_and_is_clean():
    text = checking.text("dask/there", spot(), FOUND)
    for line in text.splitlines():
        assert len(line) <= 80 or "x" * 100 in line  # a word to be copied is never broken
        assert line.isprintable()
    assert "✗ scheduler" in text
    assert "! folder" in text
    assert "- image" in text
    assert text.endswith("1 of 4 checks failed; 1 warning")
    assert checking.text("x", spot(), FOUND[:1]).endswith("nothing stands in the way of a run")


def test_a_stream_of_plain_letters(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    text = checking.text("dask/there", spot(), FOUND)
    assert text.isascii()
    assert "x scheduler" in text


def test_secrets_are_not_said():
    token = "eyJhbGciOiJSUzI1NiJ9.eyJleHAiOjE3MDB9.c2lnbmF0dXJl"
    found = [Check("a", False, f"refused {token}", f"curl -H 'Authorization: Bearer {token}'")]
    assert token not in checking.text("x", spot(), found)
    assert token not in json.dumps(checking.report("x", spot(), found))


def test_before_a_run(monkeypatch, tmp_path):
    monkeypatch.setattr(checking, "survey", lambda *a, **k: FOUND)
    with pytest.raises(SiteError) as caught:
        checking.before_run(spot(), tmp_path)
    assert caught.value.exit_code == 4
    assert "sinfo --partition=" in str(caught.value)
    assert "--no-check" in str(caught.value)
    monkeypatch.setattr(checking, "survey", lambda *a, **k: FOUND[2:])
    assert checking.before_run(spot(), tmp_path) == [FOUND[2]]


def test_packages_of_an_engine(monkeypatch):
    assert one(checking.libraries("dask")).ok is True
    assert checking.libraries("futures") == []
    monkeypatch.setitem(checking.LIBRARIES, "parsl", ("no-such-package",))
    found = one(checking.libraries("parsl"))
    assert (found.ok, found.mend) == (False, "pip install no-such-package")


def run_check(*words, **env):
    return subprocess.run(
        [sys.executable, str(ROOT / "runner.py"), "check", *words],
        capture_output=True, text=True, timeout=60, env=os.environ | env,
    )  # fmt: skip


def test_the_command(tmp_path):
    good = run_check("--executor", "futures", "--outputdir", str(tmp_path))
    assert good.returncode == 0, good.stderr
    assert "✓ folder" in good.stdout
    bad = run_check(
        "--executor", "dask/slurm", "--as-json", "--outputdir", str(tmp_path), PATH="/nonexistent"
    )
    assert bad.returncode == 4, bad.stderr
    told = json.loads(bad.stdout)
    assert told["ok"] is False
    assert (told["engine"], told["site"], told["scheduler"]) == ("dask", "slurm", "slurm")
    named = {each["name"]: each for each in told["checks"]}
    assert named["scheduler"]["ok"] is False
    assert "sbatch" in named["scheduler"]["says"]
    assert set(named["scheduler"]) == {"name", "ok", "says", "mend"}
    assert run_check("--executor", "dask/nowhere").returncode == 2
    latin = run_check("--executor", "futures", "--outputdir", str(tmp_path), PYTHONIOENCODING="ascii")
    assert latin.returncode == 0
    assert latin.stdout.isascii()


# The canary


def settings(tmp_path, executor="futures"):
    from executors.settings import resolve

    return resolve(executor=executor, outputdir=tmp_path).settings


def test_a_canary_flies_here(tmp_path):
    code, text = checking.check(settings(tmp_path), canary=True)
    assert code == 0, text
    for said in (
        "✓ canary",
        "✓ packages   coffea",
        "workers see the run's folder, and write to it",
        "✓ scratch",
    ):
        assert said in text
    assert os.listdir(tmp_path) == []
    code, text = checking.check(settings(tmp_path / "a" / "b"), canary=True)
    assert code == 0, text
    assert os.listdir(tmp_path) == []


def workflow_of(tmp_path, text):
    (tmp_path / "mine.py").write_text(
        f"{text}\n\nclass Mine:\n    def process(self, events):\n        return {{}}\n"
    )
    return f"{tmp_path}/mine.py:Mine"


def test_what_the_workflow_imports_is_looked_for_too(tmp_path, monkeypatch, programs, site):
    """At any depth of the project's own code; neither Python's own modules nor what is not installed here."""
    (tmp_path / "mine_too.py").write_text("import psutil\nfrom executors import errors\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = "import json\nimport mine_too\ntry:\n    import no_such_thing\nexcept ImportError:\n    pass\n"
    text += "def late():\n    import cloudpickle\n"
    from executors.settings import resolve

    asked = resolve(executor="futures", outputdir=tmp_path, wf=workflow_of(tmp_path, text)).settings
    assert checking.imported(asked) == ("cloudpickle", "psutil")
    assert checking.imported(settings(tmp_path)) == ()
    folder = programs(mypython='case "$*" in *psutil*) echo "No module named \'psutil\'" >&2; exit 1;; esac')
    at = site(f'scheduler = "slurm"\n[job]\npython = "{folder}/mypython"\n')
    assert one(check_batch.python(Scene(site=at, quick=False))).ok is True
    found = one(check_batch.python(Scene(site=at, quick=False, packages=("psutil",))))
    assert found.mend == f"{folder}/mypython -m pip install psutil"
    code, said = checking.check(asked, canary=True)
    assert code == 0, said
    assert "psutil" in said


def seen(**more):
    from importlib.metadata import version

    return {
        "host": "node7", "python": sys.version.split()[0], "executable": "/usr/bin/python3",
        "packages": {name: version(name) for name in canary.PACKAGES}, "shared": True, "scratch": "/tmp",
        "free": 5 * 10**9, "clock": time.time(), "credential": None,
    } | more  # fmt: skip


@pytest.mark.parametrize(
    ("more", "answered", "name", "ok"),
    [
        ({}, True, None, None),
        ({"python": "2.7.18"}, True, "python", False),
        (
            {"packages": {"coffea": "! ModuleNotFoundError: No module named 'coffea'"}},
            True,
            "packages",
            False,
        ),
        ({"packages": {"coffea": "0.7.22"}}, True, "packages", None),
        ({"shared": False}, False, "store", False),
        ({"shared": True}, False, "store", False),
        ({"free": 10**6}, True, "scratch", None),
        ({"free": None}, True, "scratch", None),
        ({"credential": (False, "the proxy is not there")}, True, "credential", None),
        ({"credential": (True, "fine")}, True, None, None),
    ],
)
def test_what_a_worker_says_is_judged(more, answered, name, ok):
    found = canary.judge(seen(**more), spot(), answered)
    odd = [each for each in found if each.ok is not True]
    if name is None:
        assert odd == []
    else:
        assert [(each.name, each.ok) for each in odd] == [(name, ok)]
        assert odd[0].mend


def test_a_worker_that_does_not_see_the_folder(tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        (tmp_path / "mark").write_text("of another run")
        assert canary.look(str(folder), "mine", (), load_site("local"))["shared"] is False
    (tmp_path / "mark").write_text("mine")
    assert canary.look(str(tmp_path), "mine", (), load_site("local"))["shared"] is True
    assert sorted(os.listdir(tmp_path)) == ["answer", "mark"]


def test_a_canary_that_does_not_fly(tmp_path, monkeypatch):
    class Engine:
        name = "dask"

        def open(self, site, want):
            want.tell("info", "5 pending (Resources)")
            raise SiteError("sbatch: error: invalid partition specified: nope")

    dead = spot()
    dead.engine = Engine()
    dead.worker_memory = lambda n: None
    found = one(canary.fly(settings(tmp_path), dead))
    assert (found.ok, found.says) == (False, "sbatch: error: invalid partition specified: nope")
    assert "--canary" in found.mend
    assert os.listdir(tmp_path) == []


def test_a_place_of_a_profile(monkeypatch):
    monkeypatch.setenv("USER", "ada")
    assert place("/data/{user}/x{uid}") == Path(f"/data/ada/x{os.getuid()}")


def test_an_error_of_use_is_not_a_check(tmp_path):
    with pytest.raises(UsageError):
        checking.check(settings(tmp_path, "nonsense"))
