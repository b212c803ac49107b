from .gradient import GradientExplainer as GradientExplainer

__all__ = ["GradientExplainer"]
