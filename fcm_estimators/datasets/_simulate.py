"""Simulated cohorts of paediatric B-ALL bone marrow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike

from fcm_estimators.datasets import _expert_gates, _instrument, _marrow
from fcm_estimators.datasets._cohort_plan import DAYS, SamplePlan, count, plan_cohort
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.io.record import pack_fcs_record

# Average shares among the events that are not blasts.
_SHARES = {
    "debris": 0.06,
    "dead": 0.03,
    "granulocyte": 0.33,
    "monocyte": 0.05,
    "T/NK": 0.25,
    "mature B": 0.05,
    "haematogone": 0.06,
    "erythroid": 0.12,
    "plasma cell": 0.005,
    "blast": 0.0,
    "doublet": 0.03,
}
# Leukaemia suppresses normal precursors; after treatment the marrow regenerates.
_HAEMATOGONE_FACTORS = (0.1, 0.3, 0.7, 3.0)
# Concentration of the Dirichlet distribution of the shares; samples differ more if it is smaller.
_CONCENTRATION = 40.0
# Number of blasts and of haematogones, measured like the sample, that the expert sees for gating.
_SHOWN = 500
# Normal precursors that the expert accepts inside the blast gates, as a share of the blasts or of
# all events; the larger number counts.
_TOLERATED_OF_BLASTS = 0.02
_TOLERATED_OF_ALL = 2e-4
_UNPAIRED = ("debris", "dead", "doublet")


def simulate_cohort(
    n_samples: int = 20,
    n_cells: int | tuple[int, int] = 10_000,
    *,
    n_patients: int | None = None,
    blast_fraction: float | ArrayLike | None = None,
    shift: float = 1.0,
    n_batches: int = 1,
    random_state: int | None = 0,
) -> AnnData:
    """Simulate bone marrow of children with B-cell acute lymphoblastic leukaemia.

    The blasts of each patient have their own phenotype. There are many at diagnosis, and fewer or
    none at each follow-up visit. Blasts resemble haematogones, the normal precursors of B cells:
    they are apart within a sample but overlap across samples, because every sample has its own
    instrument shift. Populations, spillover and noise are set to look like a real sample; they are
    not taken from a patient.

    Parameters
    ----------
    n_samples : int, default 20
        Number of samples S.
    n_cells : int or (int, int), default 10_000
        Events per sample, or a range from which the number of each sample is drawn log-uniformly.
    n_patients : int, optional
        Number of patients, at most `n_samples`; the samples are divided evenly among them. Default:
        one patient for every four samples (diagnosis, days 15, 33 and 78).
    blast_fraction : float or array-like of shape (S,), optional
        Share of blasts among all events, from 0 to 0.95. Default: 0.2 to 0.95 at diagnosis, falling
        over the visits to 1e-5 or 0. A share that is not a whole number of cells is rounded up or
        down at random, so that it is exact on average.
    shift : float, default 1.0
        Strength of each sample's shift of gain, stain and background, 0 (none) to 3.
    n_batches : int, default 1
        Number of batches, at most the number of patients; patients are assigned to them in turn.
        Each batch except the first has a common shift of twice the strength, in addition to that
        of each sample.
    random_state : int or None, default 0
        Seed; None gives a different cohort each time. A sample depends only on the seed and its
        number: if the other arguments are equal and `n_patients` is None, a longer cohort begins
        with the samples of a shorter one.

    Returns
    -------
    AnnData
        Raw events as :func:`~fcm_estimators.read_fcs` returns them, float32 up to 262,143, not
        compensated. The markers are Time, FSC-A, FSC-W, SSC-A, CD20, CD10, CD45, CD34, Syto 41,
        CD19 and CD38.

        - ``obs["sample"]``, ``obs["event"]``; Categorical ``obs["patient"]``,
          ``obs["timepoint"]``, ``obs["batch"]``;
        - ``obs["population"]``: Categorical, the truth: debris, dead, granulocyte, monocyte,
          T/NK, mature B, haematogone, erythroid, plasma cell, blast, doublet (of any two
          cells);
        - ``obs["cell_type"]``: Categorical, the truth: "blast" or "other";
        - ``obsm["gates"]``: DataFrame of bool, membership in the gates that an expert would draw
          on every sample: syto, singlets, intact, cd19, blast_cd45_cd10, blast_cd20_cd10,
          blast_cd38_cd10, each inside its parent, and blast, the cells inside all of the last
          three;
        - ``uns["gates"]``: these polygons as parallel arrays, one entry per sample and plane:
          ``sample``, ``name``, ``parent`` ("" for none), ``x``, ``y``, ``transform_x``,
          ``transform_y``, ``compensation``; polygon i is
          ``vertices[vertex_offsets[i]:vertex_offsets[i + 1]]``, in the units of the transforms;
        - ``uns["fcs"]``: spillover of every sample;
        - ``uns["simulation"]``: one entry per sample: ``sample``, ``patient``, ``timepoint``,
          ``batch``, ``n_blasts``, ``blast_fraction``, ``target_blast_fraction``; ``offset`` and
          ``scale``, arrays of shape (S, 10), the shift of the ``markers``. The offset is the log
          gain of scatter and in logicle units for fluorescence; the scale stretches fluorescence.

    Raises
    ------
    InvalidInputError
        If a number is not an integer or is below 1, there are more patients than samples or more
        batches than patients, a range of cells does not ascend, the shift is outside of 0 to 3, a
        blast fraction is outside of 0 to 0.95, their number is not `n_samples`, or the seed is
        negative.

    References
    ----------
    The panel and its gates: Kowarsch et al., *Explainable Techniques for Analyzing Flow Cytometry
    Cell Transformers*, arXiv 2307.14581.

    Examples
    --------
    >>> from fcm_estimators.datasets import simulate_cohort
    >>> adata = simulate_cohort(n_samples=2, n_cells=1000, blast_fraction=[0.3, 0])
    >>> adata.shape
    (2000, 11)
    >>> adata.obs.groupby("sample", observed=True)["cell_type"].value_counts()["patient1_d0"]
    cell_type
    other    700
    blast    300
    Name: count, dtype: int64
    """
    cells = _cell_range(n_cells)
    plans = plan_cohort(
        n_samples,
        n_patients=n_patients,
        blast_fraction=blast_fraction,
        shift=shift,
        n_batches=n_batches,
        random_state=random_state,
    )
    # numpy and the logicle functions release the lock of Python for most of the time.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return _assemble(list(threads.map(lambda plan: _draw_sample(plan, cells), plans)))


@dataclass(frozen=True)
class _Sample:
    """One simulated file."""

    plan: SamplePlan
    X: np.ndarray
    population: np.ndarray
    gates: np.ndarray
    polygons: list[np.ndarray]
    spillover: pd.DataFrame


def _draw_sample(plan: SamplePlan, cells: tuple[int, int]) -> _Sample:
    rng = plan.rng
    n = round(np.exp(rng.uniform(*np.log(cells))))
    n_blasts = int(plan.target * n + rng.random())
    shares = _draw_shares(plan.visit, rng)
    counts = rng.multinomial(n - n_blasts, shares)
    counts[_marrow.BLAST] = n_blasts
    n_doublets = int(counts[_marrow.DOUBLET])
    single = np.repeat(np.arange(_marrow.DOUBLET), counts[: _marrow.DOUBLET])
    paired = rng.choice(len(shares), 2 * n_doublets, p=_pair_shares(shares, plan.target))
    shown = np.repeat([_marrow.BLAST, _marrow.HAEMATOGONE], _SHOWN)
    drawn = _marrow.draw_cells(np.concatenate([single, shown, paired]), plan.blasts, rng)
    spillover = _instrument.draw_spillover(rng)
    raw = _instrument.measure(drawn, n_doublets, plan.shift, spillover.to_numpy(), rng)
    known = _expert_gates.compensate(
        raw[len(single) : len(single) + len(shown)], spillover.to_numpy()
    )
    tolerated = max(_TOLERATED_OF_BLASTS * n_blasts, _TOLERATED_OF_ALL * n)
    polygons = _expert_gates.draw_polygons(
        known[:_SHOWN],
        known[_SHOWN:],
        tolerated / max(counts[_marrow.HAEMATOGONE], 1),
        plan.shift,
        rng,
    )
    # The cells shown to the expert are not events of the sample.
    order = rng.permutation(n)
    rows = order + len(shown) * (order >= len(single))
    population = np.concatenate([single, np.full(n_doublets, _marrow.DOUBLET)])[order]
    X = np.empty((n, 1 + raw.shape[1]), dtype=np.float32)
    X[:, 0] = _instrument.draw_times(n, rng)
    X[:, 1:] = raw[rows]
    linear = _expert_gates.compensate(X[:, 1:], spillover.to_numpy())
    gates = _expert_gates.apply_polygons(linear, polygons)
    return _Sample(plan, X, population, gates, polygons, spillover)


def _draw_shares(visit: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the share of every population among the events that are not blasts."""
    mean = np.array([_SHARES[name] for name in _marrow.POPULATIONS])
    mean[_marrow.HAEMATOGONE] *= _HAEMATOGONE_FACTORS[min(visit, len(DAYS) - 1)]
    shares = np.zeros(len(mean))
    shares[mean > 0] = rng.dirichlet(_CONCENTRATION * mean[mean > 0] / mean.sum())
    return shares


def _pair_shares(shares: np.ndarray, blast_fraction: float) -> np.ndarray:
    """Share of every population among the cells that pass the laser in pairs."""
    pairs = (1.0 - blast_fraction) * shares
    pairs[_marrow.BLAST] = blast_fraction
    pairs[[_marrow.POPULATIONS.index(name) for name in _UNPAIRED]] = 0.0
    normalised: np.ndarray = pairs / pairs.sum()
    return normalised


def _assemble(samples: list[_Sample]) -> AnnData:
    names = [s.plan.name for s in samples]
    sizes = [len(s.X) for s in samples]
    numbers = [f":{e}" for e in range(max(sizes))]
    labels = (n + e for n, s in zip(names, sizes, strict=True) for e in numbers[:s])
    index = pd.Index(np.fromiter(labels, dtype=object, count=sum(sizes)))
    population = np.concatenate([s.population for s in samples])
    by_sample = {
        "sample": names,
        "patient": [s.plan.patient_name for s in samples],
        "timepoint": [s.plan.timepoint for s in samples],
        "batch": [s.plan.batch_name for s in samples],
    }
    obs = pd.DataFrame(
        {key: _repeated(values, sizes) for key, values in by_sample.items()}
        | {
            "event": np.concatenate([np.arange(n, dtype=np.int64) for n in sizes]),
            "population": pd.Categorical.from_codes(population, pd.Index(_marrow.POPULATIONS)),
            "cell_type": pd.Categorical.from_codes(
                np.where(population == _marrow.BLAST, 0, 1), pd.Index(["blast", "other"])
            ),
        },
        index=index,
    )
    gates = np.concatenate([s.gates for s in samples])
    adata = AnnData(
        np.concatenate([s.X for s in samples]),
        obs=obs,
        var=_var(),
    )
    # This uses the index that adata has already checked.
    adata.obsm["gates"] = pd.DataFrame(gates, adata.obs_names, list(_expert_gates.GATES))
    keywords = {"CYT": "simulated", "TIMESTEP": "0.01"}
    record = pack_fcs_record(
        names, [keywords for _ in samples], sizes, [s.spillover for s in samples]
    )
    adata.uns["fcs"] = {**record, "time_scaled": False}
    adata.uns["gates"] = _expert_gates.pack_polygons(names, [s.polygons for s in samples])
    n_blasts = np.array([np.count_nonzero(s.population == _marrow.BLAST) for s in samples])
    adata.uns["simulation"] = {
        **{key: np.array(values, dtype=object) for key, values in by_sample.items()},
        "n_blasts": n_blasts,
        "blast_fraction": n_blasts / np.array(sizes),
        "target_blast_fraction": np.array([s.plan.target for s in samples]),
        "markers": np.array(_marrow.COLUMNS, dtype=object),
        "offset": np.array([s.plan.shift.offset for s in samples]),
        "scale": np.array([s.plan.shift.scale for s in samples]),
    }
    return adata


def _repeated(values: list[str], sizes: list[int]) -> pd.Categorical:
    """Repeat the value of each sample; categories are in the order of appearance."""
    codes, categories = pd.factorize(np.array(values, dtype=object))
    return pd.Categorical.from_codes(np.repeat(codes, sizes), pd.Index(categories))


def _var() -> pd.DataFrame:
    fluorescence = _marrow.FLUORESCENCE
    names = ["Time", *_marrow.COLUMNS]
    kinds = ["time", *["scatter"] * _marrow.N_SCATTER, *["fluorescence"] * len(fluorescence)]
    return pd.DataFrame(
        {
            "channel": [fluorescence.get(name, name) for name in names],
            "marker": [name if name in fluorescence else "" for name in names],
            "kind": kinds,
            "range": _instrument.RANGE,
            "compensated": False,
            "transform": "none",
        },
        index=names,
    )


def _cell_range(n_cells: int | tuple[int, int]) -> tuple[int, int]:
    if not isinstance(n_cells, Sequence | np.ndarray) or np.ndim(n_cells) != 1:
        number = count(n_cells, "n_cells")
        return number, number
    if len(n_cells) != 2:
        raise InvalidInputError(f"n_cells must be a number or (lowest, highest), got {n_cells!r}.")
    low, high = (count(value, "n_cells") for value in n_cells)
    if low > high:
        raise InvalidInputError(f"n_cells is {n_cells}: the lowest number must come first.")
    return low, high
