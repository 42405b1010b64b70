"""A crew on its own, driven by lines on standard input: what an engine does with it, without an engine.

``crew_talk.py SYSTEM FOLDER LINE LIMITS SPEC``: jobs run the shell line; LIMITS and SPEC are JSON, fields to change.
A job counts as started once the batch system shows it running, unless LINE says ``never``: HTCondor shows that
also while the input files travel. Answers and events are JSON lines.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from executors.batch.crew import Crew
from executors.batch.schedulers import scheduler_of
from executors.batch.spec import JobSpec
from sites.profile import Limits

LINES = threading.Lock()


def say(**what):
    with LINES:
        print(json.dumps(what), flush=True)


def spec_in(system, folder, line, changes):
    script = folder / "payload.sh"
    script.write_text(f"#!/bin/bash\n{line}\n")
    script.chmod(0o755)
    (folder / "logs").mkdir()
    if "transfer" in changes:
        changes["transfer"] = tuple(Path(one) for one in changes["transfer"])
    changes["submit_options"] = tuple(changes.get("submit_options", ()))
    spec = JobSpec(
        name=f"cs-t-{os.urandom(4).hex()}",
        command=("/bin/bash", "payload.sh" if system == "condor" else str(script)),
        memory=300_000_000, disk=10_000_000, walltime=600, folder=folder, logs=folder / "logs", transfer=(script,),
    )  # fmt: skip
    return replace(spec, **changes)


def main():
    system, folder, line, limits, changes = sys.argv[1:]
    spec = spec_in(system, Path(folder), line, json.loads(changes))
    scheduler = scheduler_of(system, spec.submit_options)
    settings = {"polls_per_minute": 60.0, "start": 150.0, **json.loads(limits)}
    crew = Crew(scheduler, spec, Limits(**settings), lambda level, text: say(level=level, text=text))
    crew.on_failure = lambda error: say(failure=str(error), kind=type(error).__name__)
    asked = scheduler.query

    def query(name, ids):
        begun = time.monotonic()
        states = asked(name, ids)
        running = [one for one, state in states.items() if state.phase == "running"]
        if "never" not in line:
            crew.seen(len(running))  # none, too: a crew with workers that never end would never give up
            for one in running:
                threading.Thread(target=crew.started, args=(one,)).start()
        say(query=begun, states={one: [s.phase, s.fate, s.exit] for one, s in states.items()})
        return states

    scheduler.query = query
    say(name=spec.name, cancel=scheduler.cancel_argv(spec.name))
    for order in sys.stdin:
        word, *more = order.split()
        if word == "want":
            crew.want(int(more[0]))
        elif word == "fate":
            say(fate=crew.fate(more[0], float(more[1])), of=more[0])
        elif word == "close":
            begun = time.monotonic()
            crew.close()
            say(closed=time.monotonic() - begun)
            return


main()
