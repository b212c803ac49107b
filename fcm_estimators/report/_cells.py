"""Columns of the interactive picture, by which cells can be placed or coloured.

The page stores numbers as 16-bit and categories as 8-bit integers in base64.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from fcm_estimators._types import Entries
from fcm_estimators.colours import GREY, colours
from fcm_estimators.keys import NOT_ANALYSED, QualityKeys
from fcm_estimators.report._sample import Annotated
from fcm_estimators.report._tables import received_attention

# Base64 characters of all columns together. The rest of the page has about 6 million.
_BUDGET = 8_000_000
_CHARACTERS_PER_BYTE = 4 / 3
_MISSING = 65_535
_MOST_CATEGORIES = 255
_RAW_POINTS = 400
# Colour of cells that were not analysed.
_FAINT = "#dfe3e8"
# Drawn in grey, like the classes "other" and "none" of estimators.
_NO_POPULATION = ("outside", "not flagged", "unlabelled")


def chosen_cells(
    sample: Annotated, found: list[tuple[str, str, Any]], max_cells: int
) -> np.ndarray:
    """Rows of the cells to draw.

    All cells, if they fit; else the positive cells (up to half of the room) and a random part of
    the others.
    """
    n_cells = sample.adata.n_obs
    n_bytes = sum(1 if isinstance(values, pd.Series) else 2 for _, _, values in found)
    room = min(max_cells, int(_BUDGET / (_CHARACTERS_PER_BYTE * max(n_bytes, 1))))
    if n_cells <= room:
        return np.arange(n_cells)
    rng = np.random.default_rng(0)
    kept = np.zeros(n_cells, dtype=bool)
    if sample.positive_class is not None:
        positive = np.flatnonzero((sample.predicted == sample.positive_class).to_numpy())
        kept[rng.permutation(positive)[: room // 2]] = True
    others = np.flatnonzero(~kept)
    kept[rng.permutation(others)[: room - kept.sum()]] = True
    return np.flatnonzero(kept)


def separating_markers(sample: Annotated) -> list[str]:
    """Markers, sorted by the share of their variance between the classes, largest first."""
    names = sample.markers or [str(v) for v in sample.adata.var_names]
    if not sample.has_classes:
        return names
    codes = sample.predicted.cat.codes.to_numpy()[sample.analysed]
    values = sample.adata[sample.analysed, names].to_df().to_numpy(dtype=np.float64)
    if len(values) == 0:
        return names
    counts = np.bincount(codes)
    present = np.flatnonzero(counts)
    means = np.stack([values[codes == c].mean(0) for c in present])
    between = counts[present] @ np.square(means - values.mean(0))
    share = between / np.maximum(np.square(values - values.mean(0)).sum(0), 1e-12)
    return [names[i] for i in np.argsort(-share)]


def columns(sample: Annotated) -> Iterator[tuple[str, str, Any]]:
    """Yield group, name and values of each column by which cells can be placed or coloured."""
    adata = sample.adata
    for key in adata.obsm:
        values = adata.obsm[key]
        if str(key).startswith("X_") and isinstance(values, np.ndarray) and values.shape[1] >= 2:
            name = str(key).removeprefix("X_").upper()
            for axis in range(2):
                yield "Embedding", f"{name} {axis + 1}", values[:, axis]
    if sample.has_classes:
        yield "Cells", "class", sample.predicted
        expert = sample.expert_labels
        if expert is not None:
            text = expert.map(lambda v: "unlabelled" if v is None else str(v))
            yield "Cells", "expert's label", text.astype("category")
        positive = sample.positive_class
        proba = adata.obsm.get(sample.keys.classes.probabilities)
        if proba is not None:
            shares = pd.DataFrame(proba)
            if positive in shares:
                yield "Cells", f"probability of {positive}", shares[positive].to_numpy()
            else:
                yield "Cells", "highest probability", shares.max(axis=1).to_numpy()
    yield from _explanations(sample)
    for name, table in (
        ("gate", sample.predicted_membership),
        ("expert's gate", sample.expert_membership),
    ):
        if table is None:
            continue
        for gate in table:
            inside = np.where(table[gate], "inside", "outside")
            yield "Gates", f"{name} {gate}", pd.Series(inside).astype("category")
    for flag in sample.quality:
        flagged = np.where(adata.obs[flag].to_numpy(dtype=bool), "flagged", "not flagged")
        yield (
            "Quality",
            flag.removeprefix(QualityKeys().flag("")),
            pd.Series(flagged).astype("category"),
        )
    of_model = sample.markers
    for marker in [*of_model, *(str(v) for v in adata.var_names if str(v) not in of_model)]:
        yield "Markers", marker, sample.values(marker)


def _explanations(sample: Annotated) -> Iterator[tuple[str, str, Any]]:
    obs, keys = sample.adata.obs, sample.keys
    for key, name in (
        (keys.attention.head, "head that looks most"),
        (keys.gradient.marker, "marker with the strongest gradient"),
    ):
        if key in obs:
            values = obs[key].astype(object).where(obs[key].notna(), NOT_ANALYSED)
            yield "Explanations", name, values.astype(str).astype("category")
    if keys.gradient.norm in obs:
        yield "Explanations", "length of the gradient", obs[keys.gradient.norm].to_numpy()
    attention = received_attention(sample)
    if attention is None:
        return
    for head in attention:
        yield "Explanations", f"received attention, {head}", attention[head].to_numpy()


def packed(
    group: str, name: str, values: Any, rows: np.ndarray, known: Mapping[str, str]
) -> Entries:
    """Encode one column of the drawn cells for the page; ``counts`` count all cells.

    ``known`` are colours by name of category.
    """
    if isinstance(values, pd.Series):
        return {"group": group, "name": name, **_categories(values, rows, known)}
    numbers = np.asarray(values, dtype=np.float64)[rows]
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    width = high - low or 1.0
    steps = np.rint((numbers - low) / width * (_MISSING - 1))
    ends = [float(e) for e in np.quantile(finite, [0.01, 0.99])] if len(finite) else [low, high]
    return {
        "group": group,
        "name": name,
        "kind": "numbers",
        "low": low,
        "high": low + width,
        "colour_range": ends,
        "data": _encoded(np.where(np.isfinite(numbers), steps, _MISSING), "<u2"),
    }


def _categories(values: pd.Series, rows: np.ndarray, known: Mapping[str, str]) -> Entries:
    from matplotlib.colors import to_hex

    values = values.astype("category").cat.remove_unused_categories()
    rare = values.value_counts().index[_MOST_CATEGORIES - 1 :]
    if len(rare):
        values = (
            values.astype(object).replace(dict.fromkeys(rare, "further ones")).astype("category")
        )
    names = [str(c) for c in values.cat.categories]
    hues = colours([n for n in names if n not in _NO_POPULATION], known)
    codes = values.cat.codes.to_numpy()
    return {
        "kind": "categories",
        "categories": names,
        "colours": [_FAINT if n == NOT_ANALYSED else to_hex(hues.get(n, GREY)) for n in names],
        "counts": np.bincount(codes[codes >= 0], minlength=len(names)).tolist(),
        "data": _encoded(codes[rows], "<u1"),
    }


def _encoded(values: np.ndarray, dtype: str) -> str:
    # The code -1 of a missing category becomes 255, which is not the code of a category.
    return base64.b64encode(values.astype(np.int64).astype(dtype).tobytes()).decode("ascii")


def axis_of(sample: Annotated, marker: str, low: float, high: float) -> Entries:
    """Ticks in raw units, and a table from which the page converts values to raw units.

    Returns
    -------
    dict
        ``ticks``: positions and labels. ``raw``: scaled values at equal distances, and their raw
        values. Empty if the values are raw or the scale is not recorded.
    """
    from matplotlib.ticker import MaxNLocator

    from fcm_estimators.preprocessing.ticks import decades, recorded_scale, short

    if marker not in sample.adata.var_names:
        return {}
    scale = recorded_scale(sample.adata, marker)
    if scale is None or not low < high:
        return {}
    scaled = np.linspace(low, high, _RAW_POINTS)
    raw = scale.inverse(scaled)
    ticks = decades(scale, low, high)
    if len(ticks) < 2:
        wanted = np.asarray(MaxNLocator(5).tick_values(raw[0], raw[-1]))
        ticks = list(zip(scale.transform(wanted).tolist(), wanted.tolist(), strict=True))
    return {
        "ticks": [
            [position for position, _ in ticks],
            [short(value, "10<sup>{}</sup>") for _, value in ticks],
        ],
        "raw": [scaled.round(6).tolist(), [float(f"{v:.5g}") for v in raw]],
    }
