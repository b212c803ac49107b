"""Names of the fields of results in an AnnData.

Each class describes one result. It derives the names of all fields from the ``key_added`` of a
call, so no other module spells them. Names of markers, classes, gates and samples are columns,
never part of a key, because a "/" in a key makes an h5ad file unreadable.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "EXPERT_GATES",
    "LABELLED_WITHIN",
    "NOT_ANALYSED",
    "AttentionKeys",
    "ClassKeys",
    "GateKeys",
    "GradientKeys",
    "InfluenceKeys",
    "UNKNOWN",
    "QualityKeys",
]

# Class of cells outside the subset that a model reads.
NOT_ANALYSED = "not analysed"
# Class of cells that are unlike any in training, for ``unknown="reject"``.
UNKNOWN = "unknown"
# Key of the expert's gates: membership per cell in ``obsm``, polygons per sample in ``uns``.
EXPERT_GATES = "gates"
# Key of ``uns``: for each column of labels the gate inside which they were made, and the key of
# ``obsm`` with its membership.
LABELLED_WITHIN = "labelled_within"


@dataclass(frozen=True)
class ClassKeys:
    """Fields that a classifier writes.

    Parameters
    ----------
    key : str, default "reluformer"
        The ``key_added`` of ``annotate``.
    """

    key: str = "reluformer"

    @property
    def label(self) -> str:
        """``obs``: class, Categorical."""
        return self.key

    @property
    def probabilities(self) -> str:
        """``obsm``: probability per class, DataFrame."""
        return f"{self.key}_proba"

    @property
    def novelty(self) -> str:
        """``obs``: novelty, the larger the stranger."""
        return f"{self.key}_novelty"

    @property
    def unknown(self) -> str:
        """``obs``: cells that are unlike any in training, bool."""
        return f"{self.key}_unknown"

    @property
    def disputed(self) -> str:
        """``obs``: cells on whose class the members do not agree, bool."""
        return f"{self.key}_disputed"

    @property
    def markers(self) -> str:
        """``var``: channels that the model reads, bool."""
        return f"{self.key}_markers"

    @property
    def record(self) -> str:
        """``uns``: the run record."""
        return self.key


@dataclass(frozen=True)
class GateKeys:
    """Fields that a gating model writes.

    Parameters
    ----------
    key : str, default "predicted_gates"
        The ``key_added`` of ``annotate``.
    """

    key: str = "predicted_gates"

    @property
    def membership(self) -> str:
        """``obsm``: cells inside each gate, DataFrame of bool."""
        return f"{self.key}_membership"

    @property
    def markers(self) -> str:
        """``var``: channels that the model reads, bool."""
        return f"{self.key}_markers"

    @property
    def record(self) -> str:
        """``uns``: the run record, with the outlines under "gates"."""
        return self.key


@dataclass(frozen=True)
class GradientKeys:
    """Fields that a GradientExplainer writes.

    Parameters
    ----------
    key : str, default "gradient"
        The explainer's ``key_added``.
    """

    key: str = "gradient"

    @property
    def values(self) -> str:
        """``layers``: signed gradient."""
        return self.key

    @property
    def norm(self) -> str:
        """``obs``: norm of the gradient."""
        return f"{self.key}_norm"

    @property
    def marker(self) -> str:
        """``obs``: marker with the largest absolute entry, Categorical."""
        return f"{self.key}_marker"

    @property
    def record(self) -> str:
        """``uns``: the run record."""
        return self.key

    def arrows(self, basis: str) -> str:
        """``obsm``: arrows on the embedding ``X_{basis}``."""
        return f"{self.key}_{basis}"


@dataclass(frozen=True)
class InfluenceKeys:
    """Fields that an InfluenceExplainer writes.

    Parameters
    ----------
    key : str, default "influence"
        The explainer's ``key_added``.
    """

    key: str = "influence"

    @property
    def values(self) -> str:
        """``obs``: change of the target per 1 % of such cells hidden."""
        return self.key

    @property
    def record(self) -> str:
        """``uns``: the run record."""
        return self.key


@dataclass(frozen=True)
class AttentionKeys:
    """Fields that an AttentionExplainer writes.

    Parameters
    ----------
    key : str, default "attention"
        The explainer's ``key_added``.
    """

    key: str = "attention"

    @property
    def mean(self) -> str:
        """``obs``: received attention, mean over all layers and heads, float32."""
        return self.key

    @property
    def head(self) -> str:
        """``obs``: head of one layer that attends most to the cell, Categorical."""
        return f"{self.key}_head"

    @property
    def record(self) -> str:
        """``uns``: the run record."""
        return self.key

    def received(self, net_layer: int) -> str:
        """``obsm``: attention received from each head in a layer of the net, DataFrame."""
        return f"{self.key}_layer{net_layer}"


@dataclass(frozen=True)
class QualityKeys:
    """Fields that ``flag_quality`` writes.

    Parameters
    ----------
    key : str, default "qc"
        The ``key_added`` of ``flag_quality``.
    """

    key: str = "qc"

    def flag(self, check: str) -> str:
        """``obs``: cells that a check flags, bool."""
        return f"{self.key}_{check}"
