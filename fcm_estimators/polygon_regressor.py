"""Regression of the polygons of a gating tree from whole samples."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, Self, cast, overload

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from sklearn.base import _fit_context
from sklearn.utils._param_validation import Interval
from skorch.callbacks import Callback

from fcm_estimators._base.estimator import SetEstimator
from fcm_estimators._base.plans import CONSTRAINTS, draw_plan
from fcm_estimators._base.reading import fitted_net, read_to_fit, read_to_predict
from fcm_estimators._base.running import net_for, outputs_of, stream_through
from fcm_estimators._cells.results import Sink, Writable
from fcm_estimators._cells.rows import SampleCells, by_block, cells_in_memory
from fcm_estimators._cells.samples import CellData, PerCell, Samples
from fcm_estimators._checks import listed
from fcm_estimators._fitting.class_targets import class_presence
from fcm_estimators._fitting.gate_draws import GateDraws, Probes
from fcm_estimators._fitting.gate_fit import adjust_to_samples, place_typical_gates
from fcm_estimators._fitting.gate_hulls import hull_probes, open_ends
from fcm_estimators._fitting.gate_loss import GateLoss
from fcm_estimators._fitting.gate_plan import GatePlan
from fcm_estimators._fitting.gate_targets import (
    as_template,
    derive_booleans,
    expert_trees,
    fill_from_polygons,
    polygons_of,
    read_membership,
    require_taught,
    sample_probes,
    strata,
    within_parents,
)
from fcm_estimators._fitting.gate_tracing import traced_vertices
from fcm_estimators._fitting.scale import MarkerScale
from fcm_estimators._fitting.split import split_patients
from fcm_estimators._fitting.threads import own_threads
from fcm_estimators._types import Entries
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.gating import BooleanGate, GatingTree, PolygonGate
from fcm_estimators.gating.records import tree_of_records, tree_records
from fcm_estimators.keys import EXPERT_GATES, NOT_ANALYSED, GateKeys
from fcm_estimators.metrics import gate_agreement
from fcm_estimators.nn import PolygonFormer, SetModule
from fcm_estimators.nn.soft_gates import soft_members
from fcm_estimators.nn.streaming import Stream

# Cells that are in a gate and in no deeper gate are added up to this share of a draw, as far as
# the sample has such cells.
_MIN_GATE_FRACTION = 0.1
# Constant added to the mean normaliser of the attention.
_EPS = 1e-2


class PolygonRegressor(SetEstimator):
    """Predict the polygons of a gating tree for each sample, from all its cells.

    A gate is a star polygon: a centre, and radii at fixed angles. It never crosses itself and need
    not be convex. The model learns it from the cells inside, so labels per cell can replace drawn
    polygons. The loss of a gate covers the cells inside the expert's parent, and other cells that
    are inside the predicted parent, which may combine other gates. Prediction applies the gate
    inside the predicted parent. Where there are no cells, points around the expert's polygon, or
    else outside of the hull of the cells inside, keep the outline near them.

    Most draws are distorted. After training, the position of each gate and its change from sample
    to sample are therefore adjusted to the training samples as they were measured. Values far
    beyond the training data are clipped, for the encoder and for the gates; a gate that is open at
    the end of an axis still holds them.

    The rows of X are cells, but the rows of a prediction are samples. ``cross_validate`` with
    ``GroupKFold`` works; ``cross_val_predict`` does not.

    Parameters
    ----------
    gates : GatingTree or dict, default None
        Gates to learn; required. Of a tree, only the planes and parents are used (rectangles and
        ellipses count as polygons, axes may be named by channel). A dict maps each gate to
        ``(parent, x marker, y marker)``, with parent "" for none, or to a BooleanGate.
    sample_key : str or int, default None
        Column with the sample (FCS file) of each cell, as in :class:`ReluFormerClassifier`.
    gates_key : str, default "gates"
        Key of the expert's gates: ``obsm[gates_key]``, a DataFrame with a True/False column per
        gate (NaN: unknown), and/or ``uns[gates_key]``, polygons per sample as
        :meth:`GatingTree.to_uns` writes them. Membership comes from the columns if they exist,
        else from the polygons. Polygons also define the gate in regions without cells.
    patient_key, subset_key, markers, marker_aliases, layer
        As in :class:`ReluFormerClassifier`. The markers must include those of the gates.
        With ``layer``, polygons in ``uns`` are not used and predicted polygons have transform
        "none", because the recorded scale is that of ``X``.
    gate_aliases : dict, default None
        Name in the data -> name in ``gates``.
    n_vertices : int, default 16
        Number of vertices V of each predicted polygon.
    n_layers, n_heads, hidden_dim
        Size of the encoder and of the gates' attention, as in :class:`ReluFormerClassifier`.
    max_epochs : int, default 25
    steps_per_epoch : int, default 50
    cells_per_sample : int, default 1500
        As in :class:`ReluFormerClassifier`. The groups of cells that are added to the loss are
        those in a gate and in no deeper gate.
    augmentation : float, default 1.0
    learning_rate : float, default 3e-3
    head_diversity, head_evenness : float, default 0.0
    validation_fraction : float or None, default None
        Share of the patients that is held out; the epoch with the best soft Dice on them is kept.
        With few samples, training needs all of them, and the best epoch depends on chance.
    warm_start : bool, default False
    device : str, default "auto"
    random_state : int, RandomState or None, default 0
    verbose : int, default 0
        As in :class:`ReluFormerClassifier`.

    Attributes
    ----------
    gates_ : list of str
        Gates with a polygon, in the order in which :meth:`predict` returns them.
    tree_ : GatingTree
        Tree of the gates, with the typical polygons of the training samples.
    markers_ : list of str
    preprocessing_, reference_
        As in :class:`ReluFormerClassifier`.
    history_ : DataFrame
        One row per epoch: ``epoch``, ``train_loss`` (cross-entropy and soft Dice), ``valid_loss``
        (soft Dice), ``learning_rate``, ``seconds``.
    validation_samples_ : list
    training_ : list of dict
        Numbers that describe the data of each training of the model. ``warm_start`` adds one.
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

    _parameter_constraints: Entries = {
        **CONSTRAINTS,
        "gates": [GatingTree, dict],
        "gates_key": [str, None],
        "gate_aliases": [dict, None],
        "n_vertices": [Interval(Integral, 4, 360, closed="both")],
    }

    def __init__(
        self,
        gates: GatingTree | Mapping[str, Any] | None = None,
        *,
        sample_key: str | int | None = None,
        gates_key: str | None = EXPERT_GATES,
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
        max_epochs: int = 25,
        steps_per_epoch: int = 50,
        cells_per_sample: int = 1500,
        augmentation: float = 1.0,
        learning_rate: float = 3e-3,
        head_diversity: float = 0.0,
        head_evenness: float = 0.0,
        validation_fraction: float | None = None,
        warm_start: bool = False,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = 0,
        verbose: int = 0,
    ) -> None:
        self.gates = gates
        self.sample_key = sample_key
        self.gates_key = gates_key
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
        self.max_epochs = max_epochs
        self.steps_per_epoch = steps_per_epoch
        self.cells_per_sample = cells_per_sample
        self.augmentation = augmentation
        self.learning_rate = learning_rate
        self.head_diversity = head_diversity
        self.head_evenness = head_evenness
        self.validation_fraction = validation_fraction
        self.warm_start = warm_start
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    gates_: list[str]
    tree_: GatingTree
    _plan: GatePlan

    # -- fit ----------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    @own_threads()
    def fit(
        self,
        X: CellData,
        y: PerCell = None,
        groups: PerCell = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        callbacks: Sequence[Callback] | None = None,
    ) -> Self:
        """Train on samples with expert gates.

        Parameters
        ----------
        X : AnnData, DataFrame or array of shape (n_cells, n_columns)
            Cells, transformed. Not changed.
        y : DataFrame or array of shape (n_cells, n_gates), optional
            Membership: True/False, or NaN for unknown. The columns of a table are named like the
            gates. An array has one column per gate of the tree, including boolean gates, in the
            order of the tree. Default: the gates under ``gates_key``.
        groups : array-like of shape (n_cells,), optional
            Sample id of each cell, if there is no ``sample_key``.
        checkpoint : path, optional
            As for :meth:`ReluFormerClassifier.fit`.
        callbacks : list of skorch.callbacks.Callback, optional
            As for :meth:`ReluFormerClassifier.fit`.

        Returns
        -------
        self

        Raises
        ------
        InvalidInputError
            The tree has a circle or an unknown parent; the membership contradicts it (the message
            counts the cells of a gate outside of its parent); a gate has too few cells; a value
            is not finite.
        MarkerMismatchError
            A gate is on a marker that the model does not read.
        MissingKeyError
            There is no membership.
        """
        return self._fit_copy(X, y, groups, checkpoint, callbacks)

    def _fit(
        self,
        X: CellData,
        y: PerCell,
        groups: PerCell,
        checkpoint: Path | None,
        callbacks: Sequence[Callback],
    ) -> None:
        tree = as_template(self.gates)
        if isinstance(X, AnnData):
            tree = tree.on_markers(X)
        self._require_same_tree(tree)
        samples = read_to_fit(self, X, groups, continued=self._continues())
        self._set_plan(GatePlan.of(tree, samples.markers))
        member, probes, seed = *self._read_expert(X, y, samples), self._seed()
        inside = within_parents(tree, member)
        require_taught(tree, inside, self.gates_key)
        codes, rng = strata(inside), np.random.default_rng(seed)
        axes = self._plan.axes
        is_open = open_ends(samples.x, inside, axes, probes)
        probes = hull_probes(samples.x, inside, samples.offsets, axes, is_open, probes, rng)
        module = cast(PolygonFormer, self._initial_module(samples, seed))
        if not self._continues():
            place_typical_gates(
                module, samples, inside, self._plan.hierarchy, probes, is_open, seed
            )
        present = class_presence(codes, samples.offsets, len(self.gates_) + 1)
        train, valid = split_patients(samples, self.validation_fraction, seed, present[:, 1:])
        members = {f"inside {name}": inside[:, j] == 1 for j, name in enumerate(self.gates_)}
        self._record_training(samples, members, valid)
        draws, *valid_draws = [
            self._draws(samples, codes, inside, probes, chosen, module, seed, fixed)
            for chosen, fixed in ((train, False), (valid, True))
            if chosen
        ]
        loss = GateLoss(self._plan.hierarchy)
        valid_draw = next(iter(valid_draws), None)
        self._train(samples, module, loss, draws, valid_draw, checkpoint, callbacks)
        adjust_to_samples(module, samples, train, draws, self._plan.hierarchy)
        with torch.no_grad():
            typical = module.typical().cpu().numpy()
        self.tree_ = self._plan.drawn(typical, self.preprocessing_)

    def _set_plan(self, plan: GatePlan) -> None:
        self._plan, self.tree_, self.gates_ = plan, plan.tree, plan.polygons

    def _require_same_tree(self, tree: GatingTree) -> None:
        if not self._continues():
            return
        fitted, given = (
            [(g.name, g.parent, g.x, g.y) for g in polygons_of(t)] for t in (self.tree_, tree)
        )
        if fitted != given:
            raise InvalidInputError(
                f"warm_start continues with the gates {listed(fitted)}, but gates= is "
                f"{listed(given)}."
            )

    def _read_expert(
        self, X: CellData, y: PerCell, samples: Samples
    ) -> tuple[np.ndarray, list[Probes | None]]:
        """Membership of analysed cells in all gates, and points in the planes of each sample."""
        tree = self.tree_
        member = read_membership(X, y, self.gates_key, tree, self.gate_aliases)[samples.rows]
        names = list(tree.gates)
        taught = [name for i, name in enumerate(names) if (member[:, i] >= 0).any()]
        trees = {}
        if y is None and self.layer is None:
            trees = expert_trees(X, self.gates_key, tree, self.gate_aliases, taught)
        probes: list[Probes | None] = [None] * len(samples.names)
        for s, (start, stop) in enumerate(samples.spans()):
            expert = trees.get(str(samples.names[s]))
            if expert is None or len(expert) == 0:
                continue
            # Only an AnnData has trees.
            cells = cast(AnnData, X)[samples.rows[start:stop]]
            fill_from_polygons(tree, member[start:stop], expert.apply(cells))
            probes[s] = sample_probes(cells, tree, expert, np.random.default_rng(s))
        derive_booleans(tree, member)
        return member, probes

    def _make_module(self, n_markers: int) -> PolygonFormer:
        return PolygonFormer(
            n_markers,
            self._plan.axes,
            self.n_vertices,
            hidden_dim=self.hidden_dim,
            n_heads=self.n_heads,
            n_layers=self.n_layers,
            eps=_EPS,
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
        rows = samples.cells_of(chosen)
        return GateDraws(
            part.x,
            codes[rows],
            part.offsets,
            scale=MarkerScale.in_net(module),
            n_classes=len(self.gates_) + 1,
            plan=draw_plan(self, len(chosen) if fixed else 0, _MIN_GATE_FRACTION),
            seed=seed,
            target=np.column_stack([codes[rows].astype(np.int8), inside[rows]]),
            fixed=fixed,
            axes=self._plan.axes,
            probes=[probes[s] for s in chosen],
        )

    # -- prediction ---------------------------------------------------------------------------

    @own_threads()
    def predict(self, X: CellData, groups: PerCell = None) -> np.ndarray:
        """Vertices of each polygon of each sample.

        Parameters
        ----------
        X : AnnData, DataFrame or array of shape (n_cells, n_columns)
            Whole samples. Markers are found by name; other columns are ignored.
        groups : array-like of shape (n_cells,), optional
            Sample ids, for a model fitted with ``groups``.

        Returns
        -------
        ndarray of shape (n_samples, n_gates, n_vertices, 2)
            In the units of X; samples by first appearance, gates as ``gates_``, vertices
            anticlockwise. A gate is open at the end of an axis if training cells in it lie there:
            a vertex close to that end is moved 5 % of the axis beyond it, so that events at the
            end stay inside.

        Raises
        ------
        NotFittedError, MarkerMismatchError, MissingKeyError, InvalidInputError
            As in :meth:`ReluFormerClassifier.predict`.
        ProcessingStateError
            The transform or compensation of X differs from that of the training data.
        """
        return self._polygons(read_to_predict(self, X, groups))

    @own_threads()
    def predict_gates(self, X: CellData, groups: PerCell = None) -> dict[Hashable, GatingTree]:
        """Gating tree of each sample.

        Parameters
        ----------
        X, groups
            As for :meth:`predict`.

        Returns
        -------
        dict of sample to GatingTree
            Polygons with the transform and compensation of the training data, and boolean gates.
        """
        samples = read_to_predict(self, X, groups)
        polygons = self._polygons(samples)
        return {
            name: self._plan.drawn(vertices, self.preprocessing_)
            for name, vertices in zip(samples.names.tolist(), polygons, strict=True)
        }

    @own_threads()
    def predict_membership(self, X: CellData, groups: PerCell = None) -> pd.DataFrame:
        """Cells inside each predicted gate and its predicted parents.

        Parameters
        ----------
        X, groups
            As for :meth:`predict`.

        Returns
        -------
        DataFrame of bool, one row per cell, one column per gate of the tree
            Missing (nullable boolean) for cells outside ``subset_key``.
        """
        samples = read_to_predict(self, X, groups)
        return self._table(samples, self._members(samples), X)

    def predict_cells(
        self,
        X: CellData,
        groups: PerCell = None,
        *,
        leaves: list[str] | None = None,
        outside: str = "other",
    ) -> np.ndarray:
        """Class of each cell: the leaf of the tree that contains it.

        Parameters
        ----------
        X, groups
            As for :meth:`predict`.
        leaves : list of str, optional
            Gates to use as classes. Default: gates that are no other gate's parent or operand. A
            cell in several leaves gets the leaf with its largest soft membership.
        outside : str, default "other"
            Class of cells that are in no leaf.

        Returns
        -------
        ndarray of shape (n_cells,)
            Comparable with :meth:`ReluFormerClassifier.predict`; "not analysed" outside
            ``subset_key``.

        Raises
        ------
        MissingKeyError
            A leaf is not a gate of the tree.
        """
        samples = read_to_predict(self, X, groups)
        if leaves is None:
            used = {o for g in self.tree_ if isinstance(g, BooleanGate) for o in g.operands}
            leaves = [name for name in self.tree_.leaves if name not in used]
        for name in leaves:
            self.tree_[name]
        inside = self._members(samples)[leaves].to_numpy()
        depth = inside.astype(np.float32)
        if (inside.sum(1) > 1).any():
            depth = self._soft_members(samples)[leaves].to_numpy()
        best = np.where(inside, depth, -1.0).argmax(1)
        names = np.array([*leaves, outside], dtype=object)
        return samples.scatter(names[np.where(inside.any(1), best, len(leaves))], NOT_ANALYSED)

    @overload
    def annotate(self, data: AnnData, *, key_added: str = ..., copy: Literal[True]) -> AnnData: ...

    @overload
    def annotate(
        self, data: Writable, *, key_added: str = ..., copy: Literal[False] = ...
    ) -> None: ...

    @own_threads()
    def annotate(
        self, data: Writable, *, key_added: str = GateKeys.key, copy: bool = False
    ) -> AnnData | None:
        """Gate samples and write the result into an AnnData, or into a store on disk.

        Sets the following fields:

        ``adata.obsm[f"{key_added}_membership"]`` : DataFrame of bool
            One column per gate; missing for cells outside ``subset_key``.
        ``adata.var[f"{key_added}_markers"]`` : bool
            Channels that the model reads, for ``sc.pp.pca(adata, mask_var=...)``.
        ``adata.uns[key_added]`` : dict
            ``gates``, all polygons as :meth:`GatingTree.to_uns` writes them (read a sample's tree
            with :meth:`GatingTree.from_adata`), and the run record: parameters, version, markers;
            ``cards``, the cards of the model as JSON (:meth:`cards`); ``distance``, the distance
            of each sample from training (:meth:`check_sample`).

        Parameters
        ----------
        data : AnnData or path
            Whole samples; a path as for :meth:`ReluFormerClassifier.annotate`.
        key_added : str, default "predicted_gates"
        copy : bool, default False
            Return an annotated copy and do not change ``data``. Not possible for a path.

        Returns
        -------
        AnnData or None

        Raises
        ------
        InvalidInputError
            ``data`` is neither an AnnData nor a store, or is a view; the key is unusable;
            ``copy`` is True for a store; and as :meth:`predict`.
        FileNotFoundError
            The path does not exist.
        """
        write = partial(self._write, keys=GateKeys(key_added))
        found: AnnData | None = self._annotate(data, GateKeys(key_added), copy, write)
        return found

    def _write(self, cells: list[SampleCells], sink: Sink, keys: GateKeys) -> Entries:
        gates = list(self.tree_.gates)
        all_analysed = sum(len(part.rows) for part in cells) == sink.n_cells
        flags = sink.flags(keys.membership, gates, nullable=not all_analysed)
        trees = {}
        for part in cells:
            stream = stream_through(fitted_net(self), part)
            tree = self._plan.drawn(_vertices(stream), self.preprocessing_)
            trees[str(part.name)] = tree
            read = ((i, j, part.source.read(i, j)) for i, j, _ in stream.chunks())
            for start, stop, x in by_block(read):
                flags.write(part.rows[start:stop], self._plan.members(tree, x))
        return {"gates": GatingTree.to_uns(trees)}

    @own_threads()
    def score(self, X: CellData, y: PerCell = None, groups: PerCell = None) -> float:
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
            Mean without the NaN entries of :meth:`score_table`, for which neither the expert nor
            the model has a cell inside.
        """
        table = self.score_table(X, y, groups)
        return float(table.loc[table["gate"].isin(self.gates_), "f1"].mean())

    def score_table(self, X: CellData, y: PerCell = None, groups: PerCell = None) -> pd.DataFrame:
        """Agreement with the expert for each sample and gate.

        Parameters
        ----------
        X, y, groups
            As for :meth:`score`.

        Returns
        -------
        DataFrame
            Table of :func:`~fcm_estimators.metrics.gate_agreement`. Predicted gates are applied
            in sequence.
        """
        samples = read_to_predict(self, X, groups)
        member, _ = self._read_expert(X, y, samples)
        truth = pd.DataFrame(member, columns=list(self.tree_.gates))
        truth = truth.where(truth >= 0).astype("boolean")
        truth = truth.dropna(axis=1, how="all")
        groups = samples.names[samples.sample_of_cell]
        return gate_agreement(truth, self._members(samples), groups=groups)

    @own_threads()
    def trace_gates(
        self, X: CellData, y: PerCell = None, groups: PerCell = None
    ) -> dict[Hashable, GatingTree]:
        """Star polygons traced around the expert's cells of each sample.

        These gates are fitted to the answer, so their agreement with the expert is about the best
        that star polygons can reach. They start from quantiles of the distances in each direction,
        and no start is better than the result. If the predicted gates agree equally well in
        :meth:`score_table`, more training does not help. If the fitted gates agree poorly, a star
        polygon cannot describe the population.

        Parameters
        ----------
        X, y, groups
            As for :meth:`score`.

        Returns
        -------
        dict of sample to GatingTree
            A gate with fewer than 20 cells in the sample has the typical polygon.
        """
        samples = read_to_predict(self, X, groups)
        member, _ = self._read_expert(X, y, samples)
        inside = within_parents(self.tree_, member)
        module, rng = cast(PolygonFormer, fitted_net(self)), np.random.default_rng(0)
        found = {}
        for name, (start, stop) in zip(samples.names.tolist(), samples.spans(), strict=True):
            cells = samples.x[start:stop], inside[start:stop]
            vertices = traced_vertices(module, *cells, self._plan.hierarchy, rng)
            found[name] = self._plan.drawn(vertices, self.preprocessing_)
        return found

    # -- helpers of prediction ----------------------------------------------------------------

    def _polygons(self, samples: Samples) -> np.ndarray:
        """Vertices of each gate of each sample, (S, G, V, 2)."""
        net = net_for(fitted_net(self), samples.x.dtype)
        cells = cells_in_memory(samples, net.input_mean.device)
        return np.stack([_vertices(stream_through(net, part)) for part in cells])

    def _members(self, samples: Samples) -> pd.DataFrame:
        """Cells inside each predicted gate, in the order of ``samples.x``."""
        parts = [
            self._plan.members(self._plan.drawn(vertices, self.preprocessing_), samples.x[i:j])
            for (i, j), vertices in zip(samples.spans(), self._polygons(samples), strict=True)
        ]
        return pd.DataFrame(np.concatenate(parts), columns=list(self.tree_.gates))

    def _soft_members(self, samples: Samples) -> pd.DataFrame:
        """Soft membership of each cell in each gate, within soft parents."""
        inside = torch.sigmoid(torch.from_numpy(outputs_of(fitted_net(self), samples)))
        members = soft_members(self._plan.hierarchy, inside).numpy()
        return pd.DataFrame(members, columns=list(self.tree_.gates))

    def _table(self, samples: Samples, members: pd.DataFrame, X: CellData) -> pd.DataFrame:
        index = X.obs_names if isinstance(X, AnnData) else getattr(X, "index", None)
        unknown = samples.scatter(np.zeros(len(samples.rows), dtype=bool), True)
        everything = not unknown.any()
        columns: Entries = {}
        for name in members:
            values = samples.scatter(members[name].to_numpy(), False)
            columns[str(name)] = values if everything else pd.arrays.BooleanArray(values, unknown)
        return pd.DataFrame(columns, index=index)

    # -- save and load ------------------------------------------------------------------------

    def _json_params(self) -> Entries:
        # The tree is saved as a fitted attribute, and it is too large for a run record.
        return {k: v for k, v in super()._json_params().items() if k != "gates"}

    def _card_entries(self) -> dict[str, str]:
        found = {}
        for gate in self.tree_:
            if isinstance(gate, PolygonGate):
                kind = f"polygon of {self.n_vertices} vertices in {gate.x}, {gate.y}"
            else:
                kind = "combination of other gates"
            found[f"gate {gate.name}"] = f"{kind}; parent {gate.parent or 'none'}"
        return found

    def _fitted_state(self) -> Entries:
        return {"tree": tree_records(self.tree_)}

    def _restore_fitted_state(self, state: Entries) -> None:
        tree = tree_of_records(state["tree"])
        self.gates = tree
        self._set_plan(GatePlan.of(tree, self.markers_))


def _vertices(stream: Stream) -> np.ndarray:
    """Vertices of the gates of one sample, (G, V, 2)."""
    module = cast(PolygonFormer, stream.module)
    with torch.no_grad():
        vertices = module.polygons(stream.source.read(0, 0), contexts=stream.contexts)
    return vertices[0].cpu().numpy()
