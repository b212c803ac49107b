"""Regression of the polygons of a gating tree from whole samples."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from sklearn.base import _fit_context
from sklearn.utils._param_validation import Interval

from fcm_estimators._base.estimator import SetEstimator, spans
from fcm_estimators._cells import keys as _keys
from fcm_estimators._cells.samples import Samples
from fcm_estimators._cells.store import by_block, open_store, write_rows
from fcm_estimators._checks import listed
from fcm_estimators._fitting.class_targets import class_presence
from fcm_estimators._fitting.gate_draws import GateDraws, Probes
from fcm_estimators._fitting.gate_fit import place_gates, settled_change
from fcm_estimators._fitting.gate_loss import GateLoss
from fcm_estimators._fitting.gate_targets import (
    as_template,
    derive_booleans,
    expert_trees,
    fill_from_polygons,
    parent_positions,
    polygons_of,
    read_membership,
    require_taught,
    sample_probes,
    soft_gates,
    strata,
    within_parents,
)
from fcm_estimators._fitting.reference import glances
from fcm_estimators.exceptions import (
    InvalidInputError,
    MarkerMismatchError,
)
from fcm_estimators.gating import BooleanGate, GatingTree, PolygonGate
from fcm_estimators.metrics import gate_agreement
from fcm_estimators.nn import PolygonFormer, SetModule, streamed_contexts
from fcm_estimators.nn.soft_gates import soft_members

_VALIDATION_DRAWS = 4
# Samples to which a fit is suited in the end.
_SETTLING_SAMPLES = 100
# Cells of a sample from which typical gates are fitted.
_PLACING_CELLS = 2_000
# Cells of a sample to which its own polygons are fitted.
_TRACING_CELLS = 20_000


class PolygonRegressor(SetEstimator):
    """Predict the polygons of a gating tree for every sample, from all its cells.

    A gate is a star polygon, a centre and radii at fixed angles: it never crosses itself and need
    not be convex. It is learnt from which cells are inside, so labels per cell train it as well as
    drawn polygons do. A gate is judged on the cells inside the expert's parent, and on others that
    the predicted parent lets through; in prediction it is applied inside the predicted parent.
    Most draws are distorted, so in the end how far each gate follows a sample, and where it then
    lies on average, is suited to the training samples as they were measured.

    Rows of X are cells, rows of what is predicted are samples: ``cross_validate`` with
    ``GroupKFold`` works, ``cross_val_predict`` does not.

    Parameters
    ----------
    gates : GatingTree or dict, default None
        What to learn; required. A tree, of whose polygons only the planes and parents are used
        (rectangles and ellipses count as polygons, axes may be named by channel), or a dict of
        gate to ``(parent, x marker, y marker)``, parent "" for none, or to a BooleanGate.
    sample_key : str or int, default None
        Column that says which sample (FCS file) a cell belongs to; as in
        :class:`ReluFormerClassifier`.
    label_key : str, default "gates"
        Key of the expert's gates: ``obsm[label_key]``, a DataFrame with a True/False column per
        gate (NaN: not known), and/or ``uns[label_key]``, polygons per sample as
        :meth:`GatingTree.to_uns` writes them. Membership comes from the columns where there are
        any, else from the polygons; polygons also teach where there are no cells.
    patient_key, subset_key, markers, marker_aliases, layer
        As in :class:`ReluFormerClassifier`. All markers of the gates have to be read.
        With ``layer``, polygons in ``uns`` are not used and predicted ones have transform "none":
        what is recorded of the scale is that of ``X``.
    gate_aliases : dict, default None
        Name in the data -> name in ``gates``.
    n_vertices : int, default 16
        Vertices V of every predicted polygon.
    n_layers, n_heads, hidden_dim, eps
        Of the encoder and the gates' attention, as in :class:`ReluFormerClassifier`.
    max_epochs : int, default 25
    steps_per_epoch : int, default 50
    samples_per_step : int, default 4
    cells_per_sample : int, default 1500
    min_gate_fraction : float, default 0.1
        The cells of each gate that are in no deeper one are topped up to this share of
        ``cells_per_sample`` for the loss, as far as the sample has such cells.
    augmentation : float, default 1.0
    learning_rate : float, default 3e-3
    weight_decay : float, default 1e-2
    head_diversity, head_evenness : float, default 0.0
    early_stopping : bool, default False
        Hold out patients and keep the best epoch. Among few samples the held-out ones are missed
        in training, and which epoch suits them best is chance.
    validation_fraction : float, default 0.15
    n_iter_no_change : int, default 20
    warm_start : bool, default False
    checkpoint : path, default None
    accelerate : bool, default False
    device : str, default "auto"
    random_state : int, RandomState or None, default None
    verbose : int, default 0
        All as in :class:`ReluFormerClassifier`; validation is by soft Dice.

    Attributes
    ----------
    gates_ : list of str
        Gates with a polygon, in the order of what :meth:`predict` returns.
    tree_ : GatingTree
        The tree that is predicted; its polygons are the typical ones of the training samples.
    markers_ : list of str
    history_ : DataFrame
        A row per epoch: ``epoch``, ``train_loss`` (cross-entropy and soft Dice), ``valid_loss``
        (soft Dice), ``learning_rate``, ``seconds``.
    validation_samples_ : list
    training_ : list of dict
        Numbers of the training data, of every training that went into the model (several after
        ``warm_start``).
    net_ : skorch.NeuralNet
        ``net_.module_`` is the :class:`~fcm_estimators.nn.PolygonFormer`.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    References
    ----------
    Kowarsch et al., arXiv 2307.14581, and *Towards Self-explainable Transformers for Cell
    Classification in Flow Cytometry Data*, iMIMIC 2022 (polygons of a gating hierarchy).

    Examples
    --------
    >>> from fcm_estimators import PolygonRegressor
    >>> from fcm_estimators.datasets import simulate_cohort
    >>> from fcm_estimators.preprocessing import Compensation, LogicleTransform
    >>> adata = simulate_cohort(n_samples=2, n_cells=500, random_state=0)
    >>> adata = LogicleTransform().fit_transform(Compensation().fit_transform(adata))
    >>> gates = {"syto": ("", "Syto 41", "FSC-A"), "cd19": ("syto", "CD19", "SSC-A")}
    >>> reg = PolygonRegressor(gates=gates, sample_key="sample", max_epochs=1, random_state=0)
    >>> reg.fit(adata).predict(adata).shape  # samples, gates, vertices, x and y
    (2, 2, 16, 2)
    """

    _parameter_constraints: dict[str, Any] = {
        **SetEstimator._parameter_constraints,
        "gates": [GatingTree, dict],
        "gate_aliases": [dict, None],
        "n_vertices": [Interval(Integral, 4, 360, closed="both")],
        "min_gate_fraction": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(
        self,
        gates: GatingTree | Mapping[str, Any] | None = None,
        *,
        sample_key: str | int | None = None,
        label_key: str | None = "gates",
        patient_key: str | int | None = None,
        subset_key: str | None = None,
        markers: list[str] | None = None,
        marker_aliases: dict[str, str] | None = None,
        gate_aliases: dict[str, str] | None = None,
        layer: str | None = None,
        n_vertices: int = 16,
        n_layers: int = 4,
        n_heads: int = 4,
        hidden_dim: int = 32,
        eps: float = 1e-2,
        max_epochs: int = 25,
        steps_per_epoch: int = 50,
        samples_per_step: int = 4,
        cells_per_sample: int = 1500,
        min_gate_fraction: float = 0.1,
        augmentation: float = 1.0,
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-2,
        head_diversity: float = 0.0,
        head_evenness: float = 0.0,
        early_stopping: bool = False,
        validation_fraction: float = 0.15,
        n_iter_no_change: int = 20,
        warm_start: bool = False,
        checkpoint: str | os.PathLike | None = None,
        accelerate: bool = False,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.gates = gates
        self.sample_key = sample_key
        self.label_key = label_key
        self.patient_key = patient_key
        self.subset_key = subset_key
        self.markers = markers
        self.marker_aliases = marker_aliases
        self.gate_aliases = gate_aliases
        self.layer = layer
        self.n_vertices = n_vertices
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.hidden_dim = hidden_dim
        self.eps = eps
        self.max_epochs = max_epochs
        self.steps_per_epoch = steps_per_epoch
        self.samples_per_step = samples_per_step
        self.cells_per_sample = cells_per_sample
        self.min_gate_fraction = min_gate_fraction
        self.augmentation = augmentation
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.head_diversity = head_diversity
        self.head_evenness = head_evenness
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.checkpoint = checkpoint
        self.accelerate = accelerate
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    gates_: list[str]
    tree_: GatingTree

    # -- fit ----------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Self:
        """Train on samples with expert gates.

        Parameters
        ----------
        X : AnnData, DataFrame or array of shape (n_cells, n_columns)
            Cells, transformed. Not changed.
        y : DataFrame or array of shape (n_cells, n_gates), optional
            Membership: True/False, NaN where not known; columns named like the gates, or an array
            with a column for every gate of the tree, boolean ones included, in its order.
            Default: what is under ``label_key``.
        groups : array-like of shape (n_cells,), optional
            Sample id of each cell, where there is no ``sample_key``.

        Returns
        -------
        self

        Raises
        ------
        InvalidInputError
            A tree with a circle or an unknown parent; membership that contradicts it (children
            outside of their parent, counted); a gate without cells; values that are not finite.
        MarkerMismatchError, MissingKeyError
            A gate on a marker that is not read; no membership.
        """
        return self._fit_or_stay(X, y, groups)

    def _fit(self, X: Any, y: Any, groups: Any) -> Self:
        tree = as_template(self.gates)
        if isinstance(X, AnnData):
            tree = tree.on_markers(X)
        self._require_same_tree(tree)
        samples = self._read_to_fit(X, groups)
        self._plan(tree, samples.markers)
        member, probes, seed = *self._read_expert(X, y, samples), self._seed()
        inside = within_parents(tree, member)
        require_taught(tree, inside, self.label_key)
        codes = strata(inside)
        module = self._initial_module(samples, seed)
        if not self._goes_on():
            self._place(module, samples, inside, seed)
        taught = class_presence(codes, samples.offsets, len(self.gates_) + 1)
        train, valid = self._split_patients(samples, seed, taught[:, 1:])
        marked = {f"inside {name}": inside[:, j] == 1 for j, name in enumerate(self.gates_)}
        self._record_training(samples, marked, valid)
        draws = [
            self._draws(samples, codes, inside, probes, chosen, module, seed, fixed)
            for chosen, fixed in ((train, False), (valid, True))
            if chosen
        ]
        self._train(
            samples, module, GateLoss(parent_positions(tree)), draws[0], draws[1] if valid else None
        )
        self._settle(samples, train, draws[0])
        self.validation_samples_ = samples.names[valid].tolist()
        self.tree_ = self._tree(self._typical())
        return self

    def _plan(self, tree: GatingTree, markers: list[str]) -> None:
        polygons = polygons_of(tree)
        for gate in polygons:
            missing = [m for m in (gate.x, gate.y) if m not in markers]
            if missing:
                raise MarkerMismatchError(
                    f"Gate {gate.name!r} needs marker(s) {listed(missing)}, but the model reads "
                    f"{listed(markers)}. Name them in markers=[...], or leave out that gate."
                )
        self.tree_ = tree
        self.gates_ = [gate.name for gate in polygons]
        self._axes = [(markers.index(gate.x), markers.index(gate.y)) for gate in polygons]

    def _require_same_tree(self, tree: GatingTree) -> None:
        if not self._goes_on():
            return
        mine, theirs = (
            [(g.name, g.parent, g.x, g.y) for g in polygons_of(t)] for t in (self.tree_, tree)
        )
        if mine != theirs:
            raise InvalidInputError(
                f"warm_start goes on with the gates {listed(mine)}, but gates= is {listed(theirs)}."
            )

    def _read_expert(
        self, X: Any, y: Any, samples: Samples
    ) -> tuple[np.ndarray, list[Probes | None]]:
        """Membership of analysed cells in all gates, and points on the planes per sample."""
        tree = self.tree_
        member = read_membership(X, y, self.label_key, tree, self.gate_aliases)[samples.rows]
        names = list(tree.gates)
        taught = [name for i, name in enumerate(names) if (member[:, i] >= 0).any()]
        trees = {}
        if y is None and self.layer is None:
            trees = expert_trees(X, self.label_key, tree, self.gate_aliases, taught)
        probes: list[Probes | None] = [None] * len(samples.names)
        for s, (start, stop) in enumerate(spans(samples)):
            expert = trees.get(str(samples.names[s]))
            if expert is None or len(expert) == 0:
                continue
            cells = X[samples.rows[start:stop]]
            fill_from_polygons(tree, member[start:stop], expert.apply(cells))
            probes[s] = sample_probes(cells, tree, expert, np.random.default_rng(s))
        derive_booleans(tree, member)
        return member, probes

    def _make_module(self, n_markers: int) -> PolygonFormer:
        return PolygonFormer(
            n_markers,
            self._axes,
            self.n_vertices,
            hidden_dim=self.hidden_dim,
            n_heads=self.n_heads,
            n_layers=self.n_layers,
            eps=self.eps,
        )

    def _place(self, module: Any, samples: Samples, inside: np.ndarray, seed: int) -> None:
        """Set the typical gates from some cells of every sample."""
        rng = np.random.default_rng(seed)
        picked = [
            np.sort(rng.choice(np.arange(i, j), min(j - i, _PLACING_CELLS), replace=False))
            for i, j in spans(samples)
        ]
        rows = np.concatenate(picked)
        ends = torch.from_numpy(np.stack([samples.x.min(0), samples.x.max(0)]))
        module.gates.set_limits(module.standardise(ends))
        z = module.standardise(torch.from_numpy(samples.x[rows])).float().numpy()
        limits = [0, *np.cumsum([len(p) for p in picked]).tolist()]
        place_gates(module.gates, z, inside[rows], limits, parent_positions(self.tree_))

    def _settle(self, samples: Samples, train: list[int], draws: GateDraws) -> None:
        """Suit the predicted changes to training samples without distortion."""
        module: Any = self.net_.module_
        device = module.input_mean.device
        draws = copy.copy(draws)
        draws.fixed = True
        draws.plan = dataclasses.replace(draws.plan, samples_per_step=1, augmentation=None)
        rng = np.random.default_rng(draws.seed)
        n_used = min(len(train), _SETTLING_SAMPLES)
        changes, inputs, targets = [], [], []
        for number, s in enumerate(np.sort(rng.choice(len(train), n_used, replace=False))):
            start, stop = samples.offsets[train[s]], samples.offsets[train[s] + 1]
            x = torch.from_numpy(samples.x[start:stop]).float().to(device)
            with torch.no_grad():
                changes.append(module.change_in(streamed_contexts(module, x)[-1]))
            drawn, target = draws[int(s)]
            drawn["sample"] = torch.full_like(drawn["sample"], number)
            inputs.append(drawn)
            targets.append(target.to(device))
        packed = {key: torch.cat([part[key] for part in inputs]).to(device) for key in inputs[0]}
        packed["x"] = module.standardise(packed["x"])
        module.adjust(
            *settled_change(
                module.gates,
                torch.cat(changes),
                (packed, torch.cat(targets)),
                parent_positions(self.tree_),
            )
        )

    def _draws(
        self,
        samples: Samples,
        codes: np.ndarray,
        inside: np.ndarray,
        probes: list[Probes | None],
        chosen: list[int],
        module: SetModule,
        seed: int,
        fixed: bool,
    ) -> GateDraws:
        part = samples.take(chosen)
        rows = np.concatenate(
            [np.arange(samples.offsets[s], samples.offsets[s + 1]) for s in chosen]
        )
        n_steps = self.steps_per_epoch
        if fixed:
            n_steps = math.ceil(_VALIDATION_DRAWS * len(chosen) / self.samples_per_step)
        return GateDraws(
            part.x,
            codes[rows],
            part.offsets,
            mean=module.input_mean.numpy(force=True),
            scale=module.input_scale.numpy(force=True),
            n_classes=len(self.gates_) + 1,
            plan=self._draw_plan(n_steps, self.min_gate_fraction),
            seed=seed,
            target=np.column_stack([codes[rows].astype(np.int8), inside[rows]]),
            fixed=fixed,
            axes=self._axes,
            probes=[probes[s] for s in chosen],
        )

    # -- prediction ---------------------------------------------------------------------------

    def predict(self, X: Any, groups: Any = None) -> np.ndarray:
        """Vertices of every polygon of every sample.

        Parameters
        ----------
        X : AnnData, DataFrame or array of shape (n_cells, n_columns)
            Whole samples; markers are found by name, further ones are ignored.
        groups : array-like of shape (n_cells,), optional
            Sample ids, for a model fitted with ``groups``.

        Returns
        -------
        ndarray of shape (n_samples, n_gates, n_vertices, 2)
            In the units of X; samples by first appearance, gates as ``gates_``, vertices
            anticlockwise. A vertex that comes close to the end of an axis of the training data is
            moved 5 % of the axis beyond it, so that events piled up there stay inside.

        Raises
        ------
        NotFittedError, MarkerMismatchError, MissingKeyError, InvalidInputError
            As in :meth:`ReluFormerClassifier.predict`.
        ProcessingStateError
            X is in another transform, or otherwise compensated, than the training data.
        """
        return self._polygons(self._read_to_predict(X, groups))

    def predict_gates(self, X: Any, groups: Any = None) -> dict[Any, GatingTree]:
        """Gating tree of every sample.

        Parameters
        ----------
        X, groups
            As for :meth:`predict`.

        Returns
        -------
        dict of sample to GatingTree
            Polygons with the transform and compensation of the training data, and boolean gates.
        """
        samples = self._read_to_predict(X, groups)
        polygons = self._polygons(samples)
        return {
            name: self._tree(vertices)
            for name, vertices in zip(samples.names.tolist(), polygons, strict=True)
        }

    def predict_membership(self, X: Any, groups: Any = None) -> pd.DataFrame:
        """Cells inside each predicted gate, each within its predicted parent.

        Parameters
        ----------
        X, groups
            As for :meth:`predict`.

        Returns
        -------
        DataFrame of bool, a row per cell, a column per gate of the tree
            Missing (nullable boolean) for cells outside ``subset_key``.
        """
        samples = self._read_to_predict(X, groups)
        return self._table(samples, self._members(samples, self._polygons(samples)), X)

    def predict_cells(
        self,
        X: Any,
        groups: Any = None,
        *,
        leaves: list[str] | None = None,
        outside: str = "other",
    ) -> np.ndarray:
        """Class of each cell: the leaf of the tree it is in.

        Parameters
        ----------
        X, groups
            As for :meth:`predict`.
        leaves : list of str, optional
            Gates to use as classes. Default: gates that are nobody's parent or operand. A cell in
            several belongs to the one in which it lies deepest.
        outside : str, default "other"
            Class of cells that are in none.

        Returns
        -------
        ndarray of shape (n_cells,)
            Comparable with :meth:`ReluFormerClassifier.predict`; "not analysed" outside
            ``subset_key``.

        Raises
        ------
        MissingKeyError
            A leaf that is no gate.
        """
        samples = self._read_to_predict(X, groups)
        if leaves is None:
            used = {o for g in self.tree_ if isinstance(g, BooleanGate) for o in g.operands}
            leaves = [name for name in self.tree_.leaves if name not in used]
        for name in leaves:
            self.tree_[name]
        member = self._members(samples, self._polygons(samples))
        inside = np.stack([member[name] for name in leaves], 1)
        if (inside.sum(1) > 1).any():
            soft = self._soft_members(samples)
            depth = np.stack([soft[name] for name in leaves], 1)
        else:
            depth = inside.astype(np.float32)
        best = np.where(inside, depth, -1.0).argmax(1)
        names = np.array([*leaves, outside], dtype=object)
        return samples.scatter(
            names[np.where(inside.any(1), best, len(leaves))], _keys.NOT_ANALYSED
        )

    def annotate(
        self, adata: AnnData, *, key_added: str = "predicted_gates", copy: bool = False
    ) -> AnnData | None:
        """Gate the samples of an AnnData and write the result into it.

        Sets the following fields:

        ``adata.obsm[f"{key_added}_membership"]`` : DataFrame of bool
            A column per gate.
        ``adata.uns[key_added]`` : dict
            ``gates``, all polygons as :meth:`GatingTree.to_uns` writes them (read a sample's tree
            with :meth:`GatingTree.from_adata`), and the run record: parameters, version, markers;
            ``cards``, the model's (:meth:`cards`) as JSON; ``distance``, how far each sample is
            from training (:meth:`check_sample`).

        Parameters
        ----------
        adata : AnnData
            Whole samples.
        key_added : str, default "predicted_gates"
        copy : bool, default False
            Return an annotated copy and leave ``adata`` as it is.

        Returns
        -------
        AnnData or None

        Raises
        ------
        InvalidInputError
            Not an AnnData, a view, or an unusable key; and as :meth:`predict`.
        """
        if copy and isinstance(adata, AnnData):
            adata = adata.to_memory() if adata.isbacked else adata.copy()
        _keys.require_writable(adata, key_added)
        samples = self._read_to_predict(adata, None)
        distances = self._reference.warn(samples.names, glances(samples))
        polygons = self._polygons(samples)
        trees = {str(name): self._tree(p) for name, p in zip(samples.names, polygons, strict=True)}
        table = self._table(samples, self._members(samples, polygons), adata)
        _keys.write_gates(
            adata,
            key_added,
            membership=table,
            gates=GatingTree.to_uns(trees),
            run=self._run(distances),
        )
        return adata if copy else None

    def annotate_store(
        self, path: str | os.PathLike, *, key_added: str = "predicted_gates"
    ) -> None:
        """Gate the samples of an h5ad or zarr store, however large, and write the result into it.

        The fields are those of :meth:`annotate`; memory and temporary files as for
        :meth:`ReluFormerClassifier.annotate_store`.

        Parameters
        ----------
        path : path
            An .h5ad file or a zarr directory.
        key_added : str, default "predicted_gates"

        Raises
        ------
        FileNotFoundError
        InvalidInputError, MissingKeyError, MarkerMismatchError, ProcessingStateError
            No AnnData; as :meth:`predict`.
        """
        self._require_fitted()
        _keys.require_key_name(key_added)
        with open_store(path) as store:
            samples = self._read_store(store)
            distances = self._warn_of_store(samples)
            gates = list(self.tree_.gates)
            everything = sum(cells.n_cells for _, cells in samples) == store.n_obs
            masks: list[Any] = []
            if everything:
                columns = store.add_table(f"{key_added}_membership", gates, bool, False)
            else:
                columns, masks = store.add_nullable_flags(f"{key_added}_membership", gates)
            trees = {}
            for name, cells, stream in self._streams(samples):
                module: Any = stream.module
                with torch.no_grad():
                    vertices = module.polygons(stream.source.read(0, 0), contexts=stream.contexts)
                tree = self._tree(vertices[0].cpu().numpy())
                trees[str(name)] = tree
                read = ((i, j, stream.source.read(i, j)) for i, j, _ in stream.chunks())
                for start, stop, x in by_block(read):
                    members, rows = self._inside(tree, x), cells.rows[start:stop]
                    for column, gate in zip(columns, gates, strict=True):
                        write_rows(column, rows, members[gate])
                    for mask in masks:
                        write_rows(mask, rows, np.zeros(stop - start, dtype=bool))
            run = {**self._run(distances), "gates": GatingTree.to_uns(trees)}
            store.add_record(key_added, run)

    def _run(self, distances: pd.DataFrame) -> dict[str, Any]:
        """Record for ``uns``."""
        params = {k: v for k, v in self._json_params().items() if k != "gates"}
        return self._record(params, distances)

    def score(self, X: Any, y: Any = None, groups: Any = None) -> float:
        """Mean F1 of the cells inside, over samples and gates with a polygon.

        Parameters
        ----------
        X, groups
            As for :meth:`predict`.
        y : DataFrame or array of shape (n_cells, n_gates), optional
            The expert's membership, as for :meth:`fit`.

        Returns
        -------
        float
            NaN entries of :meth:`score_table` (neither has a cell inside) are left out.
        """
        table = self.score_table(X, y, groups)
        return float(table.loc[table["gate"].isin(self.gates_), "f1"].mean())

    def score_table(self, X: Any, y: Any = None, groups: Any = None) -> pd.DataFrame:
        """Agreement with the expert for every sample and gate.

        Parameters
        ----------
        X, y, groups
            As for :meth:`score`.

        Returns
        -------
        DataFrame
            As :func:`~fcm_estimators.metrics.gate_agreement`, predicted gates applied in
            sequence.
        """
        samples = self._read_to_predict(X, groups)
        member, _ = self._read_expert(X, y, samples)
        truth = pd.DataFrame(member, columns=list(self.tree_.gates))
        truth = truth.where(truth >= 0).astype("boolean")
        truth = truth.dropna(axis=1, how="all")
        predicted = pd.DataFrame(self._members(samples, self._polygons(samples)))
        return gate_agreement(truth, predicted, groups=samples.names[samples.sample_of_cell])

    def trace_gates(self, X: Any, y: Any = None, groups: Any = None) -> dict[Any, GatingTree]:
        """Star polygons fitted to the expert's cells of every sample.

        What a polygon of this kind can hold at best: :meth:`score_table` of the predicted gates
        cannot be expected to exceed that of these, which have seen the answer. Where the two are
        alike, more training does not help; where these are poor, the population is no star.

        Parameters
        ----------
        X, y, groups
            As for :meth:`score`.

        Returns
        -------
        dict of sample to GatingTree
            A gate of which the sample has fewer than 20 cells is the typical one.
        """
        samples = self._read_to_predict(X, groups)
        member, _ = self._read_expert(X, y, samples)
        inside = within_parents(self.tree_, member)
        module: Any = copy.deepcopy(self.net_.module_).float().cpu()
        z = module.standardise(torch.from_numpy(samples.x.astype(np.float32))).numpy()
        rng, parents = np.random.default_rng(0), parent_positions(self.tree_)
        found = {}
        for name, (start, stop) in zip(samples.names.tolist(), spans(samples), strict=True):
            rows = np.arange(start, stop)
            rows = np.sort(rng.choice(rows, min(len(rows), _TRACING_CELLS), replace=False))
            own = copy.deepcopy(module)
            place_gates(own.gates, z[rows], inside[rows], [0, len(rows)], parents)
            with torch.no_grad():
                found[name] = self._tree(own.typical().numpy())
        return found

    # -- inside -------------------------------------------------------------------------------

    def _polygons(self, samples: Samples) -> np.ndarray:
        module: Any = self._module(samples.x.dtype)
        device = next(module.parameters()).device
        parts = []
        with torch.no_grad():
            for start, stop in spans(samples):
                x = torch.from_numpy(samples.x[start:stop]).to(device)
                contexts = streamed_contexts(module, x)
                parts.append(module.polygons(x, contexts=contexts).cpu().numpy())
        return np.concatenate(parts)

    def _typical(self) -> np.ndarray:
        module: Any = self.net_.module_
        with torch.no_grad():
            return module.typical().cpu().numpy()

    def _tree(self, vertices: np.ndarray) -> GatingTree:
        """Tree of one sample from its vertices (G, V, 2)."""
        shape = dict(zip(self.gates_, vertices, strict=True))
        gates: list[Any] = []
        for gate in self.tree_:
            if not isinstance(gate, PolygonGate):
                gates.append(gate)
                continue
            x, y = (self._states.get(m, ("none", False)) for m in (gate.x, gate.y))
            gates.append(
                PolygonGate(
                    gate.name,
                    gate.x,
                    gate.y,
                    shape[gate.name],
                    gate.parent,
                    transform_x=x[0],
                    transform_y=y[0],
                    compensation="spillover" if x[1] or y[1] else "none",
                )
            )
        return GatingTree(gates)

    def _members(self, samples: Samples, polygons: np.ndarray) -> dict[str, np.ndarray]:
        """Cells inside each gate, in the order of ``samples.x``."""
        parts = [
            self._inside(self._tree(vertices), samples.x[start:stop])
            for (start, stop), vertices in zip(spans(samples), polygons, strict=True)
        ]
        return {name: np.concatenate([p[name] for p in parts]) for name in self.tree_.gates}

    def _inside(self, tree: GatingTree, x: np.ndarray) -> dict[str, np.ndarray]:
        """Which cells of one sample, (n, M), lie in each gate of its tree."""

        def points(gate: PolygonGate, rows: np.ndarray) -> np.ndarray:
            columns = self._axes[self.gates_.index(gate.name)]
            return x[rows][:, columns].astype(np.float64)

        return tree.members(len(x), points)

    def _soft_members(self, samples: Samples) -> dict[str, np.ndarray]:
        """Soft membership of each cell in each gate, within soft parents."""
        own = torch.sigmoid(torch.from_numpy(self._outputs(samples)))
        found = soft_members(soft_gates(self.tree_), own).numpy().T
        return dict(zip(self.tree_.gates, found, strict=True))

    def _table(self, samples: Samples, members: dict[str, np.ndarray], X: Any) -> pd.DataFrame:
        index = X.obs_names if isinstance(X, AnnData) else getattr(X, "index", None)
        unknown = samples.scatter(np.zeros(len(samples.rows), dtype=bool), True)
        everything = not unknown.any()
        columns: dict[str, Any] = {}
        for name, inside in members.items():
            values = samples.scatter(inside, False)
            columns[name] = values if everything else pd.arrays.BooleanArray(values, unknown)
        return pd.DataFrame(columns, index=index)

    # -- save and load ------------------------------------------------------------------------

    def _json_params(self) -> dict[str, Any]:
        return {**super()._json_params(), "gates": None}

    def _card_entries(self) -> dict[str, str]:
        found = {}
        for gate in self.tree_:
            if isinstance(gate, PolygonGate):
                what = f"polygon of {self.n_vertices} vertices in {gate.x}, {gate.y}"
            else:
                what = "follows from the others"
            found[f"gate {gate.name}"] = f"{what}; parent {gate.parent or 'none'}"
        return found

    def _fitted_state(self) -> dict[str, Any]:
        return {
            "tree": self.tree_.to_records(),
        }

    def _restore_fitted_state(self, state: dict[str, Any]) -> None:
        tree = GatingTree.from_records(state["tree"])
        self.gates = tree
        self._plan(tree, self.markers_)
