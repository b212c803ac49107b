"""Models and unseen cells for the benchmarks of explanations."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from explainers import faithfulness
from fcm_estimators import ReluFormerClassifier
from fcm_estimators.datasets import fetch_all494, fetch_multicenter_cytof
from fcm_estimators.preprocessing import (
    ArcsinhTransform,
    Compensation,
    LinearTransform,
    LogicleTransform,
)


@dataclass
class Settings:
    """Parameters of the estimator, and a folder for fitted models (None: none are kept)."""

    head_diversity: float = 0.0
    head_evenness: float = 0.0
    n_heads: int = 4
    hidden_dim: int = 32
    models: Path | None = None


SETTINGS = Settings()


def trained(name, seed, train, label_key, pos_label):
    """Fit with default parameters, or load what an earlier run kept in the folder ``--models``."""
    chosen = SETTINGS
    kind = f"{name}_{seed}_{chosen.head_diversity:g}_{chosen.head_evenness:g}"
    kind += f"_{chosen.n_heads}_{chosen.hidden_dim}"
    path = None if chosen.models is None else chosen.models / kind
    if path is not None and path.exists():
        return ReluFormerClassifier.load(path)
    clf = ReluFormerClassifier(
        sample_key="sample",
        label_key=label_key,
        pos_label=pos_label,
        head_diversity=chosen.head_diversity,
        head_evenness=chosen.head_evenness,
        n_heads=chosen.n_heads,
        hidden_dim=chosen.hidden_dim,
        n_members=0,
        validation_fraction=None,
        random_state=seed,
    ).fit(train)
    if path is not None:
        clf.save(path)
    return clf


@functools.cache
def marrow_halves(seed):
    """Two random halves of the intact cells of one leukaemic marrow."""
    raw = fetch_all494()
    raw = raw[raw.obsm["gates"]["intact"].to_numpy()].copy()
    for step in (Compensation(), LogicleTransform(), LinearTransform()):
        raw = step.fit_transform(raw)
    gates = raw.obsm["gates"]
    blast = (raw.obs["cell_type"] == "blast").to_numpy()
    # The model is not told which population the other cells belong to.
    raw.obs["others"] = np.select(
        [blast, gates["cd20"], gates["erythropoiesis"]], ["", "cd20", "erythropoiesis"], "rest"
    )
    raw.obs["others"] = raw.obs["others"].where(~blast)
    half = np.random.default_rng(seed).random(raw.n_obs) < 0.5
    return raw[half].copy(), raw[~half].copy()


@functools.cache
def marrow(seed):
    """Model trained on a random half of one leukaemic marrow, and the other half."""
    train, test = marrow_halves(seed)
    return trained("marrow", seed, train, "cell_type", "blast"), test.copy()


@functools.cache
def blood_batches(seed):
    """CyTOF samples of two batches; the same for every seed."""
    cohort = ArcsinhTransform(cofactor=5.0).fit_transform(fetch_multicenter_cytof())
    cell_type = cohort.obs["cell_type"].astype(str)
    cohort.obs["is_b"] = np.where(cell_type == "B", "B", "rest")
    cohort.obs["others"] = cell_type.where(cell_type.isin(["CD4 T", "CD8 T", "monocyte"]))
    batches = (cohort.obs["batch"] == name for name in ("batch1", "batch2"))
    first, second = (cohort[rows].copy() for rows in batches)
    return first, second


@functools.cache
def blood(seed):
    """Model trained to tell B cells from the rest in one CyTOF batch, and the other batch."""
    train, test = blood_batches(seed)
    return trained("blood", seed, train, "is_b", "B"), test


@functools.cache
def controls_of(name, seed):
    """Untrained and label-permuted twins of a model."""
    return faithfulness.twins(DATA[name](seed)[0], TRAINING[name](seed)[0])


DATA = {"all494": marrow, "multicentre CyTOF": blood}
TRAINING = {"all494": marrow_halves, "multicentre CyTOF": blood_batches}
