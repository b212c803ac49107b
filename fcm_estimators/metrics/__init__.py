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
from fcm_estimators.metrics._composition import composition_table, population_shares
from fcm_estimators.metrics._course import CourseDisplay, course_table, pool_tubes
from fcm_estimators.metrics._detection_limits import DetectionLimits, detection_limits
from fcm_estimators.metrics._gates import gate_agreement
from fcm_estimators.metrics._mrd import mrd_of_counts, mrd_table
from fcm_estimators.metrics._mrd_error import mrd_error
from fcm_estimators.metrics._protocol import DEFAULT_PROTOCOL, PROTOCOLS, Protocol
from fcm_estimators.metrics._total_interval import ClassificationErrors

__all__ = [
    "DEFAULT_PROTOCOL",
    "PROTOCOLS",
    "ClassificationErrors",
    "CourseDisplay",
    "DetectionLimits",
    "DilutionSeries",
    "LimitOfBlank",
    "MethodComparison",
    "MethodComparisonDisplay",
    "Protocol",
    "blank_of_counts",
    "classification_table",
    "composition_table",
    "course_table",
    "detection_limits",
    "dilution_series",
    "gate_agreement",
    "limit_of_blank",
    "method_comparison",
    "mrd_error",
    "mrd_of_counts",
    "mrd_table",
    "pool_tubes",
    "population_shares",
    "reliability_table",
    "summarize",
]
