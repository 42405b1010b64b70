"""``bins.py OUTPUT``: what a peer's output holds, as JSON that can be compared; in that peer's environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from coffea.util import load

    out = load(sys.argv[1])
    if (
        "variables" in out
    ):  # PocketCoffea's form: by variable, sample and data set, an axis more for category and variation
        found = {name: out["variables"][name]["made"]["made"] for name in ("mass", "pt")}
        events, weights = out["cutflow"]["initial"]["made"], out["sum_genweights"]["made"]
        found = {name: one[{"cat": "opposite", "variation": "nominal"}] for name, one in found.items()}
    else:
        events, weights, found = out["events"], out["weights"], out
    bins = {name: found[name].values(flow=True).tolist() for name in ("mass", "pt")}
    print(json.dumps({"events": int(events), "weights": float(weights), **bins}))


if __name__ == "__main__":
    main()
