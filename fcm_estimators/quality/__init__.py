"""Quality control: flag events to look at. Nothing is ever removed.

:func:`flag_quality` writes the flags; :func:`quality_table` counts them per sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd

from fcm_estimators._cells.results import require_key_name
from fcm_estimators._checks import rows_by_sample
from fcm_estimators._types import Element, Entries
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.io.write import require_columns
from fcm_estimators.keys import QualityKeys
from fcm_estimators.labels.membership import require_own_data
from fcm_estimators.quality._judging import CHECKS as CHECKS
from fcm_estimators.quality._judging import Raw, judged, viability_dye

__all__ = ["flag_quality", "quality_table"]


def flag_quality(
    adata: ad.AnnData,
    *,
    sample_key: str | None = "sample",
    viability: str | None = None,
    key_added: str = QualityKeys.key,
) -> None:
    """Flag events that a cytometrist would look at before trusting them.

    Each sample is judged separately, on raw values. The flags are for looking and counting: nothing
    is removed, and the models use flagged events like all others.

    Parameters
    ----------
    adata : AnnData
        Data from :func:`~fcm_estimators.read_fcs`, raw or with ``layers["raw"]``.
    sample_key : str or None, default "sample"
        Column of ``obs`` that names the file of each event. None: all events are of one file.
    viability : str, optional
        Marker of the dye that enters dead cells. Default: the first marker with the name of such
        a dye (7-AAD, DAPI, Zombie, Live/Dead, ...).
    key_added : str, default "qc"
        Prefix of the columns of ``obs``, and key of ``uns``.

    Notes
    -----
    Sets the following fields; a check that cannot be judged gets no column:

    ``adata.obs[f"{key_added}_time"]`` : bool
        The event is in a stretch of 500 events (or a 200th of the sample, if that is more) in
        which the flow rate differed from the sample's median by more than a factor of 3, time ran
        backwards, or a marker drifted: its mean rank was off by more than 0.1 of all events and by
        more than 6 standard errors. A clock that wraps around counts as running on. No column if
        events are not in order of acquisition: time jumps back in a third of the stretches.
    ``adata.obs[f"{key_added}_margin"]`` : bool
        The event is at the end of the range (``$PnR``) in a scatter or stained fluorescence
        channel, or has a scatter of 0 or less. Where values exceed the range, which only floats
        can, it is no bound: events are then flagged if 10 or more share the largest value.
    ``adata.obs[f"{key_added}_doublet"]`` : bool
        Forward scatter area divided by height (or the width, if one of them is missing) is above
        the median by more than 4 times 1.4826 times the median absolute deviation.
    ``adata.obs[f"{key_added}_dead"]`` : bool
        The event more likely belongs to the brighter of two normal distributions of the arcsinh
        (cofactor 150) of the viability dye. No event is flagged if the two are less than 3 times
        their root mean square SD apart.
    ``adata.uns[key_added]`` : dict
        ``checks``; ``reason``, for each check "" or why it could not be judged; ``viability``, the
        marker of the dye, "" for none.

    Raises
    ------
    InvalidInputError
        If ``adata`` is a view or has no cells, or a channel that is judged holds NaN or infinite
        values.
    MissingKeyError
        If the sample column, the marker or a column of ``var`` (``kind``, ``channel``, ``marker``,
        ``range``) is missing.
    ProcessingStateError
        If X is compensated or transformed and there is no ``layers["raw"]``.

    References
    ----------
    The checks follow flowAI (Monaco et al., Bioinformatics 32, 2016) and PeacoQC (Emmaneel et al.,
    Cytometry A 101, 2022), in a simpler form.

    Examples
    --------
    >>> from fcm_estimators.datasets import simulate_cohort
    >>> from fcm_estimators.quality import flag_quality, quality_table
    >>> adata = simulate_cohort(2, 2000, random_state=0)
    >>> flag_quality(adata)
    >>> quality_table(adata).columns.tolist()
    ['n_cells', 'n_qc_time', 'n_qc_margin', 'n_qc_doublet', 'n_qc_dead', 'n_qc_any']
    """
    require_own_data(adata)
    require_key_name(key_added)
    require_columns(adata.var, "var", "kind", "channel", "marker", "range")
    if adata.n_obs == 0:
        raise InvalidInputError("adata has no cells, so there is nothing to judge.")
    dye = viability_dye(adata, viability)
    flags, reasons = judged(Raw.from_adata(adata), rows_by_sample(adata, sample_key), dye)
    for check in CHECKS:
        name = QualityKeys(key_added).flag(check)
        if check in flags:
            adata.obs[name] = flags[check]
        elif name in adata.obs:
            del adata.obs[name]
    adata.uns[key_added] = _record(reasons, dye)


def flags_by_block(
    like: ad.AnnData, values: Element
) -> tuple[dict[str, np.ndarray], pd.DataFrame, Entries]:
    """Flag the events of one file, which are read by block, as :func:`flag_quality` does.

    Parameters
    ----------
    like : AnnData
        Some of the events, raw.
    values : array of a store, shape (N, M)
        Raw values of all events, in order of acquisition.

    Returns
    -------
    flags : dict of column of ``obs`` to ndarray of bool, shape (N,)
    table : DataFrame
        As of :func:`quality_table`.
    record : dict
        For ``uns["qc"]``.
    """
    require_columns(like.var, "var", "kind", "channel", "marker", "range")
    dye = viability_dye(like, None)
    raw = replace(Raw.from_adata(like), values=values, order=None)
    sample, keys = str(like.obs["sample"].iloc[0]), QualityKeys()
    found, reasons = judged(raw, {sample: None}, dye)
    flags = {keys.flag(check): found[check] for check in CHECKS if check in found}
    table = _counted(flags, {sample: slice(None)}, len(values), keys)
    return flags, table, _record(reasons, dye)


def _record(reasons: dict[str, str], dye: str | None) -> Entries:
    return {
        "checks": np.array(CHECKS, dtype=object),
        "reason": np.array([reasons[check] for check in CHECKS], dtype=object),
        "viability": dye or "",
    }


def quality_table(
    adata: ad.AnnData, *, sample_key: str | None = "sample", key: str = QualityKeys.key
) -> pd.DataFrame:
    """Count the flagged events of every sample.

    Parameters
    ----------
    adata : AnnData
        Data with the flags of :func:`flag_quality`.
    sample_key : str or None, default "sample"
        Column of ``obs``, as in :func:`flag_quality`.
    key : str, default "qc"
        The ``key_added`` of :func:`flag_quality`.

    Returns
    -------
    DataFrame of Int64
        One row per sample, index ``sample``. Columns: ``n_cells``; ``n_{key}_time``, ``_margin``,
        ``_doublet``, ``_dead``, NA for a check that could not be judged; ``n_{key}_any``, events
        with at least one flag.

    Raises
    ------
    MissingKeyError
        If there are no flags, or the sample column is missing.
    """
    if key not in adata.uns or "checks" not in adata.uns[key]:
        raise MissingKeyError(f"adata.uns has no quality flags {key!r}. Call flag_quality first.")
    names = [QualityKeys(key).flag(check) for check in CHECKS]
    flags = {name: adata.obs[name].to_numpy(dtype=bool) for name in names if name in adata.obs}
    return _counted(flags, rows_by_sample(adata, sample_key), adata.n_obs, QualityKeys(key))


def _counted(
    flags: Mapping[str, np.ndarray],
    rows_of: Mapping[str, np.ndarray | slice],
    n_events: int,
    keys: QualityKeys,
) -> pd.DataFrame:
    """Count flags, by column of ``obs``, per sample."""
    flagged = np.zeros(n_events, dtype=bool)
    counts: dict[str, list[object]] = {"n_cells": [len(flagged[rows]) for rows in rows_of.values()]}
    for check in CHECKS:
        name = keys.flag(check)
        values = flags.get(name)
        if values is None:
            counts[f"n_{name}"] = [pd.NA] * len(rows_of)
        else:
            flagged |= values
            counts[f"n_{name}"] = [int(values[rows].sum()) for rows in rows_of.values()]
    counts[f"n_{keys.flag('any')}"] = [int(flagged[rows].sum()) for rows in rows_of.values()]
    return pd.DataFrame(counts, index=pd.Index(rows_of, name="sample"), dtype="Int64")
