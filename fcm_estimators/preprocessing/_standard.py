"""The usual preprocessing of raw data, by their kind."""

from __future__ import annotations

from typing import Literal

from anndata import AnnData

from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.io.record import UNS_KEY, get_spillover
from fcm_estimators.preprocessing._compensation import Compensation
from fcm_estimators.preprocessing._transformers import (
    ArcsinhTransform,
    LinearTransform,
    LogicleTransform,
)

Step = Compensation | ArcsinhTransform | LinearTransform | LogicleTransform


def standard_steps(
    adata: AnnData,
    *,
    transform: Literal["auto", "logicle", "arcsinh", "none"] = "auto",
    cofactor: float | None = None,
    compensate: bool | None = None,
) -> list[Step]:
    """Choose the usual preprocessing of raw data, by their kind.

    Parameters
    ----------
    adata : AnnData
        Data as read. If they are already transformed, there are no steps.
    transform : {"auto", "logicle", "arcsinh", "none"}, default "auto"
        "auto": logicle for fluorescence, arcsinh for mass cytometry. Unless "none", scatter
        becomes linear from 0 to 1.
    cofactor : float, optional
        Cofactor of arcsinh, in raw units. Default: 5 for mass cytometry, 150 for fluorescence.
    compensate : bool, optional
        Whether to compensate. Default: fluorescence is compensated if all files have a spillover
        matrix and no channel is compensated.

    Returns
    -------
    list of Compensation, ArcsinhTransform, LogicleTransform or LinearTransform
        Transformers in order, not fitted.
    """
    if transform not in ("auto", "logicle", "arcsinh", "none"):
        raise InvalidInputError(
            f'transform must be "auto", "logicle", "arcsinh" or "none", got {transform!r}.'
        )
    if "transform" not in adata.var or "kind" not in adata.var:
        return []
    if (adata.var["transform"].astype(str) != "none").any():
        return []
    kinds = set(adata.var["kind"].astype(str))
    steps: list[Step] = []
    if compensate is None:
        compensate = "fluorescence" in kinds and _has_spillover(adata)
    if compensate:
        steps.append(Compensation())
    if transform == "none":
        return steps
    mass = "mass" in kinds and "fluorescence" not in kinds
    if transform == "arcsinh" or (transform == "auto" and mass):
        steps.append(ArcsinhTransform(cofactor=cofactor or (5.0 if mass else 150.0)))
    elif "fluorescence" in kinds:
        steps.append(LogicleTransform())
    if "scatter" in kinds:
        steps.append(LinearTransform())
    return steps


def _has_spillover(adata: AnnData) -> bool:
    if UNS_KEY not in adata.uns or adata.var["compensated"].astype(bool).any():
        return False
    return all(get_spillover(adata, str(s)) is not None for s in adata.obs["sample"].unique())
