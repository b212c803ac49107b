"""Model card and data card: what a model is and what it was trained on, in words and numbers.

They name classes, gates and markers, and neither samples nor patients.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from fcm_estimators._cells.samples import Samples
from fcm_estimators._version import __version__

if TYPE_CHECKING:
    from fcm_estimators._base.estimator import SetEstimator

# Card, section, entry, text.
Cards = dict[str, dict[str, dict[str, str]]]

_INTENDED = {
    "for": "Research on flow and mass cytometry, with an expert who looks at the result.",
    "not for": "Diagnosis or treatment of patients: this is not a medical device.",
    "reads": "Whole samples. A subset of a sample's cells is another sample.",
    "does not know": (
        "Populations, panels and instruments that were not in training. Warnings of samples far "
        "from training are a reason to look; that there is none proves nothing."
    ),
}


def training_record(
    samples: Samples, marked: Mapping[str, np.ndarray], valid: list[int], with_patients: bool
) -> dict[str, Any]:
    """Numbers of one training, JSON-safe.

    Parameters
    ----------
    samples : Samples
        All of them, validation included.
    marked : mapping of str to bool ndarray of shape (N,)
        Cells of each class, or inside each gate, in the order of ``samples.x``.
    valid : list of int
        Positions of the validation samples.
    with_patients : bool
        Whether patients were named.
    """
    sizes = np.diff(samples.offsets)
    of_cell = samples.sample_of_cell
    return {
        "n_samples": len(samples.names),
        "n_patients": len(np.unique(samples.patients.astype(str))) if with_patients else None,
        "n_validation_samples": len(valid),
        "n_cells": int(sizes.sum()),
        "cells_per_sample": [int(sizes.min()), int(np.median(sizes)), int(sizes.max())],
        "cells": {name: int(inside.sum()) for name, inside in marked.items()},
        "samples": {name: len(np.unique(of_cell[inside])) for name, inside in marked.items()},
        "versions": {
            "fcm-estimators": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "scikit-learn", "torch")},
        },
    }


def cards(model: SetEstimator) -> Cards:
    """Model card and data card of a fitted estimator."""
    last = model.history_.iloc[-1]
    training = model.training_[-1]
    seed = model.random_state
    first = {
        "Model": {
            "class": type(model).__name__,
            "net": (
                f"{model.n_layers} layers of linear ReLU attention, {model.n_heads} heads, width "
                f"{model.hidden_dim}; {sum(p.numel() for p in model.net_.module_.parameters()):,} "
                "parameters"
            ),
            "method": "Kowarsch et al., arXiv 2307.14581; independent implementation",
            **model._card_entries(),
        },
        "Training": {
            "epochs": f"{len(model.history_)}"
            + (f" in {len(model.training_)} trainings" if len(model.training_) > 1 else ""),
            **{
                name.replace("_", " "): f"{last[name]:.4g}"
                for name in ("train_loss", "valid_loss")
                if name in last and np.isfinite(last[name])
            },
            "validation": _validation(training),
            "augmentation": f"{model.augmentation:g} times the standard distortions",
            "random state": str(seed) if isinstance(seed, Integral) else "no number given",
            "versions": ", ".join(f"{k} {v}" for k, v in training["versions"].items()),
        },
        "Intended use": dict(_INTENDED),
    }
    second = {
        "Training data" if i == len(model.training_) - 1 else f"Earlier training {i + 1}": _data(t)
        for i, t in reversed(list(enumerate(model.training_)))
    }
    second["Markers"] = {marker: _marker(model, marker) for marker in model.markers_}
    return {"Model card": first, "Data card": second}


def as_markdown(title: str, sections: Mapping[str, Mapping[str, str]]) -> str:
    """One card as Markdown, a table per section."""
    lines = [f"# {title}"]
    for name, entries in sections.items():
        lines += ["", f"## {name}", "", "| | |", "|---|---|"]
        lines += [f"| {_cell(key)} | {_cell(text)} |" for key, text in entries.items()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _validation(training: Mapping[str, Any]) -> str:
    n_valid = training["n_validation_samples"]
    if not n_valid:
        return "none: all samples were trained on, no epoch was chosen"
    apart = "patients" if training["n_patients"] is not None else "samples"
    return f"{n_valid} of {training['n_samples']} samples held out, split by {apart}"


def _data(training: Mapping[str, Any]) -> dict[str, str]:
    low, middle, high = training["cells_per_sample"]
    found = {
        "samples": f"{training['n_samples']:,}",
        "patients": "not named"
        if training["n_patients"] is None
        else f"{training['n_patients']:,}",
        "cells": f"{training['n_cells']:,}; per sample {low:,} to {high:,}, median {middle:,}",
    }
    for name, count in training["cells"].items():
        n_samples = training["samples"][name]
        found[name] = f"{count:,} cells in {n_samples:,} sample{'s' * (n_samples != 1)}"
    return found


def _marker(model: SetEstimator, marker: str) -> str:
    mean, scale = model._scale_of(marker)
    transform, compensated = model._states.get(marker, ("not recorded", False))
    state = f"{transform}, compensated" if compensated else transform
    return f"{state}; mean {mean:.4g}, SD within samples {scale:.4g}"
