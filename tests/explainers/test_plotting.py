"""Pictures draw the numbers they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from explainers import (
    AnyChange,
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
    InfluenceDisplay,
    InfluenceMatrixDisplay,
)
from explainers.plotting._attention import _new_panels
from fcm_estimators import ReluFormerClassifier
from fcm_estimators.colours import GREY
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
    InfluenceExplainer(clf, target="blast", of="blast").explain(data)
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


@pytest.mark.parametrize("n_heads", [1, 2, 3, 4, 8, 16])
def test_no_panel_of_the_heads_is_empty(n_heads):
    panels = _new_panels(n_heads, None)
    figure = panels[0].figure
    assert len(panels) == n_heads + 1 == len(figure.axes)
    figure.canvas.draw()
    boxes = [ax.get_subplotspec() for ax in panels]
    grid = boxes[0].get_gridspec()
    cells = sum(len(box.rowspan) * len(box.colspan) for box in boxes)
    assert cells == grid.nrows * grid.ncols


def test_head_panels_hold_every_cell(adata):
    display = AttentionDisplay.from_explanation(adata).plot()
    assert len(display.axes_) == 5
    received = adata.obsm["attention_layer1"]
    for ax, head in zip(display.axes_[1:], received, strict=True):
        drawn = ax.collections[0].get_array()
        np.testing.assert_allclose(np.sort(drawn), np.sort(received[head]), rtol=1e-6)
    assert len(display.frame()) == adata.n_obs


@pytest.mark.parametrize("make", [AttentionDisplay, InfluenceDisplay])
def test_cells_are_drawn_at_their_markers_with_raw_ticks(adata, make):
    raw = adata.copy()
    raw.X = np.sinh(np.clip(adata.X, -3, 8)) * 100
    shown = ArcsinhTransform(cofactor=100, markers=list(raw.var_names)).fit_transform(raw)
    display = make.from_explanation(shown, x="CD10", y="CD45").plot()
    ax = display.figure_.axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("CD10", "CD45")
    names = display.frame().index
    assert sorted(names) == sorted(shown.obs_names)
    np.testing.assert_allclose(display.frame()[["x", "y"]], shown[names, ["CD10", "CD45"]].X)
    ax.figure.canvas.draw()
    labels = {t.get_text(): t.get_position()[1] for t in ax.get_yticklabels()}
    assert labels["$10^{3}$"] == pytest.approx(np.arcsinh(10), abs=1e-6)


def test_without_a_layer_one_panel_has_the_mean_attention(clf, adata):
    AttentionExplainer(clf).explain(adata)
    display = AttentionDisplay.from_explanation(adata, "CD10", "CD45").plot()
    (ax,) = display.axes_
    np.testing.assert_allclose(ax.collections[0].get_array(), np.sort(adata.obs["attention"]))
    _, own = plt.subplots()
    assert AttentionDisplay.from_explanation(adata).plot(own).axes_[0] is own


def test_influence_is_drawn_around_0_with_the_largest_on_top(clf, adata):
    points = InfluenceDisplay.from_explanation(adata).plot().ax_.collections[0]
    drawn = np.abs(points.get_array())
    assert (np.diff(drawn) >= 0).all()
    np.testing.assert_allclose(drawn, np.sort(np.abs(adata.obs["influence"])))
    assert points.norm.vmin == -points.norm.vmax
    InfluenceExplainer(clf, AnyChange(n_probes=2)).explain(adata)
    display = InfluenceDisplay.from_explanation(adata, "CD10", "CD45").plot()
    assert not display.signed
    assert display.ax_.collections[0].norm.vmin == 0
    assert "any change" in display.ax_.get_title()


def test_influence_between_populations_is_the_table(clf, adata):
    table = InfluenceExplainer(clf, "blast").between(adata, "cell_type")
    display = InfluenceMatrixDisplay.from_between(table, name="change of the log-odds").plot()
    ax = display.ax_
    shown = ax.images[0].get_array().data
    rows = list(dict.fromkeys(table["hidden"]))
    wanted = table.pivot(index="hidden", columns="target", values="change").loc[rows, rows]
    np.testing.assert_allclose(shown, wanted)
    for field, row in zip(ax.texts, table.itertuples(), strict=True):
        change, switched = field.get_text().split("\n")
        assert change.startswith("(") == (row.ci_low <= 0 <= row.ci_high)
        assert float(change.strip("()")) == pytest.approx(row.change, rel=0.05)
        assert switched == f"{row.switched:.1%}"
    assert ax.get_yticklabels()[0].get_text().startswith(f"{rows[0]} (")
    one = table[table["hidden"] == rows[0]].assign(change=np.nan)
    assert [t.get_text() for t in InfluenceMatrixDisplay.from_between(one).plot().ax_.texts] == [
        "",
        "",
    ]
    with pytest.raises(InvalidInputError, match="ci_low"):
        InfluenceMatrixDisplay.from_between(table.drop(columns="ci_low"))


def test_single_arrows_are_the_gradients_of_their_cells(adata):
    display = GradientFieldDisplay.from_explanation(
        adata, "CD10", "CD45", arrows="cells", n_arrows=40, color="cell_type"
    ).plot()
    arrows = display.frame()
    assert arrows["group"].value_counts().to_dict() == {"blast": 20, "other": 20}
    columns = [adata.var_names.get_loc(m) for m in ("CD10", "CD45")]
    for arrow in arrows.itertuples():
        (cell,) = np.flatnonzero((adata.X[:, columns] == [arrow.x, arrow.y]).all(1))
        np.testing.assert_allclose([arrow.dx, arrow.dy], adata.layers["gradient"][cell][columns])
        assert adata.obs["cell_type"].iloc[cell] == arrow.group


@pytest.mark.parametrize("units", ["layer", "sd"])
@pytest.mark.parametrize("arrows", ["squares", "cells"])
def test_the_scale_has_the_length_of_an_arrow_of_its_value(clf, adata, units, arrows):
    GradientExplainer(clf, target="blast", units=units).explain(adata)
    display = GradientFieldDisplay.from_explanation(adata, "CD10", "CD45", arrows=arrows)
    quiver, key = display.plot().quiver_, display.scale_
    value = float(key.text.get_text().split()[0])
    unit = {"layer": "per unit along CD10", "sd": "per SD along CD10"}[units]
    assert key.text.get_text().endswith(unit)
    sd = clf.net_.module_.input_scale.numpy()[clf.markers_.index("CD10")]
    # How far an arrow goes to the right, per unit of gradient along CD10.
    per_gradient = np.median(quiver.U / display.arrows["dx"]) * (sd if units == "sd" else 1)
    np.testing.assert_allclose(key.U, value * per_gradient, rtol=1e-5)
    low, high = display.ax_.get_xlim()
    assert 0.03 * (high - low) < key.U < 0.11 * (high - low)


def shown_colours(ax):
    """Colour of each entry of a legend."""
    legend = ax.get_legend()
    parts = zip(legend.get_texts(), legend.legend_handles, strict=True)
    return {t.get_text().split(" (")[0]: to_hex(h.get_facecolor()[0]).upper() for t, h in parts}


def uns_colours(adata, column):
    names = adata.obs[column].cat.categories
    return dict(zip(names, adata.uns[f"{column}_colors"], strict=True))


def test_a_class_and_a_head_have_one_colour_in_all_pictures_and_in_uns(clf, adata):
    field = GradientFieldDisplay.from_explanation(adata, "CD10", "CD45").plot()
    called = uns_colours(adata, "reluformer")
    assert shown_colours(field.ax_).items() <= called.items()
    # The expert's label, of which nothing is written, has the colours of the called class.
    expert = GradientFieldDisplay.from_explanation(adata, "CD10", "CD19", color="cell_type").plot()
    assert shown_colours(expert.ax_) == {name: called[name] for name in ("blast", "other")}
    heads = uns_colours(adata, "attention_head")
    for place in ({}, {"x": "CD10", "y": "CD45"}):
        display = AttentionDisplay.from_explanation(adata, **place).plot()
        assert shown_colours(display.axes_[0]).items() <= heads.items()
    assert not set(heads.values()) & set(called.values()) - {GREY}
    # A picture of some cells, in which a class or a head is missing, has the same colours.
    few = adata[adata.obs["attention_head"] == "head2"].copy()
    display = AttentionDisplay.from_explanation(few).plot()
    assert shown_colours(display.axes_[0]) == {"head2": heads["head2"]}


def test_colours_of_the_user_stay(clf, adata):
    adata.uns["reluformer_colors"] = ["#123456", "#654321"]
    adata.uns["attention_head_colors"] = ["red", "green", "blue", "black", "white"]
    before = dict(adata.uns)
    clf.annotate(adata)
    AttentionExplainer(clf, net_layer=0).explain(adata)
    for name in ("reluformer_colors", "attention_head_colors"):
        assert list(adata.uns[name]) == list(before[name])
    field = GradientFieldDisplay.from_explanation(adata, "CD10", "CD45").plot()
    assert shown_colours(field.ax_) == {"blast": "#123456", "other": "#654321"}


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
        (lambda a: GradientFieldDisplay.from_explanation(a, "CD10", "CD45", arrows="all"), "cells"),
        (lambda a: AttentionDisplay.from_explanation(a, basis="tsne"), "umap"),
        (lambda a: AttentionDisplay.from_explanation(a, "CD10"), "Give both"),
        (lambda a: AttentionDisplay.from_explanation(a, "CD10", "CD3"), "CD34"),
        (lambda a: AttentionDisplay.from_explanation(a, key="a"), "attention"),
        (lambda a: InfluenceDisplay.from_explanation(a, "CD10", "CD3"), "CD34"),
        (lambda a: InfluenceDisplay.from_explanation(a, key="a"), "influence"),
    ],
)
def test_what_is_missing_is_named(adata, make, message):
    with pytest.raises((InvalidInputError, MissingKeyError), match=message):
        make(adata)
