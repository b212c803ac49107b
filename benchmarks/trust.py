"""What shows that an answer may be wrong, and the strongest rivals in the same run.

Run ``python benchmarks/classification.py trust``, or one of the parts with ``--part``. CyTOF is
the multicentre data set, arcsinh with cofactor 5. Nothing was chosen on the seeds of the simulated
cohorts.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from functools import cache

import numpy as np
import pandas as pd
import torch
from _beside import cohorts, rivals, thresholds
from _few import every_one, few, one, panels, patients, whole_panels
from _rivals import codes_of
from _trusted import KEYS, NAMED, PREPARE, cytof, macro, quietly, samples_of, show, trained_on
from scipy.special import expit, logit
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline

from fcm_estimators import ReluFormerClassifier
from fcm_estimators._base.running import outputs_of
from fcm_estimators._fitting.calibration import false_positive_threshold
from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.inference import fitted_net, read_samples
from fcm_estimators.metrics import classification_table, mrd_error

# -- cells of a population that was not in training -----------------------------------------------


def unknown(seed=0):
    """Left-out populations: area under the ROC curve, and what is flagged at the threshold."""
    rows = []
    directions = {
        "1-6": (range(1, 7), range(7, 9), range(9, 13)),
        "9-14": (range(9, 15), range(15, 17), range(1, 5)),
    }
    for direction, (train, same, other) in directions.items():
        for population in NAMED:
            data = samples_of(cytof(), train)
            data = data[(data.obs["cell_type"] != population).to_numpy()].copy()
            scores = {
                "novelty of the package": _novelty(data, seed),
                "10th neighbour of 20,000 cells": _neighbour(data, seed),
                "isolation forest": _forest(data, seed),
            }
            for batch, numbers in (("same", same), ("other", other)):
                new = samples_of(cytof(), numbers)
                strange = (new.obs["cell_type"] == population).to_numpy()
                for name, (score, threshold) in scores.items():
                    value = score(new)
                    rows.append(
                        {
                            "score": name,
                            "trained on": direction,
                            "batch": batch,
                            "left out": population,
                            "auroc": roc_auc_score(strange, value),
                            "found": (value[strange] > threshold).mean(),
                            "known flagged": (value[~strange] > threshold).mean(),
                        }
                    )
    table = pd.DataFrame(rows)
    keys = ["score", "trained on", "batch"]
    show(table.set_index([*keys, "left out"]), "Each population left out of training")
    numbers = table.groupby(keys)[["auroc", "found", "known flagged"]]
    show(numbers.agg(["mean", "min", "max"]), "Over the populations")


def _novelty(data, seed):
    # The score does not need the net, so that is hardly trained.
    clf = ReluFormerClassifier(**KEYS, max_epochs=1, steps_per_epoch=1, random_state=seed)
    quietly(clf.fit, data)

    def score(new):
        found = quietly(clf.annotate, new, copy=True)
        return found.obs["reluformer_novelty"].to_numpy()

    return score, clf.novelty_.threshold


def _with_threshold(fit, data):
    """A score, with the threshold that 1 % of the cells of held-out samples exceed."""
    x, groups = np.asarray(data.X), data.obs["number"].to_numpy()
    folds = GroupKFold(5).split(x, groups=groups)
    held_out = np.concatenate([fit(x[train])(x[test]) for train, test in folds])
    score = fit(x)
    return (lambda new: score(np.asarray(new.X))), np.quantile(held_out, 0.99)


def _neighbour(data, seed):
    def fit(x):
        scale = x.std(0)
        some = np.random.default_rng(seed).permutation(len(x))[:20_000]
        index = NearestNeighbors(n_neighbors=10, n_jobs=-1).fit(x[some] / scale)
        return lambda new: index.kneighbors(new / scale)[0][:, -1]

    return _with_threshold(fit, data)


def _forest(data, seed):
    def fit(x):
        forest = IsolationForest(random_state=seed, n_jobs=-1).fit(x)
        return lambda new: -forest.score_samples(new)

    return _with_threshold(fit, data)


# -- patients that were not in training -----------------------------------------------------------


@cache
def unseen_patients(seed, n_train=5, n_test=12):
    """A model of simulated patients, and unseen ones with what the model says of them."""
    n_samples = 4 * (n_train + n_test)
    cohort = simulate_cohort(n_samples=n_samples, n_cells=10_000, random_state=seed)
    cohort = make_pipeline(*PREPARE).fit_transform(cohort)
    patients = list(pd.unique(cohort.obs["patient"]))
    is_train = cohort.obs["patient"].isin(patients[:n_train]).to_numpy()
    clf = ReluFormerClassifier(**KEYS, patient_key="patient", pos_label="blast", random_state=seed)
    quietly(clf.fit, cohort[is_train].copy())
    test = cohort[~is_train].copy()
    quietly(clf.annotate, test)
    return clf, test


def members():
    """Disagreement of the members on unseen patients, after training on only 3 patients."""
    tables = []
    for seed in (10, 11, 12, 13):
        clf, test = unseen_patients(seed, n_train=3, n_test=8)
        table = _agreement(test)
        tables.append(table.assign(seed=seed))
        # Control: equal members differ in nothing, so they cannot warn by their range.
        copies, clf.members_ = clf.members_, [fitted_net(clf)] * len(clf.members_)
        control = _agreement(quietly(clf.annotate, test, copy=True))
        clf.members_ = copies
        print(f"seed {seed}, control of equal members: {_crude(control).sum()} ranges above 2")
    table = pd.concat(tables)
    shown = ["patient", "true", "share", "recall", "lowest", "highest", "possible", "uncertain"]
    show(table[table["true"] > 0].set_index("seed", append=True)[shown], "Samples with blasts")
    missed = table["recall"] < 0.5
    countable = table["true"] * table["n_cells"] >= 20
    right = ~missed & (np.maximum(table["true"], table["share"]) < 2 * np.minimum(
        table["true"], table["share"]).clip(lower=20 / table["n_cells"])
    )  # fmt: skip
    rules = {"the package's rule": table["uncertain"], "range above a factor of 2": _crude(table)}
    rows = []
    for name, warned in rules.items():
        per_patient = table.assign(warned=warned, missed=missed & countable)
        per_patient = per_patient.groupby(["seed", "patient"])[["warned", "missed"]].any()
        rows.append(
            {
                "rule": name,
                "missed samples": int((missed & countable).sum()),
                "of these warned": int((missed & countable & warned).sum()),
                "right samples": int(right.sum()),
                "false warnings": int((right & warned).sum()),
                "missed patients": int(per_patient["missed"].sum()),
                "of them warned": int((per_patient["missed"] & per_patient["warned"]).sum()),
                "patients": len(per_patient),
            }
        )
    show(pd.DataFrame(rows).set_index("rule").T, "Recall below .5, 20 or more blasts")


def _agreement(data):
    """What the members say of each sample, beside the truth."""
    table = pd.DataFrame(data.uns["reluformer"]["members"]).set_index("sample")
    obs = data.obs.assign(sample=data.obs["sample"].astype(str))
    truth, called = obs["cell_type"] == "blast", obs["reluformer"] == "blast"
    table["patient"] = obs.groupby("sample")["patient"].first().astype(str)
    table["n_cells"] = obs.groupby("sample").size()
    table["true"] = truth.groupby(obs["sample"]).mean()
    table["recall"] = (truth & called).groupby(obs["sample"]).sum() / truth.groupby(
        obs["sample"]
    ).sum().replace(0, np.nan)
    return table


def _crude(table):
    """A range of the members beyond a factor of 2, where it is more than 20 cells."""
    enough = table["highest"] * table["n_cells"] >= 20
    return enough & (table["highest"] > 2 * table["lowest"])


# -- what a training says of itself ---------------------------------------------------------------


def performance():
    """Performance on held-out patients, and on patients or batches that were not there."""
    rows = []
    for seed in (10, 11):
        clf, test = unseen_patients(seed)
        rows += _promised(f"simulated {seed}", clf)
        table = classification_table(
            test.obs["cell_type"],
            test.obs["reluformer"],
            groups=test.obs["patient"],
            pos_label="blast",
        )
        found = {
            "f1 blast": table["f1"].mean(),
            "false positives per million": table["false_positives_per_million"].mean(),
        }
        rows.append({"data": f"simulated {seed}", "on": "unseen patients", **found})
        share = {
            name: (test.obs[column] == "blast").groupby(test.obs["sample"], observed=True).mean()
            for name, column in (("true", "cell_type"), ("called", "reluformer"))
        }
        show(clf.performance_.mrd, f"seed {seed}: residual disease on held-out patients")
        show(mrd_error(share["true"], share["called"]), f"seed {seed}: on unseen patients")
    for source in ("batch1", "batch2"):
        clf, _, test = trained_on(source)
        rows += _promised(f"CyTOF, {source}", clf)
        rows.append(
            {
                "data": f"CyTOF, {source}",
                "on": "the other batch",
                "macro f1": macro(test, clf.predict(test)),
            }
        )
    show(pd.DataFrame(rows).set_index(["data", "on"]), "What a training says of itself")


def _promised(name, clf):
    found = {"macro f1": clf.performance_.classes["f1"].mean()}
    if clf.performance_.negatives is not None:
        found = {
            "f1 blast": clf.performance_.classes.loc["blast", "f1"],
            "false positives per million": clf.performance_.negatives[
                "false_positives_per_million"
            ],
        }
    return [{"data": name, "on": f"{clf.performance_.n_patients} held-out patients", **found}]


# -- probabilities and thresholds -----------------------------------------------------------------


def probabilities():
    """Expected over true numbers by power of ten of the probability, and calibration error."""
    rows, errors = [], []
    models = {f"simulated {seed}": unseen_patients(seed) for seed in (10, 11)}
    models["CyTOF, other batch"] = trained_on("batch1")[::2]
    for name, (clf, test) in models.items():
        samples = read_samples(clf, test)
        z = torch.from_numpy(outputs_of(fitted_net(clf), samples)).double()
        codes = codes_of(test, samples, clf.classes_)
        # A temperature that the model did not take would be 1; 1.2 shows what it does.
        temperature = clf.temperature_ if clf.temperature_ != 1 else 1.2
        kept, clf.temperature_ = clf.temperature_, temperature
        shares = {
            "as trained": torch.softmax(z, 1).numpy(),
            f"divided by {temperature:.2f}": torch.softmax(z / temperature, 1).numpy(),
            "the same, means kept": clf.predict_proba(test)[samples.rows],
        }
        clf.temperature_ = kept
        c = 0 if clf.pos_label_ is None else list(clf.classes_).index(clf.pos_label_)
        for kind, p in shares.items():
            decade = np.ceil(-np.log10(np.maximum(p[:, c], 1e-12))).astype(int).clip(1, 7)
            for k in range(1, 8):
                inside = decade == k
                rows.append(
                    {
                        "data": name,
                        "probability": f"1e-{k} to 1e-{k - 1}" if k < 7 else "below 1e-6",
                        "true": (codes[inside] == c).sum(),
                        "kind": kind.split(" by")[0],
                        "expected": p[inside, c].sum(),
                    }
                )
            top = p.max(1)
            bins = np.minimum((10 * top).astype(int), 9)
            right = p.argmax(1) == codes
            gap = [abs((top - right)[bins == b].sum()) for b in range(10)]
            errors.append({"data": name, "kind": kind, "error": sum(gap) / len(top)})
    table = pd.DataFrame(rows).assign(ratio=lambda t: t["expected"] / t["true"])
    show(
        table.pivot_table(
            index=["data", "probability"], columns="kind", values=["true", "expected", "ratio"]
        ),
        "Cells of the positive (CyTOF: the first) class",
    )
    show(pd.DataFrame(errors).set_index(["data", "kind"]), "Expected calibration error")
    _rates()


def _rates(n_models=500, rate=1e-3):
    """Synthetic models with confident negatives: how many exceed the promised rate."""
    rng = np.random.default_rng(0)
    exceeded = {"through probabilities": 0, "log-odds": 0}
    for _ in range(n_models):
        log_odds = rng.normal(rng.uniform(20, 45) * rng.choice([-1, 1]), 5, 20_000)
        negative = np.zeros(len(log_odds), dtype=bool)
        threshold = false_positive_threshold(log_odds, negative, rate)
        exceeded["log-odds"] += (log_odds >= threshold).mean() > rate
        probability = expit(threshold)
        called = log_odds >= logit(probability)
        exceeded["through probabilities"] += called.mean() > rate or not np.isfinite(
            logit(probability)
        )
    print(f"\nModels of {n_models} whose false-positive rate of {rate:g} is exceeded: {exceeded}")


# Parts that share models are one job. The longest come first.
JOBS = (
    (thresholds,),
    (members,),
    (performance, probabilities, rivals),
    (one,),
    (panels,),
    (few,),
    (patients,),
    (unknown,),
)
# The last three would make a run of all too long.
PARTS = [*(part for job in JOBS for part in job), cohorts, every_one, whole_panels]


def trust(part=None):
    """Print all tables of ``JOBS`` by two processes of one thread each, or those of one part."""
    if part is not None:
        _shown([f for f in PARTS if f.__name__ == part])
        return
    start = time.perf_counter()
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(_printed, job) for job in JOBS]):
            print(done.result(), flush=True)
    print(f"({(time.perf_counter() - start) / 60:.0f} minutes in all)")


def _shown(job):
    """Print the tables of some parts, and their time."""
    for function in job:
        print(f"\n== {function.__name__}: {function.__doc__}", flush=True)
        start, cpu = time.perf_counter(), time.process_time()
        function()
        wall, used = time.perf_counter() - start, time.process_time() - cpu
        print(f"({wall:.0f} s, {used:.0f} s of CPU)", flush=True)


def _printed(job):
    """What :func:`_shown` prints."""
    with redirect_stdout(io.StringIO()) as out:
        _shown(job)
    return out.getvalue()
