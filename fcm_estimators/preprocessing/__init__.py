"""Compensation and transforms as scikit-learn transformers that take and return AnnData."""

from __future__ import annotations

from fcm_estimators.preprocessing._compensation import Compensation
from fcm_estimators.preprocessing._standard import standard_steps
from fcm_estimators.preprocessing._transformers import (
    ArcsinhTransform,
    LinearTransform,
    LogicleTransform,
)
from fcm_estimators.preprocessing.scales import Scale, parse_transform

__all__ = [
    "ArcsinhTransform",
    "Compensation",
    "LinearTransform",
    "LogicleTransform",
    "Scale",
    "parse_transform",
    "standard_steps",
]
