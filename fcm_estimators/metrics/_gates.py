"""Agreement of predicted gates with the expert's, a row per sample and gate."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fcm_estimators._checks import listed
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.metrics._inputs import samples_of


def gate_agreement(
    truth: pd.DataFrame, predicted: pd.DataFrame, *, groups: ArrayLike | None = None
) -> pd.DataFrame:
    """Compare the cells inside predicted gates with the expert's, for every sample and gate.

    Parameters
    ----------
    truth : DataFrame of shape (N, gates)
        True or False, such as ``adata.obsm["gates"]``; NaN if it is not known.
    predicted : DataFrame of shape (N, gates)
        True or False. Gates that are also in ``truth`` are compared.
    groups : array-like of shape (N,), optional
        Sample of each cell. Default: one sample, ``all``.

    Returns
    -------
    DataFrame
        Columns ``sample``, ``gate``, ``n_cells`` (with known truth), ``n_true``, ``n_predicted``,
        ``precision``, ``recall``, ``f1``. F1 is NaN if neither the truth nor the prediction has a
        cell inside the gate, and 0 if only one of them has.

    Raises
    ------
    InvalidInputError
        The tables differ in length.
    MissingKeyError
        No gate is in both tables.

    Examples
    --------
    >>> import pandas as pd
    >>> from fcm_estimators.metrics import gate_agreement
    >>> truth = pd.DataFrame({"CD19": [True, True, False], "blast": [False, False, False]})
    >>> predicted = pd.DataFrame({"CD19": [True, False, False], "blast": [False, False, False]})
    >>> gate_agreement(truth, predicted)[["gate", "f1"]].to_numpy().tolist()
    [['CD19', 0.6666666666666666], ['blast', nan]]
    """
    if len(truth) != len(predicted):
        raise InvalidInputError(
            f"truth has {len(truth)} rows, predicted {len(predicted)}; both need one per cell."
        )
    gates = [gate for gate in predicted if gate in truth]
    if not gates:
        raise MissingKeyError(
            f"No gate is in both tables: truth has {listed(truth)}, predicted {listed(predicted)}."
        )
    sample, names = samples_of(groups, len(truth))
    rows = []
    for gate in gates:
        expert = truth[gate].astype("boolean")
        known = expert.notna().to_numpy()
        true = expert.fillna(False).to_numpy(dtype=bool)
        positive = predicted[gate].astype("boolean").fillna(False).to_numpy(dtype=bool) & known
        counts = [
            np.bincount(sample[cells], minlength=len(names))
            for cells in (known, true, positive, true & positive)
        ]
        for name, n_cells, n_true, n_predicted, hits in zip(names, *counts, strict=True):
            rows.append((name, gate, n_cells, n_true, n_predicted, hits))
    table = pd.DataFrame(rows, columns=["sample", "gate", "n_cells", "n_true", "n_predicted", "h"])
    hits = table.pop("h")
    with np.errstate(divide="ignore", invalid="ignore"):
        table["precision"] = hits / table["n_predicted"]
        table["recall"] = hits / table["n_true"]
        table["f1"] = 2 * hits / (table["n_true"] + table["n_predicted"])
    return table
