"""coffea's own Runner with an executor of ours, through real batch systems."""

from __future__ import annotations

import json
import sys

import pytest
from real.test_suite import PLACES

pytestmark = [
    pytest.mark.parametrize("lab", PLACES, indirect=True, ids=lambda place: f"{place[1]}/{place[0]}"),
    pytest.mark.timeout(300),
]

SCRIPT = """
import json, sys
import executors
from coffea import processor
from coffea.nanoevents import BaseSchema

class Count(processor.ProcessorABC):
    def process(self, events):
        return {"n": len(events), "sum": float(events["MET_pt"].to_numpy().sum())}

    def postprocess(self, accumulator):
        return accumulator

on, site_file, fileset = sys.argv[1], sys.argv[2], json.load(open(sys.argv[3]))
with executors.for_coffea(on, jobs=2, site_file=site_file, memory="1GB", status=False) as executor:
    assert executor.workers == 1
    out = processor.Runner(executor=executor, schema=BaseSchema, chunksize=100)(
        fileset, processor_instance=Count(), treename="Events")
here = processor.Runner(executor=processor.IterativeExecutor(status=False), schema=BaseSchema, chunksize=100)(
        fileset, processor_instance=Count(), treename="Events")
print(json.dumps({"n": out["n"], "here": here["n"], "close": abs(out["sum"] - here["sum"]) < 1e-6 * abs(here["sum"])}))
"""


def test_runner(lab):
    lab.data(dy=[1000], tt=[600])
    (lab.folder / "script.py").write_text(SCRIPT)
    code, out = lab.run([sys.executable, "script.py", lab.on, str(lab.batch.site_file), "fs.json"])
    assert code == 0, out
    assert json.loads(out.splitlines()[-1]) == {"n": 1600, "here": 1600, "close": True}, out
    lab.nothing_left(30)
