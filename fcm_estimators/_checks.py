"""Checks shared by everything that reads a user's data."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import numpy as np

from fcm_estimators.exceptions import InvalidInputError, MarkerMismatchError, MissingKeyError


def listed(names: Iterable[object], limit: int = 20) -> str:
    """Names for a message, cut off after ``limit``."""
    names = [str(name) for name in names]
    shown = ", ".join(repr(name) for name in names[:limit])
    rest = len(names) - limit
    return (shown or "none") + (f" and {rest} more" if rest > 0 else "")


def require_key(key: object, present: Iterable[object], what: str) -> None:
    """Raise MissingKeyError unless ``key`` is among ``present``; ``what`` says of what kind."""
    present = list(present)
    if key not in present:
        raise MissingKeyError(f"{what} {key!r} was not found; there is {listed(present)}.")


def marker_positions(
    wanted: Sequence[str], present: Sequence[str], owner: str = "this model"
) -> np.ndarray:
    """Column of each wanted marker among those present, matched by exact name.

    Raises
    ------
    InvalidInputError
        If a name is present more than once.
    MarkerMismatchError
        If a wanted marker is absent; similar names are suggested, never used.
    """
    repeated = (
        sorted({name for name in present if present.count(name) > 1})
        if len(set(present)) < len(present)
        else []
    )
    if repeated:
        raise InvalidInputError(
            f"Marker names must be unique, but {listed(repeated)} occur(s) more than once. "
            "Rename them (adata.var_names_make_unique()) so that each name is one channel."
        )
    position = {name: i for i, name in enumerate(present)}
    missing = [name for name in wanted if name not in position]
    if missing:
        hints = []
        for name in missing:
            close = [p for p in present if _bare(p) == _bare(name)]
            close = close or difflib.get_close_matches(name, present, n=1)
            if close:
                hints.append(f"marker_aliases={{{close[0]!r}: {name!r}}}")
        advice = f" If they are the same marker, pass {' or '.join(hints)}." if hints else ""
        raise MarkerMismatchError(
            f"The data lack {len(missing)} of the {len(wanted)} markers that {owner} needs: "
            f"{listed(missing)}. Present are {listed(present)}.{advice}"
        )
    return np.array([position[name] for name in wanted], dtype=np.intp)


def _bare(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def require_finite(x: np.ndarray, markers: Sequence[str]) -> None:
    """Raise InvalidInputError that names each marker with NaN or infinite values."""
    # A sum is finite unless an entry is not (or it overflows): one pass without a mask.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(x.sum(dtype=np.float64)):
            return
    bad = []
    for j, marker in enumerate(markers):
        n_nan, n_inf = int(np.isnan(x[:, j]).sum()), int(np.isinf(x[:, j]).sum())
        if n_nan or n_inf:
            bad.append(f"{marker!r} ({n_nan} NaN, {n_inf} inf)")
    if bad:
        raise InvalidInputError(
            f"X holds values that are not finite (NaN or infinity) in {len(bad)} marker(s): "
            f"{', '.join(bad[:20])}. Remove those cells or repair the values first."
        )
