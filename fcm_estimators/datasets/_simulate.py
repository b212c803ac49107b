"""Simulated cohorts of paediatric B-ALL bone marrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike

from fcm_estimators._exceptions import InvalidInputError
from fcm_estimators._fcs_record import pack_fcs_record
from fcm_estimators.datasets import _expert_gates, _instrument, _marrow

_SAMPLES_PER_PATIENT = 4
_LARGEST_FRACTION = 0.95
# Randomness is spawned by kind and number, so nothing depends on how many others follow.
_PATIENT, _BATCH, _SAMPLE = range(3)
# A batch's common shift, in units of the shift of a sample.
_BATCH_STRENGTH = 2.0

_DAYS = (0, 15, 33, 78)
_DAYS_BETWEEN = 28
# For every follow-up: log10 of the largest blast fraction, probability of none.
_FOLLOW_UP = ((-0.5, 0.1), (-1.5, 0.35), (-2.5, 0.5))

# Shares of the events that are no blasts, on average.
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
# Of the Dirichlet distribution of the shares: the smaller, the more samples differ.
_CONCENTRATION = 40.0
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
    """Bone marrow of children with B-cell acute lymphoblastic leukaemia, simulated.

    Every patient has blasts of its own phenotype, at diagnosis and, fewer and fewer or none, at
    follow-up visits. Blasts resemble haematogones, the normal precursors of B cells: apart within
    a sample, overlapping across samples, because every sample has its own instrument shift.
    Populations, spillover and noise are set to look like a real sample; no patient is behind them.

    Parameters
    ----------
    n_samples : int, default 20
        Number of samples S.
    n_cells : int or (int, int), default 10_000
        Events per sample, or the range from which each sample's number is drawn log-uniformly.
    n_patients : int, optional
        Patients among whom the samples are divided evenly, at most `n_samples`. Default: one for
        every four samples (diagnosis, days 15, 33 and 78).
    blast_fraction : float or array-like of shape (S,), optional
        Blasts among all events, from 0 to 0.95. Default: 0.2 to 0.95 at diagnosis, then falling
        over the visits to 1e-5 or 0. A fraction that is no whole number of cells is rounded up
        or down at random, so that it holds on average.
    shift : float, default 1.0
        Strength of each sample's shift of gain, stain and background; 0 for none.
    n_batches : int, default 1
        Batches, at most the number of patients, to which patients are assigned in turn. All but
        the first have a shift of twice the strength in common, on top of each sample's.
    random_state : int or None, default 0
        Seed; None for a different cohort each time. A sample depends on the seed and its number
        only: with the same other arguments, and `n_patients` None, a longer cohort begins with the
        samples of a shorter one.

    Returns
    -------
    AnnData
        Raw events as :func:`~fcm_estimators.read_fcs` returns them, float32 up to 262,143, not
        compensated: Time, FSC-A, FSC-W, SSC-A, CD20, CD10, CD45, CD34, Syto 41, CD19, CD38.

        - ``obs["sample"]``, ``obs["event"]``; Categorical ``obs["patient"]``,
          ``obs["timepoint"]``, ``obs["batch"]``;
        - ``obs["population"]``: Categorical, the truth: debris, dead, granulocyte, monocyte,
          T/NK, mature B, haematogone, erythroid, plasma cell, blast, doublet (whatever the two
          cells are);
        - ``obs["cell_type"]``: Categorical, the truth: "blast" or "other";
        - ``obsm["gates"]``: DataFrame of bool, what an expert who draws polygons on every sample
          would get: syto, singlets, intact, cd19, blast_cd45_cd10, blast_cd20_cd10,
          blast_cd38_cd10, each inside its parent, and blast, the cells in all of the last three;
        - ``uns["gates"]``: these polygons as parallel arrays, one entry per sample and plane:
          ``sample``, ``name``, ``parent`` ("" for none), ``x``, ``y``, ``transform_x``,
          ``transform_y``, ``compensation``; polygon i is
          ``vertices[vertex_offsets[i]:vertex_offsets[i + 1]]``, in the units of the transforms;
        - ``uns["fcs"]``: spillover of every sample;
        - ``uns["simulation"]``: one entry per sample: ``sample``, ``patient``, ``timepoint``,
          ``batch``, ``n_blasts``, ``blast_fraction``, ``target_blast_fraction``; ``offset`` and
          ``scale``, arrays of shape (S, 10), the shift of the ``markers``: the offset is the log
          gain for scatter, logicle units for fluorescence, the scale a stretch of the latter.

    Raises
    ------
    InvalidInputError
        A number that is not an integer or below 1, more patients than samples or batches than
        patients, a range of cells upside down, a negative or infinite shift, a blast fraction
        outside of 0 to 0.95 or of another length than `n_samples`, or a negative seed.

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
    n_samples = _count(n_samples, "n_samples")
    cells = _cell_range(n_cells)
    visits = _visits(n_samples, n_patients)
    n_batches = _count(n_batches, "n_batches", most=visits[-1][0] + 1, of="patients")
    if not isinstance(shift, Real) or not 0 <= shift < np.inf:
        raise InvalidInputError(f"shift must be a finite number of at least 0, got {shift!r}.")
    entropy = _entropy(random_state)
    given = _given_fractions(blast_fraction, n_samples)
    patients = {p: _Patient.draw(_rng(entropy, _PATIENT, p)) for p in dict(visits)}
    batches = [_batch_shift(shift, entropy, b) for b in range(n_batches)]
    samples = []
    for number, (patient, visit) in enumerate(visits):
        target = patients[patient].fraction(visit) if given is None else given[number]
        batch = patient % n_batches
        rng = _rng(entropy, _SAMPLE, number)
        moved = _instrument.Shift.draw(shift, rng).then(batches[batch])
        plan = _Plan(patient, visit, batch, float(target), moved, patients[patient].blasts)
        samples.append(_draw_sample(plan, cells, rng))
    return _assemble(samples)


@dataclass(frozen=True)
class _Patient:
    """Blasts of a patient and their share at every visit that has a default."""

    blasts: _marrow.Phenotype
    course: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Patient:
        blasts = _marrow.draw_blast_phenotype(rng)
        course = [rng.uniform(0.2, _LARGEST_FRACTION)]
        for largest, free in _FOLLOW_UP:
            fraction = 10.0 ** rng.uniform(-5.0, largest)
            course.append(0.0 if rng.random() < free else fraction)
        # A patient who is free of blasts stays so: relapses are not simulated.
        return cls(blasts, np.minimum.accumulate(course))

    def fraction(self, visit: int) -> float:
        return float(self.course[min(visit, len(self.course) - 1)])


@dataclass(frozen=True)
class _Plan:
    """What is decided about a sample before its cells are drawn."""

    patient: int
    visit: int
    batch: int
    target: float
    shift: _instrument.Shift
    blasts: _marrow.Phenotype

    @property
    def name(self) -> str:
        return f"{self.patient_name}_{self.timepoint}"

    @property
    def patient_name(self) -> str:
        return f"patient{self.patient + 1}"

    @property
    def timepoint(self) -> str:
        later = self.visit - len(_DAYS) + 1
        day = _DAYS[self.visit] if later <= 0 else _DAYS[-1] + _DAYS_BETWEEN * later
        return f"d{day}"

    @property
    def batch_name(self) -> str:
        return f"batch{self.batch + 1}"


@dataclass(frozen=True)
class _Sample:
    """One simulated file."""

    plan: _Plan
    X: np.ndarray
    population: np.ndarray
    gates: np.ndarray
    polygons: list[np.ndarray]
    spillover: pd.DataFrame


def _draw_sample(plan: _Plan, cells: tuple[int, int], rng: np.random.Generator) -> _Sample:
    n = round(np.exp(rng.uniform(*np.log(cells))))
    n_blasts = int(plan.target * n + rng.random())
    shares = _draw_shares(plan.visit, rng)
    counts = rng.multinomial(n - n_blasts, shares)
    counts[_marrow.BLAST] = n_blasts
    n_doublets = int(counts[_marrow.DOUBLET])
    single = np.repeat(np.arange(_marrow.DOUBLET), counts[: _marrow.DOUBLET])
    paired = rng.choice(len(shares), 2 * n_doublets, p=_pair_shares(shares, plan.target))
    drawn = _marrow.draw_cells(np.concatenate([single, paired]), plan.blasts, rng)
    spillover = _instrument.draw_spillover(rng)
    raw = _instrument.measure(drawn, n_doublets, plan.shift, spillover.to_numpy(), rng)
    order = rng.permutation(n)
    raw = raw[order]
    population = np.concatenate([single, np.full(n_doublets, _marrow.DOUBLET)])[order]
    polygons = _expert_gates.draw_polygons(plan.blasts, plan.shift, rng)
    gates = _expert_gates.apply_polygons(raw, spillover.to_numpy(), polygons)
    X = np.column_stack([_instrument.draw_times(n, rng), raw])
    return _Sample(plan, X, population, gates, polygons, spillover)


def _draw_shares(visit: int, rng: np.random.Generator) -> np.ndarray:
    """Share of every population among the events that are no blasts."""
    mean = np.array([_SHARES[name] for name in _marrow.POPULATIONS])
    mean[_marrow.HAEMATOGONE] *= _HAEMATOGONE_FACTORS[min(visit, len(_DAYS) - 1)]
    shares = np.zeros(len(mean))
    shares[mean > 0] = rng.dirichlet(_CONCENTRATION * mean[mean > 0] / mean.sum())
    return shares


def _pair_shares(shares: np.ndarray, blast_fraction: float) -> np.ndarray:
    """Share of every population among the cells that pass the laser in pairs."""
    pairs = (1.0 - blast_fraction) * shares
    pairs[_marrow.BLAST] = blast_fraction
    pairs[[_marrow.POPULATIONS.index(name) for name in _UNPAIRED]] = 0.0
    return pairs / pairs.sum()


def _assemble(samples: list[_Sample]) -> AnnData:
    names = [s.plan.name for s in samples]
    sizes = [len(s.X) for s in samples]
    index = pd.Index([f"{n}:{e}" for n, s in zip(names, sizes, strict=True) for e in range(s)])
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
            "population": pd.Categorical.from_codes(population, list(_marrow.POPULATIONS)),
            "cell_type": pd.Categorical.from_codes(
                np.where(population == _marrow.BLAST, 0, 1), ["blast", "other"]
            ),
        },
        index=index,
    )
    gates = np.concatenate([s.gates for s in samples])
    adata = AnnData(
        np.concatenate([s.X for s in samples]),
        obs=obs,
        var=_var(),
        obsm={"gates": pd.DataFrame(gates, index=index, columns=list(_expert_gates.GATES))},
    )
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
    """Categorical with one value per sample, categories in order of appearance."""
    codes, categories = pd.factorize(np.array(values, dtype=object))
    return pd.Categorical.from_codes(np.repeat(codes, sizes), categories)


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


def _visits(n_samples: int, n_patients: int | None) -> list[tuple[int, int]]:
    """Patient and visit of every sample."""
    if n_patients is None:
        return [divmod(number, _SAMPLES_PER_PATIENT) for number in range(n_samples)]
    n_patients = _count(n_patients, "n_patients", most=n_samples, of="samples")
    shares = np.array_split(np.arange(n_samples), n_patients)
    return [(patient, visit) for patient, own in enumerate(shares) for visit in range(len(own))]


def _batch_shift(strength: float, entropy: int, batch: int) -> _instrument.Shift:
    # The first batch is the instrument that the populations were described on.
    strength = 0.0 if batch == 0 else _BATCH_STRENGTH * strength
    return _instrument.Shift.draw(strength, _rng(entropy, _BATCH, batch))


def _rng(entropy: int, kind: int, number: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(kind, number)))


def _entropy(random_state: int | None) -> int:
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(4, np.uint64)[0])
    if not isinstance(random_state, Integral) or random_state < 0:
        raise InvalidInputError(
            f"random_state must be an integer of at least 0 or None, got {random_state!r}."
        )
    return int(random_state)


def _count(value: Any, name: str, *, most: int | None = None, of: str = "") -> int:
    if not isinstance(value, Integral) or value < 1:
        raise InvalidInputError(f"{name} must be an integer of at least 1, got {value!r}.")
    if most is not None and value > most:
        raise InvalidInputError(f"{name} is {value}, but there are only {most} {of}.")
    return int(value)


def _cell_range(n_cells: int | tuple[int, int]) -> tuple[int, int]:
    if not isinstance(n_cells, Sequence):
        number = _count(n_cells, "n_cells")
        return number, number
    if len(n_cells) != 2:
        raise InvalidInputError(f"n_cells must be a number or (lowest, highest), got {n_cells!r}.")
    low, high = (_count(value, "n_cells") for value in n_cells)
    if low > high:
        raise InvalidInputError(f"n_cells is {n_cells}: the lowest number must come first.")
    return low, high


def _given_fractions(fraction: float | ArrayLike | None, n_samples: int) -> np.ndarray | None:
    """Blast fraction of every sample, None for the default."""
    if fraction is None:
        return None
    try:
        values = np.asarray(fraction, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"blast_fraction must be numeric, got {fraction!r:.80}.") from error
    if values.shape not in [(), (n_samples,)]:
        raise InvalidInputError(
            f"blast_fraction has shape {values.shape}; expected one number or one for each of "
            f"the {n_samples} samples."
        )
    wrong = values[~((values >= 0) & (values <= _LARGEST_FRACTION))]
    if wrong.size:
        raise InvalidInputError(
            f"blast_fraction must be from 0 to {_LARGEST_FRACTION}, got {wrong[0]}."
        )
    return np.broadcast_to(values, n_samples)
