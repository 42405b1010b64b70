"""A batch job of the engine ``parsl`` begins here, on its node: is this Python one that can serve?

Started from the parcel by whatever Python the site names, so only the standard library may enter; the job
itself is in ``parsl_node``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from typing import Any

NEEDED = ("parsl", "zmq", "cloudpickle", "psutil")
UNFIT = 69  # EX_UNAVAILABLE of sysexits.h


def main(settings: dict[str, Any]) -> int:
    """Run the job; its exit code. What connects with other versions would end the runner's side of Parsl."""
    if complaint := unfit(settings["versions"]):
        sys.stderr.write(f"coffea-scaleout: {complaint}\n")
        return UNFIT
    from executors.engines.parsl_node import serve

    return serve(settings)


def unfit(versions: dict[str, str]) -> str:
    """Why this Python cannot serve, or nothing."""
    python = f"the workers' Python {sys.executable}"
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"{python} lacks {', '.join(missing)}: install it there, or name another one (job.python)"
    wrong = [
        f"{name} {here}, the runner {versions[name]}"
        for name, here in _versions().items()
        if here != versions[name]
    ]
    return f"{python} has {'; '.join(wrong)}: they must be the same (job.python)" if wrong else ""


def _versions() -> dict[str, str]:
    found = {"python": "{}.{}".format(*sys.version_info)}
    try:
        found["parsl"] = importlib.metadata.version("parsl")
    except importlib.metadata.PackageNotFoundError:  # a copy without its papers: Parsl itself will tell
        return found
    return found
