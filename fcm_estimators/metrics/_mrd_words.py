"""Results of residual disease in words, which never say "negative" alone."""

from __future__ import annotations

import numpy as np

from fcm_estimators.metrics._protocol import Protocol


def in_percent(value: float) -> str:
    """A fraction in percent with two digits; "not known" for NaN.

    Examples
    --------
    >>> from fcm_estimators.metrics._mrd_words import in_percent
    >>> in_percent(4e-5), in_percent(0.015), in_percent(1e-7), in_percent(1.0)
    ('0.004 %', '1.5 %', '0.00001 %', '100 %')
    """
    if np.isnan(value):
        return "not known"
    digits = np.format_float_positional(100 * value, precision=2, fractional=False, trim="-")
    return f"{digits} %"


def interval_in_percent(low: float, high: float) -> str:
    """Both ends of an interval in percent.

    Examples
    --------
    >>> from fcm_estimators.metrics._mrd_words import interval_in_percent
    >>> interval_in_percent(4e-5, 0.015)
    '0.004-1.5 %'
    """
    return f"{in_percent(low).removesuffix(' %')}-{in_percent(high)}"


def in_words(
    k: int,
    n: int,
    interval: tuple[float, float],
    total: tuple[float, float],
    *,
    detection: str,
    adequacy: str,
    gate: str,
    protocol: Protocol,
    blank: float | None,
    confidence: float,
) -> str:
    """One sample's result as a sentence, with value, denominator, interval and protocol.

    Parameters
    ----------
    k, n : int
        Positive cells and cells of the denominator.
    interval : tuple of float
        Ends of the counting interval.
    total : tuple of float
        Ends of the interval that knows classification errors; NaN if there is none.
    detection, adequacy : str
        As in :func:`~fcm_estimators.metrics.mrd_table`.
    gate : str
        Name of the denominator.
    protocol : Protocol
    blank : float or None
        Limit of blank.
    confidence : float
        Level of the interval.
    """
    end = f" Protocol: {protocol.name}."
    counted = f"{k:,} of {n:,}"
    if detection == "no cells":
        return f"No cell in the denominator {gate}; nothing can be said.{end}"
    if detection == "not tested":
        return f"No result: the model was not tested with these markers ({counted} called).{end}"
    low, high = interval
    of = _denominator(gate, protocol)
    share = in_percent(k / n)
    whole = (
        f"{counted}; {confidence:.3g} % interval {interval_in_percent(low, high)}, counting only"
    )
    if not np.isnan(total[0]):
        whole += f"; {interval_in_percent(*total)} with wrongly classified cells"
    missed = " The sensitivity asked for was not reached." if adequacy == "not reached" else ""
    passed = [c for c in protocol.cut_offs if low > c]
    above = f"; lower bound above the cut-off {in_percent(max(passed))}" if passed else ""
    if detection == "members disagree":
        why = "the members of the model disagree"
        return f"No reliable result: {why} ({counted} called).{missed}{end}"
    if detection == "within blank":
        found = f"{share} of {of} ({whole})"
        limit = in_percent(float("nan") if blank is None else blank)
        return f"{found}: within the limit of blank, {limit}.{missed}{end}"
    if detection == "quantifiable":
        return f"MRD {share} of {of} ({whole}). Quantifiable.{end}"
    if detection == "detected, not quantifiable":
        return f"MRD detected, {share} of {of} ({whole}): too few cells to quantify{above}.{end}"
    if passed or (k > 0 and n < protocol.least_denominator):
        # Cells were found, and too few were measured to say that there is nothing.
        return f"{share} of {of} ({whole}): too few cells to quantify{above}.{missed}{end}"
    by_counting = float(np.nanmax([protocol.events_to_detect / n, high, total[1]]))
    shown = in_percent(by_counting)
    if blank is not None and blank > by_counting:
        shown = f"the limit of blank, {in_percent(blank)}"
    return f"No MRD detected above {shown} of {of} ({counted}).{missed}{end}"


def _denominator(gate: str, protocol: Protocol) -> str:
    if not protocol.denominator:
        return gate if gate.endswith("cells") else f"cells in {gate}"
    return protocol.denominator + ("" if gate == protocol.denominator else f" ({gate})")
