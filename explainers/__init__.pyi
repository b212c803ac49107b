from . import faithfulness as faithfulness
from . import plotting as plotting
from ._attention_plan import GateQuery as GateQuery
from ._gradient_plan import Integrated as Integrated
from ._gradient_plan import Smooth as Smooth
from ._specialisation import specialisation as specialisation
from .attention import AttentionExplainer as AttentionExplainer
from .gradient import GradientExplainer as GradientExplainer
from .influence import InfluenceExplainer as InfluenceExplainer
from .summary import gradient_summary as gradient_summary
from .summary import influence_summary as influence_summary
from .targets import AnyChange as AnyChange
from .targets import GateSize as GateSize
from .targets import LogOdds as LogOdds
from .targets import Probability as Probability
from .targets import Share as Share
from .targets import Vertex as Vertex

__version__: str

__all__ = [
    "AnyChange",
    "AttentionExplainer",
    "GateQuery",
    "GateSize",
    "GradientExplainer",
    "InfluenceExplainer",
    "Integrated",
    "LogOdds",
    "Probability",
    "Share",
    "Smooth",
    "Vertex",
    "faithfulness",
    "gradient_summary",
    "influence_summary",
    "plotting",
    "specialisation",
]
