"""Rivals of the classifier, with its distortions, its draws and its way to choose a threshold.

Each has ``fit(data)``, ``predict(data)`` and ``decision_function(data)``, as the classifier has.
Nothing is chosen on test samples.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from _trusted import KEYS, quietly
from lightgbm import LGBMClassifier, early_stopping
from nets import PerCell
from scipy.stats import rankdata
from sklearn.cluster import KMeans

from fcm_estimators import ReluFormerClassifier
from fcm_estimators._base.members import against_rest
from fcm_estimators._cells.samples import Source, read_samples
from fcm_estimators._fitting.augmentation import Augmentation
from fcm_estimators._fitting.calibration import best_f1_threshold
from fcm_estimators._fitting.class_targets import class_presence
from fcm_estimators._fitting.draws import DrawPlan
from fcm_estimators._fitting.scale import marker_scale
from fcm_estimators._fitting.split import patient_folds, split_patients

# Trees see this many cells of each training sample, in so many distorted copies.
_CELLS, _COPIES = 20_000, 16
# Further copies, in which markers are hidden, where a model is to do without.
_HIDING = 4
# Most trees; fewer if the held-out samples say so, and the usual number if there are none.
_MOST_TREES, _USUAL_TREES, _PATIENCE = 300, 150, 20
_QUANTILES = np.linspace(0, 1, 101)
_CLUSTERS, _FEWEST = 10, 50


def read(data, patient_key=None, markers=None):
    """Samples of an AnnData."""
    source = Source(sample_key="sample", patient_key=patient_key)
    return read_samples(data, source, markers=markers)


def codes_of(data, samples, classes):
    """Position of each cell's label in the classes."""
    labels = data.obs["cell_type"].astype(str).to_numpy()[samples.rows]
    return pd.Index(classes).get_indexer(labels)


# -- what a per-cell model is given of a sample -------------------------------------------------


def raw(x):
    """Values as measured."""
    return x


def z_scores(x):
    """Each marker of a sample with mean 0 and SD 1."""
    return (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)


def ranks(x):
    """Rank of each cell in its sample, from 0 to 1."""
    return (rankdata(x, axis=0) / len(x)).astype(np.float32)


def all_three(x):
    """Values, z-scores and ranks side by side."""
    return np.hstack([raw(x), z_scores(x), ranks(x)])


class Aligned:
    """Values mapped to those of the average training sample, like CytoNorm (Van Gassen 2020).

    Mapping whole markers to the mean quantile function of the training samples gives trees
    nothing that ranks do not give them. So, as in CytoNorm, that only serves to find clusters;
    the quantiles are then aligned within each of 10 clusters.
    """

    def __init__(self, samples):
        parts = [samples.x[i:j] for i, j in samples.spans()]
        self.goal = np.mean([_quantiles(x) for x in parts], axis=0)
        some = np.concatenate([_towards(x, self.goal)[::20] for x in parts])
        self.clusters = KMeans(min(_CLUSTERS, len(some)), random_state=0).fit(some)
        found = [self.clusters.predict(_towards(x, self.goal)) for x in parts]
        self.goals = {}
        for k in range(self.clusters.n_clusters):
            inside = [x[c == k] for x, c in zip(parts, found, strict=True)]
            inside = [_quantiles(x) for x in inside if len(x) >= _FEWEST]
            if inside:
                self.goals[k] = np.mean(inside, axis=0)

    def __call__(self, x):
        out = _towards(x, self.goal)
        cluster = self.clusters.predict(out)
        for k, goal in self.goals.items():
            rows = cluster == k
            if rows.sum() >= _FEWEST:
                out[rows] = _towards(x[rows], goal)
        return out


def _quantiles(x):
    return np.quantile(x, _QUANTILES, axis=0)


def _towards(x, goal):
    own = _quantiles(x)
    columns = [np.interp(x[:, m], own[:, m], goal[:, m]) for m in range(x.shape[1])]
    return np.stack(columns, 1).astype(np.float32)


# -- gradient boosting ----------------------------------------------------------------------------


class Boosting:
    """LightGBM; the number of trees is chosen on held-out patients among the training samples.

    Parameters
    ----------
    prepare : callable
        What the trees see of a sample, or the class :class:`Aligned`.
    distorted : bool
        Train on 16 differently distorted copies of each sample (half of them left as measured, as
        in the draws of the net), with as many cells in all as without.
    may_hide : sequence of int
        Markers that may be missing. Some of them are, as NaN, in every fifth copy, as in the draws
        of a net that can do without markers; there are 20 copies then.
    """

    def __init__(self, prepare, distorted, seed=0, may_hide=(), patient_key=None):
        self.prepare, self.distorted, self.seed = prepare, distorted, seed
        self.may_hide, self.patient_key = may_hide, patient_key

    def fit(self, data):
        samples = read(data, self.patient_key)
        self.markers_, self.classes_ = samples.markers, np.unique(data.obs["cell_type"].astype(str))
        codes = codes_of(data, samples, self.classes_)
        if self.prepare is Aligned:
            self.prepare = Aligned(samples)
        present = class_presence(codes, samples.offsets, len(self.classes_))
        train, valid = split_patients(samples, 0.25, self.seed, present)
        self.n_trees = _USUAL_TREES
        if valid:
            model = self._model(_MOST_TREES)
            held_out = self._rows(samples, codes, valid)
            stop = early_stopping(_PATIENCE, verbose=False)
            rows = self._rows(samples, codes, train)
            quietly(model.fit, *rows, eval_set=[held_out], callbacks=[stop])
            self.n_trees = model.best_iteration_ or _MOST_TREES
        everything = range(len(samples.names))
        self.model = self._model(self.n_trees).fit(*self._rows(samples, codes, everything))
        return self

    def predict(self, data, missing=None):
        """Labels; a marker that is missing is NaN."""
        return self.classes_[self._log_shares(data, missing).argmax(1)]

    def decision_function(self, data):
        """Log-odds of the second of two classes."""
        return against_rest(self._log_shares(data))[:, 1]

    def _log_shares(self, data, missing=None):
        samples = read(data, self.patient_key, self.markers_)
        if missing is not None:
            samples.x[:, self.markers_.index(missing)] = np.nan
        parts = [self.prepare(samples.x[i:j]) for i, j in samples.spans()]
        shares = np.concatenate([quietly(self.model.predict_proba, part) for part in parts])
        return samples.scatter(np.log(np.clip(shares, 1e-12, None)), np.nan)

    def _model(self, n_trees):
        jobs = torch.get_num_threads()
        return LGBMClassifier(n_estimators=n_trees, random_state=self.seed, n_jobs=jobs, verbose=-1)

    def _rows(self, samples, codes, chosen):
        """Cells of some samples as the trees see them, and their classes."""
        rng = np.random.default_rng(self.seed)
        scale = marker_scale(samples)
        n_copies = _COPIES if self.distorted or self.may_hide else 1
        hiding = _HIDING if self.may_hide else 0
        plan = DrawPlan(1, 1, 1, 0.0, None, self.may_hide)
        spans, found = _spans(samples), []
        for start, stop in (spans[s] for s in chosen):
            z = scale.standardised(samples.x[start:stop])
            size = min(_CELLS // n_copies, len(z))
            for copy_number in range(n_copies + hiding):
                moved = Augmentation().distort(z, rng) if self.distorted else z
                rows = rng.choice(len(z), size, replace=False)
                x = self.prepare(scale.restored(moved).astype(np.float32))[rows]
                if copy_number >= n_copies:
                    x[:, plan.hidden(rng)] = np.nan
                found.append((x, codes[start:stop][rows]))
        return tuple(np.concatenate(part) for part in zip(*found, strict=True))


def _spans(samples):
    return list(samples.spans())


# -- nets, trained by the classifier ---------------------------------------------------------------


class PerCellZ(PerCell):
    """The perceptron on per-sample z-scores."""

    def forward(self, x, offsets, context_weight):
        parts = [(x[i:j], x[i:j][context_weight[i:j] > 0]) for i, j in pairwise(offsets)]
        z = [(x - some.mean(0)) / some.std(0).clamp_min(1e-6) for x, some in parts]
        return super().forward(torch.cat(z), offsets, context_weight)


def trained(module, seed=0, **options):
    """A classifier with another net, by default without members; it keeps the last weights."""
    given = {**KEYS, "n_members": 0, "validation_fraction": None, **options}
    return ReluFormerClassifier(module=module, random_state=seed, **given)


# -- thresholds -----------------------------------------------------------------------------------


def blast_log_odds(trees, data):
    """Log-odds of "blast" against "other"."""
    return -trees.decision_function(data)


def out_of_fold_threshold(trees, data, patient_key, seed=0):
    """Threshold of best F1 of the blasts in samples whose patient the trees did not see."""
    samples = read(data, patient_key)
    codes = codes_of(data, samples, ["other", "blast"])
    present = class_presence(codes, samples.offsets, 2)
    found = np.empty(data.n_obs)
    for fold in patient_folds(samples, ReluFormerClassifier().n_members, seed, present):
        held_out = data.obs["sample"].isin(samples.names[fold]).to_numpy()
        again = quietly(copy.deepcopy(trees).fit, data[~held_out].copy())
        found[held_out] = blast_log_odds(again, data[held_out].copy())
    return best_f1_threshold(found[samples.rows], codes == 1, samples.sample_of_cell)
