"""Plan a simulated cohort: patient, visit and instrument of every sample."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike

from fcm_estimators.datasets._instrument import Shift
from fcm_estimators.datasets._marrow import Phenotype, draw_blast_phenotype
from fcm_estimators.exceptions import InvalidInputError

DAYS = (0, 15, 33, 78)
_DAYS_BETWEEN = 28
_SAMPLES_PER_PATIENT = 4
_LARGEST_FRACTION = 0.95
# For every follow-up visit: log10 of the largest blast fraction, and probability of no blasts.
_FOLLOW_UP = ((-0.5, 0.1), (-1.5, 0.35), (-2.5, 0.5))
# With a larger shift, whole populations leave the range of the detectors.
_LARGEST_SHIFT = 3.0
# Random streams are spawned by kind and number, so they do not depend on the size of the cohort.
_PATIENT, _BATCH, _SAMPLE = range(3)
# Shift that a batch has in common, in units of the shift of a sample.
_BATCH_STRENGTH = 2.0


@dataclass(frozen=True)
class SamplePlan:
    """Properties of a sample that are set before its cells are drawn.

    Attributes
    ----------
    patient, visit, batch : int
        Counted from 0.
    target : float
        Share of blasts among all events, 0 to 0.95.
    shift : Shift
        Shift of the batch and the sample together.
    blasts : Phenotype
        Blasts of the patient.
    rng : Generator
        The sample's own source of randomness.
    """

    patient: int
    visit: int
    batch: int
    target: float
    shift: Shift
    blasts: Phenotype
    rng: np.random.Generator

    @property
    def name(self) -> str:
        return f"{self.patient_name}_{self.timepoint}"

    @property
    def patient_name(self) -> str:
        return f"patient{self.patient + 1}"

    @property
    def timepoint(self) -> str:
        later = self.visit - len(DAYS) + 1
        day = DAYS[self.visit] if later <= 0 else DAYS[-1] + _DAYS_BETWEEN * later
        return f"d{day}"

    @property
    def batch_name(self) -> str:
        return f"batch{self.batch + 1}"


def plan_cohort(
    n_samples: int,
    *,
    n_patients: int | None,
    blast_fraction: float | ArrayLike | None,
    shift: float,
    n_batches: int,
    random_state: int | None,
) -> list[SamplePlan]:
    """Plan every sample. The parameters are those of ``simulate_cohort``; they are checked here."""
    n_samples = count(n_samples, "n_samples")
    visits = _visits(n_samples, n_patients)
    n_batches = count(n_batches, "n_batches", most=visits[-1][0] + 1, of="patients")
    if not isinstance(shift, Real) or not 0 <= shift <= _LARGEST_SHIFT:
        raise InvalidInputError(f"shift must be from 0 to {_LARGEST_SHIFT}, got {shift!r}.")
    given = _given_fractions(blast_fraction, n_samples)
    entropy = _entropy(random_state)
    patients = {p: _Patient.draw(_rng(entropy, _PATIENT, p)) for p in dict(visits)}
    batches = [_batch_shift(shift, entropy, b) for b in range(n_batches)]
    plans = []
    for number, (patient, visit) in enumerate(visits):
        rng = _rng(entropy, _SAMPLE, number)
        batch = patient % n_batches
        plans.append(
            SamplePlan(
                patient=patient,
                visit=visit,
                batch=batch,
                target=patients[patient].fraction(visit) if given is None else float(given[number]),
                shift=Shift.draw(shift, rng).then(batches[batch]),
                blasts=patients[patient].blasts,
                rng=rng,
            )
        )
    return plans


@dataclass(frozen=True)
class _Patient:
    """Blasts of a patient, and their share at the visits with a default."""

    blasts: Phenotype
    course: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Patient:
        blasts = draw_blast_phenotype(rng)
        course = [rng.uniform(0.2, _LARGEST_FRACTION)]
        for largest, free in _FOLLOW_UP:
            fraction = 10.0 ** rng.uniform(-5.0, largest)
            course.append(0.0 if rng.random() < free else fraction)
        # A patient without blasts stays without them, because relapses are not simulated.
        return cls(blasts, np.minimum.accumulate(course))

    def fraction(self, visit: int) -> float:
        return float(self.course[min(visit, len(self.course) - 1)])


def _visits(n_samples: int, n_patients: int | None) -> list[tuple[int, int]]:
    """Patient and visit of every sample."""
    if n_patients is None:
        return [divmod(number, _SAMPLES_PER_PATIENT) for number in range(n_samples)]
    n_patients = count(n_patients, "n_patients", most=n_samples, of="samples")
    shares = np.array_split(np.arange(n_samples), n_patients)
    return [(patient, visit) for patient, own in enumerate(shares) for visit in range(len(own))]


def _batch_shift(strength: float, entropy: int, batch: int) -> Shift:
    # The first batch has no shift: the populations are defined for its instrument.
    strength = 0.0 if batch == 0 else _BATCH_STRENGTH * strength
    return Shift.draw(strength, _rng(entropy, _BATCH, batch))


def _rng(entropy: int, kind: int, number: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(kind, number)))


def _entropy(random_state: int | None) -> int:
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(4, np.uint64)[0])
    if not isinstance(random_state, int | np.integer) or random_state < 0:
        raise InvalidInputError(
            f"random_state must be an integer of at least 0 or None, got {random_state!r}."
        )
    return int(random_state)


def count(value: object, name: str, *, most: int | None = None, of: str = "") -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise InvalidInputError(f"{name} must be an integer of at least 1, got {value!r}.")
    if most is not None and value > most:
        raise InvalidInputError(f"{name} is {value}, but there are only {most} {of}.")
    return int(value)


def _given_fractions(fraction: float | ArrayLike | None, n_samples: int) -> np.ndarray | None:
    """Blast fraction of every sample; None for the default."""
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
