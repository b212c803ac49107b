"""Ticks with raw values on axes of transformed values, for pictures and reports."""

from __future__ import annotations

import numpy as np
from anndata import AnnData

from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.preprocessing.scales import Linear, Scale, parse_transform

_DECADES = np.array([0.0, *(sign * 10.0**k for k in range(2, 7) for sign in (-1, 1))])


def marker_column(adata: AnnData, marker: str) -> int:
    """Position of a marker; InvalidInputError, listing the markers, if it is missing."""
    if marker not in adata.var_names:
        raise InvalidInputError(
            f"marker {marker!r} was not found; available: {', '.join(map(str, adata.var_names))}."
        )
    return int(adata.var_names.get_loc(marker))


def recorded_scale(adata: AnnData, marker: str) -> Scale | None:
    """Scale of a marker's values; None if they are raw or nothing is recorded."""
    if "transform" not in adata.var:
        return None
    text = str(adata.var["transform"].iloc[marker_column(adata, marker)])
    return None if text.startswith("none") else parse_transform(text)


def decades(
    scale: Scale, low: float, high: float, apart: float = 0.05
) -> list[tuple[float, float]]:
    """Positions on the scale and raw values of ticks at powers of ten; none if it is linear.

    Ticks are at least a share ``apart`` of the axis from each other.
    """
    if isinstance(scale, Linear):
        return []
    places = scale.transform(_DECADES)
    inside = (places >= low) & (places <= high)
    return _apart(places[inside], _DECADES[inside], apart * (high - low))


def _apart(places: np.ndarray, raw: np.ndarray, least: float) -> list[tuple[float, float]]:
    """Keep ticks at least this far apart; prefer zero, then large absolute values."""
    kept: list[tuple[float, float]] = []
    for i in np.lexsort([raw < 0, -np.abs(raw), raw != 0]):
        if all(abs(places[i] - place) >= least for place, _ in kept):
            kept.append((float(places[i]), float(raw[i])))
    return sorted(kept)


def short(raw: float, power: str = "$10^{{{}}}$") -> str:
    """Format a raw value as cytometry software does: 0, 10^k, or k for thousands.

    ``power`` is the format of a power of ten; its argument is the exponent.
    """
    size = abs(raw)
    sign = "−" if raw < 0 else ""
    exponent = np.log10(size) if size > 0 else 0.0
    if size >= 100 and abs(exponent - round(exponent)) < 1e-6:
        return sign + power.format(round(exponent))
    return f"{sign}{size / 1000:.3g}k" if size >= 1000 else f"{sign}{size:.3g}"
