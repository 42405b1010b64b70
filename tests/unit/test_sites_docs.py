"""The documents of the sites: tables made from the profiles and their keys, examples that load.

``python tests/unit/test_sites_docs.py`` writes the tables into docs/sites.md anew.
"""

import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from sites import overrides, schema  # noqa: E402
from sites.profile import FOLDER, load_site, site_names  # noqa: E402

PAGE = ROOT / "docs" / "sites.md"
TUTORIAL = ROOT / "docs" / "your-site.md"


def sites_table():
    lines = ["| site | scheduler | engines | must be given | |", "| --- | --- | --- | --- | --- |"]
    for name in site_names():
        site = load_site(name)
        needs = ", ".join(f"`{overrides.OPTIONS[key]}`" for key in overrides.lacking(site))
        about = site.description + (f" ({site.unusable})" if site.unusable else "")
        engines = ", ".join(site.engines) or "none"
        lines.append(f"| `{name}` | {site.scheduler or '-'} | {engines} | {needs or '-'} | {about} |")
    return "\n".join(lines)


def keys_table():
    lines, last = ["| key | option | default | |", "| --- | --- | --- | --- |"], ""
    about = schema.sections()
    for name, key in schema.keys().items():
        section = name.rpartition(".")[0]
        if section != last:
            lines.append(f"| **`[{section}]`** | | | {about[section]} |")
            last = section
        option = f"`{overrides.OPTIONS[name]}`" if name in overrides.OPTIONS else ""
        default = "" if key.default in (None, (), {}, "") else overrides.shown(name, key.default)
        lines.append(f"| `{name}` | {option} | {default} | {key.about} |")
    return "\n".join(lines)


def written(text):
    for name, table in (("sites", sites_table()), ("keys", keys_table())):
        begin = f"<!-- {name}: begin (made by: python tests/unit/test_sites_docs.py) -->"
        end = f"<!-- {name}: end -->"
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}"
    return text


def test_the_tables_are_those_of_the_profiles():
    text = PAGE.read_text()
    assert text == written(text), "run: python tests/unit/test_sites_docs.py"


def test_the_tutorials_profile_is_right(tmp_path):
    blocks = re.findall(r"```toml\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)
    assert len(blocks) == 1
    for path in FOLDER.glob("*.toml"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "mycluster.toml").write_text(blocks[0])
    site = load_site("mycluster", tmp_path)
    assert (site.scheduler, site.job.queue, site.resources.walltime) == ("slurm", "short", 4 * 3600)
    with pytest.raises(overrides.UsageError, match="--queue long"):
        overrides.overridden(site, {"resources.walltime": "5h"})


def test_what_the_tutorial_says_of_other_clusters_is_right(tmp_path):
    """Every piece of TOML in the last table, put where the table says."""
    rows = [line for line in TUTORIAL.read_text().splitlines() if line.startswith("| ") and "`" in line]
    said = [row for row in rows if re.search(r"`\[|`\w+ = ", row)]
    assert len(said) >= 8
    for number, row in enumerate(said):
        section = re.search(r"`(\[[\w.]+\])`", row)
        pieces = [one for one in re.findall(r"`([^`]+)`", row.split("|")[2]) if " = " in one]
        top = [one for one in pieces if one.startswith("shares_store")]
        text = "\n".join([*top, section[1] if section else "", *(one for one in pieces if one not in top)])
        tomllib.loads(text)
        (tmp_path / f"s{number}.toml").write_text(text)
        load_site(f"s{number}", tmp_path)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
