"""Checks of the folders of a run: allowed there, writable, private, seen by workers, with space left."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sites.scene import Check, below, existing, place

if TYPE_CHECKING:
    from sites.scene import Scene

TRIAL = 65536  # bytes that are written: a quota shows itself only then
LITTLE, NOTHING = 2_000_000_000, 100_000_000  # bytes free: warned of, refused
FEW_FILES = 1000
# Kinds of file system that only this machine sees. The list of network ones would never be complete.
OWN_DISK = ("btrfs", "ext2", "ext3", "ext4", "overlay", "ramfs", "tmpfs", "xfs", "zfs")
PERMISSION = re.compile(r"^\s*(system:anyuser|system:authuser)\s+([a-z]+)", re.MULTILINE)


def run_folder(scene: Scene) -> list[Check]:
    """Whether the run's folder may be used: written to, allowed, seen by the workers."""
    folder, site = scene.folder.absolute(), scene.site
    if site.paths.outputs and not below(folder, site.paths.outputs):
        allowed = ", ".join(str(place(one)) for one in site.paths.outputs)
        return [
            Check(
                "folder",
                False,
                f"{folder} is not allowed at {site.name}: {allowed}",
                "cd there, or --outputdir",
            )
        ]
    fault = trial(folder)
    if fault is not None:
        return [Check("folder", False, *fault)]
    found = [Check("folder", True, f"{folder} can be written to")]
    if site.shares_store and scene.batch:
        found += _visible(scene, folder)
    return found + _private(scene, folder)


def log_folder(scene: Scene) -> list[Check]:
    """Whether the jobs' logs may go where they would."""
    if not scene.batch:
        return []
    folder = (scene.logs or scene.folder / "logs").absolute()
    allowed = scene.site.paths.logs
    if allowed and not below(folder, allowed):
        places = ", ".join(str(place(one)) for one in allowed)
        says = f"jobs at {scene.site.name} cannot write logs to {folder}; only below {places}"
        return [Check("logs", False, says, f"cd {place(allowed[0])}, or --outputdir there")]
    fault = trial(folder)
    if fault is not None:
        return [Check("logs", False, *fault)]
    return [Check("logs", True, f"logs go to {folder}")]


def space(scene: Scene) -> list[Check]:
    """Whether there is room for results."""
    folder = existing(scene.folder)
    try:
        free = shutil.disk_usage(folder).free
        room = os.statvfs(folder)
    except OSError as error:
        return [Check("space", None, f"nobody can say how much is free: {error.strerror}")]
    clear = f"du -sh {folder}/* | sort -h, and remove what is not needed"
    found = [Check("space", True, f"{free / 1e9:,.1f} GB are free in {folder}")]
    if free < LITTLE:
        ok = False if free < NOTHING else None
        found = [Check("space", ok, f"only {free / 1e6:,.0f} MB are free in {folder}", clear)]
    elif room.f_files and room.f_favail < FEW_FILES:
        found = [Check("space", None, f"only {room.f_favail} more files fit in {folder}", clear)]
    return found if scene.quick else found + _quota(scene)


def trial(folder: Path) -> tuple[str, str] | None:
    """Why nothing can be written to a folder (or where it will be made), and what mends that."""
    at = existing(folder)
    if not at.is_dir():
        return f"{at} is not a folder", f"mv {at} {at}.old"
    try:
        with tempfile.TemporaryFile(dir=at) as file:
            file.write(os.urandom(TRIAL))  # what does not compress: some file systems do
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"{at} cannot be written to: {error.strerror}", _cure(error, at)
    return None


def kind_of(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The kind of the file system a path lies on, as the kernel names it; empty if it does not say."""
    try:
        lines = mounts.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    real, best, kind = os.path.realpath(path), "", ""
    for line in lines:
        left, _, right = line.partition(" - ")
        words = left.split()
        at = re.sub(r"\\([0-7]{3})", lambda one: chr(int(one[1], 8)), words[4]) if len(words) > 4 else ""
        if at and len(at) >= len(best) and Path(real).is_relative_to(at):
            best, kind = at, right.split(" ")[0]
    return kind


def _cure(error: OSError, at: Path) -> str:
    if error.errno in (errno.EDQUOT, errno.ENOSPC):
        return f"free some space (quota -s; df -h {at}), or --outputdir elsewhere"
    if error.errno == errno.EROFS:
        return "--outputdir elsewhere: this folder is read-only"
    return f"--outputdir, a folder of your own: ls -ld {at}"


def _visible(scene: Scene, folder: Path) -> list[Check]:
    """Warnings where workers may not see the folder that they are to write to."""
    elsewhere = "--outputdir, on a file system that workers see: df -T"
    if below(folder, scene.site.paths.unseen):
        return [Check("folder", False, f"workers at {scene.site.name} do not see {folder}", elsewhere)]
    kind = kind_of(existing(folder))
    if kind in OWN_DISK:
        says = f"{folder} is on this machine's own disk ({kind}); workers elsewhere do not see it"
        return [Check("folder", None, says, elsewhere)]
    return []


def _private(scene: Scene, folder: Path) -> list[Check]:
    """Whether modes keep others out, where keys will lie in the folder."""
    at = existing(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=at) as file:  # made with mode 0600
            mode = os.fstat(file.fileno()).st_mode & 0o777
    except OSError:
        return []  # said already
    if mode & 0o077:
        says = f"{at} keeps no modes: a private file gets mode {mode:04o}"
        return [Check("folder", False, says, "use a folder on another file system")]
    return _afs(scene, at) if kind_of(at) == "afs" or str(at).startswith("/afs/") else []


def _afs(scene: Scene, at: Path) -> list[Check]:
    """AFS ignores the modes of files: the list of the folder decides who reads them."""
    answer = scene.ask(["fs", "listacl", str(at)], scene.patience)
    if not answer.good:
        return [Check("folder", None, f"{at} is on AFS, where modes mean nothing", f"fs listacl {at}")]
    granted = answer.text.partition("Negative rights")[0]
    readers = [who for who, rights in PERMISSION.findall(granted) if "r" in rights]
    if not readers:
        return []
    cures = " && ".join(f"fs setacl {at} {who} l" for who in readers)
    return [Check("folder", False, f"{' and '.join(readers)} may read {at}, keys included", cures)]


def _quota(scene: Scene) -> list[Check]:
    """What the file system's own program says of your quota; one without quotas says nothing."""
    at = existing(scene.folder)
    if kind_of(at) == "afs" or str(at).startswith("/afs/"):
        return _left_on_afs(scene, at)
    program = (
        ["lfs", "quota", "-q", "-u", str(os.getuid()), str(at)]
        if kind_of(at) == "lustre"
        else ["quota", "-w"]
    )
    answer = scene.ask(program, scene.patience)
    # Blocks and files, each with a quota and a limit; a star marks what is over.
    over = [line.split()[0] for line in answer.text.splitlines() if re.match(r"\s*\S+\s+(.*\s)?\d+\*", line)]
    mend = "quota -s" if program[0] == "quota" else " ".join(program).replace(" -q", " -h")
    return [Check("space", None, f"you are over the quota of {', '.join(over)}", mend)] if over else []


def _left_on_afs(scene: Scene, at: Path) -> list[Check]:
    """A volume of AFS has a quota of its own, which its free space does not show."""
    answer = scene.ask(["fs", "listquota", str(at)], scene.patience)
    found = re.search(r"^\S+\s+(\d+)\s+(\d+)\s+\d+%", answer.text, re.MULTILINE)
    if found is None or not int(found[1]):
        return []
    left = (int(found[1]) - int(found[2])) * 1024
    if left >= LITTLE:
        return []
    says = f"only {max(left, 0) / 1e6:,.0f} MB of your quota are left in the AFS volume of {at}"
    return [
        Check("space", False if left < NOTHING else None, says, f"fs listquota {at}; or another --outputdir")
    ]
