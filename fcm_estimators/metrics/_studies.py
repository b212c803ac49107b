"""Studies of blanks and low samples: counts per patient, and what the design lacks."""

from __future__ import annotations

import pandas as pd

from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.metrics._counting import counts

# With fewer patients a limit is refused.
LEAST_PATIENTS = 5
# What CLSI EP17-A2 asks for to establish a limit, and to verify one.
RESULTS, LOTS, DAYS = 60, 2, 3
VERIFYING = 20


def counts_per_patient(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Add the counts of each patient; every row is a patient without a column ``patient``.

    Raises InvalidInputError if counts are missing or impossible or a denominator is 0.
    """
    if not isinstance(table, pd.DataFrame) or not {"numerator", "denominator"} <= set(table):
        columns = list(table) if isinstance(table, pd.DataFrame) else type(table).__name__
        raise InvalidInputError(
            f"{name}: expected a table with numerator and denominator; found {columns}."
        )
    if table.empty:
        raise InvalidInputError(f"{name}: the table has no rows.")
    k, n = (counts(table[c], f"{name}, {c}") for c in ("numerator", "denominator"))
    if (n == 0).any():
        raise InvalidInputError(
            f"{name}: {int((n == 0).sum())} results have no cell in the denominator; leave them "
            "out."
        )
    if (k > n).any():
        raise InvalidInputError(f"{name}: numerators exceed their denominators.")
    patient = table["patient"] if "patient" in table else pd.Series(table.index, table.index)
    if patient.isna().any():
        raise InvalidInputError(f"{name}: {int(patient.isna().sum())} results have no patient.")
    if "patient" not in table and not table.index.is_unique:
        raise InvalidInputError(f"{name}: names repeat; say with a column patient whose they are.")
    results = pd.DataFrame({"n_results": 1, "numerator": k, "denominator": n}).astype(int)
    added: pd.DataFrame = (
        results.groupby(patient.to_numpy(), sort=False).sum().rename_axis("patient")
    )
    return added.assign(fraction=added["numerator"] / added["denominator"])


def shortfalls(table: pd.DataFrame, patients: pd.DataFrame, name: str) -> list[str]:
    """What CLSI EP17 asks of the design and the table lacks, in words."""
    found = []
    if len(table) < RESULTS:
        also = "" if len(table) >= VERIFYING else f", and {VERIFYING} to verify one"
        found.append(
            f"{len(table)} results of {len(patients)} {name}; CLSI EP17 asks for {RESULTS} to "
            f"establish a limit{also}."
        )
    for column, least in (("lot", LOTS), ("day", DAYS)):
        if column not in table:
            found.append(f"No column {column!r}; EP17 asks for {least} {column}s.")
        elif table[column].nunique() < least:
            found.append(f"{table[column].nunique()} {column}(s); EP17 asks for {least}.")
    return found
