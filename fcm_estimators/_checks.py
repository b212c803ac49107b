"""Checks shared by all code that reads a user's data."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators.exceptions import InvalidInputError, MarkerMismatchError
from fcm_estimators.exceptions import listed as listed
from fcm_estimators.exceptions import require_key as require_key

_ROWS_AT_ONCE = 64


def marker_positions(
    wanted: Sequence[str], present: Sequence[str], owner: str = "this model"
) -> np.ndarray:
    """Position of each wanted marker among those present, matched by exact name.

    Raises
    ------
    InvalidInputError
        If a name is present more than once.
    MarkerMismatchError
        If a wanted marker is absent. The message suggests other spellings of the same antigen
        (:func:`same_antigen`), never another one; they are not used.
    """
    repeated = (
        sorted({name for name in present if present.count(name) > 1})
        if len(set(present)) < len(present)
        else []
    )
    if repeated:
        raise InvalidInputError(
            f"Marker names must be unique, but {listed(repeated)} occur(s) more than once. "
            "Rename them (adata.var_names_make_unique()) so that each name is one channel."
        )
    position = {name: i for i, name in enumerate(present)}
    missing = [name for name in wanted if name not in position]
    if missing:
        free = [name for name in present if name not in set(wanted)]
        variants = {name: [p for p in free if same_antigen(p, name)] for name in missing}
        # Two variants could be two detectors of one antigen; which one is meant, nobody can tell.
        hints = {found[0]: name for name, found in variants.items() if len(found) == 1}
        advice = (
            f" If they are the same marker, pass marker_aliases={hints!r}."
            if hints
            else " None is another spelling of these."
        )
        raise MarkerMismatchError(
            f"The data lack {len(missing)} of the {len(wanted)} markers that {owner} needs: "
            f"{listed(missing)}. The data have {listed(present)}.{advice}"
        )
    return np.array([position[name] for name in wanted], dtype=np.intp)


# Fluorochromes beside an antigen, in lower case, with blanks instead of signs.
_DYES = re.compile(
    r"\b(?:(?:pe|apc|percp)(?: ?(?:cy ?\d(?:\.5)?|cf ?594|dazzle ?\d*|tx ?r(?:ed)?|texas ?red"
    r"|vio ?\d*|fire ?\d*|af ?\d{3}|alexa ?(?:fluor ?)?\d*|ef(?:luor)? ?\d{3}|[hra] ?\d{1,3}))?"
    r"|fitc|ecd|pc ?(?:5|5\.5|7)|pb|krome orange|kro?|pacific (?:blue|orange|green)|texas ?red"
    r"|alexa ?(?:fluor ?)?\d{3}|(?:af|bv|buv|bb|byg|rb|ry|cf|sb|sbv|sbuv|sbb|ef|efluor|v|dylight"
    r"|qdot|vio|r|a|nfb|nfy|nfr) ?\d{3}|(?:viobright|vio)(?: ?(?:blue|green|bright|fitc|\d+))*"
    r"|super ?bright ?\d*|star ?bright \w+ \d*|brilliant (?:violet|ultra ?violet|blue)(?: ?\d{3})?"
    r"|spark ?\w* ?\d{3}|nova ?fluor \w+ \w+|real(?:blue|yellow) ?\d{3}|horizon|cy ?\d(?:\.5)?"
    r"|fl ?\d{1,2})\b"
)
# Isotopes of mass cytometers, in the case in which they are written: "170Er", "(Er170)Di".
_ISOTOPES = re.compile(
    r"(?<![A-Za-z0-9])(?:\d{2,3}[A-Z][a-z]?|(?:La|Ce|Pr|Nd|Sm|Eu|Gd|Tb|Dy|Ho|Er|Tm|Yb|Lu|In|Ir|Pt"
    r"|Pd|Rh|Bi)\d{3})\)?(?:D[id])?(?![A-Za-z0-9])"
)
_CLONES = re.compile(
    r"\b(?:hi30|2d1|j33|j\.33|ucht1|sk7|okt[348]|hit3a|rpa t[48]|sk[134]|l200|leu ?[234]a?|hib19"
    r"|sj25c1|j3[ .]119|4g7|2h7|l27|b9e9|hi10a|w8e7|alb1|hi98|8g12|581|qbend ?10|my10|hit2|hb7"
    r"|ls198(?:\.4\.3)?|2h4|hi100|uchl1|m5e2|mop9|rmo52|61d3|3g8|b73\.1|ncam16(?:\.2)?|n901|hcd56"
    r"|b159|my31|5\.1h11|wm53|p67\.6|104d2(?:d1)?|ybb\.b8|hi9a|m t(?:701|271)|l46|g46 6|l243|tu36"
    r"|g043h7|150503|dreg ?56|hi149)\b"
)


def same_antigen(one: str, other: str) -> bool:
    """Whether two names of markers are spellings of one antigen.

    They may differ in case, blanks and signs, fluorochrome, isotope, a well-known clone, and the
    mark of compensated values; in nothing else. "CD66" is not "CD62L", "CD45RA" not "CD45".

    Examples
    --------
    >>> from fcm_estimators._checks import same_antigen
    >>> same_antigen("cd 45 BV421-A", "CD45"), same_antigen("CD45RA", "CD45")
    (True, False)
    """
    if _bare(one) == _bare(other) != "":
        return True
    key = _antigen(one)
    return key != "" and key == _antigen(other)


def _bare(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _antigen(name: str) -> str:
    """What is left of a name without fluorochrome, isotope, clone and pulse; "" for nothing."""
    text = re.sub(r"^(fj)?comp[-_]|[<>]", "", name.strip(), flags=re.IGNORECASE)
    pulse = re.search(r"-([AHW])\)?$", text)
    words = _ISOTOPES.sub(" ", text.replace("_", " ")).lower()
    words = re.sub(r"[^\w.]+", " ", words)
    words = re.sub(r"\b(?:anti |hu(?:man)? |h(?=cd ?\d))", "", words)
    words = re.sub(r"\bcd (?=\d)", "cd", words)
    plain = _DYES.sub(" ", words)
    tokens = plain.split()
    # "HLA-A" and "Granzyme-A" are no areas.
    is_area = plain != words or (len(tokens) > 1 and any(c.isdigit() for c in tokens[-2]))
    if pulse and is_area and tokens and tokens[-1] == pulse[1].lower() and tokens[0] != "il":
        tokens = tokens[:-1]
    if tokens and re.match(r"cd\d", tokens[0]):
        tokens = _CLONES.sub(" ", " ".join(tokens)).split()
    return "".join(tokens)


def column_extremes(x: np.ndarray) -> np.ndarray:
    """Smallest and largest value of every column, shape (2, M), without NaN."""
    at_once = len(x) // _ROWS_AT_ONCE * _ROWS_AT_ONCE
    found = []
    for extreme in (np.fmin, np.fmax):
        rest = x[at_once:]
        if at_once:
            # Long rows are compared much faster than short ones.
            long = np.ascontiguousarray(x[:at_once]).reshape(-1, _ROWS_AT_ONCE * x.shape[1])
            rest = np.concatenate([extreme.reduce(long, axis=0).reshape(-1, x.shape[1]), rest])
        found.append(extreme.reduce(rest, axis=0))
    return np.stack(found)


def require_finite(x: np.ndarray, markers: Sequence[str]) -> None:
    """Raise InvalidInputError that names each marker with NaN or infinite values."""
    # The sum is finite if all entries are, unless it overflows. It takes one pass and no mask.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(x.sum(dtype=np.float64)):
            return
    bad = []
    for j, marker in enumerate(markers):
        n_nan, n_inf = int(np.isnan(x[:, j]).sum()), int(np.isinf(x[:, j]).sum())
        if n_nan or n_inf:
            bad.append(f"{marker!r} ({n_nan} NaN, {n_inf} inf)")
    if bad:
        raise InvalidInputError(
            f"X holds values that are not finite (NaN or infinity) in {len(bad)} marker(s): "
            f"{', '.join(bad[:20])}. Remove those cells or repair the values first."
        )


def nullable_flags(values: object, what: str, hint: str = "") -> pd.arrays.BooleanArray:
    """Values that are True, False or missing (or 1, 0, NaN).

    ``what`` names them in the message, ``hint`` says what to do.

    Raises
    ------
    InvalidInputError
        Another value.
    """
    column = pd.Series(values)
    unknown = column.isna().to_numpy()
    known = column[~unknown]
    odd = known[~known.isin([0, 1])].unique()
    if len(odd):
        raise InvalidInputError(
            f"{what} holds {listed(odd, 5)}; expected True or False (or 1 and 0). {hint}".rstrip()
        )
    flags = np.zeros(len(column), dtype=bool)
    flags[~unknown] = known.astype(bool)
    return pd.arrays.BooleanArray(flags, unknown)


def as_flags(values: object, what: str, hint: str = "") -> np.ndarray:
    """Values that are True or False (or 1 and 0) as bool, as :func:`nullable_flags`.

    Raises
    ------
    InvalidInputError
        A missing value, or another one.
    """
    flags = nullable_flags(values, what, hint)
    n_missing = int(flags.isna().sum())
    if n_missing:
        raise InvalidInputError(
            f"{what} must be True or False for every cell; it is missing (NaN) for {n_missing} of "
            f"{len(flags)}. Decide whether these cells count and fill in the values."
        )
    return np.asarray(flags.to_numpy(dtype=bool))


def sample_codes(ids: Any, where: object) -> tuple[np.ndarray, pd.Index]:
    """Number of the sample of each cell, and the samples by first appearance.

    Raises
    ------
    InvalidInputError
        A cell without sample; ``where`` says where the ids come from.
    """
    codes, names = pd.factorize(ids)
    n_missing = int((codes < 0).sum())
    if n_missing:
        raise InvalidInputError(
            f"{n_missing} of {len(codes)} cells have no sample id (NaN) in {where!r}. Every cell "
            "belongs to one; remove those cells or fill the column."
        )
    return codes, pd.Index(np.asarray(names), name="sample")


def rows_by_sample(adata: AnnData, sample_key: str | None) -> dict[str, np.ndarray]:
    """Rows of each sample, by first appearance; "all" is one sample where there is no key.

    Raises
    ------
    MissingKeyError, InvalidInputError
        No such column of ``obs``; a cell without sample.
    """
    if sample_key is None:
        return {"all": np.arange(adata.n_obs)}
    require_key(sample_key, adata.obs.columns, "sample_key: the obs column")
    codes, names = sample_codes(adata.obs[sample_key], sample_key)
    return {str(name): np.flatnonzero(codes == i) for i, name in enumerate(names)}


def gate_called(name: str, known: Collection[Hashable]) -> str:
    """Find the name of a gate among those known, in which importers write "|" for "/".

    Examples
    --------
    >>> from fcm_estimators._checks import gate_called
    >>> gate_called("CD4/CD8", ["CD4|CD8"]), gate_called("intact", [])
    ('CD4|CD8', 'intact')
    """
    written = name.replace("/", "|")
    return written if name not in known and written in known else name
