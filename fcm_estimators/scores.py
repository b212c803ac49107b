"""Columns of tables in ``obsm`` as columns of ``obs``, where scanpy looks for colours."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from fcm_estimators.exceptions import InvalidInputError, require_key
from fcm_estimators.keys import ClassKeys

# The ending of the tables of probabilities.
_PROBABILITIES = ClassKeys("").probabilities


def scores_to_obs(adata: AnnData, table: str = ClassKeys().probabilities) -> list[str]:
    """Copy the columns of a table in ``obsm`` to ``obs``, for plots that colour by ``obs``.

    Sets the following fields:

    ``adata.obs[f"{class}_probability"]`` : float32
        For a table of probabilities, one column per class.
    ``adata.obs[f"{table}_{column}"]``
        For any other table, such as the attention of the heads of a layer or gates.

    Parameters
    ----------
    adata : AnnData
        With results, in memory.
    table : str, default "reluformer_proba"
        Key of ``obsm``.

    Returns
    -------
    list of str
        The columns of ``obs``, for ``sc.pl.umap(adata, color=...)``. Columns of these names are
        replaced.

    Raises
    ------
    MissingKeyError
        There is no such table.
    InvalidInputError
        It is an array without names of columns, or ``adata`` is a view.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> from fcm_estimators.scores import scores_to_obs
    >>> adata = ad.AnnData(np.zeros((2, 1), np.float32))
    >>> adata.obsm["reluformer_proba"] = pd.DataFrame(
    ...     {"blast": [0.9, 0.2], "other": [0.1, 0.8]}, index=adata.obs_names
    ... )
    >>> scores_to_obs(adata)
    ['blast_probability', 'other_probability']
    >>> adata.obs["blast_probability"].tolist()
    [0.9, 0.2]
    """
    if adata.is_view:
        raise InvalidInputError("This AnnData is a view. Copy it first: adata = adata.copy().")
    require_key(table, list(adata.obsm), "table: the entry of obsm")
    found = adata.obsm[table]
    if not isinstance(found, pd.DataFrame):
        raise InvalidInputError(
            f"obsm[{table!r}] is an array, whose columns have no names. Name a table that annotate "
            "or an explainer wrote."
        )
    is_probability = table.endswith(_PROBABILITIES)
    names = [f"{c}_probability" if is_probability else f"{table}_{c}" for c in found]
    for name, column in zip(names, found, strict=True):
        adata.obs[name] = found[column].to_numpy()
    return names
