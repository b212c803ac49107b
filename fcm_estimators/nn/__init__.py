"""The networks: torch only, no AnnData, no scikit-learn, no files."""

from __future__ import annotations

from fcm_estimators.nn.polygon_head import PolygonFormer
from fcm_estimators.nn.relu_attention import AttentionContext
from fcm_estimators.nn.reluformer import LayerTrace, ReluFormer, ReluFormerLayer, SetModule
from fcm_estimators.nn.streaming import streamed, streamed_contexts

__all__ = [
    "AttentionContext",
    "LayerTrace",
    "PolygonFormer",
    "ReluFormer",
    "ReluFormerLayer",
    "SetModule",
    "streamed",
    "streamed_contexts",
]
