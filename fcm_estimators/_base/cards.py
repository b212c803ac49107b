"""Model card and data card: a description of a model and of its training data.

The cards name classes, gates and markers. They name no samples and no patients.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from numbers import Integral

import numpy as np
import pandas as pd

from fcm_estimators._cells.samples import Samples
from fcm_estimators._types import Entries
from fcm_estimators._version import __version__
from fcm_estimators.nn.reluformer import ScaledModule
from fcm_estimators.preprocessing.recorded import MarkerState

# Card -> section -> entry -> text.
Cards = dict[str, dict[str, dict[str, str]]]

_INTENDED_USE = {
    "for": "Research on flow and mass cytometry, with an expert who looks at the result.",
    "not for": "Diagnosis or treatment of patients: this is not a medical device.",
    "reads": "Whole samples. The model treats a subset of a sample as another sample.",
    "does not know": (
        "Populations, panels and instruments that were not in training. A warning that a sample is "
        "far from training is a reason to look. The absence of a warning proves nothing."
    ),
}

_NOT_MEASURED = "The training did not measure it. Compare with experts before you use the model."


def training_record(
    samples: Samples, groups: Mapping[str, np.ndarray], valid: list[int], with_patients: bool
) -> Entries:
    """Numbers that describe one training; JSON-safe.

    Parameters
    ----------
    samples : Samples
        All samples, validation included.
    groups : mapping of str to bool ndarray of shape (N,)
        Cells of each class or gate, in the order of ``samples.x``.
    valid : list of int
        Positions of the validation samples.
    with_patients : bool
        Whether the data name patients.
    """
    sizes = np.diff(samples.offsets)
    sample = samples.sample_of_cell
    return {
        "n_samples": len(samples.names),
        "n_patients": len(np.unique(samples.patients.astype(str))) if with_patients else None,
        "n_validation_samples": len(valid),
        "n_cells": int(sizes.sum()),
        "cells_per_sample": [int(sizes.min()), int(np.median(sizes)), int(sizes.max())],
        "cells": {name: int(mask.sum()) for name, mask in groups.items()},
        "samples": {name: len(np.unique(sample[mask])) for name, mask in groups.items()},
        "versions": {
            "fcm-estimators": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "scikit-learn", "torch")},
        },
    }


def make_cards(
    name: str,
    params: Entries,
    net: ScaledModule,
    history: pd.DataFrame,
    trainings: Sequence[Entries],
    markers: Mapping[str, MarkerState | None],
    entries: Mapping[str, str],
    performance: Mapping[str, str],
) -> Cards:
    """Model card and data card of a fitted estimator.

    Parameters
    ----------
    name : str
        Class of the estimator.
    params : mapping
        Parameters of the estimator.
    net : ScaledModule
    history : DataFrame
        One row per epoch.
    trainings : sequence of dict
        One :func:`training_record` per training.
    markers : mapping of M markers to MarkerState or None
        In the order of the net. None: the state is not recorded.
    entries : mapping of str to str
        Entries that only this class of estimator has.
    performance : mapping of str to str
        Entries about patients that were held out; empty if nothing is known of any.
    """
    last, training, seed = history.iloc[-1], trainings[-1], params["random_state"]
    model_card = {
        "Model": {
            "class": name,
            **_net_entries(params, net),
            **entries,
        },
        "Training": {
            "epochs": f"{len(history)}"
            + (f" in {len(trainings)} trainings" if len(trainings) > 1 else ""),
            **{
                loss.replace("_", " "): f"{last[loss]:.4g}"
                for loss in ("train_loss", "valid_loss")
                if loss in last and np.isfinite(last[loss])
            },
            "validation": _validation_entry(training),
            "augmentation": f"{params['augmentation']:g} times the standard distortions",
            "random state": str(seed) if isinstance(seed, Integral) else "not an integer",
            "versions": ", ".join(f"{k} {v}" for k, v in training["versions"].items()),
        },
        "Performance on held-out patients": dict(performance) or {"not known": _NOT_MEASURED},
        "Intended use": dict(_INTENDED_USE),
    }
    data_card = {"Training data": _data_entries(training)}
    for i in reversed(range(len(trainings) - 1)):
        data_card[f"Earlier training {i + 1}"] = _data_entries(trainings[i])
    mean, scale = net.input_mean.tolist(), net.input_scale.tolist()
    data_card["Markers"] = {
        marker: _marker_entry(state, *numbers)
        for (marker, state), *numbers in zip(markers.items(), mean, scale, strict=True)
    }
    return {"Model card": model_card, "Data card": data_card}


def _net_entries(params: Entries, net: ScaledModule) -> dict[str, str]:
    size = f"{sum(p.numel() for p in net.parameters()):,} parameters"
    if params.get("module") is not None:
        own = {k: v for k, v in params.items() if k.startswith("module__")}
        described = "".join(f", {k.removeprefix('module__')}={v!r}" for k, v in own.items())
        return {
            "net": f"{net.name}{described}; {size}",
            "method": "a net that the user of this package wrote",
        }
    return {
        "net": (
            f"{params['n_layers']} layers of linear ReLU attention, {params['n_heads']} heads, "
            f"width {params['hidden_dim']}; {size}"
        ),
        "method": "Kowarsch et al., arXiv 2307.14581; independent implementation",
    }


def as_markdown(title: str, sections: Mapping[str, Mapping[str, str]]) -> str:
    """One card as Markdown, with one table per section."""
    lines = [f"# {title}"]
    for name, entries in sections.items():
        lines += ["", f"## {name}", "", "| | |", "|---|---|"]
        lines += [f"| {_escaped(key)} | {_escaped(text)} |" for key, text in entries.items()]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _validation_entry(training: Entries) -> str:
    n_valid = training["n_validation_samples"]
    if not n_valid:
        return "none: all samples were used for training, and the last epoch was kept"
    unit = "patients" if training["n_patients"] is not None else "samples"
    return f"{n_valid} of {training['n_samples']} samples held out, split by {unit}"


def _data_entries(training: Entries) -> dict[str, str]:
    low, median, high = training["cells_per_sample"]
    found = {
        "samples": f"{training['n_samples']:,}",
        "patients": "not named"
        if training["n_patients"] is None
        else f"{training['n_patients']:,}",
        "cells": f"{training['n_cells']:,}; per sample {low:,} to {high:,}, median {median:,}",
    }
    for name, count in training["cells"].items():
        n_samples = training["samples"][name]
        found[name] = f"{count:,} cells in {n_samples:,} sample{'s' * (n_samples != 1)}"
    return found


def _marker_entry(state: MarkerState | None, mean: float, scale: float) -> str:
    transform, compensated = state or ("not recorded", False)
    text = f"{transform}, compensated" if compensated else transform
    return f"{text}; mean {mean:.4g}, SD within samples {scale:.4g}"
