"""Time of reading workspaces: many gates, many samples, and both through the command line's way.

    python benchmarks/workspaces.py

Prints seconds. Reading should take time linear in gates, and a workspace should be parsed once.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from fcm_estimators.cohort import read_file
from fcm_estimators.gating import GatingTree
from fcm_estimators.labels import LabelSource
from tests.workspaces import box, outline, population, sample, write_file, write_workspace


def gates(count: int) -> list[str]:
    """Populations below each other in groups of ten, polygons and rectangles in turn."""
    found = []
    for i in range(count // 10):
        below = [
            population(
                f"g{i}.{j}",
                outline(
                    "Comp-FITC-A", "Comp-PE-A", [[-50, 10 + j], [9e4, 0], [5e4, 9e4], [100, 9e3]]
                )
                if j % 2
                else box(**{"SSC-A": (1000 * j, None)}),
            )
            for j in range(1, 10)
        ]
        found.append(population(f"g{i}", box(**{"FSC-A": (100 * i, None)}), *below))
    return found


def seconds(function, *arguments, **options) -> float:
    started = time.perf_counter()
    function(*arguments, **options)
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        raw = read_file(write_file(folder / "s0.fcs", n=10_000))
        for count in (250, 500, 1000, 2000, 4000):
            path = write_workspace(folder / f"{count}.wsp", sample("s0.fcs", *gates(count)))
            reading = seconds(GatingTree.from_flowjo, path, sample="s0")
            tree = GatingTree.from_flowjo(path, sample="s0")
            writing = seconds(tree.to_gatingml, folder / "g.xml", channels=raw)
            again = seconds(GatingTree.from_gatingml, folder / "g.xml")
            applied = seconds(tree.apply, raw)
            rows.append(("1", count, reading, again, writing, applied))
        names = [f"s{i}.fcs" for i in range(60)]
        samples = [sample(n, *gates(120), number=i + 1) for i, n in enumerate(names)]
        path = write_workspace(folder / "lab.wsp", *samples)
        files = [write_file(folder / name, seed=i, n=10_000) for i, name in enumerate(names)]
        data = [read_file(file) for file in files]
        source = LabelSource(gates=str(path))
        first = seconds(source.tree, "s0")
        rest = sum(seconds(source.tree, f"s{i}") for i in range(1, 60))
        labelled = sum(seconds(source, adata) for adata in data)
        rows.append(("60", 120, first + rest, None, None, labelled))
        print(f"60 samples x 120 gates: first tree {first:.2f} s, the 59 others {rest:.2f} s")
    columns = ["samples", "gates", "read wsp", "read Gating-ML", "write Gating-ML", "apply"]
    print(pd.DataFrame(rows, columns=columns).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
