"""Few labelled samples, few patients, or fewer markers."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from _rivals import Boosting, Induced, PerCell, Trained, all_three, codes_of, raw, read
from _trusted import KEYS, NAMED, PREPARE, blast_f1, cytof, macro, quietly, samples_of, show
from sklearn.pipeline import make_pipeline

from fcm_estimators import ReluFormerClassifier
from fcm_estimators._base.panels import hideable
from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.metrics import classification_table

# -- one labelled sample --------------------------------------------------------------------------


def one(numbers=(1, 4, 9, 12), seed=0):
    """A single labelled CyTOF sample: macro-F1 on all others."""
    rows = []
    for number in numbers:
        train = samples_of(cytof(), [number])
        clf = ReluFormerClassifier(**KEYS, n_members=0, max_epochs=25, random_state=seed)
        quietly(clf.fit, train)
        samples = read(train)
        codes = codes_of(train, samples, clf.classes_)
        rivals = {
            "LightGBM, all three, distorted": Boosting(all_three, True, seed),
            "per-cell net, distorted": Trained(PerCell, True, seed),
            "set transformer, distorted": Trained(Induced, True, seed),
        }
        for rival in rivals.values():
            rival.fit(samples, codes)
        batches = {"same": range(1, 9), "other": range(9, 17)}
        if number > 8:
            batches = {"same": range(9, 17), "other": range(1, 9)}
        for batch, chosen in batches.items():
            test = samples_of(cytof(), [n for n in chosen if n != number])
            predicted = {"ReluFormer": clf.predict(test)}
            for name, rival in rivals.items():
                predicted[name] = clf.classes_[rival.logits(read(test)).argmax(1)]
            truth = test.obs["cell_type"].astype(str).to_numpy()
            for model, found in predicted.items():
                rows.append(
                    {
                        "model": model,
                        "sample": number,
                        "batch": batch,
                        "macro_f1": macro(test, found),
                        "named": macro(test, found, NAMED),
                        "concordance": (truth == found).mean(),
                    }
                )
    table = pd.DataFrame(rows)
    show(table.set_index(["model", "sample", "batch"]), "One labelled sample")
    numbers = ["macro_f1", "named", "concordance"]
    show(table.groupby(["model", "batch"])[numbers].mean(), "Mean over the samples")


# -- few samples that differ much -----------------------------------------------------------------


def few(seeds=(0,)):
    """Six training samples that differ much: three of each CyTOF batch, or of strong shift."""
    blood = [
        samples_of(cytof(), n) for n in ((1, 2, 3, 9, 10, 11), (4, 5, 6, 7, 8, *range(12, 17)))
    ]
    marrow = make_pipeline(*PREPARE).fit_transform(
        simulate_cohort(
            24, 10_000, n_patients=24, blast_fraction=(0.5, 0.1, 0.02) * 8, shift=3, random_state=15
        )
    )
    first = marrow.obs["sample"].isin(pd.unique(marrow.obs["sample"])[:6]).to_numpy()
    halves = [marrow[first].copy(), marrow[~first].copy()]
    rows = []
    for seed in seeds:
        for name, (train, test), score in (
            ("CyTOF, macro-F1", blood, macro),
            ("simulated, F1 of blasts", halves, partial(blast_f1, by="sample")),
        ):
            found = _found(train, test, seed)
            scores = {model: score(test, labels) for model, labels in found.items()}
            show(pd.Series(scores, name=name), f"{name}, seed {seed}")
            rows.append({"data": name, **scores})
    show(pd.DataFrame(rows).groupby("data", sort=False).mean().T, "Mean over seeds")


def _found(train, test, seed):
    """Labels by each model."""
    clf = ReluFormerClassifier(**KEYS, n_members=0, validation_fraction=None, random_state=seed)
    found = {"ReluFormer": quietly(clf.fit, train).predict(test)}
    rivals = {
        "LightGBM": Boosting(raw, False, seed),
        "LightGBM, distorted": Boosting(raw, True, seed),
        "LightGBM, all three, distorted": Boosting(all_three, True, seed),
        "per-cell net, distorted": Trained(PerCell, True, seed),
        "set transformer, distorted": Trained(Induced, True, seed),
    }
    samples, new = read(train, None, clf.markers_), read(test, None, clf.markers_)
    codes = codes_of(train, samples, clf.classes_)
    for name, rival in rivals.items():
        labels = np.empty(test.n_obs, dtype=object)
        labels[new.rows] = clf.classes_[rival.fit(samples, codes).logits(new).argmax(1)]
        found[name] = labels
    return found


# -- how many patients ----------------------------------------------------------------------------


def patients():
    """Training patients against F1 on 16 unseen ones."""
    cohort = make_pipeline(*PREPARE).fit_transform(
        simulate_cohort(n_samples=4 * 48, n_cells=4_000, random_state=12)
    )
    names = list(pd.unique(cohort.obs["patient"]))
    test = cohort[cohort.obs["patient"].isin(names[:16]).to_numpy()].copy()
    rows = []
    for n in (2, 4, 8, 16, 32):
        train = cohort[cohort.obs["patient"].isin(names[16 : 16 + n]).to_numpy()].copy()
        clf = ReluFormerClassifier(**KEYS, patient_key="patient", pos_label="blast", n_members=0)
        quietly(clf.fit, train)
        table = classification_table(
            test.obs["cell_type"], clf.predict(test), groups=test.obs["patient"], pos_label="blast"
        )
        rows.append(
            {
                "patients": n,
                "median f1": table["f1"].median(),
                "lowest f1": table["f1"].min(),
                "recall below .5": (table["recall"] < 0.5).mean(),
            }
        )
    show(pd.DataFrame(rows).set_index("patients"), "Unseen patients by number of training patients")


# -- a marker that is missing ---------------------------------------------------------------------


def panels(seeds=(0, 1, 2)):
    """Unseen simulated patients without a marker; 20 epochs, no members."""
    cohort = make_pipeline(*PREPARE).fit_transform(
        simulate_cohort(n_samples=80, n_cells=4_000, random_state=14)
    )
    names = list(pd.unique(cohort.obs["patient"]))
    is_train = cohort.obs["patient"].isin(names[:10]).to_numpy()
    train, test = cohort[is_train].copy(), cohort[~is_train].copy()
    options = {**KEYS, "patient_key": "patient", "pos_label": "blast"}
    options |= {"n_members": 0, "max_epochs": 20, "validation_fraction": None}
    rows, whole = [], []
    for seed in seeds:
        plain = ReluFormerClassifier(**options, random_state=seed)
        able = ReluFormerClassifier(**options, missing_markers="mask", random_state=seed)
        for model in (plain, able):
            quietly(model.fit, train)
        markers = able.markers_
        samples = read(train, "patient", markers)
        trees = Boosting(raw, False, seed, tuple(hideable(markers)))
        trees.fit(samples, codes_of(train, samples, ["other", "blast"]))
        found = {
            "ReluFormer": blast_f1(test, plain.predict(test)),
            "ReluFormer that can do without": blast_f1(test, able.predict(test)),
            "LightGBM with NaN": blast_f1(test, _boosted(trees, test, markers)),
        }
        whole.append({"seed": seed, **found})
        for marker in (markers[i] for i in hideable(markers)):
            less = test[:, [name for name in test.var_names if name != marker]].copy()
            row = {
                "missing": marker,
                "seed": seed,
                "ReluFormer that can do without": blast_f1(test, quietly(able.predict, less)),
                "LightGBM with NaN": blast_f1(test, _boosted(trees, test, markers, marker)),
            }
            if seed == seeds[0]:
                other = train[:, less.var_names].copy()
                again = quietly(ReluFormerClassifier(**options, random_state=seed).fit, other)
                row["ReluFormer trained without"] = blast_f1(test, again.predict(less))
            rows.append(row)
    show(pd.DataFrame(whole).set_index("seed"), "The whole panel: F1 of blasts, mean over patients")
    table = pd.DataFrame(rows).groupby("missing", sort=False).mean().drop(columns="seed")
    show(table, f"One marker missing, mean over seeds {seeds}; trained without: seed {seeds[0]}")


def _boosted(trees, data, markers, missing=None):
    """Labels by the trees, with a marker that is NaN."""
    samples = read(data, "patient", markers)
    if missing is not None:
        samples.x[:, markers.index(missing)] = np.nan
    found = np.empty(data.n_obs, dtype=object)
    found[samples.rows] = np.array(["other", "blast"])[trees.logits(samples).argmax(1)]
    return found
