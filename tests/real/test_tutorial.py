"""The tutorial ``docs/your-site.md``, gone through as it is written, on a Slurm that the program does not know."""

from __future__ import annotations

import json
import re
import shlex
import sys

import pytest
from real.lab import ROOT, accounted

from sites.detect import full_hostname

PAGE = ROOT / "docs" / "your-site.md"
ANALYSIS = """
from coffea import processor

class Processor(processor.ProcessorABC):
    def process(self, events):
        return {"events": len(events)}

    def postprocess(self, accumulator):
        return accumulator
"""


def commands():
    """Each line of the page that runs the program, without what is remarked of it."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("python runner.py ")]


def profile():
    """The page's own profile, with what this cluster has in place of what that one has."""
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    here = {
        '"login*.cluster.example.org"': f'"{full_hostname()}"',
        'account = "mygroup"\n': "",
        'setup = ["source /cvmfs/cms.cern.ch/cmsset_default.sh"]\n': 'setup = ["export TUTORIAL=1"]\n',
        'short = "4h"\nlong = "7d"\n': 'main = "4h"\n',
        'queue = "short"': 'queue = "main"',
        "[limits]": '[network]\naddress = "127.0.0.1"\n\n[limits]',
    }
    for old, new in here.items():
        assert text.count(old) == 1, f"{PAGE.name} has changed: {old!r}"
        text = text.replace(old, new)
    return text


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lab", [("slurm", "dask")], indirect=True)
def test_every_command_of_the_page(lab):
    words = commands()
    assert len(words) >= 8, words
    config = lab.folder / "config"
    mine = config / "coffea-scaleout" / "sites" / "mycluster.toml"
    lab.data(a=[200, 300])
    (lab.folder / "fs.json").rename(lab.folder / "samples.json")
    (lab.folder / "analysis.py").write_text(ANALYSIS)
    digests = []
    for number, given in enumerate(words):
        line = " ".join(given)
        typed = [sys.executable, str(ROOT / "runner.py"), *given[2:]]
        typed = ["main" if word == "long" else word for word in typed]
        if "mycluster" in line and not mine.exists():
            mine.parent.mkdir(parents=True)
            mine.write_text(profile())
            mine.chmod(0o644)
        if given[2] == "--wf":
            typed += ["--chunk", "50", "-s", "2", "--outputdir", f"out{number}", "--cache", "cache"]
        if given[2:] == ["check", "--executor", "dask/slurm"]:  # its nodes are all on this machine
            typed += ["--site-set", "network.address=127.0.0.1"]
        code, out = lab.run(["env", f"XDG_CONFIG_HOME={config}", *typed], timeout=200)
        refused = "--walltime 5h" in line
        assert code == (2 if refused else 0), f"{line}\n{out}"
        assert "Traceback" not in out, out
        if refused:
            assert "longer than the queue 'main' allows (4h)" in out, out
        if given[2] == "--wf":
            path = lab.folder / f"out{number}" / "hist_Processor_samples" / "manifest.json"
            manifest = json.loads(path.read_text())
            accounted(manifest, 500)
            digests.append(manifest["digest"])
    assert len(digests) == 2
    assert digests[0] == digests[1]
    lab.nothing_left(30)
