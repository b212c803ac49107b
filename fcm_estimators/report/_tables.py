"""Tables of a report: counts, residual disease, quality, distance from training, summaries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fcm_estimators._cells.records import (
    members_table,
    shares_against,
    shares_table,
    uncertain_samples,
    was_tested,
)
from fcm_estimators._checks import gate_called, listed
from fcm_estimators._types import Entries
from fcm_estimators.exceptions import FcmError, InvalidInputError, MissingKeyError
from fcm_estimators.keys import NOT_ANALYSED, QualityKeys
from fcm_estimators.metrics import (
    ClassificationErrors,
    Protocol,
    classification_table,
    gate_agreement,
    mrd_table,
)
from fcm_estimators.quality import flag_quality, quality_table
from fcm_estimators.report._sample import Annotated, json_table

_CHECKS = {
    "time": "unsteady acquisition (gaps, drift, or time that runs backwards)",
    "margin": "at the end of a detector's range",
    "doublet": "doublet by forward scatter",
    "dead": "stained as dead",
    "any": "at least one of these flags",
}


_OUTSIDE = ("below", "above")


@dataclass(frozen=True)
class Table:
    """A table of text."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Residual:
    """Residual disease of a sample.

    Attributes
    ----------
    words : str
        The result as a sentence.
    entries : dict of str to str
        The table.
    called : ndarray of bool of shape (n_cells,)
        Positive cells inside the denominator.
    inside : ndarray of bool of shape (n_cells,)
        Cells of the denominator.
    gate : str or None
        Denominator; None for all analysed cells.
    drawn : bool
        Whether the gate is the expert's.
    n_unclear : int
        Cells of which the gate does not say whether they are inside. They count as outside.
    total : tuple of float or None
        Ends of the interval with wrongly classified cells, NaN if it is not estimable; None if the
        errors of the model were not given.
    """

    words: str
    entries: dict[str, str]
    called: np.ndarray
    inside: np.ndarray
    gate: str | None
    drawn: bool
    n_unclear: int
    total: tuple[float, float] | None = None


def percent(value: float, n_digits: int = 3) -> str:
    """A fraction in percent, with so many digits; "not known" for NaN."""
    if np.isnan(value):
        return "not known"
    digits = np.format_float_positional(100 * value, precision=n_digits, fractional=False, trim="-")
    return f"{digits} %"


def residual_disease(
    sample: Annotated,
    denominator: str | None,
    limit_of_blank: float | None,
    protocol: Protocol,
    errors: ClassificationErrors | None,
) -> Residual | None:
    """Residual disease of the sample; None without a positive class.

    Raises
    ------
    InvalidInputError
        ``errors`` are those of another model.
    MissingKeyError
        ``denominator`` is not the name of a gate.
    """
    positive = sample.positive_class
    if positive is None:
        return None
    annotated_by = str(sample.run.get("model_sha256", ""))
    if errors is not None and errors.model not in ("", annotated_by) and annotated_by:
        raise InvalidInputError("errors=... are those of another model than annotated the sample.")
    inside, name, source = sample.analysed, "analysed cells", ""
    if denominator is not None:
        keys = (sample.keys.expert_gates, sample.keys.gates.membership)
        tables = {k: t for k in keys if (t := sample.membership(k)) is not None}
        known = list(dict.fromkeys(str(c) for t in tables.values() for c in t))
        denominator = gate_called(denominator, known)
        found = [k for k, t in tables.items() if denominator in t]
        if not found:
            raise MissingKeyError(
                f"denominator={denominator!r} is not among the gates {listed(known)}. Name one of "
                "them, or leave it out to use all analysed cells."
            )
        source = found[0]
        inside, name = tables[source][denominator].to_numpy(), denominator
    called = (sample.predicted == positive).to_numpy()
    row = mrd_table(
        called,
        denominator=inside,
        denominator_name=name,
        limit_of_blank=limit_of_blank,
        uncertain={"all": uncertain_samples(sample.run).get(sample.name, False)},
        tested=was_tested(sample.run),
        protocol=protocol,
        errors=errors,
    ).iloc[0]
    entries = {
        "positive class": positive,
        "positive cells": f"{row['numerator']:,}",
        "denominator": f"{row['denominator']:,} {row['denominator_name']}",
        "fraction": percent(row["fraction"], 2),
        "95 % interval (counting error only)": (
            f"{percent(row['ci_low'], 2)} to {percent(row['ci_high'], 2)}"
        ),
        **({} if errors is None else {"95 % interval with wrongly classified cells": _total(row)}),
        f"LOD ({protocol.events_to_detect} events)": percent(row["lod"], 2),
        f"LLOQ ({protocol.events_to_quantify} events)": percent(row["lloq"], 2),
        "positive outside of the denominator": f"{row['n_outside']:,}",
        "status": str(row["detection"]),
        "sensitivity asked for": _adequacy(protocol, row),
        "protocol": " ".join(t for t in (f"{protocol.name}.", protocol.source) if t),
    }
    missing = [str(marker) for marker in sample.run.get("missing_markers", ())]
    if missing:
        entries["markers that the data lack"] = listed(missing)
    if not was_tested(sample.run):
        entries["why there is no result"] = (
            "The model was not tested without these markers, so nobody knows how far the fraction "
            "can be relied on."
        )
    entries |= _members_entries(sample)
    if limit_of_blank is not None:
        entries["limit of blank"] = percent(limit_of_blank, 2)
    for flag in sample.quality:
        flagged = sample.adata.obs[flag].to_numpy(dtype=bool) & called & inside
        entries[f"positive cells flagged {flag.removeprefix('qc_')}"] = f"{flagged.sum():,}"
    return Residual(
        words=str(row["words"]),
        entries=entries,
        called=called & inside,
        inside=inside,
        gate=denominator,
        drawn=source == sample.keys.expert_gates,
        n_unclear=sample.n_unclear(source, name) if source else 0,
        total=None if errors is None else (row["ci_total_low"], row["ci_total_high"]),
    )


def _total(row: pd.Series) -> str:
    if np.isnan(row["ci_total_low"]):
        return f"not estimable ({row['ci_total_why'] or 'no result'})"
    return f"{percent(row['ci_total_low'], 2)} to {percent(row['ci_total_high'], 2)}"


def _adequacy(protocol: Protocol, row: pd.Series) -> str:
    least = protocol.least_denominator
    asked = [] if protocol.sensitivity is None else [percent(protocol.sensitivity, 2)]
    asked.append(f"{least:,} cells in the denominator")
    why = f", {row['adequacy_why']}" if row["adequacy_why"] else ""
    return f"{row['adequacy']}{why} (asked for: {', '.join(asked)})"


def _members_entries(sample: Annotated) -> dict[str, str]:
    """What the members say of the share of positive cells among all analysed cells."""
    table = members_table(sample.run)
    table = table[table["sample"] == sample.name]
    if table.empty:
        return {"members": "none: how sure the model is of this sample is not known"}
    row = table.iloc[0]
    entries = {
        "share of all analysed cells, by the members": (
            f"{percent(row['lowest'], 2)} to {percent(row['highest'], 2)}; possible "
            f"{percent(row['possible'], 2)}"
        )
    }
    if row["uncertain"]:
        entries["why this is not quantifiable"] = (
            "The members of the model, each trained without some patients, do not agree. This "
            "patient may be unlike those of the training. Check the sample by hand."
        )
    return entries


def class_counts(sample: Annotated) -> Table | None:
    """Cells and flagged cells per class, with the expert's counts and F1 if there are labels."""
    if not sample.has_classes:
        return None
    predicted, n_analysed = sample.predicted, int(sample.analysed.sum())
    flagged = sample.adata.obs[sample.quality].any(axis=1).to_numpy()
    expert = sample.expert_labels
    columns = ["class", "cells", "share of analysed"]
    unknown = sample.unknown
    columns += ["unlike any in training"] if unknown is not None else []
    composition = _composition(sample)
    columns += ["in the training samples"] if composition else []
    columns += ["flagged by quality control"] if sample.quality else []
    columns += ["expert's count", "F1"] if expert is not None else []
    scores = {} if expert is None else _scores(sample, expert)
    rows = []
    # A class without a cell may not be among the categories.
    for name in dict.fromkeys([*composition, *predicted.cat.categories]):
        inside = (predicted == name).to_numpy()
        row = [name, f"{inside.sum():,}"]
        if name == NOT_ANALYSED or not n_analysed:
            row.append("")
        else:
            row.append(percent(inside.sum() / n_analysed))
        if unknown is not None:
            row.append(f"{(unknown & inside).sum():,}")
        if composition:
            row.append(composition.get(name, ""))
        if sample.quality:
            row.append(f"{(flagged & inside).sum():,}")
        if expert is not None:
            known = (expert.astype(str) == name).to_numpy() & sample.analysed
            row += [f"{known.sum():,}", scores.get(name, "")]
        rows.append(row)
    missing = [str(marker) for marker in sample.run.get("missing_markers", ())]
    note = f"The data lack {listed(missing)}; the model does without. " if missing else ""
    if composition:
        left_out = f"without {sample.positive_class}, " if sample.positive_class else ""
        note += (
            "For the training samples, the smallest and the largest share by their labels, "
            f"{left_out}is shown. A share outside of these is a reason to look, not a finding: "
            "sampling, haemodilution and therapy change it too. "
        )
    if expert is not None:
        note += (
            "The file contains the expert's labels. If the model was trained on them, the F1 says "
            "nothing about other samples."
        )
    return Table("classes", "Cells by class", columns, rows, note)


def _composition(sample: Annotated) -> dict[str, str]:
    """Range of each class in the training samples, and whether the share here is outside."""
    limits = shares_table(sample.run)
    if limits is None:
        return {}
    found = sample.predicted.astype(str)[sample.analysed].value_counts()
    counts = found.reindex(limits.index, fill_value=0).to_frame(sample.name).T
    return {
        str(row["population"]): f"{percent(row['low'])} to {percent(row['high'])}"
        + (f"; here {percent(row['share'])}, {row['state']}" if row["state"] in _OUTSIDE else "")
        for row in shares_against(counts, limits).to_dict("records")
    }


def _scores(sample: Annotated, expert: pd.Series) -> dict[str, str]:
    """F1 of each class."""
    truth = expert.where(sample.analysed, None).map(lambda v: None if v is None else str(v))
    row = classification_table(truth, sample.predicted.astype(str)).iloc[0].filter(like="f1_")
    return {str(k).removeprefix("f1_"): f"{v:.3g}" for k, v in row.dropna().items()}


def quality(sample: Annotated) -> Table:
    """Flags of quality control; if the file has none, they are computed now."""
    adata = sample.adata
    if not sample.quality:
        adata = adata.copy()
        try:
            flag_quality(adata, sample_key=None)
        except FcmError as error:
            return Table("quality", "Quality control", [], [], f"Not judged: {error}")
    row = quality_table(adata, sample_key=None).iloc[0]
    rows = []
    for check, meaning in _CHECKS.items():
        count = row[f"n_{QualityKeys().flag(check)}"]
        known = not pd.isna(count)
        share = percent(int(count) / adata.n_obs) if known else ""
        rows.append([check, meaning, f"{count:,}" if known else "could not be judged", share])
    return Table(
        "quality",
        "Quality control",
        ["flag", "meaning", "cells", "share"],
        rows,
        "Flagged cells are counted and classified like all other cells; none are removed.",
    )


def distance_frame(sample: Annotated) -> pd.DataFrame | None:
    """Distance of each marker from training, the farthest first; None if it was not measured."""
    found = sample.run.get("distance")
    if found is None:
        return None
    try:
        names = ("sample", "marker", "distance", "farthest_training", "far")
        table = pd.DataFrame({k: np.asarray(found[k]) for k in names})
        table = table.astype({"distance": float, "farthest_training": float, "far": bool})
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InvalidInputError(
            f"The run record's 'distance' is damaged ({error}). Annotate the file again."
        ) from error
    if table["sample"].nunique() > 1:
        table = table[table["sample"].astype(str) == sample.name]
    return None if table.empty else table.sort_values("distance", ascending=False)


def distances(sample: Annotated) -> Table | None:
    """Distance of the sample from the training samples, per marker."""
    table = distance_frame(sample)
    if table is None:
        return None
    rows = [
        [
            str(r["marker"]),
            f"{r['distance']:.2f} SD",
            f"{r['farthest_training']:.2f} SD",
            _judged(r["distance"], r["farthest_training"], r["far"]),
        ]
        for r in table.to_dict("records")
    ]
    n_far = int(table["far"].sum())
    note = (
        f"{n_far} of {len(table)} markers are more than 1.5 times as far from the training samples "
        "as the farthest of these is from the others. Predictions may be wrong: look at the "
        "pictures."
        if n_far
        else "Tested is whether the distance of any marker exceeds 1.5 times the largest distance "
        "among the training samples; none does. Smaller differences between patients are not "
        "found in this way, and this does not prove that the predictions are right."
    )
    return Table(
        "distance",
        "Distance from the training samples",
        ["marker", "mean distance of the quantiles", "farthest training sample", "judged"],
        rows,
        note,
    )


def _judged(distance: float, farthest: float, far: bool) -> str:
    if far:
        return "far"
    return "beyond every training sample" if distance > farthest else "within the training samples"


def agreement(sample: Annotated) -> Table | None:
    """Predicted gates against the expert's; without the expert's gates, only counts."""
    truth, predicted = sample.expert_membership, sample.predicted_membership
    if predicted is None:
        return None
    if truth is None or not set(truth) & set(predicted):
        rows = [[str(g), f"{predicted[g].sum():,}"] for g in predicted]
        return Table("gates", "Cells inside the predicted gates", ["gate", "cells"], rows)
    table = gate_agreement(truth, predicted)
    rows = [
        [
            str(r["gate"]),
            f"{int(r['n_true']):,}",
            f"{int(r['n_predicted']):,}",
            *("" if np.isnan(r[c]) else f"{r[c]:.3g}" for c in ("precision", "recall", "f1")),
        ]
        for r in table.to_dict("records")
    ]
    return Table(
        "gates",
        "Predicted gates against the expert's",
        ["gate", "expert's cells", "predicted cells", "precision", "recall", "F1"],
        rows,
    )


def gradients(sample: Annotated) -> pd.DataFrame | None:
    """Mean signed gradients per class and marker, as :func:`explainers.gradient_summary`."""
    from explainers import gradient_summary

    keys = sample.keys.gradient
    if keys.values not in sample.adata.layers or keys.record not in sample.adata.uns:
        return None
    population = sample.keys.classes.label if sample.has_classes else None
    table = gradient_summary(sample.adata, population, key=keys.key, n_bootstrap=200)
    return None if table.empty else table


def attention(sample: Annotated) -> pd.DataFrame | None:
    """Mean received attention per class and head; 1 is uniform."""
    found = received_attention(sample)
    if found is None:
        return None
    labels = sample.predicted if sample.has_classes else np.full(sample.adata.n_obs, "all cells")
    table = found.groupby(np.asarray(labels).astype(str)).mean()
    return table.dropna(how="all")


def gradient_table(summary: pd.DataFrame, unit: str) -> Table:
    """Gradients as a table of text."""
    rows = [
        [
            str(r["population"]),
            str(r["marker"]),
            f"{r['mean']:.3g}",
            f"{r['ci_low']:.3g} to {r['ci_high']:.3g}",
            percent(r["share_strongest"]),
            f"{r['n_cells']:,}",
        ]
        for r in summary.to_dict("records")
    ]
    columns = ["class", "marker", f"mean gradient {unit}", "95 % interval", "strongest in", "cells"]
    return Table(
        "gradients",
        "Gradients as a table",
        columns,
        rows,
        "The intervals come from resampling the cells of this one sample. Differences between "
        "patients are not in them.",
    )


def attention_table(received: pd.DataFrame) -> Table:
    """Received attention as a table of text."""
    rows = [[str(i), *(f"{v:.3g}" for v in row)] for i, row in received.iterrows()]
    return Table(
        "attention",
        "Received attention as a table",
        ["class", *(str(c) for c in received)],
        rows,
        "Mean over the cells of a class. If a head looked at all cells equally, every cell would "
        "receive 1.",
    )


def received_attention(sample: Annotated) -> pd.DataFrame | None:
    """Received attention of each cell: a column per head of a layer, or the mean of all."""
    keys = sample.keys.attention
    layer = sample.record(keys.record).get("net_layer")
    if layer is None:
        found = sample.adata.obs.get(keys.mean)
        return None if found is None else pd.DataFrame({"all layers and heads": found})
    table = sample.adata.obsm.get(keys.received(layer))
    return None if table is None else pd.DataFrame(table)


def model_cards(sample: Annotated) -> dict[str, dict[str, dict[str, str]]]:
    """Cards of the models that annotated the sample."""
    found: Entries = {}
    for key in (sample.keys.classes.record, sample.keys.gates.record):
        text = sample.record(key).get("cards")
        if text is None:
            continue
        for name, sections in json_table(text, "cards").items():
            if isinstance(sections, dict) and all(isinstance(e, dict) for e in sections.values()):
                found[f"{name}, {key}"] = sections
    return found
