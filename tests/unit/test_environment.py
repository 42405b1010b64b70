"""An environment on its way: what of it travels, that equal is equal, and what a node makes of it."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from executors.batch import environment, packages, parcel, unpacking
from executors.engines.base import Resources
from executors.engines.places import HIDDEN, Places
from executors.errors import SiteError, UsageError
from sites.profile import load_site

FILES = {
    "thing/__init__.py": "VALUE = 42\n",
    "thing/__pycache__/__init__.cpython-311.pyc": "x",
    "thing/deep/er/data.txt": "data",
    "thing/tests/__init__.py": "",
    "thing/tests/test_thing.py": "def test(): ...",
    "thing/tests/helper.py": "",
    "thing/tests/conftest.py": "",
    "thing/tests/large.bin": "x" * 1000,
    "thing/.git/config": "x",
    "thing-1.2.dist-info/METADATA": "Metadata-Version: 2.1\nName: thing\nVersion: 1.2\n",
    "thing-1.2.dist-info/RECORD": "",
    "pip/__init__.py": "",
    "pip-24.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: pip\nVersion: 24.0\n",
    "setuptools/__init__.py": "",
    "pkg_resources/__init__.py": "",
    "_distutils_hack/__init__.py": "",
    "distutils-precedence.pth": "import os; __import__('_distutils_hack')\n",
    "alone.py": "",
    "inside.pth": "thing/deep\n",
    "hook.pth": "import os; os.environ['HOOKED'] = 'yes'\n",
}
TRAVELS = [
    "alone.py", "hook.pth", "inside.pth", "thing-1.2.dist-info/METADATA", "thing-1.2.dist-info/RECORD",
    "thing/__init__.py", "thing/deep/er/data.txt", "thing/tests/__init__.py", "thing/tests/helper.py",
]  # fmt: skip
PILOT = """
import json, os, subprocess, sys
def main(settings):
    import executors, thing
    code = "import json, sys, thing; print(json.dumps([thing.__file__, sys.prefix, sys.path]))"
    child = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    blind = subprocess.run([sys.executable, "-c", "import numpy"], capture_output=True)
    print(json.dumps({
        "settings": settings, "thing": thing.__file__, "ours": executors.__file__, "path": sys.path,
        "child": json.loads(child.stdout or "[]"), "says": child.stderr, "blind": blind.returncode,
        "hooked": os.environ.get("HOOKED"), "files": sorted(os.listdir(settings["files"])),
    }))
    return 0
"""


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An environment of a few files in place of this one."""
    found = write(tmp_path / "site-packages", FILES)
    monkeypatch.setattr(packages, "roots", lambda: [found])
    monkeypatch.setattr(packages.metadata, "distributions", list)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return found


class Told(list):
    def __call__(self, level, text):
        self.append((level, text))

    @property
    def text(self):
        return "\n".join(text for _, text in self)


def names() -> list[str]:
    return [item.name for item in packages.items()]


# What travels.


def test_what_a_node_needs_and_no_more(root):
    assert names() == TRAVELS


def test_an_installer_that_a_package_needs_travels(root, monkeypatch):
    needs = [SimpleNamespace(requires=["setuptools>=60", 'pip; extra == "dev"'])]
    monkeypatch.setattr(packages.metadata, "distributions", lambda: needs)
    found = names()
    assert "setuptools/__init__.py" in found
    assert "pkg_resources/__init__.py" in found
    assert "pip/__init__.py" not in found


def test_an_editable_project_comes_along(root, tmp_path):
    project = write(tmp_path / "project", {
        "mine/__init__.py": "", "mine/part.py": "", "one.py": "", "setup.py": "", "tests/__init__.py": "",
        "data/huge.root": "x", ".venv/x.py": "",
    })  # fmt: skip
    (root / "__editable__.mine-0.1.pth").write_text(f"{project}\n")
    found = names()
    assert {"mine/__init__.py", "mine/part.py", "one.py"} <= set(found)
    assert not {"setup.py", "data/huge.root", "tests/__init__.py", "__editable__.mine-0.1.pth"} & set(found)


def test_so_does_one_that_an_import_hook_finds(root, tmp_path):
    project = write(tmp_path / "project", {"src/mine/__init__.py": "", "src/one.py": ""})
    (root / "__editable__.mine-0.1.pth").write_text(
        "import __editable___mine_finder; __editable___mine_finder.install()"
    )
    mapping = {"mine": str(project / "src/mine"), "one": str(project / "src/one")}
    (root / "__editable___mine_finder.py").write_text(
        f"MAPPING: dict[str, str] = {mapping!r}\nNAMESPACES = {{}}\n"
    )
    found = names()
    assert {"mine/__init__.py", "one.py"} <= set(found)
    assert not [one for one in found if "editable" in one]


def test_this_program_travels_in_the_parcel_alone(root):
    (root / "__editable__.coffea_scaleout-0.1.0.pth").write_text(f"{parcel.ROOT}\n")
    mapping = {"executors": str(parcel.ROOT / "executors")}
    (root / "__editable__.other.pth").write_text("import __editable___other_finder")
    (root / "__editable___other_finder.py").write_text(f"MAPPING: dict[str, str] = {mapping!r}")
    assert names() == TRAVELS


def test_links_are_followed_and_circles_are_not(root, tmp_path):
    real = write(tmp_path / "elsewhere", {"__init__.py": "", "deep/x.py": ""})
    (real / "deep" / "up").symlink_to(real)
    (root / "linked").symlink_to(real)
    (root / "broken").symlink_to(tmp_path / "nothing")
    assert [one for one in names() if one.startswith(("linked", "broken"))] == [
        "linked/__init__.py",
        "linked/deep/x.py",
    ]


def test_of_two_with_one_name_the_first_counts(root, tmp_path, monkeypatch):
    other = write(tmp_path / "user", {"alone.py": "other", "more.py": ""})
    monkeypatch.setattr(packages, "roots", lambda: [root, other])
    found = {item.name: item.path for item in packages.items()}
    assert found["alone.py"] == root / "alone.py"
    assert found["more.py"] == other / "more.py"


def test_the_real_roots_hold_what_is_imported_from():
    found = packages.roots()
    assert any((root / "numpy").is_dir() for root in found)
    assert len({os.path.realpath(one) for one in found}) == len(found)


# The archive.


def test_equal_packages_are_an_equal_archive(root, tmp_path, monkeypatch):
    first = environment.pack(Told())
    shutil.copytree(root, tmp_path / "again", symlinks=True)  # with the times of the files
    monkeypatch.setattr(packages, "roots", lambda: [tmp_path / "again"])
    second = environment.pack(Told(), tmp_path / "other")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        assert {(one.mtime, one.uid, one.uname) for one in archive} == {(0, 0, "")}


def test_it_is_made_once_and_private(root, tmp_path, monkeypatch):
    told = Told()
    path = environment.pack(told)
    assert path.parent == tmp_path / "cache" / "coffea-scaleout"
    assert path.stat().st_mode & 0o777 == 0o600
    assert "made in" in told.text
    os.utime(path, (1, 1))
    monkeypatch.setattr(environment, "_write", lambda *_: pytest.fail("made again"))
    assert environment.pack(told) == path
    assert "as packed before" in told.text
    assert path.stat().st_mtime > time.time() - 60, "it counts as used today"
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("change", ["edit", "install", "remove"])
def test_other_packages_are_another_archive(root, change):
    before = environment.pack(Told())
    if change == "edit":
        (root / "thing/__init__.py").write_text("VALUE = 43\n")
        os.utime(root / "thing/__init__.py", ns=(1, 1))
    elif change == "install":
        (root / "new.py").write_text("")
    else:
        (root / "alone.py").unlink()
    assert environment.pack(Told()) != before


def test_an_archive_that_others_could_have_written_is_not_used(root):
    path = environment.pack(Told())
    path.chmod(0o666)
    told = Told()
    assert environment.pack(told) == path
    assert "made in" in told.text
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_nobody_used_for_long_goes(root):
    home = environment.pack(Told()).parent
    for name in ("env-old.tar.gz", ".env-half.tar.gz.17", "entries.sqlite"):
        (home / name).write_text("x")
        os.utime(home / name, (1, 1))
    (root / "new.py").write_text("")
    environment.pack(Told())
    assert not (home / "env-old.tar.gz").exists()
    assert not (home / ".env-half.tar.gz.17").exists()
    assert (home / "entries.sqlite").exists(), "that is another's"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_for_it(root, monkeypatch, number):
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(environment, "_pack", lambda *_: Full().write(b""))
    with pytest.raises(SiteError, match=r"no room .* XDG_CACHE_HOME") as caught:
        environment.pack(Told())
    assert caught.value.exit_code == 4
    assert list(Path(os.environ["XDG_CACHE_HOME"], "coffea-scaleout").iterdir()) == []


def test_a_file_that_changes_while_it_is_packed(root, monkeypatch):
    found = packages.items()
    longer = [item._replace(size=item.size + 7) for item in found]
    monkeypatch.setattr(packages, "items", lambda: longer)
    with pytest.raises(SiteError, match="cannot be packed"):
        environment.pack(Told())


def test_many_pieces_are_one_stream(root, monkeypatch):
    (root / "big.bin").write_bytes(os.urandom(1 << 20))
    monkeypatch.setattr(environment, "PIECE", 10_240)
    path = environment.pack(Told())
    with tarfile.open(path, "r:gz") as archive:
        assert archive.extractfile("big.bin").read() == (root / "big.bin").read_bytes()


def test_a_conda_environment_does_not_travel(root, tmp_path, monkeypatch):
    (tmp_path / "conda/conda-meta").mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "conda"))
    with pytest.raises(UsageError, match=r"conda .*--ship-env container"):
        environment.pack(Told())


# What a profile asks for.


def site(ship, scheduler="condor", **job):
    one = load_site(scheduler)
    return replace(one, job=replace(one.job, ship=ship, **job))


def test_nothing_is_shipped(tmp_path):
    assert environment.ship(site("none"), tmp_path, Told()) == (sys.executable, None)
    assert environment.ship(site("none", python="/x/python"), tmp_path, Told()) == ("/x/python", None)


def test_a_container_brings_its_own_python(tmp_path):
    assert environment.ship(site("container", image="/i.sif"), tmp_path, Told()) == ("python3", None)
    assert environment.ship(site("container", image="/i.sif", python="py"), tmp_path, Told()) == ("py", None)
    with pytest.raises(UsageError, match="--image"):
        environment.ship(site("container"), tmp_path, Told())


def test_condor_takes_the_archive_from_where_it_is(root, tmp_path):
    shipped = environment.ship(site("venv"), tmp_path, Told())
    assert shipped.python == "python3"
    assert shipped.archive.parent == tmp_path / "cache" / "coffea-scaleout"


@pytest.mark.parametrize("one", ["slurm", "condor"])
def test_others_read_it_in_the_runs_folder(root, tmp_path, one, monkeypatch):
    private = tmp_path / "private"
    private.mkdir()
    where = site("venv", one)
    if one == "condor":  # what lies elsewhere may not be submitted there
        where = replace(where, paths=replace(where.paths, logs=(str(private),)))
    shipped = environment.ship(where, private, Told())
    assert shipped.archive.parent == private
    assert shipped.archive.stat().st_nlink == 2
    monkeypatch.setattr(Path, "hardlink_to", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "")))
    shipped.archive.unlink()
    copied = environment.ship(where, private, Told()).archive
    assert (copied.stat().st_nlink, copied.stat().st_mode & 0o777) == (1, 0o600)


def test_too_little_disk_is_said(root, tmp_path):
    one = site("venv")
    told = Told()
    environment.ship(replace(one, resources=replace(one.resources, disk=100)), tmp_path, told)
    assert [level for level, _ in told].count("warning") == 1
    assert "--disk" in told.text


# On the node.


@pytest.fixture
def node(root, tmp_path):
    """A job's folder, as HTCondor makes it, with a pilot and the environment's archive."""
    folder = tmp_path / "node"
    (folder / "scratch").mkdir(parents=True)
    (folder / "a_pilot.py").write_text(PILOT)
    parcel.build(folder)
    archive = environment.pack(Told())
    shutil.copy(archive, folder / archive.name)
    return folder


def run(folder: Path, python: str = sys.executable, archive: str | None = None, **env):
    name = archive if archive is not None else next(folder.glob("env-*.tar.gz")).name
    settings = {"pilot": "a_pilot:main", "scratch": str(folder / "scratch"), "environment": name}
    (folder / "pilot.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [python, "parcel.pyz", "pilot.json"], cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": os.defpath, "PYTHONPATH": str(folder), "HOME": str(folder)} | env,
    )  # fmt: skip
    assert not list((folder / "scratch").iterdir()), "something is left"
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def test_the_pilot_and_its_children_use_it(node):
    code, out, err = run(node)
    assert code == 0, err
    local = out["settings"]["local"]
    packages_there = f"{local}/env/lib/python3.{sys.version_info[1]}/site-packages"
    assert out["thing"] == f"{packages_there}/thing/__init__.py"
    assert out["ours"].startswith(f"{local}/code/"), "this program's own code is the parcel's"
    thing, prefix, path = out["child"]
    assert thing == out["thing"]
    assert prefix == f"{local}/env"
    assert f"{packages_there}/thing/deep" in path, "its .pth files count"
    assert out["hooked"] == "yes"
    assert "unpacked the runner's packages: 9 files" in err


def test_the_nodes_own_packages_are_out_of_sight(node):
    """Two versions of a package side by side are worse than none."""
    _, out, _ = run(node)
    assert out["blind"] != 0
    own = {os.path.realpath(entry) for entry in out["path"]}
    assert not own & {os.path.realpath(one) for one in sys.path if one.endswith("site-packages")}


def test_unless_they_were_seen_at_home(root, node, monkeypatch):
    monkeypatch.setattr(packages, "with_system", lambda: True)
    for old in node.glob("env-*"):
        old.unlink()
    shutil.copy(environment.pack(Told()), node)
    _, out, err = run(node)
    assert any(entry.endswith("site-packages") and "/env/" not in entry for entry in out["path"]), err


def test_a_copy_that_travelled_is_not_kept(node):
    _, out, _ = run(node)
    assert not [name for name in out["files"] if name.startswith("env-")]


def test_one_that_all_jobs_read_stays(node):
    archive = next(node.glob("env-*"))
    code, _, err = run(node, archive=str(archive))
    assert code == 0, err
    assert archive.exists()


def repack(node: Path, change) -> None:
    """The same archive with another manifest."""
    path = next(node.glob("env-*"))
    with tarfile.open(path) as old:
        members = [(member, old.extractfile(member).read()) for member in old]
    with tarfile.open(path, "w:gz") as new:
        for member, data in members:
            content = data
            if member.name == unpacking.MANIFEST:
                content = json.dumps(change(json.loads(data))).encode()
                member.size = len(content)
            new.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"python": "3.99"}, ["needs 3.99", "--worker-python"]),
        ({"abi": "cpython-311-riscv"}, ["cpython-311-riscv", "--worker-python"]),
        ({"bytes": 10**15}, ["no room", "--disk"]),
        ({"files": 10**12}, ["no room", "--disk"]),
        ({"files": 10}, ["damaged", "9 of 10 files"]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(node, change, says):
    repack(node, lambda manifest: manifest | change)
    code, out, err = run(node)
    assert (code, out) == (parcel.UNFIT, {})
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("coffea-scaleout: ")
    for one in says:
        assert one in err


@pytest.mark.parametrize("kept", [0, 3, 40, 0.5, 0.98, "member", "checksum", "noise", "text"])
def test_an_archive_that_is_not_whole(node, kept):
    path = next(node.glob("env-*"))
    whole = path.read_bytes()
    if kept == "member":  # torn where a piece ends: the stream itself looks whole
        with tarfile.open(path) as archive:
            offset = archive.getmembers()[4].offset
        path.write_bytes(gzip.compress(gzip.decompress(whole)[:offset]))
    elif kept == "checksum":  # all is there but the last word, and the end is where a read ends
        content = gzip.decompress(whole)
        path.write_bytes(gzip.compress(content + bytes(-len(content) % unpacking.READ))[:-4])
    elif kept == "noise":
        path.write_bytes(whole[:200] + bytes(255 - byte for byte in whole[200:300]) + whole[300:])
    elif kept == "text":
        path.write_text("404 not found")
    else:
        path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    code, out, err = run(node)
    assert (code, out) == (parcel.UNFIT, {})
    assert len(err.strip().splitlines()) == 1, err
    assert "damaged" in err
    assert path.name in err


def test_an_archive_that_writes_elsewhere(node, tmp_path):
    path = next(node.glob("env-*"))
    with tarfile.open(path) as old:
        first = old.next()
        data = old.extractfile(first).read()
    for name in ("../../escaped", "/tmp/escaped-absolute"):
        with tarfile.open(path, "w:gz") as new:
            new.addfile(first, io.BytesIO(data))
            new.addfile(environment._member(name, 1), io.BytesIO(b"x"))
        code, _, err = run(node)
        assert code == parcel.UNFIT
        assert "is no file of an environment" in err
    assert not Path("/tmp/escaped-absolute").exists()


def test_a_node_that_does_not_see_it(node):
    code, _, err = run(node, archive="/no/such/env.tar.gz")
    assert code == parcel.UNFIT
    assert "does not see" in err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_node_without_room(node, tmp_path, monkeypatch, number):
    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(unpacking.shutil, "copyfileobj", full)
    (tmp_path / "there").mkdir()
    with pytest.raises(SiteError, match=r"no room .*--disk"):
        unpacking.settle(next(node.glob("env-*")), tmp_path / "there", own=False)


def pythons() -> dict[str, str]:
    """Interpreters of other minor versions, where they happen to be."""
    found = [*Path("/usr/bin").glob("python3.*[0-9]"), *Path(sys.base_prefix).parent.glob("3.*/bin/python3")]
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    said = {
        one: subprocess.run([one, "-c", code], capture_output=True, text=True, check=False) for one in found
    }
    here = "{}.{}".format(*sys.version_info)
    return {
        done.stdout.strip(): str(one) for one, done in said.items() if done.stdout.strip() not in ("", here)
    }


def test_every_other_python_says_what_it_is(node):
    others = pythons()
    if not others:
        pytest.skip("there is no other Python here")
    for version, python in others.items():
        code, out, err = run(node, python)
        assert code in (1, parcel.UNFIT), version
        assert out == {}
        assert len(err.strip().splitlines()) == 1, (version, err)
        assert version in err
        assert "--worker-python" in err


# The folder that jobs are submitted from.


def test_any_folder_will_do_where_none_is_named(tmp_path):
    with Places("dask", Resources(), ()) as found:
        assert found.private.is_dir()


def test_the_first_allowed_folder_that_can_be_used(tmp_path, monkeypatch):
    home, wide = tmp_path / "home", tmp_path / "wide"
    for folder in (home, wide):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "me")
    monkeypatch.setenv("LOGNAME", "me")
    with Places("dask", Resources(), ("/no/such/folder", "$HOME")) as found:
        assert found.private.parent == home / HIDDEN
        assert found.private.stat().st_mode & 0o777 == 0o700
    assert not found.private.exists()
    with Places("dask", Resources(), (str(wide), "$HOME")) as found:
        assert found.private.parent == wide / "me" / HIDDEN
    with Places("dask", Resources(scratch=wide / "own"), ("$HOME",)) as found:
        assert found.private.parent == wide / "own", "who names a folder has chosen"


def test_the_systems_own_place_if_it_is_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Places("dask", Resources(), ("/nowhere", str(tmp_path))) as found:
        assert found.private.parent == tmp_path


def test_no_allowed_folder_can_be_used():
    with pytest.raises(SiteError, match="/no/such: No such file"):
        Places("dask", Resources(), ("/no/such", "/proc/version"))
