"""Transformers of markers to a scale: arcsinh, logicle, linear."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import ClassVar, Literal, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, TransformerMixin

from fcm_estimators.exceptions import (
    InvalidInputError,
    MissingKeyError,
    NotFittedError,
    ProcessingStateError,
)
from fcm_estimators.preprocessing import _state
from fcm_estimators.preprocessing.scales import Arcsinh, Linear, Logicle, Scale


# scikit-learn has no types, so mypy sees its classes as Any.
class _ScaleTransformer(TransformerMixin, BaseEstimator, ABC, auto_wrap_output_keys=None):  # type: ignore[call-arg, misc]
    """One scale per marker, fixed in ``fit`` and applied by marker name."""

    _kinds: ClassVar[tuple[str, ...]]
    markers: Sequence[str] | None
    transforms_: dict[str, Scale]

    @abstractmethod
    def _scales(self, adata: AnnData, markers: list[str]) -> list[Scale]:
        """Scale of each marker, in the order of ``markers``."""

    def fit(self, X: AnnData, y: object = None) -> Self:
        """Choose the markers and set their scales.

        Parameters
        ----------
        X : AnnData
            Training cells; not changed.
        y : None
            Ignored.

        Returns
        -------
        self

        Raises
        ------
        InvalidInputError
            If ``X`` is not a dense AnnData in memory, a parameter is invalid, or there is no
            marker to transform.
        MissingKeyError
            If ``markers`` is None and ``X.var`` has no column ``kind``, or if ``T`` is None and
            there is no column ``range``.
        MarkerMismatchError
            If a given marker is not in the data.
        ProcessingStateError
            If a marker is already transformed.
        """
        _state.check_adata(X)
        markers = self._choose_markers(X)
        _refuse_transformed(X, markers)
        self.transforms_ = dict(zip(markers, self._scales(X, markers), strict=True))
        return self

    def transform(self, X: AnnData) -> AnnData:
        """Transform the fitted markers to their scales.

        Parameters
        ----------
        X : AnnData
            Cells with raw linear (or compensated) values; not changed.

        Returns
        -------
        AnnData
            A copy with new float32 values in ``X``, the former ``X`` in ``layers["raw"]`` (unless
            that layer exists) and the scales in ``var["transform"]``.

        Raises
        ------
        NotFittedError
            If called before ``fit``.
        InvalidInputError
            If ``X`` is not a dense AnnData in memory, or has NaN or infinite values in a marker.
        MarkerMismatchError
            If a fitted marker is not in the data.
        ProcessingStateError
            If a marker is already transformed.
        """
        self._check(X)
        _refuse_transformed(X, list(self.transforms_))
        recorded = {marker: str(scale) for marker, scale in self.transforms_.items()}
        forward = {marker: scale.transform for marker, scale in self.transforms_.items()}
        return self._processed(X, forward, recorded)

    def inverse_transform(self, X: AnnData) -> AnnData:
        """Transform the fitted markers back to linear values, with the precision of float32.

        Parameters
        ----------
        X : AnnData
            Cells that this transformer, or one with the same scales, has transformed; not
            changed.

        Returns
        -------
        AnnData
            A copy whose ``var["transform"]`` is ``"none"`` for these markers.

        Raises
        ------
        NotFittedError
            If called before ``fit``.
        InvalidInputError
            If ``X`` is not a dense AnnData in memory, or has NaN or infinite values in a marker.
        MarkerMismatchError
            If a fitted marker is not in the data.
        ProcessingStateError
            If the recorded scale of a marker is not the fitted one.
        """
        self._check(X)
        recorded = _state.recorded_transforms(X)
        different = {
            marker: recorded[marker]
            for marker, scale in self.transforms_.items()
            if recorded[marker] != str(scale)
        }
        if different:
            raise ProcessingStateError(
                f"The recorded transforms are not the fitted ones: {different}; expected "
                f"{ {m: str(self.transforms_[m]) for m in different} }. Invert with the "
                "transformer that was applied."
            )
        back = {marker: scale.inverse for marker, scale in self.transforms_.items()}
        return self._processed(X, back, dict.fromkeys(back, _state.UNTRANSFORMED))

    def _processed(
        self,
        adata: AnnData,
        functions: Mapping[str, Callable[[ArrayLike], np.ndarray]],
        recorded: dict[str, str],
    ) -> AnnData:
        """A copy with the values that each marker's function gives."""

        def apply(values: np.ndarray) -> np.ndarray:
            for column, (marker, function) in zip(values.T, functions.items(), strict=True):
                column[:] = _named(marker, function, column)
            return values

        return _state.processed_copy(
            adata, list(functions), [(slice(None), apply)], transforms=recorded
        )

    def _check(self, adata: AnnData) -> None:
        """Check the data and the fit."""
        if not hasattr(self, "transforms_"):
            name = type(self).__name__
            raise NotFittedError(f"This {name} is not fitted yet. Call fit or fit_transform first.")
        _state.check_adata(adata)
        _state.require_markers(adata, list(self.transforms_))

    def _choose_markers(self, adata: AnnData) -> list[str]:
        name = type(self).__name__
        if self.markers is not None:
            markers = list(self.markers)
            if isinstance(self.markers, str) or not markers or len(set(markers)) < len(markers):
                raise InvalidInputError(
                    f"{name}: markers={self.markers!r}; expected a list of different names."
                )
            _state.require_markers(adata, markers)
            return markers
        if "kind" not in adata.var:
            raise MissingKeyError(
                f"{name}: adata.var has no column 'kind' (it has {list(adata.var.columns)}), so "
                f"the {' or '.join(self._kinds)} markers are unknown. Pass markers=[...]."
            )
        kind = adata.var["kind"].astype(str)
        chosen = [str(m) for m in adata.var_names[kind.isin(self._kinds).to_numpy()]]
        if not chosen:
            raise InvalidInputError(
                f"{name}: no marker is of kind {' or '.join(self._kinds)}; adata.var['kind'] has "
                f"{sorted(set(kind))}. Pass markers=[...]."
            )
        return chosen


class ArcsinhTransform(_ScaleTransformer, auto_wrap_output_keys=None):  # type: ignore[call-arg]
    """Transform markers of an AnnData to arcsinh scales, ``arcsinh(x / cofactor)``.

    Parameters
    ----------
    cofactor : float or dict of str to float, default 150
        In raw units, positive: one for all markers, or one per marker. 150 is usual for
        fluorescence, 5 for mass cytometry.
    markers : list of str, optional
        Markers (``var_names``) to transform. Default: kind ``fluorescence`` or ``mass``.

    Attributes
    ----------
    transforms_ : dict of str to Arcsinh
        Scale of each marker.

    References
    ----------
    Bendall et al., Science 332, 687-696 (2011).

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from anndata import AnnData
    >>> from fcm_estimators.preprocessing import ArcsinhTransform
    >>> adata = AnnData(np.float32([[0, 10], [5, 20]]), var=pd.DataFrame(index=["CD3", "CD4"]))
    >>> out = ArcsinhTransform(cofactor=5, markers=["CD3"]).fit_transform(adata)
    >>> list(out.var["transform"])
    ['arcsinh(cofactor=5)', 'none']
    """

    _kinds = ("fluorescence", "mass")

    def __init__(
        self,
        *,
        cofactor: float | Mapping[str, float] = 150.0,
        markers: Sequence[str] | None = None,
    ) -> None:
        self.cofactor = cofactor
        self.markers = markers

    def _scales(self, adata: AnnData, markers: list[str]) -> list[Scale]:
        return [Arcsinh(cofactor=c) for c in _per_marker("cofactor", self.cofactor, markers)]


class LogicleTransform(_ScaleTransformer, auto_wrap_output_keys=None):  # type: ignore[call-arg]
    """Transform markers of an AnnData to logicle scales of Gating-ML 2.0: 1 at raw value ``T``.

    Parameters
    ----------
    T : float, optional
        Top of the raw scale. Default: ``var["range"]`` ($PnR) of each marker in ``fit``.
    W : float, dict of str to float, or "fit", default 0.5
        Decades of the linear region. ``"fit"`` computes it for each marker from the training cells:
        ``(M - log10(T / |r|)) / 2``, where r is the 5th percentile of the negative values, within
        the limits of ``M`` and ``A``. A marker without negative values gets the narrowest region.
        The width is not estimated again for other samples.
    M : float, default 4.5
        Decades of the whole scale.
    A : float, default 0
        Additional negative decades.
    markers : list of str, optional
        Markers (``var_names``) to transform. Default: kind ``fluorescence``.

    Attributes
    ----------
    transforms_ : dict of str to Logicle
        Scale of each marker.

    References
    ----------
    The choice of W: Parks, Roederer, Moore, Cytometry A 69A, 541-551 (2006). The scale: Moore,
    Parks, Cytometry A 81A, 273-277 (2012).

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from anndata import AnnData
    >>> from fcm_estimators.preprocessing import LogicleTransform
    >>> adata = AnnData(np.float32([[-50], [1000]]), var=pd.DataFrame(index=["CD19"]))
    >>> out = LogicleTransform(T=262144, markers=["CD19"]).fit_transform(adata)
    >>> out.var["transform"]["CD19"]
    'logicle(T=262144,W=0.5,M=4.5,A=0)'
    """

    _kinds = ("fluorescence",)

    def __init__(
        self,
        *,
        T: float | None = None,
        W: float | Mapping[str, float] | Literal["fit"] = 0.5,
        M: float = 4.5,
        A: float = 0.0,
        markers: Sequence[str] | None = None,
    ) -> None:
        self.T = T
        self.W = W
        self.M = M
        self.A = A
        self.markers = markers

    def _scales(self, adata: AnnData, markers: list[str]) -> list[Scale]:
        tops = _tops(adata, self.T, markers)
        if isinstance(self.W, str):
            if self.W != "fit":
                raise InvalidInputError(f'W={self.W!r}; expected a number, a dict or "fit".')
            # This checks T, M and A before they are used.
            limits = [Logicle(T=t, W=max(0.0, -self.A), M=self.M, A=self.A) for t in tops]
            columns = (_state.finite_column(adata, marker) for marker in markers)
            widths = [_fitted_width(x, s) for x, s in zip(columns, limits, strict=True)]
        else:
            widths = _per_marker("W", self.W, markers)
        pairs = zip(tops, widths, strict=True)
        return [Logicle(T=top, W=width, M=self.M, A=self.A) for top, width in pairs]


class LinearTransform(_ScaleTransformer, auto_wrap_output_keys=None):  # type: ignore[call-arg]
    """Transform markers of an AnnData to linear scales, ``x / T``; for scatter.

    Parameters
    ----------
    T : float, optional
        Top of the raw scale. Default: ``var["range"]`` ($PnR) of each marker in ``fit``.
    markers : list of str, optional
        Markers (``var_names``) to transform. Default: kind ``scatter``.

    Attributes
    ----------
    transforms_ : dict of str to Linear
        Scale of each marker.

    References
    ----------
    Spidlen et al., Gating-ML 2.0, Cytometry A 87A, 683-687 (2015): ``flin`` with A = 0.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from anndata import AnnData
    >>> from fcm_estimators.preprocessing import LinearTransform
    >>> var = pd.DataFrame({"kind": ["scatter"], "range": [1000.0]}, index=["FSC-A"])
    >>> LinearTransform().fit_transform(AnnData(np.float32([[250], [500]]), var=var)).X.ravel()
    array([0.25, 0.5 ], dtype=float32)
    """

    _kinds = ("scatter",)

    def __init__(self, *, T: float | None = None, markers: Sequence[str] | None = None) -> None:
        self.T = T
        self.markers = markers

    def _scales(self, adata: AnnData, markers: list[str]) -> list[Scale]:
        return [Linear(T=top) for top in _tops(adata, self.T, markers)]


def _refuse_transformed(adata: AnnData, markers: list[str]) -> None:
    recorded = _state.recorded_transforms(adata)[markers]
    done = recorded[recorded != _state.UNTRANSFORMED]
    if len(done):
        raise ProcessingStateError(
            f"Already transformed: {done.to_dict()}; expected linear values. Pass markers= "
            "without them, or undo the transform with inverse_transform."
        )


def _named(
    marker: str, apply: Callable[[np.ndarray], np.ndarray], column: np.ndarray
) -> np.ndarray:
    try:
        return apply(column)
    except InvalidInputError as error:
        raise InvalidInputError(f"Marker {marker}: {error}") from error


def _per_marker(name: str, value: float | Mapping[str, float], markers: list[str]) -> list[float]:
    """Value of each marker, from one value for all or a dict with exactly these markers."""
    if not isinstance(value, Mapping):
        return [value] * len(markers)
    missing, unknown = sorted(set(markers) - set(value)), sorted(set(value) - set(markers))
    if missing or unknown:
        raise InvalidInputError(
            f"{name} must name exactly the transformed markers {markers}: "
            f"missing {missing}, not transformed {unknown}."
        )
    return [value[marker] for marker in markers]


def _tops(adata: AnnData, T: float | None, markers: list[str]) -> list[float]:
    """Top of the raw scale of each marker: the given one, or ``var["range"]``."""
    if T is not None:
        if not isinstance(T, Real):
            raise InvalidInputError(f"T={T!r}; expected a number or None.")
        return [float(T)] * len(markers)
    if "range" not in adata.var:
        raise MissingKeyError(
            f"adata.var has no column 'range' ($PnR); it has {list(adata.var.columns)}. "
            "Pass T, the top of the raw scale."
        )
    ranges = pd.to_numeric(adata.var["range"].loc[markers], errors="coerce")
    unusable = ranges[~(np.isfinite(ranges) & (ranges > 0))]
    if len(unusable):
        raise InvalidInputError(
            f"adata.var['range'] is not positive for {list(unusable.index)}. "
            "Pass T, the top of the raw scale."
        )
    return [float(top) for top in ranges]


def _fitted_width(x: np.ndarray, scale: Logicle) -> float:
    """Width of the linear region that covers the negative values (Parks et al. 2006)."""
    narrowest, widest = scale.W, (scale.M - max(scale.A, 0.0)) / 2
    negative = x[x < 0]
    if len(negative) == 0:
        return narrowest
    r = abs(float(np.percentile(negative, 5)))
    return float(np.clip((scale.M - np.log10(scale.T / r)) / 2, narrowest, widest))
