"""Compensation and transforms as scikit-learn transformers that take and return AnnData."""

from __future__ import annotations

from fcm_estimators.preprocessing._compensation import Compensation
from fcm_estimators.preprocessing._exchange_scales import (
    FlowJoBiex,
    Hyperlog,
    ParametrizedArcsinh,
    ParametrizedLinear,
    ParametrizedLog,
)
from fcm_estimators.preprocessing._scales import (
    Arcsinh,
    Identity,
    Linear,
    Logicle,
    Scale,
    parse_transform,
)
from fcm_estimators.preprocessing._standard import standard_steps
from fcm_estimators.preprocessing._transformers import (
    ArcsinhTransform,
    LinearTransform,
    LogicleTransform,
)

__all__ = [
    "Arcsinh",
    "ArcsinhTransform",
    "Compensation",
    "FlowJoBiex",
    "Hyperlog",
    "Identity",
    "Linear",
    "LinearTransform",
    "Logicle",
    "LogicleTransform",
    "ParametrizedArcsinh",
    "ParametrizedLinear",
    "ParametrizedLog",
    "Scale",
    "parse_transform",
    "standard_steps",
]
