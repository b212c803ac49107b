"""Rivals of the classifier, with its distortions, its draws and its way to choose a threshold.

Each has ``fit(samples, codes)`` and ``logits(samples)``. Nothing is chosen on test samples.
"""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pandas as pd
import torch
from _peers import InducedSetTransformer
from lightgbm import LGBMClassifier, early_stopping
from scipy.stats import rankdata
from sklearn.cluster import KMeans
from torch import nn

from fcm_estimators import ReluFormerClassifier
from fcm_estimators._cells.samples import Source, read_samples
from fcm_estimators._fitting.augmentation import Augmentation
from fcm_estimators._fitting.class_loss import CellLoss
from fcm_estimators._fitting.class_targets import class_presence
from fcm_estimators._fitting.draws import DrawPlan, SampleDraws
from fcm_estimators._fitting.scale import marker_scale
from fcm_estimators._fitting.split import patient_folds, split_patients
from fcm_estimators._fitting.trainer import TrainingPlan, train_net

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

    def __init__(self, prepare, distorted, seed=0, may_hide=()):
        self.prepare, self.distorted, self.seed = prepare, distorted, seed
        self.may_hide = may_hide

    def fit(self, samples, codes):
        if self.prepare is Aligned:
            self.prepare = Aligned(samples)
        present = class_presence(codes, samples.offsets, int(codes.max()) + 1)
        train, valid = split_patients(samples, 0.25, self.seed, present)
        self.n_trees = _USUAL_TREES
        if valid:
            model = self._model(_MOST_TREES)
            held_out = self._rows(samples, codes, valid)
            stop = early_stopping(_PATIENCE, verbose=False)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.fit(*self._rows(samples, codes, train), eval_set=[held_out], callbacks=[stop])
            self.n_trees = model.best_iteration_ or _MOST_TREES
        everything = range(len(samples.names))
        self.model = self._model(self.n_trees).fit(*self._rows(samples, codes, everything))
        return self

    def logits(self, samples):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shares = [
                self.model.predict_proba(self.prepare(samples.x[i:j])) for i, j in samples.spans()
            ]
        return np.log(np.clip(np.concatenate(shares), 1e-12, None))

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


# -- nets, trained as the classifier trains its own ----------------------------------------------


class Trained:
    """A net with the draws, optimiser, schedule, length and distortions of the classifier.

    Parameters
    ----------
    make : callable
        Makes the net from the numbers of markers and classes.
    callbacks : sequence of skorch.callbacks.Callback
        Called while it is trained.
    max_epochs : int
        Default: as the classifier.
    """

    def __init__(self, make, distorted=True, seed=0, callbacks=(), max_epochs=None):
        self.make, self.distorted, self.seed = make, distorted, seed
        self.callbacks = callbacks
        self.max_epochs = max_epochs or ReluFormerClassifier().max_epochs

    def fit(self, samples, codes):
        own = ReluFormerClassifier()
        n_classes = int(codes.max()) + 1
        scale = marker_scale(samples)
        torch.manual_seed(self.seed)
        self.net = self.make(samples.x.shape[1], n_classes)
        self.net.mean.copy_(torch.from_numpy(scale.mean))
        self.net.scale.copy_(torch.from_numpy(scale.sd))
        augmentation = Augmentation() if self.distorted else None
        draws = SampleDraws(
            samples.x,
            codes,
            samples.offsets,
            scale=scale,
            n_classes=n_classes,
            plan=DrawPlan(own.steps_per_epoch, 4, own.cells_per_sample, 0.1, augmentation),
            seed=self.seed,
        )
        plan = TrainingPlan("cpu", own.learning_rate, self.max_epochs, own.steps_per_epoch)
        loss = CellLoss(torch.ones(n_classes))
        train_net(self.net, loss, plan, draws, None, None, self.callbacks)
        return self

    @torch.no_grad()
    def logits(self, samples):
        found = [
            self.net(torch.from_numpy(samples.x[i:j]), [0, j - i], context_weight=torch.ones(j - i))
            for i, j in samples.spans()
        ]
        return torch.cat(found).numpy()


class _PackedNet(nn.Module):
    """A net that the package's trainer can train: packed samples, with a weight per cell."""

    def __init__(self, n_markers):
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_markers))
        self.register_buffer("scale", torch.ones(n_markers))

    def forward(self, x, offsets, *, context_weight):
        """Logits of all cells; cells of weight 0 are not part of the sample."""
        parts = zip(
            ((x - self.mean) / self.scale).split(np.diff(offsets).tolist()),
            (context_weight > 0).split(np.diff(offsets).tolist()),
            strict=True,
        )
        return torch.cat([self.of_sample(z, inside) for z, inside in parts])


class PerCell(_PackedNet):
    """A perceptron with the width and depth of the classifier's net, on each cell by itself."""

    def __init__(self, n_markers, n_classes, z_scored=False):
        super().__init__(n_markers)
        width, self.z_scored = ReluFormerClassifier().hidden_dim, z_scored
        layers = []
        for i in range(ReluFormerClassifier().n_layers):
            layers += [
                nn.Linear(width if i else n_markers, width),
                nn.ReLU(),
                nn.Linear(width, width),
                nn.LayerNorm(width),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Linear(width, n_classes))

    def of_sample(self, z, inside):
        """Logits of the cells of one sample."""
        if self.z_scored:
            some = z[inside]
            z = (z - some.mean(0)) / some.std(0).clamp_min(1e-6)
        return self.layers(z)


class PerCellZ(PerCell):
    """The same on per-sample z-scores."""

    def __init__(self, n_markers, n_classes):
        super().__init__(n_markers, n_classes, z_scored=True)


class Induced(_PackedNet):
    """A set transformer with inducing points."""

    def __init__(self, n_markers, n_classes):
        super().__init__(n_markers)
        own = ReluFormerClassifier()
        self.net = InducedSetTransformer(
            n_markers, n_classes, own.hidden_dim, own.n_heads, own.n_layers
        )

    def of_sample(self, z, inside):
        """Logits of the cells of one sample."""
        h = self.net.embed(z)
        for block in self.net.blocks:
            h = block.spread(h, block.gather(block.points, h[inside]))
        return self.net.output(h)


# -- thresholds -----------------------------------------------------------------------------------


def out_of_fold(rival, samples, codes, seed=0):
    """Logits of every sample by a rival that was trained without its patient."""
    n_classes = int(codes.max()) + 1
    present = class_presence(codes, samples.offsets, n_classes)
    n_folds = ReluFormerClassifier().n_members
    found = np.empty((len(samples.x), n_classes))
    for fold in patient_folds(samples, n_folds, seed, present):
        rest = sorted(set(range(len(samples.names))) - set(fold))
        trained = copy.deepcopy(rival).fit(samples.take(rest), codes[samples.cells_of(rest)])
        found[samples.cells_of(fold)] = trained.logits(samples.take(fold))
    return found
