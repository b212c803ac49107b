"""Which cells matter, and which direction in marker space changes the output most."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.pipeline import Pipeline

from explainers._gradient_plan import GradientPlan, Integrated, Method, Plain, differentiable
from explainers._maths.projection import project_arrows
from explainers._model import OfModel
from explainers._populations import chosen_cells, embedding_of, target_cells
from explainers.summary import gradient_summary
from explainers.targets import Target
from fcm_estimators import __version__
from fcm_estimators.classifier import ReluFormerClassifier
from fcm_estimators.exceptions import InvalidInputError, require_key
from fcm_estimators.inference import (
    CellData,
    PerCell,
    Writable,
    fitted_net,
    marker_columns,
    open_data,
    own_threads,
    read_cells,
    read_samples,
    require_writable,
    run_record,
)
from fcm_estimators.keys import GradientKeys
from fcm_estimators.polygon_regressor import PolygonRegressor


class GradientExplainer(OfModel):
    """Gradient of the output for a class or a gate with respect to the markers of each cell.

    The length of the gradient of a cell shows how much the cell matters. Its direction is the
    direction in marker space in which a change matters most. T are the targets, the cells whose
    outputs f_i are explained. There are three modes, with different results:

    - ``"own"``: ``own_j = [j in T] df_j/dx_j`` with fixed contexts: the effect of a cell on its
      own output.
    - ``"set"``: ``set_j = d(sum_{i in T} f_i)/dx_j``: the whole effect, including that through the
      contexts, which all cells of the sample share.
    - ``"context"``: ``set - own``: the effect through the contexts, including that of a cell on
      its own output.

    A gate of a :class:`~fcm_estimators.PolygonRegressor` belongs to the whole sample, so a vertex
    or the size of a gate has mode ``"set"`` only.

    An arrow shows the sensitivity of the *model*. It makes no statement about biology, does not
    show a path of a cell, and does not prove that the model needs the marker: see
    ``explainers.faithfulness``.

    Parameters
    ----------
    estimator : ReluFormerClassifier, PolygonRegressor, or a Pipeline that ends in one
        Fitted.
    target : label, LogOdds, Probability, Vertex or GateSize, default None
        Output to explain. A label means its log-odds against the rest. None means the log-odds of
        the positive class of two.
    mode : {"own", "set", "context"}, default None
        None: "own" for classes, "set" for gates, and for a net of the user
        (``ReluFormerClassifier(module=...)``), which has no other unless it is a SetModule.
    method : {"plain", "smooth", "integrated"}, Smooth or Integrated, default "plain"
        ``"smooth"`` means ``Smooth()``, ``"integrated"`` means ``Integrated()``.
    units : {"layer", "sd"}, default "layer"
        "layer": output units per unit of the explained values. "sd": output units per training SD
        of the marker, which makes markers comparable.
    key_added : str, default "gradient"

    References
    ----------
    arXiv 2307.14581 (gradient-based visualisation). The split into own and context part is exact
    because cells are independent given the contexts.

    Examples
    --------
    >>> from explainers import GradientExplainer
    >>> from fcm_estimators import ReluFormerClassifier
    >>> from fcm_estimators.datasets import simulate_cohort
    >>> from fcm_estimators.preprocessing import LogicleTransform
    >>> raw = simulate_cohort(n_samples=2, n_cells=200, random_state=0)
    >>> adata = LogicleTransform().fit_transform(raw)
    >>> clf = ReluFormerClassifier(
    ...     sample_key="sample", label_key="cell_type", pos_label="blast", max_epochs=1
    ... ).fit(adata)
    >>> GradientExplainer(clf, target="blast", mode="own").explain(adata)
    >>> adata.layers["gradient"].shape == adata.shape
    True
    """

    def __init__(
        self,
        estimator: ReluFormerClassifier | PolygonRegressor | Pipeline,
        target: Target | Any = None,
        *,
        mode: Literal["own", "set", "context"] | None = None,
        method: Literal["plain", "smooth", "integrated"] | Method = "plain",
        units: Literal["layer", "sd"] = "layer",
        key_added: str = GradientKeys.key,
    ) -> None:
        self._take(estimator)
        self.target = target
        self.mode = mode
        self.method = method
        self.units = units
        self.key_added = key_added

    def plan(self) -> GradientPlan:
        """Check the settings and return them.

        Raises
        ------
        NotFittedError
            The estimator is not fitted.
        InvalidInputError, MissingKeyError
            A class, gate, mode, method or unit is unknown, or the target does not have the mode.
            The message lists the alternatives.
        """
        fitted_net(self.estimator)
        return GradientPlan.of(self.estimator, self.target, self.mode, self.method, self.units)

    @own_threads()
    def attribute(self, X: CellData, *, groups: PerCell = None, cells: Any = None) -> np.ndarray:
        """Gradient of each cell, as an array.

        Parameters
        ----------
        X : AnnData, DataFrame or array of shape (n_cells, n_columns)
            Whole samples, as for ``predict``.
        groups : array-like of shape (n_cells,), optional
            Sample ids, for a model fitted with ``groups``.
        cells : bool array of shape (n_cells,), obs column, cell name or number, optional
            The targets T. Default: all cells.

        Returns
        -------
        ndarray of shape (n_cells, n_markers)
            Columns as ``estimator.markers_``, in the dtype of X; NaN for cells not analysed.

        Raises
        ------
        As :meth:`plan` and ``predict``; InvalidInputError, MissingKeyError
            The selection of cells is unknown.
        """
        plan = self.plan()
        plan.require_targets(cells)
        samples = read_samples(self.estimator, self.ready(X), groups)
        chosen = target_cells(X, cells, samples.n_rows)[samples.rows]
        return samples.scatter(plan.of_samples(samples, chosen), np.nan)

    @own_threads()
    def explain(self, data: Writable, *, cells: Any = None) -> None:
        """Write the gradient of each cell into an AnnData, or into a store on disk.

        Sets the following fields, where ``key`` is ``key_added``:

        ``adata.layers[key]`` : float32, cells x all vars
            Signed gradient. NaN for markers that the model does not use and cells not analysed.
        ``adata.obs[f"{key}_norm"]`` : float32
            Length of the gradient.
        ``adata.obs[f"{key}_marker"]`` : Categorical
            Marker with the largest absolute entry; missing if the gradient is zero.
        ``adata.uns[key]`` : dict
            Explained output, parameters, version, training SD of each marker.

        Parameters
        ----------
        data : AnnData or path
            Whole samples; a path as for :meth:`ReluFormerClassifier.annotate`, with one temporary
            file per layer of the net in modes ``set`` and ``context``.
        cells : bool array, obs column, cell name or number, optional
            The targets T; for a store, a column of ``obs``. Default: all cells.

        Raises
        ------
        As :meth:`attribute`; InvalidInputError
            ``data`` is a view; the key is unusable; for a store, the method is not "plain".
        FileNotFoundError
            The path does not exist.
        """
        plan, keys = self.plan(), GradientKeys(self.key_added)
        plan.require_targets(cells)
        if not isinstance(data, AnnData) and not isinstance(plan.method, Plain):
            raise InvalidInputError(
                f"method={self.method!r}: in a store only 'plain' gradients are written. For other "
                "methods, read the sample into memory."
            )
        with open_data(data, keys) as (source, sink):
            parts = read_cells(self.estimator, self.ready(source))
            chosen = chosen_cells(source, cells)
            columns = marker_columns(self.estimator, sink.var_names)
            names = sink.var_names[columns].tolist()
            layer, norm = sink.layer(keys.values), sink.numbers(keys.norm)
            marker = sink.categorical(keys.marker, names)
            with differentiable():
                for part in parts:
                    for start, stop, values in plan.blocks(part, part.pick(chosen)):
                        rows = part.rows[start:stop]
                        all_vars, length, strongest = _fields(values, columns, len(sink.var_names))
                        layer.write(rows, all_vars)
                        norm.write(rows, length)
                        marker.write(rows, strongest)
            sink.commit(keys, self._record(plan, names, cells))

    def _record(self, plan: GradientPlan, markers: list[str], cells: Any) -> dict[str, Any]:
        """Run record for ``uns``."""
        targets = "all cells" if cells is None else cells if isinstance(cells, str) else "mask"
        return run_record(
            self._settings(),
            version=__version__,
            explained=plan.output.name,
            mode=plan.mode,
            method=type(plan.method).__name__.lower(),
            units=self.units,
            markers=markers,
            marker_sd=fitted_net(self.estimator).input_scale.double().numpy(force=True),
            layer=self.estimator.layer,
            sample_key=self.estimator.sample_key,
            targets=targets,
        )

    def summary(
        self,
        adata: AnnData,
        population: str,
        *,
        confidence: float = 0.95,
        n_bootstrap: int = 500,
        random_state: int = 0,
    ) -> pd.DataFrame:
        """Mean signed gradient of each marker in each population, with intervals.

        Calls :func:`explainers.gradient_summary` on the results of this explainer.
        """
        return gradient_summary(
            adata,
            population,
            key=self.key_added,
            confidence=confidence,
            n_bootstrap=n_bootstrap,
            random_state=random_state,
        )

    @own_threads()
    def project(
        self, adata: AnnData, basis: str = "umap", *, n_neighbors: int = 50, step: float = 0.5
    ) -> None:
        """Draw the gradients as arrows on an embedding.

        Each analysed cell is moved in the direction of its gradient in SD units, by ``step``
        training SD times the length of the gradient relative to the median. The arrow is the
        corresponding displacement in the embedding. It follows from the linear map that best fits
        the nearest neighbours of the cell in marker space. For a linear projection the arrows are
        exact. For other embeddings they point to neighbours with such markers, and their length
        means little.

        Sets the following fields:

        ``adata.obsm[f"{key_added}_{basis}"]`` : float32, cells x dimensions of the embedding
            The arrows; NaN for cells not analysed. The arrow plots of scVelo read them.

        Parameters
        ----------
        adata : AnnData
            Result of :meth:`explain` (not with method "integrated"), with ``obsm[f"X_{basis}"]``.
        basis : str, default "umap"
        n_neighbors : int, default 50
            Neighbours that determine the local map; at least the number of markers.
        step : float, default 0.5
            Length of the median displacement, in training SD.

        Raises
        ------
        MissingKeyError
            The gradient or the embedding is missing. The message lists those that exist.
        InvalidInputError
            The method is "integrated", whose contributions are not a direction; or there are too
            few neighbours.
        """
        keys = GradientKeys(self.key_added)
        require_key(keys.values, adata.layers.keys(), "the layer")
        embedding = embedding_of(adata, basis)
        require_writable(adata, keys.key)
        recorded = adata.uns.get(keys.record, {}).get("method")
        if recorded == "integrated" or isinstance(self.plan().method, Integrated):
            raise InvalidInputError(
                "Integrated gradients are contributions, not a direction. Use method='plain'."
            )
        samples = read_samples(self.estimator, self.ready(adata))
        if n_neighbors < len(samples.markers) or len(samples.x) <= len(samples.markers):
            raise InvalidInputError(
                f"n_neighbors={n_neighbors} with {len(samples.x)} cells: there must be at least "
                f"one neighbour per marker ({len(samples.markers)})."
            )
        scale = fitted_net(self.estimator).input_scale.numpy(force=True)
        columns = marker_columns(self.estimator, adata.var_names)
        gradient = np.asarray(adata.layers[keys.values][:, columns], dtype=np.float64)
        gradient = gradient[samples.rows]
        # The layer holds gradients per unit of the data, or already per SD.
        direction = gradient if self.units == "sd" else gradient * scale
        length = np.median(np.linalg.norm(direction, axis=1))
        arrows = direction * (step / length if length > 0 else 0.0)
        places = embedding[samples.rows].astype(np.float64)
        moved = project_arrows(samples.x / scale, places, arrows, n_neighbors)
        adata.obsm[keys.arrows(basis)] = samples.scatter(moved.astype(np.float32), np.nan)


def _fields(
    gradient: np.ndarray, columns: np.ndarray, n_vars: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values of the written fields, from gradients of shape (n, M).

    Returns
    -------
    all_vars : float32 ndarray of shape (n, n_vars)
        Gradient, with NaN in other columns.
    norm : float32 ndarray of shape (n,)
    strongest : int ndarray of shape (n,)
        Marker with the largest absolute entry, -1 if the gradient is zero or NaN.
    """
    all_vars = np.full((len(gradient), n_vars), np.nan, dtype=np.float32)
    all_vars[:, columns] = gradient
    norm = np.sqrt(np.square(gradient.astype(np.float64)).sum(1))
    strongest = np.abs(np.nan_to_num(gradient)).argmax(1)
    return all_vars, norm.astype(np.float32), np.where(norm > 0, strongest, -1)
