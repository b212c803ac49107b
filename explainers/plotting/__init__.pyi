from ._curves import AgreementDisplay as AgreementDisplay
from ._curves import CurveDisplay as CurveDisplay
from ._curves import FloorDisplay as FloorDisplay
from ._field import GradientFieldDisplay as GradientFieldDisplay
from ._gates import GateDisplay as GateDisplay
from ._heads import AttentionHeadsDisplay as AttentionHeadsDisplay
from ._matrices import GradientSummaryDisplay as GradientSummaryDisplay
from ._matrices import HeadMatrixDisplay as HeadMatrixDisplay

__all__ = [
    "AgreementDisplay",
    "AttentionHeadsDisplay",
    "CurveDisplay",
    "FloorDisplay",
    "GateDisplay",
    "GradientFieldDisplay",
    "GradientSummaryDisplay",
    "HeadMatrixDisplay",
]
