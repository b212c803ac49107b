"""The model that an explainer explains: one of our estimators, or a Pipeline that ends in one."""

from __future__ import annotations

from typing import Any

from sklearn.pipeline import Pipeline

from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.inference import CellStore, SetEstimator


class OfModel:
    """An explainer of one model.

    Attributes
    ----------
    estimator : ReluFormerClassifier or PolygonRegressor
        The model, or the last step of the Pipeline.
    """

    estimator: Any
    _before: Pipeline | None

    def _take(self, model: Any) -> None:
        """Take over a model.

        Raises
        ------
        InvalidInputError
            It is no model of this package and no Pipeline that ends in one.
        """
        self._before = None
        if isinstance(model, Pipeline):
            self._before = model[:-1] if len(model) > 1 else None
            model = model[-1]
        if not isinstance(model, SetEstimator):
            raise InvalidInputError(
                f"{type(self).__name__} explains the nets of a ReluFormerClassifier or a "
                "PolygonRegressor, or a Pipeline that ends in one of them; got "
                f"{type(model).__name__}."
            )
        self.estimator = model

    def ready(self, data: Any) -> Any:
        """Data as the model gets them: after the steps before it. The given data do not change.

        Raises
        ------
        InvalidInputError
            A Pipeline is given a store.
        """
        if self._before is None:
            return data
        if isinstance(data, CellStore):
            raise InvalidInputError(
                "A Pipeline cannot transform a store. Read it into memory (anndata.read_h5ad), or "
                "transform the data first and explain the last step alone."
            )
        return self._before.transform(data)

    def _settings(self) -> dict[str, Any]:
        """Settings of the explainer, for its run record."""
        return {k: v for k, v in vars(self).items() if k not in ("estimator", "_before")}
