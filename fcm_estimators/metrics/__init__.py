"""Metrics from arrays, as DataFrames with a row per sample; nothing is dropped silently."""

from __future__ import annotations

from fcm_estimators.metrics._blank import LimitOfBlank, blank_of_counts, limit_of_blank
from fcm_estimators.metrics._calibration import reliability_table
from fcm_estimators.metrics._classification import classification_table, summarize
from fcm_estimators.metrics._comparison import (
    DilutionSeries,
    MethodComparison,
    dilution_series,
    method_comparison,
)
from fcm_estimators.metrics._comparison_display import MethodComparisonDisplay
from fcm_estimators.metrics._course import CourseDisplay, course_table, pool_tubes
from fcm_estimators.metrics._detection_limits import DetectionLimits, detection_limits
from fcm_estimators.metrics._gates import gate_agreement
from fcm_estimators.metrics._mrd import mrd_of_counts, mrd_table
from fcm_estimators.metrics._mrd_error import mrd_error
from fcm_estimators.metrics._protocol import DEFAULT_PROTOCOL, PROTOCOLS, Protocol
from fcm_estimators.metrics._total_interval import ClassificationErrors

__all__ = [
    "ClassificationErrors",
    "pool_tubes",
    "course_table",
    "CourseDisplay",
    "method_comparison",
    "dilution_series",
    "MethodComparisonDisplay",
    "MethodComparison",
    "DilutionSeries",
    "DEFAULT_PROTOCOL",
    "PROTOCOLS",
    "DetectionLimits",
    "LimitOfBlank",
    "Protocol",
    "blank_of_counts",
    "classification_table",
    "detection_limits",
    "gate_agreement",
    "limit_of_blank",
    "mrd_error",
    "mrd_of_counts",
    "mrd_table",
    "reliability_table",
    "summarize",
]
