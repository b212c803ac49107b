"""What a report says in sentences: what speaks against the result, and what the model reads."""

from __future__ import annotations

import numpy as np

from fcm_estimators._cells.records import uncertain_samples, unusual_share, was_tested
from fcm_estimators._checks import listed
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.report._sample import Annotated
from fcm_estimators.report._tables import Residual, distance_frame, percent

# Below this number of patients the errors of a classifier are not estimated either.
_FEW_TESTED = 10
# Share of the positive cells from which odd cells among them are told.
_MANY_POSITIVE = 0.1


def review(sample: Annotated, residual: Residual | None) -> str:
    """What speaks against the result, in a sentence; empty if nothing is known to.

    Raises
    ------
    InvalidInputError
        The run record is damaged.
    """
    found = [
        *_of_model(sample),
        *_of_cells(sample),
        *([] if residual is None else _of_result(sample, residual)),
    ]
    return f"Review before use: {'; '.join(found)}." if found else ""


def _of_model(sample: Annotated) -> list[str]:
    missing = [str(marker) for marker in sample.run.get("missing_markers", ())]
    found = [f"the data lack {listed(missing)}"] if missing else []
    if not sample.has_classes:
        return found
    n_tested = _number(sample, "n_patients_tested")
    if not was_tested(sample.run):
        found.append("the model was not tested without these markers")
    elif np.isnan(n_tested):
        found.append("how many patients the model was tested on is not recorded")
    elif n_tested == 0:
        found.append("the model was not tested on any patient")
    elif n_tested < _FEW_TESTED:
        found.append(f"tested on {counted(int(n_tested), 'patient')}")
    if uncertain_samples(sample.run).get(sample.name, False):
        found.append("the members of the model disagree")
    return found


def _of_cells(sample: Annotated) -> list[str]:
    found = []
    unknown, n_analysed = sample.unknown, int(sample.analysed.sum())
    if unknown is not None and n_analysed:
        share = (unknown & sample.analysed).sum() / n_analysed
        usual = float(np.nan_to_num(_number(sample, "unknown_usual")))
        if share > unusual_share(usual):
            found.append(f"{percent(share)} of cells resemble no training population")
    distance = distance_frame(sample)
    far = [] if distance is None else [str(m) for m in distance["marker"][distance["far"]]]
    if far:
        are = "is" if len(far) == 1 else "are"
        markers = counted(len(far), "marker")
        found.append(f"{markers} {are} far from training: {listed(far, 5)}")
    return found


def _of_result(sample: Annotated, residual: Residual) -> list[str]:
    found = []
    gate, n_unclear = residual.gate, residual.n_unclear
    if gate is None:
        found.append("no denominator gate was named, so all analysed cells are counted")
    elif not residual.drawn:
        found.append(f"the denominator gate {gate} is predicted, not drawn")
    if n_unclear:
        found.append(
            f"the gate {gate} is missing for {counted(n_unclear, 'cell')}, counted as outside"
        )
    n_positive = int(residual.called.sum())
    flagged = sample.adata.obs[sample.quality].any(axis=1).to_numpy(dtype=bool)
    unknown = np.zeros_like(flagged) if sample.unknown is None else sample.unknown
    for odd, what in (
        (flagged, "flagged by quality control"),
        (unknown, "unlike any in training"),
    ):
        n_odd = int((odd & residual.called).sum())
        if n_odd and n_odd >= _MANY_POSITIVE * n_positive:
            are = "is" if n_odd == 1 else "are"
            found.append(f"{n_odd:,} of {counted(n_positive, 'positive cell')} {are} {what}")
    return found


def responds_most(sample: Annotated) -> str:
    """The two markers to which the model's output responds most; empty without gradients.

    The mean absolute gradient per SD of the marker is compared, over positive cells if there are
    any, else over all.
    """
    keys = sample.keys.gradient
    if keys.values not in sample.adata.layers or keys.record not in sample.adata.uns:
        return ""
    run = sample.record(keys.record)
    markers = [str(m) for m in run.get("markers", ()) if str(m) in sample.adata.var_names]
    values = np.abs(sample.adata[:, markers].layers[keys.values])
    rows = np.isfinite(values).all(axis=1)
    if sample.positive_class is not None:
        positive = rows & (sample.predicted == sample.positive_class).to_numpy()
        rows = positive if positive.any() else rows
    if not rows.any():
        return ""
    size = np.asarray(values[rows], dtype=np.float64).mean(axis=0)
    # Integrated gradients are contributions already, not per unit of the marker.
    if run.get("units") != "sd" and run.get("method") != "integrated":
        size = size * [sample.values(m)[sample.analysed].std() for m in markers]
    first = [markers[i] for i in np.argsort(-size, kind="stable")[:2] if size[i] > 0]
    if not first:
        return ""
    return (
        f"The model's output responds most to {' and '.join(first)}. This describes the model, "
        "not the disease."
    )


def _number(sample: Annotated, name: str) -> float:
    """A number of the run record, NaN if it is not there."""
    try:
        return float(sample.run.get(name, np.nan))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"The run record's {name!r} is damaged ({error}). Annotate the file again."
        ) from error


def counted(n: int, what: str) -> str:
    """A number of things, in the singular or plural."""
    return f"{n:,} {what}{'s' * (n != 1)}"
