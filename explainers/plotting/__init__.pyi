from ._attention import AttentionDisplay as AttentionDisplay
from ._curves import AgreementDisplay as AgreementDisplay
from ._curves import CurveDisplay as CurveDisplay
from ._curves import FloorDisplay as FloorDisplay
from ._field import GradientFieldDisplay as GradientFieldDisplay
from ._gates import GateDisplay as GateDisplay
from ._influence import InfluenceDisplay as InfluenceDisplay
from ._matrices import GradientSummaryDisplay as GradientSummaryDisplay
from ._matrices import HeadMatrixDisplay as HeadMatrixDisplay
from ._matrices import InfluenceMatrixDisplay as InfluenceMatrixDisplay

__all__ = [
    "AgreementDisplay",
    "AttentionDisplay",
    "CurveDisplay",
    "FloorDisplay",
    "GateDisplay",
    "GradientFieldDisplay",
    "GradientSummaryDisplay",
    "HeadMatrixDisplay",
    "InfluenceDisplay",
    "InfluenceMatrixDisplay",
]
