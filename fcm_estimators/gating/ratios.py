"""Axes that show a ratio of two channels, as text in the place of a marker."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_TEXT = re.compile(r"ratio\(A=(?P<A>[^,()]+),B=(?P<B>[^,()]+),C=(?P<C>[^,()]+)\) (?P<pair>.+)")


class Ratio(NamedTuple):
    """``A (x - B) / (y - C)``: ``fratio`` of Gating-ML.

    Attributes
    ----------
    x, y : str
        Channels or markers.
    A, B, C : float

    References
    ----------
    Spidlen et al., Gating-ML 2.0, Cytometry A 87A, 683-687 (2015).

    Examples
    --------
    >>> from fcm_estimators.gating.ratios import Ratio
    >>> str(Ratio("FL1-A", "FL2-A", 1, 0, -1))
    'ratio(A=1,B=0,C=-1) FL1-A / FL2-A'
    >>> Ratio("FL1-A", "FL2-A", 1, 0, -1).of([6.0], [2.0])
    array([2.])
    """

    x: str
    y: str
    A: float
    B: float
    C: float

    def __str__(self) -> str:
        numbers = ",".join(f"{name}={getattr(self, name):.17g}" for name in "ABC")
        return f"ratio({numbers}) {self.x} / {self.y}"

    def of(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Ratio of two arrays; NaN where the denominator is 0."""
        numerator = self.A * (np.asarray(x, dtype=np.float64) - self.B)
        denominator = np.asarray(y, dtype=np.float64) - self.C
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(denominator == 0, np.nan, numerator / denominator)


def ratio_of(marker: str, known: Callable[[str], bool]) -> Ratio | None:
    """Ratio that the name of an axis means; None if it is a marker.

    Parameters
    ----------
    marker : str
    known : callable
        Whether a text is a channel; it decides where a name contains " / ".
    """
    found = _TEXT.fullmatch(marker)
    if found is None:
        return None
    parts = found["pair"].split(" / ")
    pairs = [(" / ".join(parts[:i]), " / ".join(parts[i:])) for i in range(1, len(parts))]
    best = next((pair for pair in pairs if known(pair[0]) and known(pair[1])), None)
    x, y = best or pairs[0] if pairs else (found["pair"], "")
    return Ratio(x, y, *(float(found[name]) for name in "ABC"))
