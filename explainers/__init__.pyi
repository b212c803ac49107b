from .attention import AttentionExplainer as AttentionExplainer
from .gradient import GradientExplainer as GradientExplainer
from ._specialisation import specialisation as specialisation

__all__ = ["AttentionExplainer", "GradientExplainer", "specialisation"]
