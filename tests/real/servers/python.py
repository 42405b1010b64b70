"""A Python as a site has it: with the packages of this one, but without this project.

Links and a ``pyvenv.cfg`` are all there is; nothing is installed or copied.
"""

from __future__ import annotations

import sys
from pathlib import Path
from sysconfig import get_config_var, get_path


def base() -> Path:
    """Where the interpreter itself lives."""
    return Path(sys.base_prefix)


def packages() -> Path:
    """Where the packages of this environment are."""
    return Path(get_path("purelib"))


def environment(home: Path) -> dict[str, str]:
    """What a moved interpreter needs to find its own library."""
    return {"LD_LIBRARY_PATH": f"{home}/lib"} if get_config_var("Py_ENABLE_SHARED") else {}


def without_project(folder: Path, home: Path | None = None, site: Path | None = None) -> Path:
    """The interpreter of a new environment. ``home`` and ``site``: where ``base`` and ``packages`` will be seen."""
    home, site = home or base(), site or packages()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    own = folder / "lib" / version / "site-packages"
    own.mkdir(parents=True)
    (folder / "bin").mkdir()
    for name in ("python", "python3", version):
        (folder / "bin" / name).symlink_to(home / "bin" / version)
    (folder / "pyvenv.cfg").write_text(f"home = {home}/bin\ninclude-system-site-packages = false\n")
    for entry in packages().iterdir():
        if "coffea_scaleout" not in entry.name and entry.suffix != ".pth":
            (own / entry.name).symlink_to(site / entry.name)
    return folder / "bin" / "python"
