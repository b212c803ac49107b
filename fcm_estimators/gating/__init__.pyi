from ._shapes import EllipsoidGate as EllipsoidGate
from ._shapes import RectangleGate as RectangleGate
from ._tree import GatingTree as GatingTree
from .gates import BooleanGate as BooleanGate
from .gates import PolygonGate as PolygonGate

__all__ = ["BooleanGate", "EllipsoidGate", "GatingTree", "PolygonGate", "RectangleGate"]
