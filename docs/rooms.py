"""The picture of the rooms, drawn from the contract in pyproject.toml: ``python docs/rooms.py``."""

from __future__ import annotations

import tomllib
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

DOCS = Path(__file__).parent
HUES = {"explainers": "#CC79A7", "torch": "#E69F00", "data": "#56B4E9", "tasks": "#009E73"}
MEANING = {
    "tasks": "tasks on files",
    "explainers": "explainers",
    "torch": "models and nets (torch)",
    "data": "data (no torch)",
}


def kind(room, without_torch):
    """Which colour a room has."""
    if room == "explainers":
        return "explainers"
    if room.split(".")[-1] in ("cli", "demo", "doctor", "workflow", "report", "cohort"):
        return "tasks"
    return "data" if room in without_torch else "torch"


def main():
    contracts = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c["layers"] for c in contracts["contracts"] if c["type"] == "layers")
    data = next(c for c in contracts["contracts"] if c["name"] == "Data need no torch")
    without_torch = {*data["source_modules"], "fcm_estimators._version"}
    figure, ax = plt.subplots(figsize=(7.2, 0.46 * len(layers) + 0.6), layout="constrained")
    for floor, layer in enumerate(layers):
        rooms = [room.strip() for room in layer.split("|")]
        width = 6.0 / len(rooms)
        for place, room in enumerate(rooms):
            name = room.removeprefix("fcm_estimators.")
            corner = place * width + 0.04, -floor
            box = FancyBboxPatch(
                corner,
                width - 0.08,
                0.62,
                boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=HUES[kind(room, without_torch)],
                alpha=0.35,
                edgecolor="#444444",
                linewidth=0.8,
            )
            ax.add_patch(box)
            ax.text(corner[0] + (width - 0.08) / 2, 0.31 - floor, name, ha="center", va="center")
    ax.annotate(
        "",
        xy=(6.35, -len(layers) + 1),
        xytext=(6.35, 0.6),
        arrowprops={"arrowstyle": "-|>", "color": "#444444"},
    )
    ax.text(6.5, -len(layers) / 2 + 0.8, "imports", rotation=270, va="center")
    for key, text in MEANING.items():
        ax.scatter([], [], marker="s", s=70, color=HUES[key], alpha=0.5, label=text)
    ax.legend(loc="upper center", bbox_to_anchor=(0.47, 0.0), ncols=4, frameon=False, fontsize=8)
    ax.set(xlim=(0, 6.8), ylim=(-len(layers) + 0.9, 0.75))
    ax.axis("off")
    figure.savefig(DOCS / "images" / "architecture.png", dpi=160)


if __name__ == "__main__":
    main()
