from ._gates import BooleanGate as BooleanGate
from ._gates import PolygonGate as PolygonGate
from ._tree import GatingTree as GatingTree

__all__ = ["BooleanGate", "GatingTree", "PolygonGate"]
