"""``run_coffea.py FILESET ENGINE CHUNK OUTPUT``: coffea's own Runner, in whatever environment this Python is of."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from coffea.nanoevents import NanoAODSchema
    from coffea.processor import FuturesExecutor, IterativeExecutor, Runner
    from coffea.util import save
    from dimuon import Dimuon

    fileset, engine, chunk, output = sys.argv[1:]
    executor = (
        IterativeExecutor(status=False) if engine == "iterative" else FuturesExecutor(workers=2, status=False)
    )
    runner = Runner(executor=executor, schema=NanoAODSchema, chunksize=int(chunk))
    files = json.loads(Path(fileset).read_text())
    save(runner(files, processor_instance=Dimuon(), treename="Events"), output)


if __name__ == "__main__":
    main()
