"""GradientExplainer against central differences, laws of the three modes, and what it writes."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from explainers import GateSize, GradientExplainer, Integrated, LogOdds, Probability, Smooth
from explainers._maths.gradients import smoothed
from explainers._maths.projection import project_arrows
from explainers._maths.summary import summarise
from fcm_estimators import ReluFormerClassifier
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError, NotFittedError
from fcm_estimators.inference import fitted_net, net_for
from tests.helpers import MARKERS, toy_cohort

QUICK = {"max_epochs": 3, "steps_per_epoch": 10, "hidden_dim": 16, "n_layers": 2, "n_members": 0}


def double(data):
    out = data.copy()
    out.X = out.X.astype(np.float64)
    return out


@pytest.fixture(scope="module")
def cohort():
    data = toy_cohort(3, 40)
    data.obs["chosen"] = np.arange(data.n_obs) % 5 == 0
    return data


@pytest.fixture(scope="module")
def clf(cohort):
    model = ReluFormerClassifier(
        sample_key="sample", label_key="cell_type", pos_label="blast", **QUICK
    )
    return model.fit(toy_cohort(6, 200))


@pytest.fixture(scope="module")
def three(cohort):
    data = toy_cohort(3, 60, classes=("B", "T", "blast"))
    return ReluFormerClassifier(sample_key="sample", label_key="cell_type", **QUICK).fit(data), data


def log_odds(clf, data):
    p = clf.predict_proba(data)
    return np.log(p[:, 0]) - np.log(p[:, 1])


def difference(f, data, row, column, step=1e-5):
    values = []
    for sign in (1, -1):
        moved = data.copy()
        moved.X[row, column] += sign * step
        values.append(f(moved))
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (57, 2), (119, 3)])
@pytest.mark.parametrize("cells", [None, "chosen"])
def test_set_gradient_is_the_central_difference_of_the_summed_output(
    clf, cohort, row, column, cells
):
    data = double(cohort)
    targets = data.obs["chosen"].to_numpy() if cells else slice(None)
    got = GradientExplainer(clf, mode="set").attribute(data, cells=cells)[row, column]
    want = difference(lambda d: log_odds(clf, d)[targets].sum(), data, row, column)
    assert got == pytest.approx(want, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (57, 2)])
def test_own_gradient_is_the_difference_with_the_context_held_fixed(clf, cohort, row, column):
    data = double(cohort)
    module = net_for(fitted_net(clf), np.dtype(np.float64))
    start = row // 40 * 40
    sample = torch.from_numpy(data.X[start : start + 40])

    def own_output(moved):
        with torch.no_grad():
            contexts = module.contexts(sample)
            logits = module(torch.from_numpy(moved.X[[row]]), contexts=contexts)
        return (logits[0, 0] - logits[0, 1]).item()

    got = GradientExplainer(clf, mode="own").attribute(data)[row, column]
    want = difference(own_output, data, row, column)
    assert got == pytest.approx(want, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("cells", [None, "chosen", 3])
def test_context_is_set_minus_own(clf, cohort, cells):
    data = double(cohort)
    own, whole, context = (
        GradientExplainer(clf, mode=mode).attribute(data, cells=cells)
        for mode in ("own", "set", "context")
    )
    np.testing.assert_allclose(own + context, whole, rtol=1e-9, atol=1e-12)
    assert np.abs(context).max() > 1e-3 * np.abs(whole).max()


def test_own_gradient_of_cells_that_are_no_target_is_zero(clf, cohort):
    own = GradientExplainer(clf, mode="own").attribute(cohort, cells="chosen")
    whole = GradientExplainer(clf, mode="set").attribute(cohort, cells="chosen")
    assert (own[~cohort.obs["chosen"]] == 0).all()
    assert (np.abs(own[cohort.obs["chosen"]]).sum(1) > 0).all()
    assert (whole[~cohort.obs["chosen"]] != 0).any()
    one = GradientExplainer(clf, mode="own").attribute(cohort, cells="s1:3")
    assert (one != 0).any(axis=1).nonzero()[0].tolist() == [43]


def test_probability_and_difference_follow_from_log_odds(three):
    clf, data = three
    data = double(data)
    p = clf.predict_proba(data)
    by_odds = GradientExplainer(clf, "T").attribute(data)
    by_probability = GradientExplainer(clf, Probability("T")).attribute(data)
    np.testing.assert_allclose(
        by_probability, by_odds * (p[:, 1] * (1 - p[:, 1]))[:, None], rtol=1e-6, atol=1e-10
    )
    forth = GradientExplainer(clf, LogOdds("T", versus="B")).attribute(data)
    back = GradientExplainer(clf, LogOdds("B", versus="T")).attribute(data)
    np.testing.assert_allclose(forth, -back, rtol=1e-9, atol=1e-12)


def test_integrated_set_gradients_add_up_to_the_change_of_the_output(clf):
    # Of a few cells the path crosses few, large kinks of the ReLUs; of many, a smooth lot.
    data = double(toy_cohort(1, 3000))
    parts = GradientExplainer(clf, mode="set", method=Integrated(256)).attribute(data)
    at_baseline = data.copy()
    at_baseline.X[:] = net_for(fitted_net(clf), np.dtype(np.float64)).input_mean.numpy()
    want = log_odds(clf, data).sum() - log_odds(clf, at_baseline).sum()
    assert parts.sum() == pytest.approx(want, rel=2e-3)
    plain = GradientExplainer(clf, mode="set").attribute(data)
    assert (plain * (data.X - at_baseline.X)).sum() != pytest.approx(want, rel=5e-2)


def test_noise_is_the_samples_own(clf):
    data = toy_cohort(1, 40)
    twins = ad.concat([data, data, toy_cohort(1, 30, seed=1)], index_unique="-")
    twins.obs["sample"] = np.repeat(["one follow-up", "other follow-up", "third"], [40, 40, 30])
    explainer = GradientExplainer(clf, method=Smooth(n_draws=2))
    smooth = explainer.attribute(twins)
    plain = GradientExplainer(clf).attribute(twins)
    # The cells are the same, the noise is not.
    np.testing.assert_allclose(plain[:40], plain[40:80], rtol=1e-5, atol=1e-6)
    different = np.abs(smooth[:40] - smooth[40:80]).mean() / np.abs(smooth[:40] - plain[:40]).mean()
    assert different > 0.3
    # Alone or among others, first or last: a sample keeps its noise.
    for rows in (slice(40, 80), np.r_[80:110, 40:80], np.r_[40:80, :40]):
        some = explainer.attribute(twins[rows].copy())
        own = twins[rows].obs["sample"].to_numpy() == "other follow-up"
        np.testing.assert_allclose(some[own], smooth[40:80], rtol=1e-5, atol=1e-6)


def test_smoothing_without_noise_is_the_plain_gradient_and_noise_is_reproducible(clf, cohort):
    plain = GradientExplainer(clf).attribute(cohort)
    still = GradientExplainer(clf, method=Smooth(0.0, 2)).attribute(cohort)
    np.testing.assert_allclose(still, plain, rtol=1e-5, atol=1e-6)
    a, b = (GradientExplainer(clf, method="smooth").attribute(cohort) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, plain, rtol=1e-3)


def test_smoothing_moves_every_marker_by_the_noise_in_its_sd(clf, cohort, monkeypatch):
    spread = torch.tensor([0.0, 0.1, 1.0, 5.0], dtype=torch.float64)
    x = torch.ones(2000, 4, dtype=torch.float64)
    # The mean square of what is looked at tells the mean and the spread.
    square = smoothed(torch.square, x, spread, 4, torch.Generator().manual_seed(0)).mean(0)
    torch.testing.assert_close(square, 1 + spread**2, rtol=0.1, atol=0)
    seen = []

    def spy(gradient, x, spread, n_draws, generator):
        seen.append((spread, n_draws))
        return gradient(x)

    monkeypatch.setattr("explainers._gradient_plan.smoothed", spy)
    GradientExplainer(clf, method=Smooth(0.3, 5)).attribute(cohort)
    for spread, n_draws in seen:
        torch.testing.assert_close(spread, 0.3 * clf.net_.module_.input_scale)
        assert n_draws == 5


def test_sd_units_are_layer_units_times_the_training_sd(clf, cohort):
    scale = clf.net_.module_.input_scale.numpy()
    layer = GradientExplainer(clf).attribute(cohort)
    np.testing.assert_allclose(GradientExplainer(clf, units="sd").attribute(cohort), layer * scale)


@pytest.mark.parametrize("mode", ["own", "set", "context"])
@pytest.mark.parametrize("method", ["plain", "smooth"])
def test_samples_together_or_alone_and_cells_in_any_order_are_the_same(clf, cohort, mode, method):
    data = double(cohort)
    explainer = GradientExplainer(clf, mode=mode, method=method)
    together = explainer.attribute(data)
    alone = [explainer.attribute(data[data.obs["sample"] == s].copy()) for s in ("s0", "s1", "s2")]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-9, atol=1e-12)
    if method == "plain":  # noise is drawn by position
        order = np.random.default_rng(0).permutation(data.n_obs)
        shuffled = explainer.attribute(data[order].copy())
        np.testing.assert_allclose(shuffled, together[order], rtol=1e-8, atol=1e-11)


def test_chunk_size_changes_nothing(clf, cohort, monkeypatch):
    data = double(cohort)
    whole = GradientExplainer(clf).attribute(data)
    for size in (1, 39, 40, 41):
        monkeypatch.setattr("explainers._maths.gradients._CHUNK", size)
        np.testing.assert_allclose(
            GradientExplainer(clf).attribute(data), whole, rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("mode", ["own", "set"])
def test_single_precision_agrees_with_double(clf, cohort, mode):
    single = GradientExplainer(clf, mode=mode).attribute(cohort)
    exact = GradientExplainer(clf, mode=mode).attribute(double(cohort))
    assert single.dtype == np.float32
    assert np.abs(single - exact).max() < 1e-3 * np.abs(exact).max()


def state_of(clf):
    module = clf.net_.module_
    return (
        {k: v.clone() for k, v in module.state_dict().items()},
        [p.grad for p in module.parameters()],
        [p.requires_grad for p in module.parameters()],
        module.training,
        [len(m._forward_hooks) + len(m._backward_hooks) for m in module.modules()],
        torch.random.get_rng_state().clone(),
        torch.is_grad_enabled(),
    )


def same_state(a, b):
    return (
        all(torch.equal(a[0][k], b[0][k]) for k in a[0])
        and a[1:5] == b[1:5]
        and torch.equal(a[5], b[5])
        and a[6] == b[6]
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_nothing_of_the_model_or_of_torch_is_changed(clf, cohort, training, grad):
    clf.net_.module_.train(training)
    before = state_of(clf)
    with torch.set_grad_enabled(grad):
        inner = state_of(clf)
        for method in ("plain", "smooth"):
            GradientExplainer(clf, mode="context", method=method).explain(cohort.copy())
        broken = cohort.copy()
        broken.X[0, 0] = np.nan
        with pytest.raises(InvalidInputError):
            GradientExplainer(clf).explain(broken)
        assert same_state(inner, state_of(clf))
    assert same_state(before, state_of(clf))
    clf.net_.module_.eval()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_explaining_works_where_gradients_are_off(clf, cohort, context):
    want = GradientExplainer(clf, mode="set").attribute(cohort)
    with context():
        got = GradientExplainer(clf, mode="set").attribute(cohort)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("store", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_written_keys_survive_stores(clf, cohort, tmp_path, store):
    data = cohort[:, ["CD45", "CD10", "CD34", "CD19"]].copy()
    extra = pd.DataFrame(np.ones((data.n_obs, 1), "f4"), index=data.obs_names, columns=["Time"])
    data = ad.AnnData(
        np.hstack([extra.to_numpy(), data.X]),
        obs=data.obs,
        var=pd.DataFrame(index=["Time", *data.var_names]),
    )
    assert GradientExplainer(clf).explain(data) is None
    assert data.layers["gradient"].dtype == np.float32
    assert np.isnan(data.layers["gradient"][:, 0]).all()
    array = GradientExplainer(clf).attribute(cohort)
    np.testing.assert_allclose(data[:, MARKERS].layers["gradient"], array, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(data.obs["gradient_norm"], np.linalg.norm(array, axis=1), rtol=1e-4)
    strongest = np.array(MARKERS)[np.abs(array).argmax(1)]
    assert (data.obs["gradient_marker"].astype(str) == strongest).all()
    path = tmp_path / f"a.{store}"
    getattr(data, f"write_{store}")(path)
    back = getattr(ad, f"read_{store}")(path)
    np.testing.assert_array_equal(back.layers["gradient"], data.layers["gradient"])
    assert list(back.obs["gradient_marker"]) == list(data.obs["gradient_marker"])
    assert back.uns["gradient"]["mode"] == "own"
    assert back.uns["gradient"]["explained"] == "log-odds of blast against the rest"


def test_cells_outside_the_parent_gate_are_missing(cohort):
    data = toy_cohort(3, 60)
    data.obs["inside"] = np.arange(data.n_obs) % 4 > 0
    clf = ReluFormerClassifier(
        sample_key="sample", label_key="cell_type", subset_key="inside", **QUICK
    ).fit(data)
    GradientExplainer(clf, "blast").explain(data)
    outside = ~data.obs["inside"]
    assert np.isnan(data.layers["gradient"][outside]).all()
    assert data.obs["gradient_marker"][outside].isna().all()
    assert np.isfinite(data.layers["gradient"][~outside]).all()


def test_summary_is_the_mean_with_intervals_over_samples(clf, cohort):
    data = cohort.copy()
    explainer = GradientExplainer(clf)
    explainer.explain(data)
    table = explainer.summary(data, "cell_type").set_index(["population", "marker"])
    inside = (data.obs["cell_type"] == "blast").to_numpy()
    for j, marker in enumerate(MARKERS):
        row = table.loc[("blast", marker)]
        assert row["mean"] == pytest.approx(data.layers["gradient"][inside, j].mean(), rel=1e-5)
        assert row["ci_low"] <= row["mean"] <= row["ci_high"]
        assert (row["resampled"], row["n_samples"], row["n_cells"]) == ("samples", 3, inside.sum())
    shares = table.loc["blast", "share_strongest"]
    assert shares.sum() == pytest.approx(1)
    alone = data[:40].copy()
    assert set(explainer.summary(alone, "cell_type")["resampled"]) == {"cells"}


@pytest.mark.parametrize("n_samples", [1, 4])
def test_turning_every_gradient_round_mirrors_the_summary(n_samples):
    rng = np.random.default_rng(0)
    values, labels = rng.normal(0.3, 1, size=(80, 3)), np.repeat(["B", "T"], 40)
    values[3] = np.nan
    there, back = (
        summarise(
            sign * values, list("abc"), labels, np.arange(80) % n_samples,
            confidence=0.9, n_bootstrap=200, seed=0,
        )
        for sign in (1, -1)
    )  # fmt: skip
    np.testing.assert_allclose(back["mean"], -there["mean"], rtol=1e-12)
    np.testing.assert_allclose(back["ci_low"], -there["ci_high"], rtol=1e-9)
    np.testing.assert_allclose(back["ci_high"], -there["ci_low"], rtol=1e-9)
    # A marker is as strong downwards as upwards.
    same = ["population", "marker", "share_strongest", "n_cells", "n_samples"]
    pd.testing.assert_frame_equal(back[same], there[same])
    assert there["n_cells"].unique().tolist() == [39, 40]


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("resampled", ["cells", "samples"])
def test_intervals_miss_the_truth_on_either_side_as_often_as_they_say(resampled, confidence):
    """Each of 40 populations with 25 markers is a data set of its own with mean 0."""
    rng = np.random.default_rng(0)
    n_samples, sizes = (1, [50]) if resampled == "cells" else (40, rng.integers(3, 7, 40))
    sample = np.repeat(np.arange(n_samples), sizes)
    shape = (40, len(sample), 25)
    # Samples differ, so cells are no independent witnesses.
    values = rng.normal(size=(40, n_samples, 25))[:, sample] * (n_samples > 1)
    values = values + rng.normal(size=shape)
    table = summarise(
        values.reshape(-1, 25),
        [f"m{j}" for j in range(25)],
        np.repeat([f"p{i}" for i in range(40)], len(sample)),
        np.tile(sample, 40),
        confidence=confidence,
        n_bootstrap=400,
        seed=0,
    )
    assert set(table["resampled"]) == {resampled}
    # 1000 data sets: four standard errors, and what 50 cells or 40 samples leave of exactness.
    tail = (1 - confidence) / 2
    slack = 4 * np.sqrt(tail * (1 - tail) / len(table)) + 0.01
    assert (table["ci_low"] > 0).mean() == pytest.approx(tail, abs=slack)
    assert (table["ci_high"] < 0).mean() == pytest.approx(tail, abs=slack)


@pytest.mark.parametrize(
    ("params", "error", "says"),
    [
        (
            {"target": "T"},
            InvalidInputError,
            r"target='T' is not among the classes 'blast', 'other'",
        ),
        ({"target": LogOdds("blast", "T")}, InvalidInputError, r"versus='T' is not among"),
        ({"target": LogOdds("blast", "blast")}, InvalidInputError, "both 'blast'"),
        ({"target": Probability("T")}, InvalidInputError, r"target='T' is not among"),
        ({"target": GateSize("T")}, InvalidInputError, "about a gate"),
        ({"mode": "all"}, InvalidInputError, r"mode='all' is not among 'own', 'set', 'context'"),
        ({"method": "x"}, InvalidInputError, "'plain', 'smooth', 'integrated'"),
        ({"units": "x"}, InvalidInputError, "'layer', 'sd'"),
        ({"method": "integrated", "units": "sd"}, InvalidInputError, "output units"),
        ({"key_added": "a/b"}, InvalidInputError, "'/'"),
    ],
)
def test_bad_requests_name_what_there_is(clf, cohort, params, error, says):
    data = cohort.copy()
    with pytest.raises(error, match=says):
        GradientExplainer(clf, **params).explain(data)
    assert not data.layers
    assert "gradient" not in data.uns


@pytest.mark.parametrize(
    ("cells", "error", "says"),
    [
        ("nobody", MissingKeyError, r"neither an obs column \('sample'"),
        ("event", InvalidInputError, "True or False"),
        (500, InvalidInputError, "there are 120 cells"),
        (np.ones(5, bool), InvalidInputError, r"a bool per cell \(120\)"),
    ],
)
def test_bad_selections_of_cells_are_named(clf, cohort, cells, error, says):
    with pytest.raises(error, match=says):
        GradientExplainer(clf).attribute(cohort, cells=cells)


def test_unfitted_and_unexplained_say_so(cohort, clf):
    unfitted = ReluFormerClassifier(sample_key="sample")
    with pytest.raises(NotFittedError):
        GradientExplainer(unfitted).explain(cohort)
    with pytest.raises(MissingKeyError, match="'gradient' was not found"):
        GradientExplainer(clf).summary(cohort, "cell_type")
    data = cohort.copy()
    GradientExplainer(clf).explain(data)
    with pytest.raises(MissingKeyError, match="'lineage' was not found"):
        GradientExplainer(clf).summary(data, "lineage")
    with pytest.raises(InvalidInputError, match="name one as target"):
        GradientExplainer(
            ReluFormerClassifier(sample_key="sample", label_key="cell_type", **QUICK).fit(
                toy_cohort(2, 60, classes=("B", "T", "blast"))
            )
        ).attribute(cohort)


def test_arrows_on_a_linear_projection_are_the_projected_gradient(clf, cohort):
    data = double(cohort)
    w = np.random.default_rng(0).normal(size=(len(MARKERS), 2))
    data.obsm["X_lin"] = data.X @ w
    explainer = GradientExplainer(clf)
    explainer.explain(data)
    explainer.project(data, "lin", n_neighbors=20, step=0.5)
    scale = clf.net_.module_.input_scale.numpy().astype(np.float64)
    direction = explainer.attribute(data) * scale
    displaced = 0.5 * direction / np.median(np.linalg.norm(direction, axis=1)) * scale
    np.testing.assert_allclose(data.obsm["gradient_lin"], displaced @ w, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("power", [2, 3])
def test_near_neighbours_tell_more_of_where_an_arrow_goes_than_far_ones(power):
    """Along a curve that is flat at 0 and steep elsewhere."""
    x = np.r_[0.0, np.linspace(-1, 1.1, 60)][:, None]
    curve, arrows = np.abs(x) ** power * np.sign(x), np.ones_like(x)
    found = project_arrows(x, curve, arrows, n_neighbors=60)[0, 0]
    all_alike = (x * curve).sum() / (x * x).sum()
    assert 0 < found < 0.9 * all_alike
    # A neighbourhood of its own is flatter still.
    assert project_arrows(x, curve, arrows, n_neighbors=15)[0, 0] < 0.5 * found
    # Turned round, the arrow goes the other way.
    np.testing.assert_allclose(project_arrows(x, curve, -arrows, 60)[0, 0], -found)


def test_projection_names_what_it_needs(clf, cohort):
    data = cohort.copy()
    data.obsm["X_pca"] = data.X[:, :2]
    with pytest.raises(MissingKeyError, match="'gradient' was not found"):
        GradientExplainer(clf).project(data, "pca")
    GradientExplainer(clf).explain(data)
    with pytest.raises(MissingKeyError, match="'umap' was not found; available: 'pca'"):
        GradientExplainer(clf).project(data)
    with pytest.raises(InvalidInputError, match="one neighbour per marker"):
        GradientExplainer(clf).project(data, "pca", n_neighbors=2)
    with pytest.raises(InvalidInputError, match="not a direction"):
        GradientExplainer(clf, method="integrated").project(data, "pca")
