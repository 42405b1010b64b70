"""Install what the tests of real batch systems and servers need: ``python install.py`` (``make system``).

Debian's packages of Slurm and XRootD by apt, as root alone; HTCondor, which not every Debian has, and Grid Engine,
which brings a mail server along, unpacked into folders of their own, which needs no rights. Nothing is asked and
nothing is said where all is there; where something cannot be had, it is said and the tests that need it are
skipped. Only the standard library may enter: this runs before anything else is installed.
"""

from __future__ import annotations

import os
import platform
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PYTHON = sys.executable
USER = "scaleout-test"  # whose pool it is where root runs the tests: root may not submit to HTCondor
PACKAGES = {  # a program, and the packages that bring it
    "slurmctld": ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins"),
    "munged": ("munge",),
    "xrootd": ("xrootd-server",),
    "xrdfs": ("xrootd-client",),
    "openssl": ("openssl",),
}
GRID_ENGINE = tuple(f"gridengine-{part}" for part in ("client", "common", "exec", "master"))
SUITE = "trixie"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"


def condor_prefix() -> Path:
    """Where HTCondor is, or will be: absolute paths are written into its programs, so it cannot be moved."""
    return _cache() / f"htcondor-{SUITE}"


def grid_engine_prefix() -> Path:
    """Where Grid Engine is, or will be."""
    return _cache() / "gridengine"


def _cache() -> Path:
    base = Path("/var/cache") if os.geteuid() == 0 else Path.home() / ".cache"
    return base / "coffea-scaleout"


def has_user() -> bool:
    """Whether the user that a pool needs is there."""
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return False
    return True


def main() -> int:
    """Install what is missing; 0 also where that could not be, for the tests then say so."""
    if os.environ.get("SYSTEM_PACKAGES") == "no":
        return 0
    steps = (_packages, _user, _condor, _grid_engine)
    for step in steps:
        try:
            step()
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", "") or str(error)
            print(
                f"· {step.__name__[1:]}: {said.strip().splitlines()[-1] if said.strip() else error!r}",
                file=sys.stderr,
            )
    return 0


def _packages() -> None:
    wanted = [p for program, packages in PACKAGES.items() if not _there(program) for p in packages]
    if not wanted:
        return
    if os.geteuid() != 0 or not _there("apt-get"):
        print(f"· for the tests of real servers: apt-get install {' '.join(wanted)}", file=sys.stderr)
        return
    print(
        f"· installing {' '.join(wanted)} for the tests of real servers (SYSTEM_PACKAGES=no: do not)",
        flush=True,
    )
    # No daemon is to start by itself: the tests start their own.
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    install = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *wanted]
    _again(lambda: (_quiet(["apt-get", "update", "-q"], env), _quiet(install, env)))


def _user() -> None:
    if os.geteuid() == 0 and not has_user():
        _quiet(["useradd", "--system", "--no-create-home", "--shell", "/bin/sh", USER])


def _condor() -> None:
    prefix = condor_prefix()
    if (prefix / "usr/sbin/condor_master").exists():
        return
    if not (_there("apt-get") and _there("dpkg-deb") and KEYRING.exists()):
        print("· no apt of Debian's here: the tests of HTCondor will be skipped", file=sys.stderr)
        return
    print(f"· unpacking HTCondor into {prefix}", flush=True)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    for old in prefix.parent.glob("new-*"):  # of an installation that was cut off
        if time.time() - old.stat().st_mtime > 3600:
            shutil.rmtree(old, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix="new-", dir=prefix.parent))
    try:
        new.chmod(0o755)
        with tempfile.TemporaryDirectory() as state:
            _again(lambda: _download(Path(state)))
            _unpack(sorted(Path(state, "cache/archives").glob("*.deb")), new)
        _point(new, prefix)
        _thin(new)
        (new / "suite").write_text(SUITE + "\n")
        if not prefix.exists():  # another one may have been quicker
            new.rename(prefix)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    _quiet([str(prefix / "usr/bin/condor_version")])


def _grid_engine() -> None:
    """By what this Debian has of it and of the libraries that it needs; the mail server stays out."""
    prefix = grid_engine_prefix()
    if (prefix / "usr/lib/gridengine/sge_qmaster").exists() or not (_there("apt-get") and _there("dpkg-deb")):
        return
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="new-", dir=prefix.parent) as folder:
        new, archives = Path(folder, "root"), Path(folder, "archives")
        (archives / "partial").mkdir(parents=True)
        where = {"Dir::Cache::archives": str(archives), "Debug::NoLocking": "1", "APT::Sandbox::User": "root"}
        words = ("--no-install-recommends", "--reinstall", "--download-only", "-y", "install", *GRID_ENGINE)
        try:
            _apt(where, *words)
        except subprocess.SubprocessError:
            print("· this machine's apt has no Grid Engine: its tests will be skipped", file=sys.stderr)
            return
        print(f"· unpacking Grid Engine into {prefix}", flush=True)
        for package in sorted([*archives.glob("gridengine-*.deb"), *archives.glob("lib*.deb")]):
            _quiet(["dpkg-deb", "-x", str(package), str(new)])
        _set_up_grid_engine(new)
        if not prefix.exists():  # another one may have been quicker
            new.chmod(0o755)
            new.rename(prefix)


def _set_up_grid_engine(new: Path) -> None:
    """Its programs look for libraries beside themselves, but for two which they want where Debian has them."""
    programs = new / "usr/lib/gridengine"
    beside = re.search(rb"\$ORIGIN/\.\./\.\./lib/([\w-]+)\0", (programs / "sge_qmaster").read_bytes())
    if beside is None:
        raise OSError("Grid Engine looks for its libraries in an unknown way: its tests will be skipped")
    libraries = new / "usr/lib" / beside[1].decode()
    libraries.mkdir()
    for path in [*new.glob("**/*-linux-gnu/lib*.so*"), *programs.glob("libspool*.so")]:
        shutil.copy2(path, libraries)
    fixed = b"/usr/lib/gridengine/%s%s\0"
    for name in ("sge_qmaster", "spoolinit", "spooldefaults.bin"):
        text = (programs / name).read_bytes()
        if text.count(fixed) != 1:
            raise OSError(f"{name} looks for its libraries in an unknown way: no tests of Grid Engine")
        # The name alone, which is looked for beside; the rest stays, for another text may end like it.
        (programs / name).write_bytes(text.replace(fixed, b"%s%s\0" + fixed[5:]))


def _download(state: Path) -> None:
    """The packages of HTCondor and everything below, by an apt that believes that nothing is installed."""
    for name in ("lists", "host", "cache"):
        (state / name).mkdir(exist_ok=True)
    (state / "status").touch()
    common = {
        "APT::Sandbox::User": "root", "Debug::NoLocking": "1", "Acquire::Languages": "none", "Acquire::Retries": "3",
        "APT::Update::Post-Invoke": "", "APT::Update::Post-Invoke-Success": "",
    }  # fmt: skip
    (state / "sources.list").write_text(f"deb [signed-by={KEYRING}] {_mirror(state, common)} {SUITE} main\n")
    own = common | {
        "Dir::Etc::SourceList": f"{state}/sources.list", "Dir::Etc::SourceParts": "/nowhere",
        "Dir::Etc::Preferences": "/nowhere", "Dir::Etc::PreferencesParts": "/nowhere",
        "Dir::State": str(state), "Dir::State::Lists": f"{state}/lists", "Dir::State::status": f"{state}/status",
        "Dir::Cache": f"{state}/cache",
        "Acquire::Check-Valid-Until": "false",  # a mirror that stands still looks expired
        "APT::Install-Recommends": "false", "APT::Install-Suggests": "false", "APT::Default-Release": SUITE,
    }  # fmt: skip
    _apt(own, "update")
    _apt(own, "--download-only", "-y", "install", "condor", "patchelf")


def _mirror(state: Path, common: dict[str, str]) -> str:
    """Where this machine gets Debian from."""
    known = _targets(common)
    if not known:  # no lists yet, as in a fresh container
        lists = {"Dir::State::Lists": f"{state}/host"}
        _apt(common | lists, "update")
        known = _targets(common | lists)
    if not known:
        raise OSError("apt knows no source of Debian's here: the tests of HTCondor will be skipped")
    return known[0]


def _targets(options: dict[str, str]) -> list[str]:
    form = "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(SITE)"
    said = _apt(options, "indextargets", "--format", form, "Created-By: Packages")
    return [line.split("|", 3)[3] for line in said.splitlines() if line.startswith("Debian|Debian|main|")]


def _apt(options: dict[str, str], *words: str) -> str:
    given = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    return _quiet(["apt-get", "-qq", *given, *words])


def _unpack(packages: list[Path], new: Path) -> None:
    for name in ("bin", "sbin", "lib", "lib64"):  # in Debian these are links into /usr
        (new / "usr" / name).mkdir(parents=True)
        (new / name).symlink_to(f"usr/{name}")
    useless = ("var", "dev", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/i18n")
    exclude = [f"--exclude=./{path}" for path in useless]
    for package in packages:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as source:
            unpack = ["tar", "-xf", "-", "-C", new, "--keep-directory-symlink", "--no-same-owner", *exclude]
            subprocess.run(unpack, stdin=source.stdout, check=True, capture_output=True, text=True)
    _quiet(["chmod", "-R", "u+rwX,go+rX", str(new)])


def _point(new: Path, prefix: Path) -> None:
    """Make every program load the libraries that came with it: this machine's may be older."""
    arch = f"{platform.machine()}-linux-gnu"
    loader = next((new / "usr/lib" / arch).glob("ld-linux-*.so.*")).name
    libraries = f"{prefix}/usr/lib:{prefix}/usr/lib/{arch}:{prefix}/usr/lib/condor"
    start = [str(new / "usr/lib" / arch / loader), "--library-path", str(new / "usr/lib" / arch)]
    with tempfile.TemporaryDirectory() as folder:
        tool = shutil.copy(new / "usr/bin/patchelf", folder)
        for program in _programs(new):
            if b"ld-linux" not in program.read_bytes()[:4096]:  # a script, or a library that can be run
                continue
            # The old kind of path (rpath) also serves the libraries' own libraries.
            words = [
                "--set-interpreter",
                f"{prefix}/usr/lib/{arch}/{loader}",
                "--force-rpath",
                "--set-rpath",
                libraries,
            ]
            _quiet([*start, tool, *words, str(program)])


def _programs(new: Path) -> list[Path]:
    ours = re.compile(r"condor|classad|gahp|^blah|^AzureGAHP")
    places = [new / "usr" / name for name in ("bin", "sbin", "libexec/condor", "libexec/blahp")]
    files = [path for place in places if place.is_dir() for path in place.rglob("*")]
    return [
        path
        for path in files
        if path.is_file() and not path.is_symlink() and os.access(path, os.X_OK)
        and (ours.search(path.name) or "libexec/condor" in str(path))
    ]  # fmt: skip


def _thin(new: Path) -> None:
    """Keep HTCondor and what it can load; the rest of Debian that came along goes."""
    kept = set(_programs(new))
    for name in ("bin", "sbin"):
        for path in (new / "usr" / name).iterdir():
            if path not in kept and not (path.is_symlink() and "condor" in path.name):
                path.unlink()
    for place, keep in (("usr/share", r"condor"), ("etc", r"condor|bla.*")):
        for path in (new / place).iterdir():
            if not re.fullmatch(keep, path.name):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name in ("include", "games", "src"):
        shutil.rmtree(new / "usr" / name, ignore_errors=True)
    arch = new / "usr/lib" / f"{platform.machine()}-linux-gnu"
    for name in ("perl", "perl-base", "gconv", "systemd", "security"):
        shutil.rmtree(arch / name, ignore_errors=True)
    for path in (new / "usr/lib").iterdir():
        if path.is_dir() and not path.is_symlink() and path != arch and not path.name.startswith("condor"):
            shutil.rmtree(path)


def _again(work: Callable[[], object]) -> None:
    for wait in (2, 10):
        try:
            work()
            return
        except subprocess.SubprocessError:
            time.sleep(wait)
    work()


def _quiet(argv: list[str], env: dict[str, str] | None = None) -> str:
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, argv[:3], done.stdout, done.stderr)
    return done.stdout


def _there(program: str) -> bool:
    return shutil.which(program, path=PATH) is not None


if __name__ == "__main__":
    sys.exit(main())
