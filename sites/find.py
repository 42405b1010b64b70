"""Where profiles come from: the program, installed packages, the user's folder, the folder of the run.

Later ones win, and what they stand before is said. Files are found here; they are read in ``profile``.
"""

from __future__ import annotations

import importlib.util
import os
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from executors.errors import UnknownNameError, UsageError
from sites.profile import BUILT_IN, NAME, Layer, Loaded, built_in, files_in, load

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.metadata import EntryPoint

GROUP = "coffea_scaleout.sites"
SUFFIX = ".site.toml"  # of files in the folder one is in: mycluster.site.toml is the site mycluster
RESERVED = ("auto",)  # means something else in an executor's name


def layers(site_file: Path | None = None, env: Mapping[str, str] | None = None) -> list[Layer]:
    """Every place that is looked into, the one that wins last."""
    around = os.environ if env is None else env
    found = [built_in(), *_packages()]
    found.append(_own("yours", user_folder(around), ".toml"))
    found.append(_own("this folder", Path(), SUFFIX))
    if site_file is not None:
        found.append(_one_file(site_file))
    return found


def user_folder(env: Mapping[str, str]) -> Path:
    """Where the user's own profiles lie."""
    base = env.get("XDG_CONFIG_HOME", "")
    home = Path(base) if base.startswith("/") else Path(env.get("HOME", "/")) / ".config"
    return home / "coffea-scaleout" / "sites"


def names(among: list[Layer]) -> list[str]:
    """The sites of all layers, sorted."""
    return sorted({name for layer in among for name in layer.files if NAME.fullmatch(name)})


def find(name: str, site_file: Path | None = None) -> Loaded:
    """The profile that a name means here, wherever it comes from."""
    among = layers(site_file)
    if name not in names(among):
        raise unknown(name, among)
    return load(name, among)


def unknown(name: str, among: list[Layer], where: str = "") -> UnknownNameError:
    """What to say of a name that no site has: the nearest ones, and a file that was meant to be it."""
    meant = next(
        (one for layer in among for one in layer.misnamed if _stem(one).lower() == name.lower()), None
    )
    if meant is None and name and "/" not in name and (here := Path(f"{name}.toml")).is_file():
        where = f"{where}; {here} is here: --site-file {here}, or call it {name}{SUFFIX}"
    if meant is not None:
        where = f"{where}; {_left_out(meant)}"
    return UnknownNameError.of("site", name, names(among), where.removeprefix("; "))


def warning(found: Loaded) -> str:
    """What to say where a profile stands before another of its name, else nothing."""
    if found.hides is None:
        return ""
    name = found.profile.name
    return f"the site {name!r} is {found.path} ({found.label}), not {found.hides} of the same name"


def _own(label: str, folder: Path, suffix: str) -> Layer:
    """A folder of the user's; what only its name keeps from being a profile is remembered."""
    files = _named(files_in(folder, suffix))
    try:
        paths = sorted(one for one in folder.iterdir() if one.name.endswith(suffix))
    except OSError:
        paths = []
    misnamed = tuple(
        one for one in paths if one not in files.values() and not one.name.startswith((".", "_"))
    )
    return Layer(label, files, trusted=False, misnamed=misnamed)


def _stem(path: Path) -> str:
    return path.name.removesuffix(SUFFIX) if path.name.endswith(SUFFIX) else path.stem


def _left_out(path: Path) -> str:
    rule = "has small letters, digits, '-' and '_' only"
    if _stem(path) in RESERVED:
        rule = f"cannot be {_stem(path)!r}, which means something else"
    return f"{path} is left out: a site's name {rule}"


def _named(files: Mapping[str, Path]) -> Mapping[str, Path]:
    return MappingProxyType({name: path for name, path in files.items() if name not in RESERVED})


def _one_file(path: Path) -> Layer:
    name = path.name.removesuffix(SUFFIX) if path.name.endswith(SUFFIX) else path.stem
    if path.suffix != ".toml" or not NAME.fullmatch(name) or name in RESERVED:
        raise UsageError(
            f"--site-file {path}: the file's name is the site's: small letters, digits, '-' and '_', then "
            ".toml (mycluster.toml is the site mycluster)"
        )
    if not path.exists():
        raise UsageError(f"--site-file {path}: there is no such file")
    return Layer("--site-file", MappingProxyType({name: path}), trusted=False)


def _packages() -> list[Layer]:
    """The profiles of installed packages; one that cannot be asked has none, and stops nobody else."""
    found = []
    for point in sorted(entry_points(group=GROUP), key=lambda one: one.name):
        label = f"the package {point.dist.name}" if point.dist else f"the entry point {point.name}"
        try:
            folder = _folder(point)
        except Exception as error:  # noqa: BLE001 - code of others: whatever it raises, sites of others stay usable
            found.append(Layer(f"{label}: {type(error).__name__}: {error}", MappingProxyType({})))
            continue
        # A package may add sites, but not change what a name of ours means.
        ours = built_in().files
        files = {name: path for name, path in files_in(folder).items() if name not in ours}
        found.append(Layer(label, _named(files)))
    return found


def _folder(point: EntryPoint) -> Path:
    """The folder an entry point means: a package's own, or what its function or value says."""
    if not point.attr:
        spec = importlib.util.find_spec(point.module)
        if spec is None or not spec.submodule_search_locations:
            raise UsageError(f"{point.value!r} is no package")
        return Path(next(iter(spec.submodule_search_locations)))
    value = point.load()
    return Path(value() if callable(value) else value)


def troubles(among: list[Layer]) -> list[str]:
    """Packages that could not be asked for their sites, and files that cannot be named."""
    packages = [
        one.label for one in among if not one.files and one.label.startswith(("the package", "the entry"))
    ]
    return [*packages, *(_left_out(path) for one in among for path in one.misnamed)]


__all__ = ["BUILT_IN", "find", "layers", "names", "troubles", "unknown", "user_folder", "warning"]
