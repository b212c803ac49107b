"""The classifier beside its rivals on the same cells."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import pandas as pd
import torch
from _rivals import (
    Aligned,
    Boosting,
    PerCellZ,
    all_three,
    blast_log_odds,
    out_of_fold_threshold,
    ranks,
    raw,
    trained,
    z_scores,
)
from _trusted import KEYS, PREPARE, macro, quietly, show, trained_on
from nets import PerCell, SetTransformer
from sklearn.pipeline import make_pipeline

from fcm_estimators import ReluFormerClassifier
from fcm_estimators.datasets import fetch_all494, simulate_cohort
from fcm_estimators.inference import fitted_net, read_samples
from fcm_estimators.metrics import classification_table, summarize

# -- another batch --------------------------------------------------------------------------------


def rivals(seed=0):
    """CyTOF, trained on one batch and shown the other: macro-F1, mean over samples."""
    plain = partial(ReluFormerClassifier, **KEYS, augmentation=0, n_members=0, random_state=seed)
    models = {
        "LightGBM": partial(Boosting, raw, False, seed),
        "LightGBM, z-scores": partial(Boosting, z_scores, False, seed),
        "LightGBM, ranks": partial(Boosting, ranks, False, seed),
        "LightGBM, aligned": partial(Boosting, Aligned, False, seed),
        "LightGBM, distorted": partial(Boosting, raw, True, seed),
        "LightGBM, all three, distorted": partial(Boosting, all_three, True, seed),
        "per-cell net, distorted": partial(trained, PerCell, seed),
        "per-cell net, z-scores, distorted": partial(trained, PerCellZ, seed),
        "set transformer, distorted": partial(trained, SetTransformer, seed),
        "ReluFormer, not distorted": plain,
    }
    rows = []
    for source in ("batch1", "batch2"):
        clf, train, test = trained_on(source)
        for name, make in models.items():
            start = time.perf_counter()
            found = quietly(make().fit, train).predict(test)
            rows.append(_row(name, source, macro(test, found), time.perf_counter() - start))
        rows.append(_row("ReluFormer", source, macro(test, clf.predict(test))))
        rows += _swapped(clf, source, train, test)
        done = pd.DataFrame([r for r in rows if r["trained on"] == source])
        show(done.set_index("model"), f"Trained on {source}")
    table = pd.DataFrame(rows).pivot_table(index="model", columns="trained on", values="macro_f1")
    show(table.assign(mean=table.mean(axis=1)).sort_values("mean"), "Macro-F1")


def _row(name, source, score, seconds=np.nan):
    return {"model": name, "trained on": source, "macro_f1": score, "seconds": seconds}


def _swapped(clf, source, train, test):
    """The same net with the contexts of other samples."""
    net = fitted_net(clf)
    samples, own = read_samples(clf, test), read_samples(clf, train)
    parts = [torch.from_numpy(samples.x[i:j]) for i, j in samples.spans()]
    first = own.x[slice(*next(own.spans()))]
    given = {
        "contexts of the next sample of the batch": parts[1:] + parts[:1],
        "contexts of a training sample": [torch.from_numpy(first)] * len(parts),
    }
    rows = []
    for name, others in given.items():
        with torch.no_grad():
            z = torch.cat(
                [net(x, contexts=net.contexts(o)) for x, o in zip(parts, others, strict=True)]
            )
        found = clf.classes_[z.numpy().argmax(1)]
        rows.append(_row(f"ReluFormer, {name}", source, macro(test, found)))
    return rows


# -- thresholds chosen alike ----------------------------------------------------------------------


def thresholds(seed=0):
    """Simulated unseen patients, and unseen cells of one marrow; thresholds by held-out F1."""
    marrow = fetch_all494()
    marrow = marrow[marrow.obsm["gates"]["intact"].to_numpy()].copy()
    marrow = make_pipeline(*PREPARE).fit_transform(marrow)
    half = np.random.default_rng(seed).random(marrow.n_obs) < 0.5
    _alike("simulated, unseen patients", *_unseen_patients(13), seed)
    _alike("one marrow, unseen cells", marrow[half].copy(), marrow[~half].copy(), seed)


def cohorts(numbers=(114, 115, 116), seed=0):
    """The same of three more simulated cohorts, beside LightGBM alone."""
    tables = [
        _alike(f"cohort {number}", *_unseen_patients(number), seed, ("LightGBM",))
        for number in numbers
    ]
    show(sum(tables) / len(tables), "Mean over the cohorts")


def _unseen_patients(number):
    """Two thirds of 15 simulated patients with 60 samples, and the others."""
    cohort = make_pipeline(*PREPARE).fit_transform(
        simulate_cohort(n_samples=60, n_cells=10_000, random_state=number)
    )
    patients = list(pd.unique(cohort.obs["patient"]))
    is_train = cohort.obs["patient"].isin(patients[: 2 * len(patients) // 3]).to_numpy()
    return cohort[is_train].copy(), cohort[~is_train].copy()


def _alike(name, train, test, seed, rivals=None):
    key = "patient" if train.obs["sample"].nunique() > 1 else None
    # The threshold of every net comes from members, as in a default fit.
    alike = {"patient_key": key, "pos_label": "blast"}
    members = {**alike, "n_members": ReluFormerClassifier().n_members}
    models = {
        "ReluFormer": ReluFormerClassifier(**KEYS, **alike, random_state=seed),
        "LightGBM": Boosting(raw, False, seed, patient_key=key),
        "LightGBM, z-scores": Boosting(z_scores, False, seed, patient_key=key),
        "LightGBM, distorted": Boosting(raw, True, seed, patient_key=key),
        "per-cell net, distorted": trained(PerCell, seed, **members),
        "set transformer, distorted": trained(SetTransformer, seed, **members),
    }
    found = {}
    for model in ("ReluFormer", *rivals) if rivals else models:
        made = models[model]
        if isinstance(made, Boosting):
            threshold = out_of_fold_threshold(made, train, key, seed) if key else 0.0
            found[model] = blast_log_odds(quietly(made.fit, train), test) >= threshold
        else:
            found[model] = quietly(made.fit, train).predict(test) == "blast"
    truth = test.obs["cell_type"].astype(str).to_numpy()
    rows = {}
    for model, called in found.items():
        table = classification_table(
            truth,
            np.where(called, "blast", "other"),
            groups=test.obs["sample"].astype(str),
            pos_label="blast",
        )
        rows[model] = summarize(table)
    columns = ["f1_mean", "f1_median", "false_positives_per_million_negative_samples"]
    table = pd.DataFrame(rows).T
    table = table[[c for c in columns if c in table]].astype(float)
    show(table, name)
    return table
