from .attention import AttentionExplainer as AttentionExplainer
from .gradient import GradientExplainer as GradientExplainer

__all__ = ["AttentionExplainer", "GradientExplainer"]
