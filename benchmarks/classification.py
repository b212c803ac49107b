"""Figures of the classifier on real and simulated cohorts, beside gradient boosting.

Run ``python benchmarks/classification.py multicenter`` (or ``all494``, ``simulated``, ``all``).
Every number is printed; test samples are used for nothing but the figure.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import pandas as pd
from lightgbm import LGBMClassifier
from sklearn.metrics import f1_score
from trust import PARTS, trust

from fcm_estimators import ReluFormerClassifier
from fcm_estimators.datasets import fetch_all494, fetch_multicenter_cytof, simulate_cohort
from fcm_estimators.metrics import (
    classification_table,
    mrd_error,
    reliability_table,
    summarize,
)
from fcm_estimators.preprocessing import (
    ArcsinhTransform,
    Compensation,
    LinearTransform,
    LogicleTransform,
)

NAMED = ["B", "CD4 T", "CD8 T", "monocyte"]


def z_scores(x, sample):
    """Per-sample z-scores of every marker."""
    out = np.empty_like(x)
    for s in pd.unique(sample):
        rows = sample == s
        out[rows] = (x[rows] - x[rows].mean(0)) / x[rows].std(0)
    return out


def boosting(x, y, seed):
    """150 trees on a quarter of the cells."""
    rng = np.random.default_rng(seed)
    quarter = rng.random(len(x)) < 0.25
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LGBMClassifier(n_estimators=150, random_state=seed, n_jobs=2, verbose=-1).fit(
            x[quarter], y[quarter]
        )


def per_sample_f1(truth, predicted, sample, labels, known=None):
    """Macro-F1 over the labels, mean over samples."""
    known = np.ones(len(truth), bool) if known is None else known
    return np.mean(
        [
            f1_score(truth[rows], predicted[rows], labels=labels, average="macro", zero_division=0)
            for rows in ((sample == s) & known for s in pd.unique(sample))
        ]
    )


def multicenter(seeds):
    """Train on one CyTOF batch, test on the other."""
    cohort = ArcsinhTransform(cofactor=5.0).fit_transform(fetch_multicenter_cytof())
    labels = list(cohort.obs["cell_type"].cat.categories)
    rows = []
    for source, target in (("batch1", "batch2"), ("batch2", "batch1")):
        train = cohort[cohort.obs["batch"] == source].copy()
        test = cohort[cohort.obs["batch"] == target].copy()
        y, truth = (d.obs["cell_type"].astype(str).to_numpy() for d in (train, test))
        s_train, s_test = (d.obs["sample"].astype(str).to_numpy() for d in (train, test))
        named = np.isin(truth, NAMED)
        for seed in seeds:
            for name, prepare in (("raw", lambda x, s: x), ("z-scores", z_scores)):
                start = time.perf_counter()
                model = boosting(prepare(train.X, s_train), y, seed)
                seconds = time.perf_counter() - start
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    predicted = model.predict(prepare(test.X, s_test))
                rows.append(
                    {
                        "train": source,
                        "model": f"LightGBM, {name}",
                        "seed": seed,
                        "macro_f1": per_sample_f1(truth, predicted, s_test, labels),
                        "seconds": seconds,
                    }
                )
            clf = ReluFormerClassifier(sample_key="sample", random_state=seed)
            start = time.perf_counter()
            clf.fit(train, y)
            seconds = time.perf_counter() - start
            rows.append(
                {
                    "train": source,
                    "model": "ReluFormer",
                    "seed": seed,
                    "macro_f1": per_sample_f1(truth, clf.predict(test), s_test, labels),
                    "seconds": seconds,
                    "cells_per_second": cells_drawn(clf) / clf.history_["seconds"].sum(),
                }
            )
            # The four named classes; unlabelled cells are context without loss.
            clf.fit(train, pd.Series(y).where(pd.Series(y).isin(NAMED)))
            rows.append(
                {
                    "train": source,
                    "model": "ReluFormer, 'other' without loss",
                    "seed": seed,
                    "f1_named": per_sample_f1(truth, clf.predict(test), s_test, NAMED, named),
                }
            )
            show(rows[-4:])
    table = pd.DataFrame(rows)
    print("\nMean over seeds and test samples:")
    numbers = ["macro_f1", "f1_named", "seconds", "cells_per_second"]
    print(table.groupby(["train", "model"])[numbers].mean().round(4).to_string())


def cells_drawn(clf):
    """Cells seen in training."""
    return 4 * len(clf.history_) * clf.steps_per_epoch * clf.cells_per_sample


def show(rows):
    """Print rows as they come."""
    for row in rows:
        numbers = {k: round(float(v), 4) if isinstance(v, float) else v for k, v in row.items()}
        print(numbers, flush=True)


def all494(seeds):
    """Cells of one sample in two random halves, intact events."""
    raw = fetch_all494()
    raw = raw[raw.obsm["gates"]["intact"].to_numpy()].copy()
    for step in (Compensation(), LogicleTransform(), LinearTransform()):
        raw = step.fit_transform(raw)
    truth = (raw.obs["cell_type"] == "blast").to_numpy()
    rows = []
    for seed in seeds:
        half = np.random.default_rng(seed).random(raw.n_obs) < 0.5
        train, test = raw[half].copy(), raw[~half].copy()
        clf = ReluFormerClassifier(
            sample_key="sample", label_key="cell_type", pos_label="blast", random_state=seed
        )
        start = time.perf_counter()
        clf.fit(train)
        seconds = time.perf_counter() - start
        model = LGBMClassifier(n_estimators=150, random_state=seed, n_jobs=2, verbose=-1)
        columns = [list(raw.var_names).index(m) for m in clf.markers_]
        model.fit(train.X[:, columns], truth[half])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            boosted = model.predict(test.X[:, columns])
        rows.append(
            {
                "seed": seed,
                "reluformer_f1": f1_score(truth[~half], clf.predict(test) == "blast"),
                "lightgbm_f1": f1_score(truth[~half], boosted),
                "seconds": seconds,
            }
        )
        show(rows[-1:])
    print(pd.DataFrame(rows).mean().round(4).to_string())


def simulated(seeds):
    """Simulated B-ALL cohorts with instrument shift, split by patient."""
    rows, errors = [], []
    for seed in seeds:
        cohort = simulate_cohort(n_samples=120, n_cells=10_000, random_state=seed)
        for step in (Compensation(), LogicleTransform(), LinearTransform()):
            cohort = step.fit_transform(cohort)
        patients = cohort.obs["patient"].unique()
        unseen = np.random.default_rng(seed).permutation(patients)[: len(patients) // 3]
        is_test = cohort.obs["patient"].isin(unseen).to_numpy()
        train, test = cohort[~is_test].copy(), cohort[is_test].copy()
        clf = ReluFormerClassifier(
            sample_key="sample",
            label_key="cell_type",
            patient_key="patient",
            pos_label="blast",
            random_state=seed,
        )
        start = time.perf_counter()
        clf.fit(train)
        seconds = time.perf_counter() - start
        columns = [list(cohort.var_names).index(m) for m in clf.markers_]
        y = (train.obs["cell_type"] == "blast").to_numpy()
        groups = test.obs["sample"].astype(str).to_numpy()
        called = {"ReluFormer": clf.predict(test)}
        for name, prepare in (("raw", lambda x, s: x), ("z-scores", z_scores)):
            s_train = train.obs["sample"].astype(str).to_numpy()
            model = LGBMClassifier(n_estimators=150, random_state=seed, n_jobs=2, verbose=-1)
            model.fit(prepare(train.X[:, columns], s_train), y)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                hit = model.predict(prepare(test.X[:, columns], groups))
            called[f"LightGBM, {name}"] = np.where(hit, "blast", "other")
        truth = test.obs["cell_type"].astype(str).to_numpy()
        for name, predicted in called.items():
            table = classification_table(truth, predicted, groups=groups, pos_label="blast")
            rows.append({"seed": seed, "model": name, **summarize(table)})
            share = {
                k: pd.Series(v == "blast").groupby(groups, sort=False).mean()
                for k, v in (("truth", truth), ("predicted", predicted))
            }
            errors.append(mrd_error(share["truth"], share["predicted"]).assign(model=name))
        print(f"seed {seed}: ReluFormer trained in {seconds:.0f} s", flush=True)
    table = pd.DataFrame(rows)
    shown = [
        "f1_mean",
        "f1_median",
        "n_samples",
        "f1_undefined",
        "false_positives_per_million_negative_samples",
    ]
    print(table.groupby("model")[shown].mean().round(4).to_string())
    print("\nMRD error by order of magnitude of the true blast fraction, mean over seeds:")
    stacked = pd.concat(errors)
    stacked.index.name = "true fraction"
    mean = stacked.groupby(["model", "true fraction"]).mean()
    print(mean.to_string(float_format="{:.2g}".format))


def calibration(seeds):
    """Whether probabilities hold on unseen patients and batches, with and without temperature."""
    cytof = ArcsinhTransform(cofactor=5.0).fit_transform(fetch_multicenter_cytof())
    second = (cytof.obs["batch"] == "batch2").to_numpy()
    marrow = simulate_cohort(40, 5_000, random_state=200)
    for step in (Compensation(), LogicleTransform(), LinearTransform()):
        marrow = step.fit_transform(marrow)
    patients = list(pd.unique(marrow.obs["patient"]))
    unseen = marrow.obs["patient"].isin(patients[:3]).to_numpy()
    data = {
        "CyTOF, the other batch": (cytof, second, {}),
        "simulated, other patients": (marrow, unseen, {"patient_key": "patient"}),
    }
    for name, (cohort, test_rows, keys) in data.items():
        train, test = cohort[~test_rows].copy(), cohort[test_rows].copy()
        for seed in seeds:
            clf = ReluFormerClassifier(
                sample_key="sample", label_key="cell_type", random_state=seed, **keys
            ).fit(train)
            calibrated, temperature = clf.predict_proba(test), clf.temperature_
            clf.temperature_ = 1.0
            errors = {}
            for kind, shares in (("plain", clf.predict_proba(test)), ("calibrated", calibrated)):
                frame = pd.DataFrame(shares, columns=clf.classes_)
                table = reliability_table(
                    test.obs["cell_type"], frame, groups=test.obs["sample"].to_numpy()
                )
                errors[f"error_{kind}"] = table.attrs["expected_calibration_error"]
            show([{"data": name, "seed": seed, "temperature": temperature, **errors}])
        print(table.round(3).to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "what", choices=["multicenter", "all494", "simulated", "calibration", "all", "trust"]
    )
    parts = [part.__name__ for part in PARTS]
    parser.add_argument("--part", choices=parts, help="only this part of trust")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    for part in (multicenter, all494, simulated, calibration):
        if given.what in (part.__name__, "all"):
            print(f"\n== {part.__name__}: {part.__doc__}", flush=True)
            part(given.seeds)
    if given.what == "trust":
        trust(given.part)
