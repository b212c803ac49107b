"""How good a classifier is on patients that it was not trained on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd

from fcm_estimators._types import Entries
from fcm_estimators.metrics import classification_table, mrd_error

# With fewer patients, the figures say little about the next one.
FEW_PATIENTS = 5


@dataclass(frozen=True, eq=False)
class Performance:
    """Agreement with the labels of held-out patients.

    Every sample was judged by a net that was trained without its patient. The decision threshold
    was chosen with the same patients, so the figures are slightly too good.

    Attributes
    ----------
    n_patients : int
        Held-out patients. Each sample counts as a patient if the data name none.
    classes : DataFrame
        Index ``class``: ``n_patients`` and ``n_cells`` with the class; ``f1``, the mean over these
        patients; ``f1_lowest``, that of the worst patient.
    negatives : dict or None
        With a positive class: ``false_positives_per_million``, the mean over patients, and
        ``n_patients`` with negative cells.
    mrd : DataFrame or None
        With a positive class: error of the fraction of positive cells per order of magnitude, as
        :func:`~fcm_estimators.metrics.mrd_error`, over samples.
    """

    n_patients: int
    classes: pd.DataFrame
    negatives: dict[str, float] | None = None
    mrd: pd.DataFrame | None = None

    @classmethod
    def of(
        cls,
        truth: np.ndarray,
        predicted: np.ndarray,
        sample: np.ndarray,
        patient: np.ndarray,
        classes: Sequence[Hashable],
        pos_label: Hashable,
    ) -> Self:
        """Compare held-out predictions with labels.

        Parameters
        ----------
        truth, predicted : ndarray of shape (n,)
            Labels.
        sample, patient : ndarray of shape (n,)
        classes : sequence of label
        pos_label : label or None
        """
        labels = list(classes)
        table = classification_table(truth, predicted, groups=patient, labels=labels)
        per_class = {}
        for label in labels:
            present = pd.Series(truth == label).groupby(patient).sum()
            scores = table[f"f1_{label}"].loc[present[present > 0].index]
            per_class[label] = {
                "n_patients": len(scores),
                "n_cells": int(present.sum()),
                "f1": float(scores.mean()),
                "f1_lowest": float(scores.min()),
            }
        frame = pd.DataFrame(per_class).T.rename_axis("class")
        frame = frame.astype({"n_patients": int, "n_cells": int})
        n_patients = len(table)
        if pos_label is None:
            return cls(n_patients, frame)
        column = "false_positives_per_million"
        rates = classification_table(
            truth, predicted, groups=patient, labels=labels, pos_label=pos_label
        )[column].dropna()
        negatives = {column: float(rates.mean()), "n_patients": len(rates)}
        shares = [
            pd.Series(values == pos_label).groupby(sample).mean() for values in (truth, predicted)
        ]
        return cls(n_patients, frame, negatives, mrd_error(*shares))

    def entries(self) -> dict[str, str]:
        """The figures in words."""
        found = {}
        for label, row in self.classes.iterrows():
            n = int(row["n_patients"])
            if np.isnan(row["f1"]):
                found[f"F1 of {label}"] = "not known, no held-out patient has such cells"
                continue
            lowest = f", lowest {row['f1_lowest']:.3f}" if n > 1 else ""
            found[f"F1 of {label}"] = f"{row['f1']:.3f}, mean of {_patients(n)}{lowest}"
        if self.negatives is not None and self.negatives["n_patients"]:
            rate = self.negatives["false_positives_per_million"]
            who = _patients(int(self.negatives["n_patients"]))
            found["false positives per million"] = f"{rate:,.0f}, mean of {who}"
        for magnitude, row in (self.mrd if self.mrd is not None else pd.DataFrame()).iterrows():
            detected = f"{row['share_detected']:.0%} of {_samples(int(row['n_samples']))}"
            if magnitude == "0":
                found["true fraction 0"] = f"positive cells in {detected}"
                continue
            error = row["median_abs_log10_ratio"]
            factor = "" if np.isnan(error) else f", median error a factor of {10**error:.2g}"
            found[f"true fraction {magnitude}"] = f"detected in {detected}{factor}"
        return found

    def __str__(self) -> str:
        lines = [f"{name}: {value}" for name, value in self.entries().items()]
        return "\n".join([f"On {_patients(self.n_patients)} held out in turn:", *lines])

    def to_dict(self) -> Entries:
        """Lists and numbers, for the saved model."""
        return {
            "n_patients": self.n_patients,
            "classes": _to_lists(self.classes),
            "negatives": self.negatives,
            "mrd": None if self.mrd is None else _to_lists(self.mrd),
        }

    @classmethod
    def from_dict(cls, saved: Entries) -> Self:
        """Undo :meth:`to_dict`."""
        mrd = saved["mrd"]
        return cls(
            int(saved["n_patients"]),
            _from_lists(saved["classes"]),
            saved["negatives"],
            None if mrd is None else _from_lists(mrd),
        )


def _to_lists(table: pd.DataFrame) -> Entries:
    return {"name": table.index.name, "index": list(table.index), "columns": table.to_dict("list")}


def _from_lists(saved: Entries) -> pd.DataFrame:
    return pd.DataFrame(saved["columns"], pd.Index(saved["index"], name=saved["name"]))


def few_patients(n_patients: int) -> str:
    """What so few patients cannot tell."""
    unseen = (
        "there is nobody to hold out, so nothing is known about another patient"
        if n_patients == 1
        else "how much patients differ cannot be known from so few"
    )
    return (
        f"The training data are of {_patients(n_patients)}: {unseen}. Predictions for a new "
        f"patient may be wrong although nothing looks unusual. Train on {FEW_PATIENTS} or more, "
        "and check new patients by hand."
    )


def _patients(n: int) -> str:
    return f"{n} patient{'s' * (n != 1)}"


def _samples(n: int) -> str:
    return f"{n} sample{'s' * (n != 1)}"
