"""What is explained: a number per cell, made from the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcm_estimators._exceptions import InvalidInputError
from fcm_estimators._validation import listed

OUTPUTS = ("log_odds", "probability")


@dataclass(frozen=True)
class ClassOutput:
    """Log-odds or probability of a class, against the rest or against one other class.

    Parameters
    ----------
    positive : int
        Column of the class.
    negative : int or None
        Column of the class to compare with; None for all others together.
    kind : {"log_odds", "probability"}
    name : str
        For tables, pictures and the run record.
    """

    positive: int
    negative: int | None
    kind: str
    name: str

    def __call__(self, logits: Tensor) -> Tensor:
        """Output per cell, (N, C) -> (N,)."""
        if self.kind == "probability":
            return torch.softmax(logits, -1)[:, self.positive]
        if self.negative is not None:
            return logits[:, self.positive] - logits[:, self.negative]
        rest = [c for c in range(logits.shape[1]) if c != self.positive]
        return logits[:, self.positive] - torch.logsumexp(logits[:, rest], -1)


def class_output(
    classes: np.ndarray, default: Any, target: Any, versus: Any, kind: str
) -> ClassOutput:
    """Resolve a target by name.

    Parameters
    ----------
    classes : ndarray of shape (C,)
    default : label or None
        Explained where ``target`` is None.
    target, versus : label or None
    kind : {"log_odds", "probability"}

    Raises
    ------
    InvalidInputError
        An unknown class, output or combination; the message lists what there is.
    """
    if kind not in OUTPUTS:
        raise InvalidInputError(f"output={kind!r} is not among {listed(OUTPUTS)}.")
    if versus is not None and kind == "probability":
        raise InvalidInputError(
            "A difference of two classes has no probability; use output='log_odds' with versus."
        )
    chosen = default if target is None else target
    if chosen is None:
        raise InvalidInputError(
            f"There are more than two classes: name one as target, of {listed(classes)}."
        )
    for what, label in (("target", chosen), ("versus", versus)):
        if label is not None and label not in classes:
            raise InvalidInputError(f"{what}={label!r} is not among the classes {listed(classes)}.")
    if versus is not None and versus == chosen:
        raise InvalidInputError(f"target and versus are both {chosen!r}; name two classes.")
    column = {label: i for i, label in enumerate(classes.tolist())}
    negative = None if versus is None else column[versus]
    against = "the rest" if versus is None else str(versus)
    name = f"P({chosen})" if kind == "probability" else f"log-odds of {chosen} against {against}"
    return ClassOutput(column[chosen], negative, kind, name)
