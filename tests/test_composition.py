"""Shares of populations: they add to 1, and only what counting cannot explain is outside."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.metrics import composition_table, population_shares


@given(st.integers(0, 10**6))
def test_shares_add_to_one_without_the_cells_left_out(seed: int):
    rng = np.random.default_rng(seed)
    labels = rng.choice(["T", "B", "blast", None], 300).astype(object)
    groups = rng.choice(["b", "a"], 300)
    shares = population_shares(labels, groups=groups, leave_out=["blast"])
    assert list(shares.columns) == ["B", "T"]
    assert list(shares.index) == list(pd.unique(groups))
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    # More disease leaves the other shares as they are.
    more = np.where(labels == None, "blast", labels)  # noqa: E711
    pd.testing.assert_frame_equal(
        population_shares(more, groups=groups, leave_out=["blast"]), shares
    )


def test_a_sample_without_cells_has_no_shares():
    shares = population_shares(["T", "blast"], groups=["a", "b"], leave_out=["blast"])
    assert shares.loc["b"].isna().all()
    table = composition_table(shares, pd.DataFrame({"low": [0.0], "high": [1.0]}, index=["T"]))
    assert table["state"].tolist() == ["within", "no cells"]
    with pytest.raises(InvalidInputError, match="No cell has a population"):
        population_shares(["blast"], leave_out=["blast"])


def test_reference_samples_are_within_their_own_range_and_others_are_not():
    rng = np.random.default_rng(0)

    def drawn(t_share: float, n_samples: int) -> pd.DataFrame:
        labels = np.where(rng.random(n_samples * 2000) < t_share, "T", "B")
        return population_shares(labels, groups=np.repeat(np.arange(n_samples), 2000))

    training = drawn(0.6, 8)
    own = composition_table(training, training)
    assert (own["state"] == "within").all()
    assert (own["n_reference"] == 8).all()
    other = composition_table(drawn(0.9, 3), training).set_index("population")["state"]
    assert (other["T"] == "above").all()
    assert (other["B"] == "below").all()


def test_few_cells_are_not_called_outside():
    lab = pd.DataFrame({"low": [0.2], "high": [0.4]}, index=["B"])

    def state(n: int) -> str:
        labels = ["B"] * (n // 2) + ["T"] * (n // 2)
        return composition_table(population_shares(labels), lab).set_index("population").loc["B"]

    assert state(10)["state"] == "within"
    assert state(1000)["state"] == "above"
    lacking = composition_table(population_shares(["B", "NK"]), lab)
    assert lacking.set_index("population").loc["NK", "state"] == "no reference"


def test_bad_references_are_clear_errors():
    shares = population_shares(["T", "B"])
    with pytest.raises(InvalidInputError, match="of 4 samples"):
        composition_table(shares, pd.concat([shares] * 4))
    with pytest.raises(InvalidInputError, match="low below high"):
        composition_table(shares, pd.DataFrame({"low": [0.4], "high": [0.2]}, index=["T"]))
    with pytest.raises(InvalidInputError, match="no shares of 'B'"):
        composition_table(shares, pd.concat([shares.assign(B=np.nan)] * 5))
