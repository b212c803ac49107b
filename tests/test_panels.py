"""Classifiers of panels that lack a marker."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from explainers import GradientExplainer
from fcm_estimators import ReluFormerClassifier, write_fcs
from fcm_estimators._fitting.draws import DrawPlan, SampleDraws
from fcm_estimators._fitting.split import patient_folds
from fcm_estimators.cli import app
from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.exceptions import InvalidInputError, MarkerMismatchError
from fcm_estimators.inference import read_samples
from fcm_estimators.metrics import classification_table, mrd_table
from fcm_estimators.nn import ReluFormer
from tests.helpers import plain_scale, toy_cohort

QUICK = {
    "sample_key": "sample",
    "label_key": "cell_type",
    "patient_key": "patient",
    "pos_label": "blast",
    "max_epochs": 4,
    "steps_per_epoch": 10,
    "hidden_dim": 16,
    "n_layers": 2,
    "n_members": 2,
}
# Blasts are high in CD10, the others in CD19; the rest is noise.
NAMES = ["CD10", "CD19", "CD34", "CD45", "FSC-A"]


def named(n_samples, n_cells=300, seed=0):
    toy = toy_cohort(n_samples, n_cells, seed=seed)
    x = np.random.default_rng(seed).normal(size=(toy.n_obs, len(NAMES))).astype(np.float32)
    x[:, :2] = toy.X[:, :2]
    return ad.AnnData(x, obs=toy.obs, var=pd.DataFrame(index=NAMES))


@pytest.fixture(scope="module")
def fitted():
    return ReluFormerClassifier(missing_markers="mask", **QUICK).fit(named(6))


@pytest.fixture
def new():
    return named(3, seed=9)


def lacking(adata, *markers):
    return adata[:, [name for name in adata.var_names if name not in markers]].copy()


# -- the net ------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 2**31 - 1))
def test_a_net_without_markers_is_the_net_where_they_are_nan(hidden, seed):
    torch.manual_seed(seed)
    net = ReluFormer(6, 3, hidden_dim=8, n_heads=2, n_layers=2, stand_ins=True).double()
    torch.nn.init.normal_(net.stand_in)
    net.input_mean.normal_()
    net.input_scale.uniform_(0.5, 2)
    x = torch.randn(40, 6, dtype=torch.float64)
    kept = [i for i in range(6) if i not in hidden]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    small = net.without(sorted(hidden))
    assert "stand_in" not in small.state_dict()
    x[:, sorted(hidden)] = torch.nan
    torch.testing.assert_close(small(x[:, kept], [0, 15, 40]), net(x, [0, 15, 40]))
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_published_form_has_no_vectors_for_missing_markers():
    assert "stand_in" not in ReluFormer(4, 2).state_dict()


def test_whole_markers_of_a_sample_are_hidden():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 5)).astype(np.float32), rng.integers(2, size=400)
    plan = DrawPlan(100, 2, 50, 0.1, None, may_hide=(1, 3, 4))
    draws = SampleDraws(x, y, [0, 200, 400], scale=plain_scale(5), n_classes=2, plan=plan, seed=0)
    n_hidden = []
    for step in range(100):
        inputs, _ = draws[step]
        assert set(inputs["sample"].tolist()) == {0, 1, 2}
        assert not torch.isnan(inputs["x"][inputs["sample"] < 2]).any()
        hidden = torch.isnan(inputs["x"][inputs["sample"] == 2])  # of the additional sample
        assert (hidden == hidden[0]).all()  # never by cell
        assert not hidden[:, [0, 2]].any()
        n_hidden.append(int(hidden[0].sum()))
    assert set(n_hidden) == {1}  # at most half of three
    assert not np.isnan(x).any()


# -- the classifier -----------------------------------------------------------------------------


def test_by_default_a_missing_marker_is_an_error(new):
    clf = ReluFormerClassifier(**{**QUICK, "n_members": 0, "max_epochs": 1}).fit(named(3))
    assert fitted_parameters(clf) == ["layers"]
    with pytest.raises(MarkerMismatchError, match="CD34"):
        clf.predict(lacking(new, "CD34"))
    with pytest.raises(InvalidInputError, match="missing_markers='mask'"):
        clf.without(["CD34"])


def fitted_parameters(clf):
    return sorted(
        {name.split(".")[0] for name in clf.net_.module_.state_dict()} & {"layers", "stand_in"}
    )


def test_every_method_does_without_a_marker_and_says_so(fitted, new):
    less = lacking(new, "CD34")
    small = fitted.without(["CD34"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = small.predict(less), small.predict_proba(less), small.decision_function(less)
    for method, found in zip(
        ("predict", "predict_proba", "decision_function"), expected, strict=True
    ):
        with pytest.warns(UserWarning, match="lack 'CD34'.*F1 on held-out patients without it"):
            np.testing.assert_array_equal(getattr(fitted, method)(less), found)
    with pytest.warns(UserWarning, match="lack 'CD34'"):
        assert fitted.score(less) == small.score(less)
    with pytest.warns(UserWarning, match="lack 'CD34'"):
        fitted.annotate(less)
    np.testing.assert_array_equal(less.obs["reluformer"], expected[0])
    run = less.uns["reluformer"]
    assert list(run["missing_markers"]) == ["CD34"]
    assert run["tested"]
    assert "CD34" not in run["distance"]["marker"]
    assert "CD34" in run["cards"]
    with pytest.warns(UserWarning, match="lack 'CD34'"):
        assert "CD34" not in fitted.check_sample(less).index.get_level_values("marker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.annotate(new)  # the whole panel
    assert list(new.uns["reluformer"]["missing_markers"]) == []


def test_the_net_of_the_whole_panel_is_not_changed(fitted, new):
    before = fitted.predict_proba(new)
    fitted.without(["CD34"])
    np.testing.assert_array_equal(fitted.predict_proba(new), before)
    assert fitted.markers_ == NAMES


def test_threshold_and_performance_are_those_with_the_marker_hidden(fitted):
    assert sorted(fitted.decided_without_) == sorted(NAMES[:4])  # scatter is always there
    small, train = fitted.without(["CD10"]), lacking(named(6), "CD10")
    decided = fitted.decided_without_["CD10"]
    assert small.threshold_ == decided.threshold
    assert small.performance_ is decided.performance
    assert small.novelty_.threshold == decided.novelty_threshold != fitted.novelty_.threshold
    # Judged by hand: each sample by the member that was trained without it.
    samples = read_samples(small, train)
    present = np.ones((6, 2), dtype=bool)
    folds = patient_folds(samples, fitted.n_members, fitted._seed(), present)
    called = np.empty(train.n_obs, dtype=object)
    for member, fold in zip(small.members_, folds, strict=True):
        for s in fold:
            rows = slice(samples.offsets[s], samples.offsets[s + 1])
            z = member(torch.from_numpy(samples.x[rows])).detach().numpy()
            blast = z[:, 0] - z[:, 1] >= decided.threshold
            called[samples.rows[rows]] = np.where(blast, "blast", "other")
    table = classification_table(
        train.obs["cell_type"].astype(str), called, groups=train.obs["patient"], pos_label="blast"
    )
    found = decided.performance.classes
    assert found.loc["blast", "f1"] == pytest.approx(table["f1"].mean())
    # The others tell less without CD10 than without a marker that is noise.
    assert (
        found.loc["blast", "f1"]
        < fitted.decided_without_["CD45"].performance.classes.loc["blast", "f1"]
    )


def test_several_missing_markers_give_no_residual_disease(fitted, new):
    less = lacking(new, "CD34", "CD10")
    with pytest.warns(UserWarning, match="not known, so residual disease is not stated"):
        fitted.annotate(less)
    assert not less.uns["reluformer"]["tested"]
    assert fitted.without(["CD34", "CD10"]).performance_ is None
    assert not less.obs["reluformer_unknown"].any()
    positive = (less.obs["reluformer"] == "blast").to_numpy()
    table = mrd_table(
        positive, denominator=np.ones(less.n_obs, bool), denominator_name="all", tested=False
    )
    assert list(table["detection"]) == ["not tested"]
    assert table[["fraction", "ci_low", "ci_high"]].isna().all(axis=None)
    assert table["numerator"].iloc[0] == positive.sum() > 0


@pytest.mark.parametrize("missing", [["FSC-A"], NAMES[:3]])
def test_scatter_and_too_many_markers_cannot_be_missing(fitted, new, missing):
    with pytest.raises(MarkerMismatchError, match="at most 2 of 'CD10'"):
        fitted.predict(lacking(new, *missing))


def test_a_marker_under_another_spelling_is_not_missing(fitted, new):
    new.var_names = ["CD 34" if name == "CD34" else name for name in new.var_names]
    with pytest.raises(MarkerMismatchError, match=r"marker_aliases=\{'CD 34': 'CD34'\}"):
        fitted.predict(new)


def test_saved_models_do_without_as_well(fitted, new, tmp_path):
    less = lacking(new, "CD34")
    expected = fitted.without(["CD34"]).predict_proba(less)
    fitted.save(tmp_path / "whole")
    fitted.without(["CD34"]).save(tmp_path / "part")
    whole = ReluFormerClassifier.load(tmp_path / "whole")
    part = ReluFormerClassifier.load(tmp_path / "part")
    with pytest.warns(UserWarning, match="lack 'CD34'"):
        np.testing.assert_array_equal(whole.predict_proba(less), expected)
    np.testing.assert_array_equal(part.predict_proba(less), expected)
    assert part.missing_markers_ == ["CD34"]
    assert part.performance_.entries() == fitted.decided_without_["CD34"].performance.entries()
    card = (tmp_path / "part" / "MODEL_CARD.md").read_text()
    assert "markers of the training that are missing" in card


def test_a_store_a_table_and_explanations_without_a_marker(fitted, new, tmp_path):
    less = lacking(new, "CD34")
    less.write_h5ad(tmp_path / "less.h5ad")
    small = fitted.without(["CD34"])
    with pytest.warns(UserWarning, match="lack 'CD34'"):
        fitted.annotate(tmp_path / "less.h5ad")
    stored = ad.read_h5ad(tmp_path / "less.h5ad")
    np.testing.assert_array_equal(stored.obs["reluformer"], small.predict(less))
    table = less.to_df().assign(sample=less.obs["sample"])
    with pytest.warns(UserWarning, match="lack 'CD34'"):
        np.testing.assert_array_equal(fitted.predict(table), small.predict(less))
    with pytest.raises(MarkerMismatchError, match=r"clf.without\(\[...\]\)"):
        GradientExplainer(fitted).explain(less)
    GradientExplainer(small).explain(less)
    assert less.layers["gradient"].shape == less.shape


# -- the command line ---------------------------------------------------------------------------


def test_commands_do_without_a_marker(tmp_path):
    (tmp_path / "fcs").mkdir()
    (tmp_path / "tables").mkdir()
    raw = simulate_cohort(4, 800, n_patients=4, blast_fraction=0.3, random_state=3)
    for sample in raw.obs["sample"].cat.categories:
        one = raw[raw.obs["sample"] == sample].copy()
        write_fcs(one, tmp_path / "fcs" / f"{sample}.fcs")
        table = one.obsm["gates"].astype(int).assign(event=one.obs["event"])
        table.to_csv(tmp_path / "tables" / f"{sample}.csv", index=False)
    less = lacking(raw[raw.obs["sample"] == sample], "CD34")
    del less.uns["fcs"]
    write_fcs(less, tmp_path / "less.fcs")
    files = ["--gates", tmp_path / "tables", "--event-column", "event", "--class", "blast=blast"]
    done = call("train", tmp_path / "fcs", "-o", tmp_path / "model", *files, "--max-epochs", 1,
                "--missing-markers", "mask", "--no-compensate", "--workers", "0")  # fmt: skip
    assert done.exit_code == 0, done.output
    done = call("annotate", tmp_path / "model", tmp_path / "less.fcs", "-o", tmp_path / "out",
                "--workers", "0")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "lack 'CD34'" in " ".join(done.output.split())
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert list(table["missing_markers"]) == ["CD34"]
    done = call("report", tmp_path / "out" / "less.h5ad", "-o", tmp_path / "report.html")
    assert done.exit_code == 0, done.output
    assert "The data lack &#39;CD34&#39;" in (tmp_path / "report.html").read_text()


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])
