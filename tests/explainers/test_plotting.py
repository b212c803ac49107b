"""Pictures draw the numbers they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from explainers import (
    AttentionExplainer,
    GradientExplainer,
    InfluenceExplainer,
    faithfulness,
    specialisation,
)
from explainers.plotting import (
    AgreementDisplay,
    AttentionDisplay,
    CurveDisplay,
    FloorDisplay,
    GradientFieldDisplay,
    GradientSummaryDisplay,
    HeadMatrixDisplay,
)
from fcm_estimators import ReluFormerClassifier
from fcm_estimators.colours import HUES, colours
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.preprocessing import ArcsinhTransform
from tests.helpers import toy_cohort


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def clf():
    return ReluFormerClassifier(
        n_members=0,
        sample_key="sample",
        label_key="cell_type",
        n_layers=2,
        hidden_dim=16,
        max_epochs=2,
        steps_per_epoch=10,
        random_state=0,
    ).fit(toy_cohort())


@pytest.fixture
def adata(clf):
    data = toy_cohort(2, 400, seed=3)
    clf.annotate(data)
    GradientExplainer(clf, target="blast").explain(data)
    AttentionExplainer(clf, net_layer=-1).explain(data)
    data.obsm["X_umap"] = np.random.default_rng(0).normal(size=(data.n_obs, 2))
    return data


def test_arrows_are_the_mean_gradient_of_the_cells_in_a_square(adata):
    display = GradientFieldDisplay.from_explanation(
        adata, "CD10", "CD45", n_bins=1, color="cell_type"
    )
    table = display.plot().frame().set_index("group")
    columns = [adata.var_names.get_loc(m) for m in ("CD10", "CD45")]
    for group in ("blast", "other"):
        rows = (adata.obs["cell_type"] == group).to_numpy()
        assert table.loc[group, "n_cells"] == rows.sum()
        mean = adata.layers["gradient"][rows][:, columns].mean(0)
        np.testing.assert_allclose(table.loc[group, ["dx", "dy"]].astype(float), mean, rtol=1e-5)


def test_arrows_point_along_the_gradient_on_the_screen(adata):
    display = GradientFieldDisplay.from_explanation(adata, "CD10", "CD45", n_bins=4).plot()
    quiver = display.quiver_
    assert quiver.angles == "xy"
    assert quiver.scale_units == "xy"
    drawn = np.arctan2(quiver.V, quiver.U)
    meant = np.arctan2(display.arrows["dy"], display.arrows["dx"])
    np.testing.assert_allclose(drawn, meant, atol=1e-6)


def test_arrows_per_sd_are_steps_in_sd(clf, adata):
    GradientExplainer(clf, target="blast", units="sd", key_added="sd").explain(adata)
    unit = GradientFieldDisplay.from_explanation(adata, "CD10", "CD45").frame()
    sd = GradientFieldDisplay.from_explanation(adata, "CD10", "CD45", key="sd").frame()
    scale = clf.net_.module_.input_scale.numpy()
    for name, marker in (("dx", "CD10"), ("dy", "CD45")):
        factor = scale[clf.markers_.index(marker)] ** 2
        np.testing.assert_allclose(sd[name], unit[name] * factor, rtol=1e-4, atol=1e-7)


def test_axes_have_raw_units(adata):
    raw = adata.copy()
    raw.X = np.sinh(np.clip(adata.X, -3, 8)) * 100
    markers = list(raw.var_names)
    shown = ArcsinhTransform(cofactor=100, markers=markers).fit_transform(raw)
    ax = GradientFieldDisplay.from_explanation(shown, "CD10", "CD45").plot().ax_
    ax.figure.canvas.draw()
    labels = {t.get_text(): t.get_position()[0] for t in ax.get_xticklabels()}
    assert labels["0"] == 0
    assert labels["$10^{3}$"] == pytest.approx(np.arcsinh(10), abs=1e-6)


def test_head_panels_hold_every_cell(adata):
    display = AttentionDisplay.from_explanation(adata).plot()
    assert len(display.axes_) == 5
    received = adata.obsm["attention_layer1"]
    for ax, head in zip(display.axes_[1:], received, strict=True):
        drawn = ax.collections[0].get_array()
        np.testing.assert_allclose(np.sort(drawn), np.sort(received[head]), rtol=1e-6)
    assert len(display.frame()) == adata.n_obs


def test_summary_marks_unsure_signs():
    table = pd.DataFrame(
        {
            "population": ["T", "T", "B", "B"],
            "marker": ["CD3", "CD19"] * 2,
            "mean": [1.0, -0.5, 0.1, 2.0],
            "ci_low": [0.5, -0.6, -0.1, 1.0],
            "ci_high": [1.5, -0.4, 0.3, 3.0],
        }
    )
    ax = GradientSummaryDisplay.from_summary(table).plot().ax_
    np.testing.assert_allclose(ax.images[0].get_array(), [[1.0, -0.5], [0.1, 2.0]])
    assert [t.get_text() for t in ax.texts] == ["1", "-0.5", "(0.1)", "2"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["T", "B"]
    with pytest.raises(InvalidInputError, match="ci_low"):
        GradientSummaryDisplay.from_summary(table.drop(columns="ci_low"))


def test_matrix_of_heads(clf, adata):
    explainer = AttentionExplainer(clf, net_layer=-1)
    twins = faithfulness.Twins([clf.untrained_twin(i) for i in range(4)], [clf.untrained_twin(9)])
    result = faithfulness.head_ablation(explainer, adata, "cell_type", twins=twins, n_random=3)
    ax = result.plot().ax_
    matrix = result.effects.pivot(index="head", columns="population", values="attention")
    shown = pd.DataFrame(
        ax.images[0].get_array().data,
        index=[t.get_text() for t in ax.get_yticklabels()],
        columns=[t.get_text() for t in ax.get_xticklabels()],
    )
    pd.testing.assert_frame_equal(
        shown.sort_index(axis=0).sort_index(axis=1), matrix, check_names=False, check_dtype=False
    )
    spec = specialisation(
        explainer, adata, "patient", label_key="cell_type", twins=twins, n_permutations=3
    )
    HeadMatrixDisplay.from_specialisation(spec).plot()


def test_curves(clf, adata):
    explainer = GradientExplainer(clf, target="blast")
    result = faithfulness.deletion(explainer, adata, n_points=3, n_random=2)
    display = result.plot()
    assert isinstance(display, CurveDisplay)
    lines = {line.get_label(): line.get_ydata() for line in display.ax_.lines}
    np.testing.assert_allclose(lines["explained order"], result.curve)
    np.testing.assert_allclose(lines["random order"], result.random.mean(0))
    assert len(result.frame()) == 3 * 5
    cascade = faithfulness.parameter_randomisation(explainer, adata, n_repeats=2, n_untrained=3)
    ax = cascade.plot().ax_
    assert [t.get_text().split("\n")[0] for t in ax.get_xticklabels()] == cascade.stages
    np.testing.assert_allclose(ax.lines[0].get_ydata(), cascade.similarity.mean(0))
    noise = faithfulness.sensitivity(explainer, adata, noise=(0.1, 0.3), n_draws=2)
    np.testing.assert_allclose(noise.plot().ax_.lines[1].get_ydata(), noise.change.mean(0))


def test_points(clf, adata):
    complete = faithfulness.completeness(GradientExplainer(clf, target="blast"), adata, n_steps=4)
    display = complete.plot()
    assert isinstance(display, AgreementDisplay)
    np.testing.assert_allclose(
        display.ax_.collections[0].get_offsets(), complete.frame()[["change", "explained"]]
    )
    removal = faithfulness.removal(InfluenceExplainer(clf, "blast"), adata, n_groups=5)
    np.testing.assert_allclose(
        removal.plot().ax_.collections[0].get_offsets(), removal.frame()[["actual", "predicted"]]
    )
    twins = faithfulness.Twins([clf.untrained_twin(i) for i in range(4)], [clf.untrained_twin(9)])
    agreement = faithfulness.seed_agreement(
        [AttentionExplainer(clf, net_layer=-1)] * 2, adata, twins=twins
    )
    drawn = agreement.plot()
    assert isinstance(drawn, FloorDisplay)
    assert drawn.ax_.collections[0].get_offsets()[0, 0] == 1.0


def test_given_axes_are_used(adata):
    _, ax = plt.subplots()
    assert GradientFieldDisplay.from_explanation(adata, "CD10", "CD45").plot(ax=ax).ax_ is ax


def test_colours_are_distinct_and_grey_is_for_the_rest():
    hues = colours(["other", "blast", "T", "not analysed"])
    assert hues["other"] == hues["not analysed"] == "#BBBBBB"
    assert (hues["blast"], hues["T"]) == HUES[:2]
    many = colours([f"p{i}" for i in range(12)])
    assert len({to_rgba(hue) for hue in many.values()}) == 12


def test_a_marker_the_model_does_not_use_is_refused(adata):
    adata.layers["gradient"][:, 0] = np.nan
    with pytest.raises(InvalidInputError, match="'CD10'; explained are CD19, CD34, CD45"):
        GradientFieldDisplay.from_explanation(adata, "CD10", "CD45")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a: GradientFieldDisplay.from_explanation(a, "CD3", "CD45"), "CD10"),
        (lambda a: GradientFieldDisplay.from_explanation(a, "CD10", "CD45", key="g"), "gradient"),
        (
            lambda a: GradientFieldDisplay.from_explanation(a, "CD10", "CD45", color="c"),
            "cell_type",
        ),
        (lambda a: AttentionDisplay.from_explanation(a, basis="tsne"), "umap"),
        (lambda a: AttentionDisplay.from_explanation(a, key="a"), "attention_head"),
    ],
)
def test_what_is_missing_is_named(adata, make, message):
    with pytest.raises((InvalidInputError, MissingKeyError), match=message):
        make(adata)
