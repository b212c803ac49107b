"""Few labelled samples, few patients, or fewer markers."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from _rivals import Boosting, all_three, raw, trained
from _trusted import KEYS, NAMED, PREPARE, blast_f1, cytof, macro, quietly, samples_of, show
from nets import PerCell, SetTransformer
from sklearn.pipeline import make_pipeline

from fcm_estimators import ReluFormerClassifier
from fcm_estimators._base.panels import hideable
from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.metrics import classification_table

# -- one labelled sample --------------------------------------------------------------------------


def one(numbers=(1, 4, 9, 12), seed=0, only=None):
    """A single labelled CyTOF sample: macro-F1 on all others."""
    rows = []
    for number in numbers:
        train = samples_of(cytof(), [number])
        models = {
            "ReluFormer": ReluFormerClassifier(
                **KEYS, n_members=0, max_epochs=25, random_state=seed
            ),
            "LightGBM, all three, distorted": Boosting(all_three, True, seed),
            "per-cell net, distorted": trained(PerCell, seed),
            "set transformer, distorted": trained(SetTransformer, seed),
        }
        models = {name: quietly(models[name].fit, train) for name in only or models}
        batches = {"same": range(1, 9), "other": range(9, 17)}
        if number > 8:
            batches = {"same": range(9, 17), "other": range(1, 9)}
        for batch, chosen in batches.items():
            test = samples_of(cytof(), [n for n in chosen if n != number])
            truth = test.obs["cell_type"].astype(str).to_numpy()
            for name, model in models.items():
                found = model.predict(test)
                rows.append(
                    {
                        "model": name,
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
    labelled = np.where(table["sample"] > 8, "in batch 2", "in batch 1")
    for keys, title in ((["model", "batch"], "all"), (["model", labelled, "batch"], "each batch")):
        means = table.groupby(keys)[numbers].agg(["mean", "min"])
        show(means, f"Mean and least over the labelled samples, {title}")


def every_one():
    """Every CyTOF sample as the labelled one, for the ReluFormer and its strongest rival."""
    one(range(1, 17), only=("ReluFormer", "set transformer, distorted"))


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
    models = {
        "ReluFormer": trained(None, seed),
        "LightGBM": Boosting(raw, False, seed),
        "LightGBM, distorted": Boosting(raw, True, seed),
        "LightGBM, all three, distorted": Boosting(all_three, True, seed),
        "per-cell net, distorted": trained(PerCell, seed),
        "set transformer, distorted": trained(SetTransformer, seed),
    }
    return {name: quietly(model.fit, train).predict(test) for name, model in models.items()}


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


_PANELS = {
    **KEYS,
    "patient_key": "patient",
    "pos_label": "blast",
    "n_members": 0,
    "max_epochs": 20,
    "validation_fraction": None,
}


def panels(seeds=(0, 1, 2)):
    """Unseen simulated patients without a marker; 20 epochs, no members."""
    train, test = _ten_patients(14)
    rows, whole = [], []
    for seed in seeds:
        plain, able = _plain_and_able(train, seed)
        markers = able.markers_
        trees = Boosting(raw, False, seed, tuple(hideable(markers)), "patient").fit(train)
        found = {
            "ReluFormer": blast_f1(test, plain.predict(test)),
            "ReluFormer that can do without": blast_f1(test, able.predict(test)),
            "LightGBM with NaN": blast_f1(test, trees.predict(test)),
        }
        whole.append({"seed": seed, **found})
        for marker in (markers[i] for i in hideable(markers)):
            less = test[:, [name for name in test.var_names if name != marker]].copy()
            row = {
                "missing": marker,
                "seed": seed,
                "ReluFormer that can do without": blast_f1(test, quietly(able.predict, less)),
                "LightGBM with NaN": blast_f1(test, trees.predict(test, marker)),
            }
            if seed == seeds[0]:
                other = train[:, less.var_names].copy()
                again = quietly(ReluFormerClassifier(**_PANELS, random_state=seed).fit, other)
                row["ReluFormer trained without"] = blast_f1(test, again.predict(less))
            rows.append(row)
    show(pd.DataFrame(whole).set_index("seed"), "The whole panel: F1 of blasts, mean over patients")
    table = pd.DataFrame(rows).groupby("missing", sort=False).mean().drop(columns="seed")
    show(table, f"One marker missing, mean over seeds {seeds}; trained without: seed {seeds[0]}")


def whole_panels(cohorts=(214, 314), seeds=(0, 1, 2)):
    """What it costs with the whole panel to be able to do without, on two more cohorts."""
    rows = []
    for number in cohorts:
        train, test = _ten_patients(number)
        for seed in seeds:
            plain, able = (blast_f1(test, m.predict(test)) for m in _plain_and_able(train, seed))
            rows.append({"cohort": number, "seed": seed, "plain": plain, "can do without": able})
    table = pd.DataFrame(rows).set_index(["cohort", "seed"])
    show(table, "The whole panel: F1 of blasts, mean over patients")
    show(table.groupby("cohort").mean(), "Mean over seeds")


def _ten_patients(number):
    """Ten simulated patients, and ten others."""
    cohort = make_pipeline(*PREPARE).fit_transform(
        simulate_cohort(n_samples=80, n_cells=4_000, random_state=number)
    )
    names = list(pd.unique(cohort.obs["patient"]))
    is_train = cohort.obs["patient"].isin(names[:10]).to_numpy()
    return cohort[is_train].copy(), cohort[~is_train].copy()


def _plain_and_able(train, seed):
    plain = ReluFormerClassifier(**_PANELS, random_state=seed)
    able = ReluFormerClassifier(**_PANELS, missing_markers="mask", random_state=seed)
    return quietly(plain.fit, train), quietly(able.fit, train)
