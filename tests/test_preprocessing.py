"""Laws of compensation and transforms: inverses, recorded state, and nothing done twice."""

from __future__ import annotations

import doctest
import importlib
import math
from pathlib import Path

import anndata
import flowio
import flowutils
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.sparse import csr_matrix
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline

from fcm_estimators.exceptions import (
    FcmError,
    InvalidInputError,
    MarkerMismatchError,
    MissingKeyError,
    NotFittedError,
    ProcessingStateError,
)
from fcm_estimators.io import read_fcs
from fcm_estimators.io.record import pack_fcs_record
from fcm_estimators.preprocessing import (
    ArcsinhTransform,
    Compensation,
    LinearTransform,
    LogicleTransform,
    Scale,
    parse_transform,
)
from fcm_estimators.preprocessing.scales import Arcsinh, Identity, Linear, Logicle
from tests.helpers import data_home

MARKERS = ["Time", "FSC-A", "SSC-A", "CD19", "CD10", "CD45"]
CHANNELS = ["Time", "FSC-A", "SSC-A", "FITC-A", "PE-A", "APC-A"]
DYES = CHANNELS[3:]
SPILL = {
    "s1": pd.DataFrame([[1, 0.2, 0.01], [0.05, 1, 0.1], [0, 0.02, 1]], DYES, DYES),
    "s2": pd.DataFrame([[1, 0.1, 0], [0.3, 1, 0], [0.05, 0.2, 1]], DYES, DYES),
}


def make_adata(n: int = 60, seed: int = 0) -> AnnData:
    """Two samples, interleaved, with negative and saturated values."""
    rng = np.random.default_rng(seed)
    X = rng.normal(3000, 4000, (n, len(MARKERS))).astype(np.float32)
    X[0, 3:] = 262143
    sample = np.array(["s1", "s2"])[np.arange(n) % 2]
    obs = pd.DataFrame({"sample": pd.Categorical(sample)}, index=[f"c:{i}" for i in range(n)])
    var = pd.DataFrame(
        {
            "channel": CHANNELS,
            "kind": ["time", "scatter", "scatter"] + ["fluorescence"] * 3,
            "range": 262144.0,
            "compensated": False,
            "transform": "none",
        },
        index=MARKERS,
    )
    adata = AnnData(X, obs=obs, var=var)
    record = pack_fcs_record(["s1", "s2"], [{}, {}], [n // 2, n // 2], [SPILL["s1"], SPILL["s2"]])
    adata.uns["fcs"] = record
    return adata


def full_pipeline() -> Pipeline:
    return make_pipeline(Compensation(), LogicleTransform(), LinearTransform())


TRANSFORMERS = [
    ArcsinhTransform(),
    LogicleTransform(),
    LogicleTransform(W="fit"),
    LinearTransform(),
]
ALL_STEPS = [*TRANSFORMERS, Compensation(), Compensation(spillover=SPILL["s2"])]

# --- scales

raw_values = st.floats(-262144, 262144, width=32)
scales = st.one_of(
    st.builds(Identity),
    st.builds(Linear, T=st.floats(1, 1e7)),
    st.builds(Arcsinh, cofactor=st.floats(0.5, 1e4)),
    st.tuples(
        st.floats(1e3, 1e7), st.floats(3, 6), st.floats(0, 1), st.floats(0, 1)
    ).map(lambda p: Logicle(T=p[0], M=p[1], W=p[2] * p[1] / 2.01, A=0.0)),
    st.builds(Logicle, W=st.floats(0.1, 1.5), A=st.floats(-0.1, 1.5)),
)  # fmt: skip


@given(scales)
def test_text_form_gives_back_the_same_scale(scale: Scale) -> None:
    assert parse_transform(str(scale)) == scale


@given(scales, st.lists(raw_values, min_size=1, max_size=20))
def test_scale_inverse_undoes_transform(scale: Scale, values: list[float]) -> None:
    x = np.array(values)
    np.testing.assert_allclose(scale.inverse(scale.transform(x)), x, rtol=1e-7, atol=1e-6)


@given(scales, st.lists(st.integers(-262144, 262144), min_size=2, max_size=20, unique=True))
def test_scale_is_strictly_increasing(scale: Scale, values: list[int]) -> None:
    assert (np.diff(scale.transform(np.sort(values))) > 0).all()


def test_scales_keep_shape_and_leave_their_input_alone() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    before = x.copy()
    for scale in (Identity(), Linear(), Arcsinh(), Logicle()):
        y = scale.transform(x)
        assert y.shape == x.shape
        assert y.dtype == np.float64
        y[:] = -1
        np.testing.assert_array_equal(x, before)
        assert scale.transform(3.0).shape == ()
        assert scale.transform([]).shape == (0,)


def biexponential(T: float, W: float, M: float, A: float, y: float) -> float:
    """B(y) of Gating-ML 2.0 and Moore & Parks (2012), from its definition.

    Below x1, the place of zero, the scale is the mirror image of itself above.
    """
    w, x2 = W / (M + A), A / (M + A)
    x1, x0 = x2 + w, x2 + 2 * w
    if y < x1:
        return -biexponential(T, W, M, A, 2 * x1 - y)
    b = (M + A) * math.log(10)
    d = b
    if w > 0:
        d = brentq(lambda d: 2 * (math.log(d) - math.log(b)) + w * (d + b), 1e-12, b, xtol=1e-14)
    ca = math.exp(x0 * (b + d))
    fa = math.exp(b * x1) - ca / math.exp(d * x1)
    a = T / (math.exp(b) - fa - ca / math.exp(d))
    return a * math.exp(b * y) - ca * a * math.exp(-d * y) - fa * a


@pytest.mark.parametrize(
    "parameters", [(262144, 0.5, 4.5, 0), (1000, 1, 4, 0), (10000, 0.7, 4, 1), (262144, 0, 4.5, 0)]
)
def test_logicle_solves_the_defining_equation(parameters: tuple[float, ...]) -> None:
    T, W, M, A = parameters
    scale = Logicle(T=T, W=W, M=M, A=A)
    for x in np.linspace(-0.01 * T, T, 41):
        y = float(scale.transform(x))
        assert biexponential(T, W, M, A, y) == pytest.approx(x, rel=1e-8, abs=1e-8 * T)
    assert scale.transform(T) == pytest.approx(1)
    assert scale.transform(0) == pytest.approx((W + A) / (M + A))


@given(
    st.sampled_from([1000.0, 262144.0, 4194304.0]),
    st.floats(0, 2),
    st.floats(4, 10),
    st.integers(0, 2**32 - 1),
)
def test_logicle_is_the_solver_of_flowutils_to_1e_12(
    T: float, W: float, M: float, seed: int
) -> None:
    """Through all decades, on both sides of zero, and beyond the knots; never downwards."""
    rng = np.random.default_rng(seed)
    x = rng.choice([-1, 1], 500) * 10 ** rng.uniform(-2, math.log10(4 * T), 500)
    x = np.sort(np.append(x, [0, T, -T, 2 * T]))
    scale = Logicle(T=T, W=W, M=M)
    reference = flowutils.transforms.logicle(x, None, t=scale.T, m=scale.M, w=scale.W, a=0)
    solved = np.isclose(scale.inverse(reference), x, rtol=1e-6)
    found = scale.transform(x[solved])
    np.testing.assert_allclose(found, reference[solved], rtol=0, atol=1e-12)
    exact = np.isin(x[solved], [0, T])
    np.testing.assert_array_equal(found[exact], reference[solved][exact])
    assert (np.diff(found) > -1e-12).all()


def test_scales_follow_gating_ml() -> None:
    x = np.array([-500.0, 0, 10, 1e4, 262144])
    reference = flowutils.transforms.logicle(x, None, t=262144, m=4.5, w=0.8, a=0)
    found = Logicle(W=0.8).transform(x)
    np.testing.assert_allclose(found, reference, rtol=0, atol=1e-12)
    # Saturated events are exactly where a gate at the end of the axis ends.
    assert found[4] == reference[4] == 1
    assert found[1] == reference[1]
    np.testing.assert_array_equal(Linear(T=2.0).transform(x), x / 2)
    np.testing.assert_array_equal(Arcsinh(cofactor=5).transform(x), np.arcsinh(x / 5))


@pytest.mark.parametrize("scale", [Identity(), Linear(), Arcsinh(), Logicle()])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scale_refuses_values_that_are_not_finite(scale: Scale, bad: float) -> None:
    for function in (scale.transform, scale.inverse):
        with pytest.raises(InvalidInputError, match="1 of 2 values are NaN or infinite"):
            function([1.0, bad])


def test_logicle_never_returns_the_solvers_silent_minus_one() -> None:
    assert flowutils.transforms.logicle(np.array([1e300]), None) == -1
    with pytest.raises(InvalidInputError, match="1e\\+300"):
        Logicle().transform([5.0, 1e300])
    at_minus_one = Logicle().inverse(-1.0)
    assert Logicle().transform(at_minus_one) == pytest.approx(-1)


def test_inverse_that_overflows_is_an_error() -> None:
    for scale in (Logicle(), Arcsinh()):
        with pytest.raises(InvalidInputError, match="1 of 2 values"):
            scale.inverse([0.5, 1e5])


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        (Linear, {"T": 0}),
        (Arcsinh, {"cofactor": -1}),
        (Arcsinh, {"cofactor": "x"}),
        (Logicle, {"W": 2.26}),
        (Logicle, {"W": -0.1}),
        (Logicle, {"A": -0.6}),
        (Logicle, {"A": 3.6}),
        (Logicle, {"M": 0, "W": 0}),
        (Logicle, {"T": np.nan}),
    ],
)
def test_scale_refuses_unusable_parameters(kind: type[Scale], parameters: dict) -> None:
    with pytest.raises(InvalidInputError):
        kind(**parameters)


@pytest.mark.parametrize(
    "text",
    ["", "log", "logicle", "linear()", "linear(T=5", "linear(T=5,T=6)", "linear(T=x)", "linear(T)",
     "none(a=1)", "arcsinh(T=5)", "logicle(T=262144,W=0.5,M=4.5)", None, 3],
)  # fmt: skip
def test_parse_transform_refuses_other_texts(text: object) -> None:
    with pytest.raises(InvalidInputError):
        parse_transform(text)  # type: ignore[arg-type]


# --- transformers


@pytest.mark.parametrize("step", ALL_STEPS, ids=repr)
def test_input_stays_as_it_was_and_raw_values_are_kept(step: BaseEstimator) -> None:
    adata = make_adata()
    X, var, uns = adata.X.copy(), adata.var.copy(), list(adata.uns)
    out = clone(step).fit_transform(adata)
    np.testing.assert_array_equal(adata.X, X)
    pd.testing.assert_frame_equal(adata.var, var)
    assert list(adata.uns) == uns
    assert not adata.layers
    assert out.X.dtype == np.float32
    assert (out.X != X).any()
    np.testing.assert_array_equal(out.layers["raw"], X)
    assert not np.shares_memory(out.layers["raw"], out.X)
    back = step.fit(adata).inverse_transform(out)
    np.testing.assert_array_equal(back.layers["raw"], X)
    np.testing.assert_allclose(back.X, X, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("step", ALL_STEPS, ids=repr)
def test_same_result_for_view_float64_and_integers(step: BaseEstimator) -> None:
    adata = make_adata()
    adata.X = np.round(adata.X)
    half = np.arange(adata.n_obs) % 3 > 0
    fitted = clone(step).fit(adata)
    expected = fitted.transform(adata)[half].X
    view = adata[half]
    np.testing.assert_array_equal(fitted.transform(view).X, expected)
    assert view.is_view
    for dtype in (np.float64, np.int32):
        other = adata[half].copy()
        other.X = other.X.astype(dtype)
        out = fitted.transform(other)
        np.testing.assert_array_equal(out.X, expected)
        assert out.X.dtype == out.layers["raw"].dtype == np.float32
        assert other.X.dtype == dtype


@pytest.mark.parametrize("step", ALL_STEPS, ids=repr)
def test_nothing_is_done_twice(step: BaseEstimator) -> None:
    fitted = clone(step).fit(make_adata())
    out = fitted.transform(make_adata())
    X = out.X.copy()
    with pytest.raises(ProcessingStateError, match="Already"):
        fitted.transform(out)
    np.testing.assert_array_equal(out.X, X)
    # The state survives subsetting, which drops uns in other tools but never var.
    with pytest.raises(ProcessingStateError, match="Already"):
        fitted.transform(out[:5].copy())
    again = fitted.transform(fitted.inverse_transform(out))
    np.testing.assert_allclose(again.X, X, rtol=1e-5, atol=1e-2)


def test_no_scale_goes_on_top_of_another() -> None:
    done = ArcsinhTransform().fit_transform(make_adata())
    with pytest.raises(ProcessingStateError, match="arcsinh"):
        LogicleTransform().fit(done)
    with pytest.raises(ProcessingStateError, match="arcsinh"):
        LogicleTransform().fit(make_adata()).inverse_transform(done)
    with pytest.raises(ProcessingStateError, match="cofactor=5"):
        ArcsinhTransform(cofactor=5).fit(make_adata()).inverse_transform(done)


def test_state_is_recorded_per_marker() -> None:
    out = full_pipeline().fit_transform(make_adata())
    logicle = "logicle(T=262144,W=0.5,M=4.5,A=0)"
    linear = "linear(T=262144)"
    assert list(out.var["transform"]) == ["none", linear, linear, logicle, logicle, logicle]
    assert list(out.var["compensated"]) == [False] * 3 + [True] * 3


def test_pipeline_is_the_composition_of_its_definitions() -> None:
    adata = make_adata()
    out = full_pipeline().fit_transform(adata)
    for name, spill in SPILL.items():
        rows = (adata.obs["sample"] == name).to_numpy()
        raw = adata.X[rows].astype(np.float64)
        compensated = raw[:, 3:] @ np.linalg.inv(spill.to_numpy())
        expected = flowutils.transforms.logicle(compensated, None)
        np.testing.assert_allclose(out.X[rows, 3:], expected, atol=2e-6)
        np.testing.assert_allclose(out.X[rows, 1:3], raw[:, 1:3] / 262144, rtol=1e-6)
        np.testing.assert_array_equal(out.X[rows, 0], raw[:, 0].astype(np.float32))


def test_pipeline_inverse_gives_back_the_raw_values_and_state() -> None:
    adata = make_adata()
    pipeline = full_pipeline()
    back = pipeline.inverse_transform(pipeline.fit_transform(adata))
    np.testing.assert_allclose(back.X, adata.X, rtol=1e-5, atol=1e-2)
    assert set(back.var["transform"]) == {"none"}
    assert not back.var["compensated"].any()


# anndata announces a new default format; the old one is as good here.
@pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning")
def test_result_and_its_state_survive_files(tmp_path: Path) -> None:
    pipeline = full_pipeline()
    out = pipeline.fit_transform(make_adata())
    expected = pipeline.inverse_transform(out)
    out.write_h5ad(tmp_path / "a.h5ad")
    out.write_zarr(tmp_path / "a.zarr")
    for read in (
        anndata.read_h5ad(tmp_path / "a.h5ad"),
        anndata.read_zarr(tmp_path / "a.zarr"),
    ):
        np.testing.assert_array_equal(read.X, out.X)
        assert list(read.var["transform"]) == list(out.var["transform"])
        with pytest.raises(ProcessingStateError):
            pipeline.transform(read)
        back = pipeline.inverse_transform(read)
        np.testing.assert_array_equal(back.X, expected.X)
        np.testing.assert_array_equal(pipeline.transform(back).layers["raw"], out.layers["raw"])


def test_a_backed_file_is_refused_with_the_way_out(tmp_path: Path) -> None:
    make_adata().write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(InvalidInputError, match=r"adata\.to_memory\(\)"):
        LogicleTransform().fit(backed)
    assert LogicleTransform().fit_transform(backed.to_memory()).n_obs == backed.n_obs
    backed.file.close()


@given(st.permutations(range(len(MARKERS))))
def test_markers_are_matched_by_name_in_any_order(order: list[int]) -> None:
    adata = make_adata(12)
    pipeline = full_pipeline().fit(adata)
    out = pipeline.transform(adata[:, order].copy())
    np.testing.assert_array_equal(out[:, MARKERS].X, pipeline.transform(adata).X)


def test_scales_are_fixed_at_fit_and_never_estimated_again() -> None:
    adata, other = make_adata(seed=0), make_adata(seed=1)
    other.X *= 3
    other.var["range"] = 1024.0
    step = LogicleTransform(W="fit").fit(adata)
    fitted = dict(step.transforms_)
    out = step.transform(other)
    assert step.transforms_ == fitted
    assert list(out.var["transform"][3:]) == [str(s) for s in fitted.values()]
    # Control: fitted on the other samples they would differ.
    assert LogicleTransform(W="fit").fit(other).transforms_ != fitted


def test_fitted_width_follows_parks_and_depends_on_negatives_only() -> None:
    adata = make_adata(2000)
    adata.X[:, 4] = np.abs(adata.X[:, 4])
    widths = LogicleTransform(W="fit").fit(adata).transforms_
    negative = adata[:, "CD19"].X.astype(np.float64)
    r = -np.percentile(negative[negative < 0], 5)
    expected = (4.5 - np.log10(262144 / r)) / 2
    np.testing.assert_allclose(widths["CD19"].W, expected, rtol=1e-9)
    assert widths["CD10"].W == 0
    adata.X[:, 3][adata.X[:, 3] > 0] *= 2
    assert LogicleTransform(W="fit").fit(adata).transforms_["CD19"] == widths["CD19"]


@pytest.mark.parametrize("A", [-1.0, 0.0, 1.0])
def test_fitted_width_stays_within_what_the_scale_allows(A: float) -> None:
    adata = make_adata()
    adata.X[:, 3], adata.X[:, 4] = -1e9, -1e-6
    for scale in LogicleTransform(W="fit", A=A).fit(adata).transforms_.values():
        assert isinstance(scale, Logicle)


def test_parameters_per_marker_name_exactly_the_markers() -> None:
    per_marker = {"CD19": 100.0, "CD10": 150.0, "CD45": 200.0}
    out = ArcsinhTransform(cofactor=per_marker).fit_transform(make_adata())
    assert out.var["transform"]["CD10"] == "arcsinh(cofactor=150)"
    with pytest.raises(InvalidInputError, match=r"missing \['CD45'\], not transformed \['cd45'\]"):
        ArcsinhTransform(cofactor={"CD19": 1, "CD10": 1, "cd45": 1}).fit(make_adata())
    with pytest.raises(InvalidInputError, match="CD45"):
        LogicleTransform(W={"CD19": 0.5, "CD10": 0.5}).fit(make_adata())


def test_users_own_adata_needs_markers_and_gets_the_columns() -> None:
    adata = AnnData(np.float32([[1, 2], [3, 4]]), var=pd.DataFrame(index=["a", "b"]))
    with pytest.raises(MissingKeyError, match="Pass markers="):
        ArcsinhTransform().fit(adata)
    with pytest.raises(MissingKeyError, match="Pass T"):
        LinearTransform(markers=["a"]).fit(adata)
    out = ArcsinhTransform(cofactor=5, markers=["b"]).fit_transform(adata)
    assert list(out.var["transform"]) == ["none", "arcsinh(cofactor=5)"]
    assert list(out.var["compensated"]) == [False, False]
    np.testing.assert_allclose(out.X[:, 1], np.arcsinh([2 / 5, 4 / 5]), rtol=1e-6)
    assert list(adata.var.columns) == []


def test_mass_channels_are_arcsinh_markers_by_default() -> None:
    adata = make_adata()
    adata.var["kind"] = ["time", "other", "other", "mass", "mass", "mass"]
    assert list(ArcsinhTransform().fit(adata).transforms_) == MARKERS[3:]
    with pytest.raises(InvalidInputError, match="no marker is of kind fluorescence"):
        LogicleTransform().fit(adata)


@pytest.mark.parametrize("step", TRANSFORMERS, ids=repr)
def test_missing_marker_is_listed_with_those_present(step: BaseEstimator) -> None:
    fitted = clone(step).fit(make_adata())
    missing = next(iter(fitted.transforms_))
    rest = [m for m in MARKERS if m != missing]
    with pytest.raises(MarkerMismatchError, match=f"{missing}.*available.*{rest[0]}"):
        fitted.transform(make_adata()[:, rest].copy())


def bad_inputs() -> dict[str, object]:
    good = make_adata()
    nan, sparse, text, twice = (good.copy() for _ in range(4))
    nan.X[[1, 2], 4] = np.nan
    nan.X[3, 2] = np.inf
    sparse.X = csr_matrix(sparse.X)
    text.X = text.X.astype(complex)
    twice.var_names = ["Time", "CD19", *MARKERS[2:]]
    return {
        "NaN or infinit": nan,
        "toarray": sparse,
        "complex": text,
        "more than once": twice,
        "Expected an AnnData": np.zeros((3, 6)),
    }


@pytest.mark.parametrize("step", ALL_STEPS, ids=repr)
@pytest.mark.parametrize("message", list(bad_inputs()))
def test_bad_input_is_a_clear_error_and_changes_nothing(step: BaseEstimator, message: str) -> None:
    fitted = clone(step).fit(make_adata())
    bad = bad_inputs()[message]
    columns = list(bad.var) if isinstance(bad, AnnData) else None
    with pytest.raises(FcmError, match=message):
        fitted.transform(bad)
    if isinstance(bad, AnnData):
        assert list(bad.var) == columns
        assert set(bad.var["transform"]) == {"none"}
        assert not bad.layers
    with pytest.raises(NotFittedError):
        clone(step).transform(make_adata())
    with pytest.raises(NotFittedError):
        clone(step).inverse_transform(make_adata())


def test_nan_error_names_every_marker_and_count_and_spares_other_markers() -> None:
    adata = make_adata()
    adata.X[:3, 3], adata.X[0, 5] = np.nan, np.inf
    with pytest.raises(InvalidInputError, match=r"CD19.*3.*CD45.*1"):
        LogicleTransform().fit(make_adata()).transform(adata)
    adata = make_adata()
    adata.X[0, 0] = np.nan
    assert np.isnan(full_pipeline().fit_transform(adata).X[0, 0])


def test_values_beyond_float32_are_an_error_not_infinity() -> None:
    adata = make_adata()
    adata.X = adata.X.astype(np.float64)
    adata.X[0, 0] = 1e300
    with pytest.raises(InvalidInputError, match="float32"):
        LinearTransform().fit_transform(adata)


@pytest.mark.parametrize(
    "step",
    [
        LogicleTransform(W="auto"),
        LogicleTransform(T="x"),
        LogicleTransform(T=-1, W="fit"),
        LogicleTransform(markers="CD19"),
        LogicleTransform(markers=[]),
        LogicleTransform(markers=["CD19", "CD19"]),
        LogicleTransform(markers=["CD3"]),
        ArcsinhTransform(cofactor=0),
        LinearTransform(T=0),
    ],
    ids=repr,
)
def test_unusable_parameters_are_errors_at_fit(step: BaseEstimator) -> None:
    with pytest.raises(FcmError):
        step.fit(make_adata())


@pytest.mark.parametrize("value", [0.0, np.nan, -5.0])
def test_unusable_range_asks_for_T(value: float) -> None:
    adata = make_adata()
    adata.var.loc["CD10", "range"] = value
    with pytest.raises(InvalidInputError, match=r"CD10.*Pass T"):
        LogicleTransform().fit(adata)
    assert LogicleTransform(T=262144).fit_transform(adata).n_obs == adata.n_obs


def test_empty_and_one_cell_data_are_transformed() -> None:
    pipeline = full_pipeline().fit(make_adata())
    assert pipeline.transform(make_adata()[:1].copy()).shape == (1, 6)
    assert LogicleTransform().fit(make_adata()).transform(make_adata()[:0].copy()).n_obs == 0
    with pytest.raises(InvalidInputError, match="no cells"):
        pipeline.transform(make_adata()[:0].copy())


# --- compensation


@given(st.integers(0, 10**6))
def test_compensation_undoes_spillover(seed: int) -> None:
    rng = np.random.default_rng(seed)
    adata = make_adata(20, seed)
    truth = adata.X[:, 3:].astype(np.float64)
    matrix = pd.DataFrame(np.eye(3) + rng.uniform(0, 0.2, (3, 3)) * (1 - np.eye(3)), DYES, DYES)
    adata.X[:, 3:] = truth @ matrix.to_numpy()
    out = Compensation(spillover=matrix).fit_transform(adata)
    np.testing.assert_allclose(out.X[:, 3:], truth, rtol=1e-4, atol=0.1)


def test_each_sample_gets_its_own_matrix() -> None:
    adata = make_adata()
    own = Compensation().fit_transform(adata)
    for name, spill in SPILL.items():
        rows = (adata.obs["sample"] == name).to_numpy()
        one = Compensation(spillover=spill).fit_transform(adata)
        np.testing.assert_allclose(own.X[rows], one.X[rows], rtol=1e-6)
        # Control: the other sample's matrix gives something else.
        assert np.abs(own.X[~rows] - one.X[~rows]).max() > 100


def test_order_of_channels_and_rows_in_the_matrix_does_not_matter() -> None:
    adata = make_adata()
    expected = Compensation(spillover=SPILL["s1"]).fit_transform(adata).X
    turned = SPILL["s1"].loc[DYES[::-1], [DYES[1], DYES[2], DYES[0]]]
    np.testing.assert_allclose(
        Compensation(spillover=turned).fit_transform(adata).X, expected, rtol=1e-5, atol=1e-3
    )
    reordered = make_adata()
    reordered.uns["fcs"] = pack_fcs_record(
        ["s2", "s1"], [{}, {}], [1, 1], [SPILL["s2"].loc[DYES[::-1], DYES[::-1]], SPILL["s1"]]
    )
    np.testing.assert_allclose(
        Compensation().fit_transform(reordered).X,
        Compensation().fit_transform(adata).X,
        rtol=1e-5,
        atol=1e-3,
    )


def test_matrix_is_matched_on_channels_or_on_names_without_that_column() -> None:
    adata = make_adata()
    expected = Compensation(spillover=SPILL["s1"]).fit_transform(adata).X
    del adata.var["channel"]
    with pytest.raises(MarkerMismatchError, match="FITC-A"):
        Compensation(spillover=SPILL["s1"]).fit_transform(adata)
    adata.var_names = CHANNELS
    out = Compensation(spillover=SPILL["s1"]).fit_transform(adata)
    np.testing.assert_array_equal(out.X, expected)


def test_sample_without_matrix_is_named() -> None:
    adata = make_adata()
    adata.uns["fcs"] = pack_fcs_record(["s1", "s2"], [{}, {}], [1, 1], [SPILL["s1"], None])
    with pytest.raises(ProcessingStateError, match=r"samples \['s2'\].*spillover="):
        Compensation().fit_transform(adata)
    only_s1 = adata[adata.obs["sample"] == "s1"].copy()
    assert Compensation().fit_transform(only_s1).var["compensated"]["CD10"]
    assert Compensation(spillover=SPILL["s2"]).fit_transform(adata).n_obs == adata.n_obs


def test_missing_record_or_sample_column_is_an_error() -> None:
    adata = make_adata()
    del adata.uns["fcs"]
    with pytest.raises(MissingKeyError, match="fcs"):
        Compensation().fit_transform(adata)
    with pytest.raises(MissingKeyError, match="tube"):
        Compensation(sample_key="tube").fit_transform(make_adata())
    adata = make_adata()
    adata.obs.loc[adata.obs_names[:2], "sample"] = None
    with pytest.raises(InvalidInputError, match=r"2 of .* cells have no sample id"):
        Compensation().fit_transform(adata)
    adata = make_adata()
    adata.obs["sample"] = "renamed"
    with pytest.raises(MissingKeyError, match="renamed"):
        Compensation().fit_transform(adata)


def test_samples_with_different_channels_are_an_error() -> None:
    adata = make_adata()
    part = SPILL["s2"].loc[DYES[:2], DYES[:2]]
    adata.uns["fcs"] = pack_fcs_record(["s1", "s2"], [{}, {}], [1, 1], [SPILL["s1"], part])
    with pytest.raises(InvalidInputError, match="APC-A"):
        Compensation().fit_transform(adata)


def test_exported_comp_channels_count_as_compensated() -> None:
    adata = make_adata()
    adata.var["channel"] = CHANNELS[:3] + ["Comp-" + c for c in DYES]
    del adata.var["compensated"]
    with pytest.raises(ProcessingStateError, match=r"Already compensated: \['CD19'"):
        Compensation(spillover=SPILL["s1"]).fit_transform(adata)
    assert (
        list(LogicleTransform().fit_transform(adata).var["compensated"]) == [False] * 3 + [True] * 3
    )


def test_compensation_comes_before_transforms() -> None:
    done = LogicleTransform(markers=["CD10"]).fit_transform(make_adata())
    with pytest.raises(ProcessingStateError, match="Put Compensation before"):
        Compensation().fit_transform(done)
    # Scatter is not compensated, so its scale does not matter.
    assert Compensation().fit_transform(LinearTransform().fit_transform(make_adata())).n_vars == 6
    with pytest.raises(ProcessingStateError, match="nothing to undo"):
        Compensation().fit(make_adata()).inverse_transform(make_adata())


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(3), "expected a DataFrame"),
        (pd.DataFrame(np.eye(3), columns=DYES), "same channel names"),
        (pd.DataFrame(np.eye(3)[:2], DYES[:2], DYES), "same channel names"),
        (pd.DataFrame(np.ones((3, 3)), DYES, DYES), "singular"),
        (pd.DataFrame(np.eye(3) * 100, DYES, DYES), "percent"),
        (pd.DataFrame(np.diag([1, np.nan, 1]), DYES, DYES), "NaN"),
        (pd.DataFrame(np.full((3, 3), "x"), DYES, DYES), "not numbers"),
    ],
)
def test_unusable_matrix_is_an_error_at_fit(matrix: pd.DataFrame, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Compensation(spillover=matrix).fit(make_adata())


def test_channels_of_the_matrix_must_be_in_the_data_once() -> None:
    with pytest.raises(MarkerMismatchError, match=r"\['APC-A'\].*available.*PE-A"):
        Compensation().fit_transform(make_adata()[:, MARKERS[:5]].copy())
    adata = make_adata()
    adata.var["channel"] = [*CHANNELS[:2], "PE-A", *DYES]
    with pytest.raises(InvalidInputError, match="PE-A"):
        Compensation().fit_transform(adata)


# --- scikit-learn


@pytest.mark.parametrize("step", ALL_STEPS, ids=repr)
def test_clone_and_parameters_follow_scikit_learn(step: BaseEstimator) -> None:
    copied = clone(step)
    assert repr(copied.get_params()) == repr(step.get_params())
    fitted = clone(step).fit(make_adata())
    assert repr(fitted.get_params()) == repr(step.get_params())
    assert not hasattr(fitted, "set_output")
    assert fitted.fit(make_adata()) is fitted


class CellClassifier(ClassifierMixin, BaseEstimator):
    """Logistic regression that reads AnnData."""

    def fit(self, X: AnnData, y: np.ndarray) -> CellClassifier:
        self.net_ = LogisticRegression().fit(X.X, y)
        self.classes_ = self.net_.classes_
        return self

    def predict(self, X: AnnData) -> np.ndarray:
        return self.net_.predict(X.X)


def test_grid_search_chooses_the_parameters_of_a_step() -> None:
    adata = make_adata(200)
    y = (adata.X[:, 3] > 3000).astype(int)
    pipeline = Pipeline(
        [("comp", Compensation()), ("scale", ArcsinhTransform()), ("time", LinearTransform(
            markers=["Time", "FSC-A", "SSC-A"])), ("clf", CellClassifier())]
    )  # fmt: skip
    search = GridSearchCV(pipeline, {"scale__cofactor": [5.0, 1e12]}, cv=2)
    search.fit(adata, y)
    assert search.best_params_["scale__cofactor"] == 5.0
    assert search.best_score_ > 0.8
    assert search.predict(adata).shape == (200,)


# --- real data and documentation

PUBLISHED_R = {  # raw values r of W = (4.5 - log10(262144 / r)) / 2, recovered by fitting
    "CD20": 99, "CD10": 246, "CD45": 267, "CD34": 688, "CD19": 228, "CD38": 1485, "APC-Cy7-A": 753,
}  # fmt: skip


@pytest.fixture(scope="module")
def all494() -> AnnData:
    return read_fcs(data_home("all494") / "494.fcs")


@pytest.mark.real_data
def test_all494_gets_the_published_transform(all494: AnnData) -> None:
    widths = {m: (4.5 - np.log10(262144 / r)) / 2 for m, r in PUBLISHED_R.items()}
    widths["Syto 41"] = 0.0
    pipeline = make_pipeline(Compensation(), LogicleTransform(W=widths), LinearTransform())
    out = pipeline.fit_transform(all494)
    text = flowio.FlowData(data_home("all494") / "494.fcs").text["spill"]
    fields = text.split(",")
    names, matrix = fields[1:9], np.array(fields[9:], dtype=float).reshape(8, 8)
    position = [list(all494.var["channel"]).index(c) for c in names]
    cells = np.arange(0, all494.n_obs, 2000)
    compensated = all494.X[cells][:, position].astype(np.float64) @ np.linalg.inv(matrix)
    for j, p in enumerate(position):
        marker = all494.var_names[p]
        # The equation is solved here from its definition, cell by cell.
        expected = [
            brentq(lambda y, x=x, w=widths[marker]: biexponential(262144, w, 4.5, 0, y) - x, -3, 2)
            for x in compensated[:, j]
        ]
        np.testing.assert_allclose(out.X[cells, p] * 4.5, np.array(expected) * 4.5, atol=3e-6)
    scatter = (all494.var["kind"] == "scatter").to_numpy()
    np.testing.assert_allclose(out.X[:, scatter], all494.X[:, scatter] / 262144, rtol=1e-6)
    np.testing.assert_array_equal(out[:, "Time"].X, all494[:, "Time"].X)


@pytest.mark.real_data
def test_all494_comes_back_through_the_inverse(all494: AnnData) -> None:
    pipeline = make_pipeline(Compensation(), LogicleTransform(W="fit"), LinearTransform())
    back = pipeline.inverse_transform(pipeline.fit_transform(all494))
    np.testing.assert_allclose(back.X, all494.X, rtol=2e-5, atol=0.05)


@pytest.mark.parametrize("name", ["scales", "_transformers", "_compensation"])
def test_examples_in_the_documentation_run(name: str) -> None:
    module = importlib.import_module(f"fcm_estimators.preprocessing.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
