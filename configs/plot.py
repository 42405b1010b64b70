"""Draw the demo's spectrum: ``python -m configs.plot RESULT.coffea PICTURE.png``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from coffea.util import load

mpl.use("Agg")  # no screen is asked for
import matplotlib.pyplot as plt

PEAKS = {
    r"$\omega$": 0.78,
    r"$\phi$": 1.02,
    r"$J/\psi$": 3.10,
    r"$\psi'$": 3.69,
    r"$\Upsilon$": 9.46,
    "Z": 91.2,
}


def draw(result: dict[str, Any], picture: Path) -> Path:
    """The opposite-sign spectrum of every dataset, on logarithmic axes."""
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    total: Any = 0.0
    edges = np.array([])
    for name, found in sorted(result.items()):
        spectrum = found["mass"]["opposite", :]
        edges = spectrum.axes[0].edges
        total = total + np.clip(spectrum.values(), 0, None)
        axes.stairs(spectrum.values(), edges, label=f"{name}: {found['events']:,} events", linewidth=1)
    for label, mass in PEAKS.items():
        bin_at = min(max(int(np.searchsorted(edges, mass)) - 1, 0), len(edges) - 2)
        height = float(np.max(total[max(bin_at - 3, 0) : bin_at + 4], initial=1.0))
        axes.annotate(label, (mass, height), (0, 8), textcoords="offset points", ha="center", fontsize=13)
    axes.set(
        xscale="log", yscale="log", xlabel="dimuon mass [GeV]", ylabel="pairs / bin", xlim=edges[[0, -1]]
    )
    axes.set_ylim(bottom=0.8, top=float(np.max(total, initial=1.0)) * 4)
    axes.legend(loc="lower left")
    figure.savefig(picture, dpi=150)
    plt.close(figure)
    return picture


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("result", type=Path)
    parser.add_argument("picture", type=Path)
    asked = parser.parse_args()
    print(draw(load(str(asked.result)), asked.picture))


if __name__ == "__main__":
    main()
