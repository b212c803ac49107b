"""Which cells matter, and in which direction of marker space the answer would change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from explainers._maths.gradients import (
    integrated,
    own_gradient,
    set_gradient,
    smoothed,
    stream_gradient,
    stream_own_gradient,
)
from explainers._maths.projection import project_arrows
from explainers._maths.summary import summarise
from explainers._outputs import ClassOutput, Output, class_output, gate_output
from explainers._populations import population_labels, target_cells
from fcm_estimators._base.estimator import spans
from fcm_estimators._cells import keys as _keys
from fcm_estimators._cells.samples import Samples
from fcm_estimators._cells.store import FileRows, by_block, open_store, write_rows
from fcm_estimators._checks import listed, require_key
from fcm_estimators._version import __version__
from fcm_estimators.classifier import ReluFormerClassifier
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.nn import streamed_contexts
from fcm_estimators.nn.streaming import Stream
from fcm_estimators.polygon_regressor import PolygonRegressor

MODES = ("own", "set", "context")
METHODS = ("plain", "smooth", "integrated")
UNITS = ("layer", "sd")


class GradientExplainer:
    """Gradient of a class's or gate's output with respect to every cell's markers.

    The length of a cell's gradient says how much the cell matters, its direction in which
    direction of marker space a change matters most. With targets T (the cells whose outputs f_i
    are explained) there are three readings, and they differ:

    - ``"own"``: ``own_j = [j in T] df_j/dx_j``, contexts held fixed: what moving this one cell
      does to itself.
    - ``"set"``: ``set_j = d(sum_{i in T} f_i)/dx_j``: everything, also through the contexts that
      all cells of the sample share.
    - ``"context"``: ``set - own``: what goes through the contexts, the cell's effect on itself by
      that way included.

    A gate of a :class:`~fcm_estimators.PolygonRegressor` belongs to the whole sample: a coordinate
    of a vertex, or the soft count of the cells inside, has mode ``"set"`` only.

    An arrow shows what the *model* is sensitive to. It is no statement about biology, no path that
    a cell would take, and no proof that the marker is needed: see ``explainers.faithfulness``.

    Parameters
    ----------
    estimator : ReluFormerClassifier or PolygonRegressor
        Fitted.
    target : label, default None
        Class to explain. None: the positive class of two.
    versus : label, default None
        Compare the target with this class alone (difference of their logits) instead of with the
        rest.
    output : {"log_odds", "probability"}, default "log_odds"
        Probabilities saturate: their gradients vanish on confident cells.
    gate : str, default None
        Gate to explain, of a PolygonRegressor.
    vertex : int, default None
        Vertex of that gate, as ``predict`` numbers them; its coordinate ``axis`` is explained, in
        the units of the marker, before vertices at the end of an axis are moved beyond it.
    axis : {"x", "y"}, default None
        Coordinate of the vertex.
    size : bool, default False
        Explain the soft count of the cells in the gate and its parents instead (of the targets,
        where ``cells`` names some).
    mode : {"own", "set", "context"}, default None
        None: "own" for classes, "set" for gates.
    method : {"plain", "smooth", "integrated"}, default "plain"
        ``smooth``: mean over ``n_draws`` copies of the sample with Gaussian noise.
        ``integrated``: contributions along the straight path from the training mean, where all
        cells of a sample move together; in output units, adding up (``"set"``) to the change of
        the summed output. In mode ``"own"`` the contexts stay those of the sample as it is.
    units : {"layer", "sd"}, default "layer"
        Output units per unit of the values explained, or per training SD of the marker, which
        makes markers comparable.
    noise : float, default 0.2
        SD of the noise of ``smooth``, in training SD.
    n_draws : int, default 16
        Of ``smooth``.
    n_steps : int, default 64
        Of ``integrated``.
    key_added : str, default "gradient"
    random_state : int, default 0
        Of the noise.

    References
    ----------
    arXiv 2307.14581 (gradient-based visualisation). Smilkov et al., *SmoothGrad*,
    arXiv 1706.03825. Sundararajan et al., *Axiomatic attribution*, arXiv 1703.01365. The split
    into own and context part is exact because cells are independent given the contexts.

    Examples
    --------
    >>> from explainers import GradientExplainer
    >>> from fcm_estimators import ReluFormerClassifier
    >>> from fcm_estimators.datasets import simulate_cohort
    >>> adata = simulate_cohort(n_samples=2, n_cells=200, random_state=0)
    >>> clf = ReluFormerClassifier(
    ...     sample_key="sample", label_key="cell_type", pos_label="blast", max_epochs=1
    ... ).fit(adata)
    >>> GradientExplainer(clf, target="blast", mode="own").explain(adata)
    >>> adata.layers["gradient"].shape == adata.shape
    True
    """

    def __init__(
        self,
        estimator: ReluFormerClassifier | PolygonRegressor,
        target: Any = None,
        *,
        versus: Any = None,
        output: Literal["log_odds", "probability"] = "log_odds",
        gate: str | None = None,
        vertex: int | None = None,
        axis: Literal["x", "y"] | None = None,
        size: bool = False,
        mode: Literal["own", "set", "context"] | None = None,
        method: Literal["plain", "smooth", "integrated"] = "plain",
        units: Literal["layer", "sd"] = "layer",
        noise: float = 0.2,
        n_draws: int = 16,
        n_steps: int = 64,
        key_added: str = "gradient",
        random_state: int = 0,
    ) -> None:
        self.estimator = estimator
        self.target = target
        self.versus = versus
        self.output = output
        self.gate = gate
        self.vertex = vertex
        self.axis = axis
        self.size = size
        self.mode = mode
        self.method = method
        self.units = units
        self.noise = noise
        self.n_draws = n_draws
        self.n_steps = n_steps
        self.key_added = key_added
        self.random_state = random_state

    def attribute(self, X: Any, *, groups: Any = None, cells: Any = None) -> np.ndarray:
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
            Columns as ``estimator.markers_``, dtype of X; NaN for cells not analysed.

        Raises
        ------
        NotFittedError
            The estimator is not fitted.
        InvalidInputError, MissingKeyError
            An unknown class, gate, mode, method, unit or selection of cells; the message lists
            what there is. A mode that the target does not have. And as ``predict``.
        """
        self._require_targets(cells)
        samples = self.estimator._read_to_predict(X, groups)
        chosen = target_cells(X, cells, samples.n_rows)[samples.rows]
        return samples.scatter(self._attribute(samples, self._resolve(), chosen), np.nan)

    def explain(self, adata: AnnData, *, cells: Any = None) -> None:
        """Write the gradient of each cell into an AnnData.

        Sets the following fields, ``key`` being ``key_added``:

        ``adata.layers[key]`` : float32, cells x all vars
            Signed gradient; NaN for markers the model does not use and cells not analysed.
        ``adata.obs[f"{key}_norm"]`` : float32
            Its length.
        ``adata.obs[f"{key}_marker"]`` : Categorical
            Marker with the largest absolute entry; missing where the gradient is zero.
        ``adata.uns[key]`` : dict
            What was explained, parameters, version, training SD of each marker.

        Parameters
        ----------
        adata : AnnData
            Whole samples.
        cells : bool array, obs column, cell name or number, optional
            The targets T. Default: all cells.

        Raises
        ------
        As :meth:`attribute`, and InvalidInputError for a view or an unusable key.
        """
        _keys.require_writable(adata, self.key_added)
        output = self._resolve()
        gradient = self.attribute(adata, cells=cells)
        _keys.write_gradient(
            adata,
            self.key_added,
            gradient=gradient,
            columns=self._columns(adata),
            run=self._run(output, adata.var_names[self._columns(adata)].tolist(), cells),
        )

    def explain_store(self, path: str | os.PathLike, *, cells: str | None = None) -> None:
        """Write the gradient of each cell into an h5ad or zarr store of any size.

        The fields are those of :meth:`explain`; memory and temporary files as for
        :meth:`ReluFormerClassifier.annotate_store`, with a file per layer in modes ``set`` and
        ``context``.

        Parameters
        ----------
        path : path
            An .h5ad file or a zarr directory.
        cells : str, optional
            Column of ``obs`` that marks the targets T. Default: all cells.

        Raises
        ------
        FileNotFoundError
        InvalidInputError, MissingKeyError
            Another method than ``plain``; and as :meth:`explain`.
        """
        self._require_targets(cells)
        output, key, mode = self._resolve(), self.key_added, self._mode()
        _keys.require_key_name(key)
        if self.method != "plain":
            raise InvalidInputError(
                f"method={self.method!r}: in a store only 'plain' gradients are written. Read one "
                "sample into memory for the others."
            )
        scale = self.estimator.net_.module_.input_scale.numpy(force=True)
        with open_store(path) as store:
            samples = self.estimator._read_store(store)
            chosen = store.flags(cells)
            columns = store.columns(self.estimator.markers_, self.estimator.marker_aliases)
            names = store.var_names[columns].tolist()
            layer = store.add_layer(key)
            norm = store.add_column(f"{key}_norm")
            marker = store.add_categorical(f"{key}_marker", names, -1)
            for _, part, stream in self.estimator._streams(samples, keep_layers=mode != "own"):
                targets = torch.from_numpy(part.pick(chosen))
                for start, stop, values in by_block(self._by_chunk(stream, output, targets)):
                    rows = part.rows[start:stop]
                    gradient = values * scale if self.units == "sd" else values
                    whole, length, strongest = _keys.described_gradient(
                        gradient, columns, len(store.var_names)
                    )
                    write_rows(layer, rows, whole)
                    write_rows(norm, rows, length)
                    write_rows(marker, rows, strongest)
            store.add_record(key, self._run(output, names, cells))

    def _by_chunk(
        self, stream: Stream, output: Output, targets: torch.Tensor
    ) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Gradient of one sample of a store, chunk by chunk."""
        mode, module = self._mode(), stream.module
        if mode == "own":
            yield from stream_own_gradient(stream, cast(ClassOutput, output), targets)
            return
        into = FileRows(stream.source.n_cells, len(module.input_mean), module.input_mean)
        for start, stop, values in stream_gradient(stream, output, targets, into):
            if mode == "context":
                own = own_gradient(
                    module,
                    stream.contexts,
                    stream.source.read(start, stop),
                    cast(ClassOutput, output),
                    targets[start:stop],
                )
                values = values - own
            yield start, stop, values

    def _run(self, output: Output, markers: list[str], cells: Any) -> dict[str, Any]:
        """Record for ``uns``."""
        targets = "all cells" if cells is None else cells if isinstance(cells, str) else "mask"
        return _keys.record(
            {k: v for k, v in vars(self).items() if k != "estimator"},
            version=__version__,
            explained=output.name,
            mode=self._mode(),
            method=self.method,
            units=self.units,
            markers=markers,
            marker_sd=self.estimator.net_.module_.input_scale.double().numpy(force=True),
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
    ) -> pd.DataFrame:
        """Mean signed gradient of each marker in each population, with intervals.

        Parameters
        ----------
        adata : AnnData
            Explained before.
        population : str
            Column of ``obs``, or of ``obsm["gates"]`` (inside and outside).
        confidence : float, default 0.95
        n_bootstrap : int, default 500

        Returns
        -------
        DataFrame
            A row per population and marker: ``population``, ``marker``, ``mean``, ``ci_low``,
            ``ci_high``, ``share_strongest`` (share of the cells whose largest entry it is),
            ``n_cells``, ``n_samples`` and ``resampled``: "samples", or "cells" where the
            population is in one sample only, which knows nothing of other patients.

        Raises
        ------
        MissingKeyError
            Not explained yet, or no such column.
        """
        require_key(self.key_added, adata.layers.keys(), "the layer")
        labels = population_labels(adata, population)
        positions = self._columns(adata)
        key = self.estimator.sample_key
        sample = adata.obs[key] if key in adata.obs else np.zeros(adata.n_obs)
        return summarise(
            np.asarray(adata.layers[self.key_added][:, positions]),
            self.estimator.markers_,
            labels,
            np.asarray(sample),
            confidence=confidence,
            n_bootstrap=n_bootstrap,
            seed=self.random_state,
        )

    def project(
        self, adata: AnnData, basis: str = "umap", *, n_neighbors: int = 50, step: float = 0.5
    ) -> None:
        """Draw the gradients as arrows on an embedding.

        Every analysed cell is moved by ``step`` training SD along its gradient's direction (in SD
        units, times the gradient's length relative to the median), and the embedding is followed
        by the linear map that fits the cell's nearest neighbours in marker space best. Where the
        embedding is a linear projection the arrows are exact; elsewhere they say in which
        direction neighbours with those markers lie, and their length means little.

        Sets the following fields:

        ``adata.obsm[f"{key_added}_{basis}"]`` : float32, cells x dimensions of the embedding
            The arrows, NaN for cells not analysed; what scVelo's arrow plots read.

        Parameters
        ----------
        adata : AnnData
            Explained before (not with ``integrated``), with ``obsm[f"X_{basis}"]``.
        basis : str, default "umap"
        n_neighbors : int, default 50
            Neighbours that fix the local map; at least the number of markers.
        step : float, default 0.5
            Length of the median displacement, in training SD.

        Raises
        ------
        MissingKeyError
            Not explained yet, or no such embedding; the message lists those present.
        InvalidInputError
            Integrated contributions, which are no direction; too few neighbours.
        """
        require_key(self.key_added, adata.layers.keys(), "the layer")
        bases = [name[2:] for name in adata.obsm.keys() if name.startswith("X_")]  # noqa: SIM118
        require_key(basis, bases, "the embedding")
        _keys.require_writable(adata, self.key_added)
        if self.method == "integrated":
            raise InvalidInputError(
                "Integrated gradients are contributions, not a direction; use method='plain'."
            )
        samples = self.estimator._read_to_predict(adata, None)
        if n_neighbors < len(samples.markers) or len(samples.x) <= len(samples.markers):
            raise InvalidInputError(
                f"n_neighbors={n_neighbors} with {len(samples.x)} cells: at least one neighbour "
                f"per marker ({len(samples.markers)}) is needed."
            )
        scale = self.estimator.net_.module_.input_scale.numpy(force=True)
        columns = self._columns(adata)
        gradient = np.asarray(adata.layers[self.key_added][:, columns], dtype=np.float64)
        gradient = gradient[samples.rows]
        # The layer holds output per caller's unit, or per SD already.
        direction = gradient if self.units == "sd" else gradient * scale
        length = np.median(np.linalg.norm(direction, axis=1))
        arrows = direction * (step / length if length > 0 else 0.0)
        embedding = np.asarray(adata.obsm[f"X_{basis}"], dtype=np.float64)[samples.rows]
        moved = project_arrows(samples.x / scale, embedding, arrows, n_neighbors)
        adata.obsm[f"{self.key_added}_{basis}"] = samples.scatter(moved.astype(np.float32), np.nan)

    # -- inside -------------------------------------------------------------------------------

    def _alias(self, name: str) -> str:
        return (self.estimator.marker_aliases or {}).get(name, name)

    def _columns(self, adata: AnnData) -> list[int]:
        """Column of ``adata`` of each of the model's markers."""
        names = [self._alias(name) for name in adata.var_names]
        return [names.index(marker) for marker in self.estimator.markers_]

    def _mode(self) -> str:
        gates = isinstance(self.estimator, PolygonRegressor)
        return self.mode or ("set" if gates else "own")

    def _require_targets(self, cells: Any) -> None:
        if self.vertex is not None and cells is not None:
            raise InvalidInputError(
                "A vertex belongs to the whole sample and has no target cells; leave cells=None."
            )

    def _resolve(self) -> Output:
        self.estimator._require_fitted()
        for name, value, known in (
            ("mode", self._mode(), MODES),
            ("method", self.method, METHODS),
            ("units", self.units, UNITS),
        ):
            if value not in known:
                raise InvalidInputError(f"{name}={value!r} is not among {listed(known)}.")
        if self.method == "integrated" and self.units == "sd":
            raise InvalidInputError(
                "Integrated gradients are contributions in output units, not per unit of a marker; "
                "leave units='layer'."
            )
        if isinstance(self.estimator, PolygonRegressor):
            return self._resolve_gate(self.estimator)
        asked = {k: getattr(self, k) for k in ("gate", "vertex", "axis", "size")}
        if any(value is not None and value is not False for value in asked.values()):
            raise InvalidInputError(
                f"{asked} is about gates, but the estimator is a "
                f"{type(self.estimator).__name__}; name a class with target=."
            )
        return class_output(
            self.estimator.classes_,
            self.estimator.pos_label_,
            self.target,
            self.versus,
            self.output,
        )

    def _resolve_gate(self, estimator: PolygonRegressor) -> Output:
        if self.gate is None or self.target is not None or self.versus is not None:
            raise InvalidInputError(
                "A PolygonRegressor has gates and no classes: name a gate with gate=, one of "
                f"{listed(estimator.tree_.gates)}, and leave target and versus."
            )
        if self._mode() != "set":
            raise InvalidInputError(
                f"mode={self.mode!r}: a gate belongs to the whole sample and has mode 'set' only."
            )
        return gate_output(estimator, self.gate, self.vertex, self.axis, self.size)

    def _attribute(
        self,
        samples: Samples,
        output: Output,
        chosen: np.ndarray,
        points: np.ndarray | None = None,
    ) -> np.ndarray:
        """Gradient of each analysed cell; at other ``points`` than ``samples.x`` where given.

        In mode "own" the contexts stay those of ``samples``.
        """
        module = self.estimator._module(samples.x.dtype)
        device = next(module.parameters()).device
        points = samples.x if points is None else points
        parts = []
        # Callers may be inside no_grad; nothing here depends on their mode.
        with torch.inference_mode(False), torch.enable_grad():
            for number, (start, stop) in enumerate(spans(samples)):
                x, at = (torch.from_numpy(a[start:stop]).to(device) for a in (samples.x, points))
                cells = torch.from_numpy(chosen[start:stop]).to(device)
                # Its own generator for every sample: samples together or alone are the same.
                seed = [self.random_state, _stable(samples.names[number])]
                parts.append(self._one_sample(module, x, at, output, cells, seed).cpu().numpy())
        out = np.concatenate(parts)
        return out * module.input_scale.numpy(force=True) if self.units == "sd" else out

    def _one_sample(
        self,
        module: Any,
        x: torch.Tensor,
        at: torch.Tensor,
        output: Output,
        cells: torch.Tensor,
        seed: list[int],
    ) -> torch.Tensor:
        mode = self._mode()
        with torch.no_grad():
            contexts = [] if mode == "set" else streamed_contexts(module, x)
        own = partial(own_gradient, module, contexts, output=cast(ClassOutput, output), cells=cells)
        whole = partial(set_gradient, module, output=output, cells=cells)

        def gradient(point: torch.Tensor) -> torch.Tensor:
            if mode == "own":
                return own(point)
            return whole(point) - own(point) if mode == "context" else whole(point)

        if self.method == "plain":
            return gradient(at)
        if self.method == "integrated":
            return integrated(gradient, at, module.input_mean.expand_as(at), self.n_steps)
        generator = torch.Generator().manual_seed(
            int(np.random.SeedSequence(seed).generate_state(1)[0])
        )
        return smoothed(gradient, at, self.noise * module.input_scale, self.n_draws, generator)


def _stable(name: Any) -> int:
    """Turn a sample id into a number that does not change between runs."""
    return int.from_bytes(str(name).encode()[-8:].rjust(8, b"\0"), "big")
