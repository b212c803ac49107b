from . import faithfulness as faithfulness
from . import plotting as plotting
from ._attention_plan import GateQuery as GateQuery
from ._gradient_plan import Integrated as Integrated
from ._gradient_plan import Smooth as Smooth
from ._specialisation import specialisation as specialisation
from .attention import AttentionExplainer as AttentionExplainer
from .gradient import GradientExplainer as GradientExplainer
from .summary import gradient_summary as gradient_summary
from .targets import GateSize as GateSize
from .targets import LogOdds as LogOdds
from .targets import Probability as Probability
from .targets import Vertex as Vertex

__all__ = [
    "AttentionExplainer",
    "GateQuery",
    "GateSize",
    "GradientExplainer",
    "Integrated",
    "LogOdds",
    "Probability",
    "Smooth",
    "Vertex",
    "faithfulness",
    "gradient_summary",
    "plotting",
    "specialisation",
]
