"""Measurable residual disease: counts with a named denominator, intervals and words."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.metrics._counting import clopper_pearson, per_event
from fcm_estimators.metrics._inputs import (
    boolean_per_cell,
    flag_counts,
    fraction_number,
    samples_of,
)
from fcm_estimators.metrics._mrd_words import in_words
from fcm_estimators.metrics._protocol import DEFAULT_PROTOCOL, Protocol
from fcm_estimators.metrics._total_interval import ClassificationErrors


def mrd_table(
    positive: ArrayLike,
    *,
    denominator: ArrayLike,
    denominator_name: str,
    groups: ArrayLike | None = None,
    limit_of_blank: float | None = None,
    uncertain: Mapping[str, bool] | None = None,
    tested: bool = True,
    protocol: Protocol | str | os.PathLike[str] = DEFAULT_PROTOCOL,
    errors: ClassificationErrors | str | os.PathLike[str] | None = None,
    confidence: float = 0.95,
    flags: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Compute the residual disease of every sample, with denominator, interval and limits.

    The interval ``ci_low`` to ``ci_high`` contains only the counting error; with ``errors`` there
    is a second that also knows wrongly classified cells. Neither contains the sampling of the
    marrow or haemodilution. ``lod`` and ``lloq`` are theoretical limits: the events that the
    protocol requires, divided by the number of events measured. They are not the validated limits
    of an assay; :func:`detection_limits` measures those.

    Parameters
    ----------
    positive : array-like of bool of shape (N,)
        Cells predicted to be residual disease, such as ``clf.predict(adata) == "blast"``.
    denominator : array-like of bool of shape (N,)
        Cells of the gate to which the fraction refers, such as intact nucleated cells.
    denominator_name : str
        Name of that gate; a fraction cannot be read without it.
    groups : array-like of shape (N,), optional
        Sample of each cell. Default: one sample, ``all``.
    limit_of_blank : float, optional
        Fraction that the same classifier finds in samples without disease: the ``value`` of
        :func:`limit_of_blank` for the same denominator.
    uncertain : mapping of str to bool, optional
        Samples on which the members of the model disagree: ``sample`` and ``uncertain`` in
        ``adata.uns[key]["members"]``. Samples that are not named are certain.
    tested : bool, default True
        Whether the model was tested with the markers that the data have: ``tested`` in
        ``adata.uns[key]``.
    protocol : Protocol, str or path, default "20/50 events"
        Limits by which the counts are read, or what :meth:`Protocol.read` reads.
    errors : ClassificationErrors or path, optional
        How the same classifier errs in unseen patients with the same denominator, for an interval
        that contains this, or a file of :meth:`ClassificationErrors.write`.
    confidence : float, default 0.95
        Level of the intervals.
    flags : DataFrame of bool of shape (N, F), optional
        Flags of the quality control, such as ``adata.obs.filter(like="qc_")``. Flagged cells are
        counted, never left out.

    Returns
    -------
    DataFrame
        Index ``sample``, in order of first appearance. Columns ``numerator`` (positive cells inside
        the denominator), ``denominator``, ``denominator_name``, ``n_outside`` (positive cells
        outside of the denominator, which the fraction leaves out), ``fraction``, ``ci_low``,
        ``ci_high``, ``lod`` and ``lloq`` (events to detect and to quantify / denominator),
        ``limit_of_blank`` (NaN if not given), ``detection``, ``adequacy``, ``adequacy_why`` ("" if
        reached), ``protocol`` (its name) and ``words``, the result as a sentence. ``detection`` is
        the first of these that is true:

        1. ``not tested``: ``tested`` is False. Cells are counted; the fraction and its interval
           are NaN, because nobody knows how far they could be relied on.
        2. ``no cells``: there is no cell in the denominator.
        3. ``members disagree``: the sample is ``uncertain``. The fraction may be wrong by a
           factor of two or more; it says neither how much disease there is nor that there is none.
        4. ``below LOD``: fewer cells are positive than the protocol's events to detect.
        5. ``within blank``: ``limit_of_blank`` is given and the fraction does not exceed it.
        6. ``detected, not quantifiable``: fewer are positive than its events to quantify.
        7. ``quantifiable``.

        ``adequacy`` is ``reached`` if neither ``lod`` nor the limit of blank exceeds the protocol's
        sensitivity and the denominator has its least number of events, else ``not reached``. Below
        LOD without adequacy nothing can be concluded, and ``words`` say so: 15 of 1,000 are "1.5 %
        ...: too few cells to quantify; lower bound above the cut-off 0.01 %". "No MRD detected
        above x" has the largest of ``lod``, ``ci_high`` and the limit of blank as x.

        With ``errors`` also ``ci_total_low`` and ``ci_total_high``
        (:meth:`ClassificationErrors.interval`), NaN where they are not estimable, and
        ``ci_total_why``, the reason.

        With ``flags`` also ``n_{flag}``, the flagged cells of the denominator, and
        ``n_positive_{flag}``, the flagged cells of the numerator.

        If the denominator is empty, ``fraction``, ``lod`` and ``lloq`` are NaN and the interval is
        (0, 1).

    Raises
    ------
    InvalidInputError
        The lengths differ or are 0, a value is missing or not boolean, ``denominator_name`` is
        empty, ``limit_of_blank`` is not between 0 and 1, ``confidence`` is not strictly between 0
        and 1, or there is no such protocol.

    References
    ----------
    Clopper, Pearson, Biometrika 26, 404-413 (1934). Sources of the limits: ``PROTOCOLS``.

    Examples
    --------
    >>> import numpy as np
    >>> from fcm_estimators.metrics import mrd_table
    >>> blast, intact = np.arange(500_000) < 60, np.ones(500_000, dtype=bool)
    >>> table = mrd_table(blast, denominator=intact, denominator_name="intact")
    >>> table[["numerator", "denominator", "fraction", "detection"]].to_dict("records")
    [{'numerator': 60, 'denominator': 500000, 'fraction': 0.00012, 'detection': 'quantifiable'}]
    >>> few = mrd_table(blast & (np.arange(500_000) < 3), denominator=intact, denominator_name="x")
    >>> few["words"].item()
    'No MRD detected above 0.004 % of cells in x (3 of 500,000). Protocol: 20/50 events.'
    """
    positive = boolean_per_cell(positive, "positive")
    inside = boolean_per_cell(denominator, "denominator", len(positive))
    if len(positive) == 0:
        raise InvalidInputError("positive is empty; expected at least one cell.")
    if not isinstance(denominator_name, str) or not denominator_name.strip():
        raise InvalidInputError(
            f"denominator_name is {denominator_name!r}; expected the name of the gate to "
            'which the fraction refers, such as "intact".'
        )
    sample, names = samples_of(groups, len(positive))
    k = np.bincount(sample[positive & inside], minlength=len(names))
    n = np.bincount(sample[inside], minlength=len(names))
    table = mrd_of_counts(
        pd.DataFrame({"numerator": k, "denominator": n}, index=names),
        denominator_name=denominator_name,
        limit_of_blank=limit_of_blank,
        uncertain=uncertain,
        tested=tested,
        protocol=protocol,
        errors=errors,
        confidence=confidence,
    )
    outside = np.bincount(sample[positive & ~inside], minlength=len(names))
    table.insert(3, "n_outside", outside)
    of_positive = flag_counts(flags, inside & positive, sample, len(names))
    for name, values in flag_counts(flags, inside, sample, len(names)).items():
        table[name] = values
        table[name.replace("n_", "n_positive_", 1)] = of_positive[name]
    return table


def mrd_of_counts(
    counts: pd.DataFrame,
    *,
    denominator_name: str,
    limit_of_blank: float | None = None,
    uncertain: Mapping[str, bool] | None = None,
    tested: bool = True,
    protocol: Protocol | str | os.PathLike[str] = DEFAULT_PROTOCOL,
    errors: ClassificationErrors | str | os.PathLike[str] | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Compute the table of :func:`mrd_table` from counts, such as those of pooled tubes.

    Parameters
    ----------
    counts : DataFrame of shape (S, 2 or more)
        A row per sample, with ``numerator`` and ``denominator``.
    denominator_name, limit_of_blank, uncertain, tested, protocol, errors, confidence
        As in :func:`mrd_table`.

    Returns
    -------
    DataFrame
        As of :func:`mrd_table`, without ``n_outside`` and flags.

    Raises
    ------
    InvalidInputError
        Counts are missing or impossible, or an argument is out of range.

    Examples
    --------
    >>> import pandas as pd
    >>> from fcm_estimators.metrics import mrd_of_counts
    >>> counts = pd.DataFrame({"numerator": [15], "denominator": [1000]}, index=["s"])
    >>> mrd_of_counts(counts, denominator_name="intact")[["detection", "adequacy"]].iloc[0].tolist()
    ['below LOD', 'not reached']
    """
    if not isinstance(protocol, Protocol):
        protocol = Protocol.read(protocol)
    blank = None if limit_of_blank is None else fraction_number(limit_of_blank, "limit_of_blank")
    if isinstance(errors, str | os.PathLike):
        errors = ClassificationErrors.read(errors)
    missing = {"numerator", "denominator"} - set(counts)
    if missing:
        raise InvalidInputError(f"The counts have no {sorted(missing)}.")
    k, n = (counts[name].to_numpy() for name in ("numerator", "denominator"))
    low, high = clopper_pearson(k, n, confidence)
    k, n = k.astype(np.int64), n.astype(np.int64)
    disputed = np.array([bool((uncertain or {}).get(str(name), False)) for name in counts.index])
    lod = per_event(protocol.events_to_detect, n)
    if tested:
        detection = _detection(k, n, blank, protocol, disputed)
    else:
        detection = np.full(len(k), "not tested", dtype=object)
    few = (n == 0) | (n < protocol.least_denominator)
    sensitivity = protocol.sensitivity
    too_high = blank is not None and sensitivity is not None and blank > sensitivity
    why = np.where(few, "too few cells", "").astype(object)
    if too_high:
        why += np.where(few, ", ", "").astype(object) + "limit of blank too high"
    adequacy = np.where(why == "", "reached", "not reached").astype(object)
    total = np.full((len(k), 2), np.nan)
    if errors is not None and tested:
        total[:] = [errors.interval(int(i), int(j), confidence) for i, j in zip(k, n, strict=True)]
    words = [
        in_words(
            *(int(k[i]), int(n[i])),
            (low[i], high[i]),
            (total[i, 0], total[i, 1]),
            detection=detection[i],
            adequacy=adequacy[i],
            gate=denominator_name,
            protocol=protocol,
            blank=blank,
            confidence=100 * confidence,
        )
        for i in range(len(k))
    ]
    table = pd.DataFrame(
        {
            "numerator": k,
            "denominator": n,
            "denominator_name": denominator_name,
            "fraction": per_event(k, n),
            "ci_low": low,
            "ci_high": high,
            "lod": lod,
            "lloq": per_event(protocol.events_to_quantify, n),
            "limit_of_blank": np.nan if blank is None else blank,
            "detection": detection,
            "adequacy": adequacy,
            "adequacy_why": why,
            "protocol": protocol.name,
            "words": words,
        },
        index=counts.index,
    )
    if errors is not None:
        table["ci_total_low"], table["ci_total_high"] = total.T
        table["ci_total_why"] = errors.why
    if not tested:
        table[["fraction", "ci_low", "ci_high"]] = np.nan
    return table


def _detection(
    k: np.ndarray, n: np.ndarray, blank: float | None, protocol: Protocol, disputed: np.ndarray
) -> np.ndarray:
    # The blank is a quotient of counts too, so equal fractions compare equal.
    within = np.zeros(len(k), dtype=bool) if blank is None else per_event(k, n) <= blank
    conditions = {
        "no cells": n == 0,
        "members disagree": disputed,
        "below LOD": k < protocol.events_to_detect,
        "within blank": within,
        "detected, not quantifiable": k < protocol.events_to_quantify,
    }
    found = np.select(list(conditions.values()), list(conditions), default="quantifiable")
    return found.astype(object)
