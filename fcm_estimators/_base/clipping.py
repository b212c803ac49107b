"""Values that are clipped because they are far beyond the training data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from fcm_estimators._cells.rows import SampleCells
from fcm_estimators._cells.store import BLOCK
from fcm_estimators._checks import listed
from fcm_estimators.nn.reluformer import ScaledModule


def clipped_values(
    net: ScaledModule, markers: Sequence[str], cells: list[SampleCells]
) -> pd.DataFrame:
    """How many values a net clips: columns ``sample``, ``marker``, ``cells``; no rows of 0.

    Parameters
    ----------
    net : ScaledModule
    markers : sequence of M str
    cells : list of SampleCells
    """
    lowest, highest = (b.numpy(force=True) for b in (net.input_lowest, net.input_highest))
    rows = []
    for part in cells:
        low, high = part.extremes
        if (low >= lowest).all() and (high <= highest).all():
            continue
        counts = np.zeros(len(markers), dtype=np.int64)
        for start in range(0, len(part.rows), BLOCK):
            x = part.source.read(start, min(start + BLOCK, len(part.rows))).numpy(force=True)
            counts += ((x < lowest) | (x > highest)).sum(axis=0)
        found = zip(markers, counts.tolist(), strict=True)
        rows += [(part.name, marker, n) for marker, n in found if n]
    return pd.DataFrame(rows, columns=["sample", "marker", "cells"])


def warn_of_clipped(
    found: pd.DataFrame, n_samples: int, stacklevel: int, where: str = "all training data"
) -> None:
    """Warn of the values of :func:`clipped_values`, which lie far beyond ``where``."""
    if found.empty:
        return
    entries = found.sort_values("cells", ascending=False, kind="stable").itertuples(index=False)
    named = [f"{entry.marker} of {entry.cells:,} cell(s) of {entry.sample}" for entry in entries]
    warnings.warn(
        f"{found['cells'].sum():,} value(s) in {found['sample'].nunique()} of {n_samples} "
        f"sample(s) are far beyond {where}: {listed(named, 5)}. They count as the largest or "
        "smallest value that the model admits, and their gradients are 0.",
        UserWarning,
        stacklevel=stacklevel,
    )
