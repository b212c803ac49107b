"""One colour for each class and each head, the same in all pictures and in scanpy's ``uns``.

Results that are written get their colours in ``uns[f"{column}_colors"]``, where scanpy looks for
them. Colours that are there already stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators.exceptions import InvalidInputError, require_key

__all__ = ["GREY", "HEAD_HUES", "HUES", "colours", "column_colours", "set_colours"]

# Colours of Okabe and Ito, which colour-blind people can distinguish.
HUES = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
# Colours of Tol's muted scheme for heads: safe too, and none of them is a class's.
HEAD_HUES = (
    "#332288",
    "#88CCEE",
    "#44AA99",
    "#117733",
    "#999933",
    "#DDCC77",
    "#CC6677",
    "#882255",
    "#AA4499",
)
GREY = "#BBBBBB"
# Names of groups that are not populations.
_BACKGROUND = ("other", "none", "not analysed", "rest")
# White (positive) or black (negative) that is mixed into the hues of each further round.
_ROUNDS = (0.0, 0.5, -0.4, 0.75, -0.65)


def colours(names: Sequence[Any], known: Mapping[str, str] | None = None) -> dict[Any, str]:
    """Colour of each name.

    Groups that are not populations ("other", "rest", "none", "not analysed", "not ...") are grey.
    Heads ("head0", "head1", ...) have a colour by number, other names by order. After the eighth
    name the colours come again, lighter and darker, which is harder to distinguish.

    Parameters
    ----------
    names : sequence
        Classes, populations or heads.
    known : mapping of str to str, optional
        Colours that some names have already; they keep them.

    Returns
    -------
    dict of name to colour

    Examples
    --------
    >>> from fcm_estimators.colours import colours
    >>> colours(["blast", "other", "T"])
    {'blast': '#D55E00', 'other': '#BBBBBB', 'T': '#0072B2'}
    """
    found: dict[Any, str] = {}
    for name in names:
        hue = (known or {}).get(str(name))
        if hue is not None and (hue not in found.values() or hue == GREY):
            found[name] = hue
    used = set(found.values())
    free = (hue for hue in _series(HUES[:-1], HUES) if hue not in used)
    heads = _series(HEAD_HUES, HEAD_HUES)
    for name in names:
        if name in found:
            continue
        head = re.fullmatch(r"(?:.*_)?head(\d+)", str(name))
        if _is_background(str(name)):
            found[name] = GREY
        elif head:
            found[name] = heads[int(head[1]) % len(heads)]
        else:
            found[name] = next(free, GREY)
    return {name: found[name] for name in names}


def column_colours(adata: AnnData, column: str) -> dict[Any, str]:
    """Colour of each category of an obs column, as all pictures draw it.

    Those in ``uns[f"{column}_colors"]``; else those that a category of this name has in another
    column; else those of :func:`colours`.

    Parameters
    ----------
    adata : AnnData
    column : str
        Column of ``obs``.

    Returns
    -------
    dict of category to colour
        All categories in their order; a column without categories: its values, sorted.

    Raises
    ------
    MissingKeyError
        The column is missing. The message lists those that exist.
    """
    require_key(column, adata.obs.columns, "the obs column")
    return colours(categories(adata.obs[column]), known_colours(adata, column))


def set_colours(adata: AnnData, column: str) -> None:
    """Write the colours of a column where scanpy looks for them, unless they are there.

    Results that the package writes have theirs; this is for other columns, such as the expert's
    labels.

    Sets the following fields:

    ``adata.uns[f"{column}_colors"]`` : list of str
        One colour per category.

    Parameters
    ----------
    adata : AnnData
    column : str
        Categorical column of ``obs``.

    Raises
    ------
    MissingKeyError
        The column is missing. The message lists those that exist.
    InvalidInputError
        The column has no categories, or ``adata`` is a view.
    """
    hues = column_colours(adata, column)
    if not isinstance(adata.obs[column].dtype, pd.CategoricalDtype):
        raise InvalidInputError(
            f"The obs column {column!r} is {adata.obs[column].dtype}, and colours belong to "
            f"categories. Convert it first: adata.obs[{column!r}].astype('category')."
        )
    if adata.is_view:
        raise InvalidInputError("This AnnData is a view. Copy it first: adata = adata.copy().")
    adata.uns[f"{column}_colors"] = list(hues.values())


def categories(values: pd.Series) -> list[Any]:
    """All categories in their order; the sorted values of a column without categories."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return list(values.cat.categories)
    return sorted(values.dropna().unique())


def known_colours(adata: AnnData, first: str | None = None) -> dict[str, str]:
    """Colours by name of category in ``uns``, those of one column before those of the others."""
    is_category = adata.obs.dtypes.map(lambda dtype: isinstance(dtype, pd.CategoricalDtype))
    columns = [c for c in adata.obs.columns[is_category] if f"{c}_colors" in adata.uns]
    columns.sort(key=lambda column: column != first)
    return named((categories(adata.obs[c]), adata.uns[f"{c}_colors"]) for c in columns)


def named(columns: Iterable[tuple[Sequence[Any], Any]]) -> dict[str, str]:
    """Colours by name, from the categories and colours of columns; the first of a name counts.

    As in scanpy, colours count for nothing if they are fewer than the categories.
    """
    known: dict[str, str] = {}
    for names, hues in columns:
        listed = [str(hue) for hue in np.atleast_1d(np.asarray(hues, dtype=object))]
        if len(listed) >= len(names):
            known = {**dict(zip(map(str, names), listed, strict=False)), **known}
    return known


def _is_background(name: str) -> bool:
    return name in _BACKGROUND or name.startswith("not ")


def _series(hues: Sequence[str], first: Sequence[str]) -> list[str]:
    """The first colours, then lighter and darker ones of the hues."""
    return [*first, *(_mixed(hue, share) for share in _ROUNDS[1:] for hue in hues)]


def _mixed(hue: str, share: float) -> str:
    """A colour with a share of white, or of black if it is negative."""
    parts = np.array([int(hue[i : i + 2], 16) for i in (1, 3, 5)], dtype=float)
    mixed = parts + abs(share) * ((255.0 if share > 0 else 0.0) - parts)
    return "#" + "".join(f"{round(value):02X}" for value in mixed)
