from . import faithfulness as faithfulness
from . import plotting as plotting
from ._specialisation import specialisation as specialisation
from .attention import AttentionExplainer as AttentionExplainer
from .gradient import GradientExplainer as GradientExplainer

__all__ = [
    "AttentionExplainer",
    "GradientExplainer",
    "faithfulness",
    "plotting",
    "specialisation",
]
