from ._gates import BooleanGate as BooleanGate
from ._gates import PolygonGate as PolygonGate
from ._shapes import EllipsoidGate as EllipsoidGate
from ._shapes import RectangleGate as RectangleGate
from ._tree import GatingTree as GatingTree

__all__ = ["BooleanGate", "EllipsoidGate", "GatingTree", "PolygonGate", "RectangleGate"]
