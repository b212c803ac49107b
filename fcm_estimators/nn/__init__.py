"""The networks: torch only, no AnnData, no scikit-learn, no files."""

from __future__ import annotations

from fcm_estimators.nn.polygon_head import PolygonFormer
from fcm_estimators.nn.reluformer import ReluFormer, SetModule
from fcm_estimators.nn.streaming import streamed

__all__ = ["PolygonFormer", "ReluFormer", "SetModule", "streamed"]
