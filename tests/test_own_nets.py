"""A net of the user in the classifier: fit, predict, save, explain, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from skorch.callbacks import Callback, EarlyStopping, TensorBoard
from torch import nn

from explainers import AnyChange, AttentionExplainer, GradientExplainer, InfluenceExplainer
from explainers.faithfulness import completeness, parameter_randomisation
from fcm_estimators import PolygonRegressor, ReluFormerClassifier
from fcm_estimators.exceptions import InvalidInputError, ModelFormatError
from fcm_estimators.models import load_model
from fcm_estimators.nn import ReluFormer
from tests.helpers import benchmark, toy_cohort

# The trained peers of the benchmarks, which the page on such nets shows.
nets = benchmark("nets")
SetTransformer = nets.SetTransformer


class PerCell(nets.PerCell):
    """The perceptron with a forward that takes no weights of cells."""

    def forward(self, x, offsets):
        return super().forward(x, offsets, None)


def quick(module, **kwargs):
    settings = {
        "sample_key": "sample",
        "label_key": "cell_type",
        "pos_label": "blast",
        "max_epochs": 5,
        "steps_per_epoch": 10,
        "cells_per_sample": 100,
        "learning_rate": 1e-2,
        "n_members": 2,
        "device": "cpu",
    }
    return ReluFormerClassifier(module=module, **{**settings, **kwargs})


@pytest.fixture(scope="module")
def cohort():
    return toy_cohort()


@pytest.fixture(scope="module", params=[SetTransformer, PerCell])
def fitted(request, cohort):
    return quick(request.param, module__width=12, module__n_layers=1, max_epochs=8).fit(cohort)


@pytest.fixture(scope="module")
def of_sets(cohort):
    return quick(SetTransformer, module__n_layers=1).fit(cohort)


def test_it_learns_has_members_and_a_threshold(fitted, cohort):
    assert fitted.net_.module_.net.__class__ is fitted.module
    assert fitted.score(cohort) > 0.9
    assert len(fitted.members_) == 2
    assert np.isfinite(fitted.threshold_)
    assert fitted.performance_.classes["f1"]["blast"] > 0.8
    shares = fitted.predict_proba(cohort)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    assert quick(fitted.module, threshold=0.9).fit(cohort).threshold_ == pytest.approx(np.log(9))


def test_outputs_are_those_of_the_net_on_standardised_clipped_cells(fitted, cohort):
    wild = cohort[cohort.obs["sample"] == "s0"].copy()
    wild.X[0, 0] = 1e6
    net = fitted.net_.module_
    z = (torch.from_numpy(wild.X).clamp(net.input_lowest, net.input_highest) - net.input_mean) / (
        net.input_scale
    )
    weights = [torch.ones(len(z))] * (fitted.module is SetTransformer)
    with torch.no_grad():
        logits = net.net(z, [0, len(z)], *weights).numpy()
    with pytest.warns(UserWarning, match="far beyond"):
        found = fitted.decision_function(wild)
    expected = logits[:, 0] - logits[:, 1] - fitted.threshold_
    np.testing.assert_allclose(-found, expected, rtol=1e-4, atol=1e-4)


def test_annotate_writes_what_predict_gives_and_the_members(fitted, cohort, tmp_path):
    path = tmp_path / "cells.h5ad"
    cohort.write_h5ad(path)
    fitted.annotate(path)
    data = fitted.annotate(cohort, disputed=True, copy=True)
    assert list(data.obs["reluformer"]) == list(fitted.predict(cohort))
    members = data.uns["reluformer"]["members"]
    for number, sample in enumerate(members["sample"]):
        part = cohort[cohort.obs["sample"] == sample]
        x = torch.from_numpy(part.X)
        with torch.no_grad():
            shares = [(fitted.decide(member(x).numpy()) == 0).mean() for member in fitted.members_]
        assert members["lowest"][number] == pytest.approx(min(shares))
        assert members["highest"][number] == pytest.approx(max(shares))
    import anndata

    stored = anndata.read_h5ad(path)
    assert list(stored.obs["reluformer"]) == list(data.obs["reluformer"])
    cards = json.loads(data.uns["reluformer"]["cards"])
    assert cards["Model card"]["Model"]["net"].startswith(
        f"{fitted.module.__name__}, width=12, n_layers=1; "
    )


def test_a_saved_model_needs_the_class_and_predicts_the_same(fitted, cohort, tmp_path):
    fitted.save(tmp_path)
    name = fitted.module.__name__
    for load in (ReluFormerClassifier.load, load_model):
        with pytest.raises(InvalidInputError, match=rf"with module={name}.*module={name}\)"):
            load(tmp_path)
    back = ReluFormerClassifier.load(tmp_path, module=fitted.module, device="cpu")
    np.testing.assert_array_equal(back.predict_proba(cohort), fitted.predict_proba(cohort))
    assert back.get_params() == fitted.get_params()
    message = r"ReluFormer\(4, 2, width=12, n_layers=1\) failed.*Pass the class"
    with pytest.raises(ModelFormatError, match=message):
        ReluFormerClassifier.load(tmp_path, module=ReluFormer)
    description = json.loads((tmp_path / "model.json").read_text())
    description["params"]["pairs"] = [
        [k, "os.system" if k == "module" else v] for k, v in description["params"]["pairs"]
    ]
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(InvalidInputError, match="Nothing is imported"):
        ReluFormerClassifier.load(tmp_path)


def test_a_class_with_the_same_weights_that_computes_something_else_is_refused(cohort, tmp_path):
    class Sharper(PerCell):
        def forward(self, x, offsets):
            return 1.5 * super().forward(x, offsets)

    quick(PerCell, n_members=0).fit(cohort).save(tmp_path)
    with pytest.raises(ModelFormatError, match=r"Sharper has the weights .* not give the outputs"):
        ReluFormerClassifier.load(tmp_path, module=Sharper)


def test_a_model_without_own_net_is_loaded_without_one(cohort, tmp_path):
    quick(None, n_members=0, max_epochs=1).fit(cohort).save(tmp_path)
    assert "module" not in (tmp_path / "model.json").read_text()
    with pytest.raises(InvalidInputError, match="load it without module="):
        ReluFormerClassifier.load(tmp_path, module=PerCell)


def test_set_gradients_are_those_of_autograd(fitted, cohort):
    before = [p.grad.clone() for p in fitted.net_.module_.parameters()]
    found = GradientExplainer(fitted, "blast").attribute(cohort)
    smooth = GradientExplainer(fitted, "blast", method="smooth").attribute(cohort)
    assert np.corrcoef(found.ravel(), smooth.ravel())[0, 1] > 0.5
    for sample in ("s0", "s3"):
        rows = (cohort.obs["sample"] == sample).to_numpy()
        x = torch.from_numpy(cohort.X[rows]).requires_grad_()
        logits = fitted.net_.module_(x)
        (expected,) = torch.autograd.grad((logits[:, 0] - logits[:, 1]).sum(), x)
        np.testing.assert_allclose(found[rows], expected.numpy(), rtol=1e-4, atol=1e-5)
    for parameter, grad in zip(fitted.net_.module_.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, grad)


def test_integrated_gradients_are_complete(of_sets, cohort):
    result = completeness(GradientExplainer(of_sets, "blast"), cohort, n_steps=64)
    np.testing.assert_allclose(result.explained, result.change, rtol=0.05)


def test_influence_is_the_derivative_by_weight(of_sets, cohort):
    part = cohort[cohort.obs["sample"] == "s1"].copy()
    found = InfluenceExplainer(of_sets, "blast").attribute(part)
    net = of_sets.net_.module_.double()
    try:
        x, step = torch.from_numpy(part.X).double(), 1e-4
        for cell in (0, 7):
            ends = []
            for sign in (1, -1):
                weight = torch.ones(len(x), dtype=torch.float64)
                weight[cell] += sign * step
                with torch.no_grad():
                    logits = net(x, context_weight=weight)
                ends.append((logits[:, 0] - logits[:, 1]).mean())
            slope = float(ends[0] - ends[1]) / (2 * step)
            assert found[cell] == pytest.approx(-slope * len(x) / 100, rel=0.02, abs=1e-6)
    finally:
        net.float()
    anything = InfluenceExplainer(of_sets, AnyChange(n_probes=4)).attribute(part)
    assert (anything >= 0).all()
    assert anything.any()


def test_what_needs_layers_is_refused_and_says_what_to_use(fitted, cohort):
    name = fitted.module.__name__
    with pytest.raises(InvalidInputError, match=rf"Attention needs .*this is {name}.*mode='set'"):
        AttentionExplainer(fitted).explain(cohort)
    for mode in ("own", "context"):
        with pytest.raises(InvalidInputError, match=rf"mode='{mode}' needs .*this is {name}"):
            GradientExplainer(fitted, "blast", mode=mode).attribute(cohort)
    with pytest.raises(InvalidInputError, match=rf"parameter_randomisation needs .*{name}"):
        parameter_randomisation(GradientExplainer(fitted, "blast"), cohort)
    if fitted.module is PerCell:
        with pytest.raises(InvalidInputError, match=r"takes weights of cells; this is PerCell"):
            InfluenceExplainer(fitted, "blast").attribute(cohort)


def test_weights_without_gradient_are_refused_by_influence(cohort):
    class Masked(SetTransformer):
        def forward(self, x, offsets, context_weight):
            return super().forward(x, offsets, (context_weight > 0).to(x))

    clf = quick(Masked, n_members=0, max_epochs=1).fit(cohort)
    with pytest.raises(ValueError, match="Masked depend on context_weight, but have no gradient"):
        InfluenceExplainer(clf, "blast").attribute(cohort)


def test_parameters_of_the_net_are_cloned_set_and_searched(cohort):
    clf = quick(PerCell, module__width=12, n_members=0, max_epochs=1)
    assert clone(clf).get_params() == clf.get_params()
    assert "module__width=12" in repr(clf)
    assert clf.set_params(module__width=20, n_members=2).module__width == 20
    assert Pipeline([("clf", clf)]).set_params(clf__module__width=9)["clf"].module__width == 9
    search = GridSearchCV(clf, {"module__width": [4, 8]}, cv=2)
    groups = cohort.obs["sample"].astype(str).to_numpy()
    clf.set_params(sample_key=None, label_key=None, n_members=0)
    folds = [(np.flatnonzero(groups < "s3"), np.flatnonzero(groups >= "s3"))]
    search.set_params(cv=folds, error_score="raise")
    with pytest.warns(UserWarning, match="data are of 1 patient"):
        search.fit(cohort.X, cohort.obs["cell_type"].to_numpy())
    width = search.best_estimator_.net_.module_.net.layers[0].out_features
    assert width == search.best_params_["module__width"]
    with pytest.raises(TypeError, match="no parameter 'n_layer'"):
        ReluFormerClassifier(n_layer=3)


class Bad(PerCell):
    """Nets that are refused, each for one reason."""

    def forward(self, x, offsets):
        return super().forward(x, offsets)[:, :1]


class Mixes(PerCell):
    def forward(self, x, offsets):
        return super().forward(x - x.mean(0), offsets)


class IgnoresWeights(SetTransformer):
    def forward(self, x, offsets, context_weight):
        return super().forward(x, offsets, torch.ones_like(context_weight))


class OtherAttention(ReluFormer):
    def encode(self, x, offsets=None, *, contexts=None, context_weight=None):
        return super().encode(x, offsets, contexts=contexts, context_weight=context_weight).tanh()


@pytest.mark.parametrize(
    ("module", "kwargs", "message"),
    [
        (Bad, {}, r"gave \(64, 1\) for 64 cells; expected .*\(64, 2\)"),
        (Mixes, {}, "other outputs for a sample alone"),
        (IgnoresWeights, {}, "cells of weight 0 change the outputs"),
        (OtherAttention, {}, "streaming does not give the outputs of its forward"),
        (dict, {}, "not derived from torch.nn.Module"),
        (PerCell, {"module__wide": 3}, r"PerCell\(4, 2, wide=3\) failed: .*unexpected keyword"),
        (PerCell, {"hidden_dim": 64}, "module__hidden_dim=64"),
        (PerCell, {"head_diversity": 0.1}, "needs the heads of a SetModule; PerCell has none"),
        (PerCell, {"missing_markers": "mask"}, "needs the ReluFormer"),
        (PerCell, {"module__width": nn.ReLU}, "cannot be saved with a model"),
        (None, {"module__width": 3}, "module is None"),
    ],
)
def test_what_cannot_work_is_refused_before_training(cohort, module, kwargs, message):
    clf = quick(module, **kwargs)
    with pytest.raises(InvalidInputError, match=message):
        clf.fit(cohort)
    assert not hasattr(clf, "net_")


def test_a_set_module_keeps_streaming_attention_and_own_gradients(cohort):
    class Scaled(ReluFormer):
        def read_out(self, x, encoded, offsets, **given):
            return 2 * super().read_out(x, encoded, offsets, **given)

    clf = quick(Scaled, module__hidden_dim=8, module__n_heads=2, n_members=0).fit(cohort)
    assert AttentionExplainer(clf, net_layer=0).attribute(cohort).relative.shape == (1200, 2)
    parts = [
        GradientExplainer(clf, "blast", mode=mode).attribute(cohort)
        for mode in ("own", "context", "set")
    ]
    np.testing.assert_allclose(parts[0] + parts[1], parts[2], atol=1e-5)


class Drops(PerCell):
    def __init__(self, n_markers, n_outputs, dropout=0.0):
        super().__init__(n_markers, n_outputs)
        self.layers.insert(-1, nn.Dropout(dropout))


def test_equal_seeds_give_equal_models_with_dropout_and_twins_differ(cohort):
    first, again = (
        quick(Drops, module__dropout=0.3, n_members=0, max_epochs=2).fit(cohort) for _ in range(2)
    )
    np.testing.assert_array_equal(first.predict_proba(cohort), again.predict_proba(cohort))
    twin = first.untrained_twin(1)
    assert not np.allclose(twin.predict_proba(cohort), first.predict_proba(cohort))
    torch.testing.assert_close(twin.net_.module_.input_mean, first.net_.module_.input_mean)


class Counts(Callback):
    def __init__(self):
        self.epochs, self.losses = 0, []

    def on_epoch_end(self, net, **kwargs):
        self.epochs += 1
        self.losses.append(net.history[-1, "train_loss"])


def test_callbacks_are_called_for_the_net_and_not_kept(cohort):
    counts = Counts()
    clf = quick(PerCell, max_epochs=3).fit(cohort, callbacks=[counts])
    assert counts.epochs == 3
    np.testing.assert_allclose(counts.losses, clf.history_["train_loss"])
    assert counts not in [callback for _, callback in clf.net_.callbacks_]
    plain = quick(PerCell, max_epochs=3).fit(cohort)
    np.testing.assert_array_equal(plain.predict_proba(cohort), clf.predict_proba(cohort))


def test_callbacks_are_called_for_gates(cohort):
    data, counts = cohort.copy(), Counts()
    blast = (data.obs["cell_type"] == "blast").to_numpy()
    data.obsm["gates"] = pd.DataFrame({"blast": blast}, index=data.obs_names)
    reg = PolygonRegressor(
        {"blast": ("", "CD10", "CD34")}, sample_key="sample", max_epochs=2, steps_per_epoch=4
    )
    reg.fit(data, callbacks=[counts])
    np.testing.assert_allclose(counts.losses, reg.history_["train_loss"])


class Writer:
    """What TensorBoard's writer takes."""

    def __init__(self):
        self.written = {}

    def add_scalar(self, tag, scalar_value, global_step=None):
        self.written.setdefault(tag, []).append(scalar_value)


def test_the_logger_of_tensorboard_gets_the_losses(cohort):
    writer = Writer()
    clf = quick(PerCell, n_members=0, validation_fraction=0.3, max_epochs=3)
    clf.fit(cohort, callbacks=[TensorBoard(writer, close_after_train=False)])
    for name in ("train_loss", "valid_loss"):
        (logged,) = (v for tag, v in writer.written.items() if name in tag)
        np.testing.assert_allclose(logged, clf.history_[name])


def test_an_early_stopping_of_the_user_ends_the_training(cohort):
    stop = EarlyStopping("train_loss", patience=1, threshold=1.0, threshold_mode="abs", sink=str)
    clf = quick(PerCell, n_members=0, validation_fraction=None, max_epochs=9)
    assert len(clf.fit(cohort, callbacks=[stop]).history_) < 9


def test_callbacks_that_cannot_be_used_are_refused(cohort, tmp_path):
    with pytest.raises(InvalidInputError, match="expected callbacks of skorch"):
        quick(None).fit(cohort, callbacks=[print])
    with pytest.raises(InvalidInputError, match="callbacks and checkpoint"):
        quick(None).fit(cohort, callbacks=[Counts()], checkpoint=tmp_path / "state")


def test_cells_have_no_influence_on_a_net_that_reads_each_by_itself(cohort):
    clf = quick(nets.PerCell, n_members=0, max_epochs=1).fit(cohort)
    assert not InfluenceExplainer(clf, "blast").attribute(cohort).any()
