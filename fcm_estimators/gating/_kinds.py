"""Kinds of gates, as types."""

from __future__ import annotations

from fcm_estimators.gating._shapes import EllipsoidGate, RectangleGate
from fcm_estimators.gating.gates import BooleanGate, PolygonGate

DrawnGate = PolygonGate | RectangleGate | EllipsoidGate
Gate = DrawnGate | BooleanGate
