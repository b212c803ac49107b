"""Small data that several test modules use."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pooch
import pytest

from fcm_estimators._cells.samples import Samples
from fcm_estimators._fitting.scale import MarkerScale
from fcm_estimators.nn.soft_gates import SoftGate


def data_home(folder):
    """Folder of public data: in FCM_DATA_HOME, where it must be, or what was downloaded."""
    home = os.environ.get("FCM_DATA_HOME")
    path = Path(home or pooch.os_cache("fcm-estimators")) / folder
    if home is None and not path.exists():
        pytest.skip(f"{path} is not there; set FCM_DATA_HOME to a folder that has {folder}")
    return path


# pandas 3 has a type of its own for text, which AnnData gives to names of cells or not.
INDEX_TYPE = "equiv" if int(pd.__version__.split(".")[0]) < 3 else False


def weights_file(folder):
    """The file of the weights in the directory of a model."""
    (found,) = Path(folder).glob("model-*.safetensors")
    return found


def plain_scale(n_markers):
    """Mean 0, SD 1 and no limits."""
    values = [0.0, 1.0, -np.inf, np.inf]
    return MarkerScale(*(np.full(n_markers, value, dtype=np.float32) for value in values))


def polygons_below(*parents):
    """Hierarchy of polygons alone, with the position of the parent of each, -1 for none."""
    return [SoftGate(parent, polygon) for polygon, parent in enumerate(parents)]


MARKERS = ["CD10", "CD19", "CD34", "CD45"]


def toy_cohort(n_samples=6, n_cells=200, *, seed=0, patients=None, classes=("blast", "other")):
    """Samples of two shifted clouds; the class is which cloud, unequal shares."""
    rng = np.random.default_rng(seed)
    blocks, labels = [], []
    for _ in range(n_samples):
        y = rng.choice(
            len(classes), n_cells, p=np.r_[0.3, np.full(len(classes) - 1, 0.7 / (len(classes) - 1))]
        )
        centre = np.zeros((len(classes), len(MARKERS)))
        for c in range(len(classes)):
            centre[c, c % len(MARKERS)] = 4
        x = (
            centre[y]
            + rng.normal(size=(n_cells, len(MARKERS)))
            + 0.3 * rng.normal(size=len(MARKERS))
        )
        blocks.append(x)
        labels.append(np.array(classes)[y])
    sample = np.repeat([f"s{i}" for i in range(n_samples)], n_cells)
    event = np.tile(np.arange(n_cells), n_samples)
    obs = pd.DataFrame(
        {
            "sample": pd.Categorical(sample, categories=list(dict.fromkeys(sample))),
            "event": event,
            "cell_type": pd.Categorical(np.concatenate(labels)),
            "patient": np.repeat(patients or [f"p{i}" for i in range(n_samples)], n_cells),
        },
        index=[f"{s}:{e}" for s, e in zip(sample, event, strict=True)],
    )
    x = np.concatenate(blocks).astype(np.float32)
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=MARKERS))


def packed(*blocks):
    """Samples of given cells, markers named by their number."""
    names = np.arange(len(blocks))
    x = np.concatenate(blocks)
    offsets = [0, *np.cumsum([len(block) for block in blocks]).tolist()]
    markers = [f"m{j}" for j in range(x.shape[1])]
    return Samples(x, offsets, names, names, markers, np.arange(len(x)), len(x))


def benchmark(name):
    """Module of the folder benchmarks, which is not a package."""
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
