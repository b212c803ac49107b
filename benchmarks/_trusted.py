"""What the tables of trust share: data, preprocessing, scores."""

from __future__ import annotations

import warnings
from functools import cache, partial

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

from fcm_estimators import ReluFormerClassifier
from fcm_estimators.datasets import fetch_multicenter_cytof
from fcm_estimators.metrics import classification_table
from fcm_estimators.preprocessing import (
    ArcsinhTransform,
    Compensation,
    LinearTransform,
    LogicleTransform,
)

NAMED = ["B", "CD4 T", "CD8 T", "monocyte"]
KEYS = {"sample_key": "sample", "label_key": "cell_type"}
PREPARE = (Compensation(), LogicleTransform(), LinearTransform())


@cache
def cytof():
    """The 16 CyTOF samples; ``obs["number"]`` is that of the sample."""
    data = ArcsinhTransform(cofactor=5.0).fit_transform(fetch_multicenter_cytof())
    data.obs["number"] = data.obs["sample"].astype(str).str.removeprefix("sample").astype(int)
    return data


@cache
def trained_on(source):
    """A default model of one CyTOF batch, that batch, and the other one."""
    train, test = (
        cytof()[(cytof().obs["batch"] == source).to_numpy() == same].copy() for same in (1, 0)
    )
    return quietly(ReluFormerClassifier(**KEYS).fit, train), train, test


def samples_of(data, numbers):
    """Some of the CyTOF samples."""
    return data[data.obs["number"].isin(list(numbers)).to_numpy()].copy()


def quietly(function, *arguments, **options):
    """Call without warnings: the tables show what they say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **options)


def show(table, title):
    """Print a table."""
    print(f"\n{title}\n{table.to_string(float_format='{:.4f}'.format)}", flush=True)


def macro(data, predicted, labels=None):
    """Macro-F1, mean over samples."""
    truth = data.obs["cell_type"].astype(str).to_numpy()
    labels = labels or sorted(set(truth))
    known = np.isin(truth, labels)
    sample = data.obs["sample"].astype(str).to_numpy()
    score = partial(f1_score, labels=labels, average="macro", zero_division=0)
    return np.mean(
        [score(truth[rows], predicted[rows]) for s in pd.unique(sample)
         for rows in [(sample == s) & known]]
    )  # fmt: skip


def blast_f1(data, predicted, by="patient"):
    """F1 of the blasts, mean over patients who have some."""
    table = classification_table(
        data.obs["cell_type"], predicted, groups=data.obs[by], pos_label="blast"
    )
    return table["f1"].mean()
