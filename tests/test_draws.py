"""Laws of training draws and of the distortions they apply."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcm_estimators._fitting.augmentation import Augmentation
from fcm_estimators._fitting.calibration import best_f1_threshold, false_positive_threshold
from fcm_estimators._fitting.class_loss import CellLoss
from fcm_estimators._fitting.draws import DrawPlan, SampleDraws
from tests.helpers import plain_scale

seeds = st.integers(0, 2**31 - 1)
NONE = Augmentation(1, 0, 0, 0, 0, 0, 0, 0)


def draws(y, offsets, *, cells=50, top_up=0.0, augmentation=None, seed=0, n_classes=2, **kwargs):
    y = np.asarray(y)
    x = np.column_stack([np.arange(len(y)), np.ones(len(y))]).astype(np.float32)
    plan = DrawPlan(5, 2, cells, top_up, augmentation)
    return SampleDraws(
        x, y, offsets, scale=plain_scale(2), n_classes=n_classes,
        plan=plan, seed=seed, **kwargs,
    )  # fmt: skip


@given(seeds, st.integers(1, 80))
def test_a_draw_holds_cells_of_one_sample_without_repeats(seed, cells):
    data = draws([0, 1] * 50, [0, 30, 100], cells=cells, seed=seed)
    inputs, y = data[0]
    for s in (0, 1):
        inside = inputs["sample"] == s
        rows = inputs["x"][inside, 0].numpy()
        assert len(np.unique(rows)) == len(rows)
        origin = 0 if rows[0] < 30 else 1
        assert len(rows) == min(cells, (30, 70)[origin])
        assert ((rows < 30) == (origin == 0)).all()
    assert (y.numpy() == inputs["x"][:, 0].numpy() % 2).all()
    assert (np.diff(inputs["sample"].numpy()) >= 0).all()
    assert len({len(v) for v in inputs.values()} | {len(y)}) == 1


def test_same_seed_and_epoch_give_the_same_draw_and_others_do_not():
    a, b = (draws([0, 1] * 50, [0, 30, 100], augmentation=Augmentation()) for _ in range(2))
    a.epoch = b.epoch = 3
    assert (a[1][0]["x"] == b[1][0]["x"]).all()
    b.epoch = 4
    assert a[1][0]["x"].shape != b[1][0]["x"].shape or (a[1][0]["x"] != b[1][0]["x"]).any()


def test_fixed_draws_visit_every_sample_and_ignore_the_epoch():
    data = draws([0] * 90, [0, 30, 60, 90], fixed=True)
    first = data[0][0]["x"]
    data.epoch = 7
    assert (data[0][0]["x"] == first).all()
    origins = np.concatenate([np.unique(data[i][0]["x"][:, 0].numpy() // 30) for i in range(2)])
    assert set(origins) == {0, 1, 2}


@given(st.integers(1, 6))
def test_fixed_draws_take_samples_in_turn(n_samples):
    data = draws(np.zeros(10 * n_samples, int), list(range(0, 10 * n_samples + 1, 10)), fixed=True)
    # Two per step, ten cells each.
    first_cells = [data[step][0]["x"][[0, 10], 0].numpy() for step in range(n_samples)]
    origins = np.concatenate(first_cells).astype(int) // 10
    for n_steps in range(1, n_samples + 1):
        times = np.bincount(origins[: 2 * n_steps], minlength=n_samples)
        assert times.max() - times.min() <= 1


@given(seeds)
def test_draws_are_the_same_in_any_unit_of_the_markers(seed):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(60, 3)).astype(np.float32)
    mean, scale = (rng.uniform(low, 5, 3).astype(np.float32) for low in (-5, 0.1))
    plan = DrawPlan(1, 2, 30, 0.0, Augmentation(1.0))

    def drawn(x, scale):
        data = SampleDraws(
            x, np.zeros(60, int), [0, 60], scale=scale, n_classes=1, plan=plan, seed=seed
        )
        return data[0][0]["x"].numpy()

    plain = drawn(z, plain_scale(3))
    in_units = drawn(z * scale + mean, plain_scale(3)._replace(mean=mean, sd=scale))
    np.testing.assert_allclose((in_units - mean) / scale, plain, rtol=1e-3, atol=1e-3)


@given(seeds)
def test_scarce_classes_are_topped_up_as_readers_only(seed):
    y = np.zeros(10_000, dtype=int)
    y[:40] = 1
    inputs, codes = draws(y, [0, 10_000], cells=1000, top_up=0.1, seed=seed)[0]
    first = (inputs["sample"] == 0).numpy()
    codes, weight = codes.numpy()[first], inputs["context_weight"].numpy()[first]
    assert (codes == 1).sum() == 40
    assert weight.sum() == 1000
    assert (codes[weight == 0] == 1).all()
    # Positives are 40 times 1/4 of the 1000 of 10000 that a plain draw would hold: ratio 10.
    ratio = inputs["log_odds_ratio"].numpy()[first]
    np.testing.assert_allclose(ratio[0], [0, np.log(10)], rtol=1e-6)


def test_log_odds_ratio_is_the_gain_in_frequency_on_average():
    y = np.zeros(5000, dtype=int)
    y[:200] = 1
    gains = []
    for seed in range(200):
        inputs, codes = draws(y, [0, 5000], cells=200, top_up=0.1, seed=seed)[0]
        first = (inputs["sample"] == 0).numpy()
        gains.append(
            ((codes.numpy()[first] == 1).sum(), inputs["log_odds_ratio"][0, 1].exp().item())
        )
    drawn, ratio = np.mean(gains, axis=0)
    assert drawn / ratio == pytest.approx(200 * 200 / 5000, rel=0.02)


@dataclass(frozen=True)
class Factors(Augmentation):
    """Class shares that always change by the same factors, unlabelled cells first."""

    probability: float = 0
    factors: tuple[float, ...] = ()

    def class_factors(self, n_groups, rng):
        return np.array(self.factors)


@pytest.mark.parametrize("factors", [(1, 1, 1), (1, 1, 0.1), (0.2, 1, 0.5), (1, 0.05, 1)])
def test_log_odds_ratio_compares_with_what_the_changed_sample_has_on_average(factors):
    y = np.repeat([-1, 0, 1], [1000, 3600, 400])
    held, expected = [], []
    for seed in range(150):
        change = Factors(factors=factors)
        data = draws(y, [0, 5000], cells=200, top_up=0.2, augmentation=change, seed=seed)
        inputs, codes = data[0]
        first = (inputs["sample"] == 0).numpy()
        context = first & (inputs["context_weight"].numpy() > 0)
        total = np.bincount(codes.numpy()[first] + 1, minlength=3)[1:]
        topped_up = (inputs["log_odds_ratio"][0] != 0).numpy()
        ratio = inputs["log_odds_ratio"][0].exp().numpy()
        held.append(np.bincount(codes.numpy()[context] + 1, minlength=3)[1:])
        expected.append(np.where(topped_up, total / ratio, held[-1]))
    # Means over 150 draws of 200 cells each.
    error = 5 * np.sqrt(np.mean(held, axis=0) / 150)
    assert (np.abs(np.mean(held, axis=0) - np.mean(expected, axis=0)) < error).all()


def test_a_class_that_the_sample_lacks_costs_it_no_cells():
    y = np.repeat([0, 1], 50)
    inputs, _ = draws(y, [0, 100], cells=100, augmentation=Factors(factors=(100, 1, 1)))[0]
    assert (inputs["sample"] == 0).sum() == 100


@given(seeds)
def test_classes_are_topped_up_to_a_share_of_a_full_draw_where_few_cells_are_left(seed):
    y = np.repeat([0, 1], [3900, 100])
    change = Factors(factors=(1, 1e-4, 1))
    data = draws(y, [0, 4000], cells=1000, top_up=0.05, augmentation=change, seed=seed)
    inputs, codes = data[0]
    first = (inputs["sample"] == 0).numpy()
    assert (inputs["context_weight"].numpy()[first] > 0).sum() < 200
    assert (codes.numpy()[first] == 0).sum() == 50


def test_composition_changes_shares_and_keeps_cells():
    shares = []
    change = Augmentation(0, composition=1.0, composition_spread=1.0)
    y = np.repeat([0, 1, -1], 1000)
    for seed in range(40):
        _, codes = draws(y, [0, 3000], cells=300, augmentation=change, seed=seed)[0]
        shares.append(np.mean(codes.numpy() == 1))
    assert np.std(shares) > 0.1
    plain = [np.mean(draws(y, [0, 3000], cells=300, seed=s)[0][1].numpy() == 1) for s in range(40)]
    assert np.std(plain) < 0.05


@given(seeds)
def test_no_distortion_leaves_cells_alone(seed):
    z = np.random.default_rng(seed).normal(size=(50, 4))
    out = NONE.distort(z, np.random.default_rng(seed))
    np.testing.assert_allclose(out, z, atol=1e-12)


@given(seeds)
def test_distortion_without_mixing_keeps_the_order_within_each_marker(seed):
    z = np.random.default_rng(seed).normal(scale=2, size=(100, 3))
    out = Augmentation(1.0, mixing=0).scaled(2).distort(z, np.random.default_rng(seed))
    assert (np.argsort(z, axis=0) == np.argsort(out, axis=0)).all()
    assert np.isfinite(out).all()


def test_diluted_classes_are_rare_in_the_context_and_kept_as_readers():
    y = np.repeat([0, 1], 2000)
    change = Augmentation(0, composition=0, dilution=1.0)
    shares = []
    for seed in range(60):
        data = draws(y, [0, 4000], cells=1000, top_up=0.05, augmentation=change, seed=seed)
        inputs, codes = data[0]
        first = (inputs["sample"] == 0).numpy()
        codes, weight = codes.numpy()[first], inputs["context_weight"].numpy()[first]
        assert min((codes == 0).sum(), (codes == 1).sum()) >= 50
        shares.append(min(np.mean(codes[weight > 0] == c) for c in (0, 1)))
    assert np.mean(np.array(shares) < 0.01) > 0.2


@pytest.mark.parametrize("probability", [0, 0.2, 0.5, 0.9, 1])
def test_a_share_of_the_draws_is_distorted_and_the_rest_stays_as_measured(probability):
    z = np.ones((1, 3))
    changed = [
        (Augmentation(probability).distort(z, np.random.default_rng(seed)) != z).any()
        for seed in range(400)
    ]
    error = 4 * np.sqrt(probability * (1 - probability) / 400)
    assert abs(np.mean(changed) - probability) <= error


def shift_of(change, rng):
    return change.distort(np.zeros((1, 2000)), rng)


def log_gain_of(change, rng):
    return np.log(change.distort(np.full((1, 2000), 2.0), rng) / 2)


def leaks_of(change, rng):
    """What a cell with one marker only gets in all others."""
    return change.distort(np.eye(40), rng)[~np.eye(40, dtype=bool)]


def log_slopes_of(change, rng):
    """Between the knots, of every marker."""
    ends = np.array([-9, -1.5, -0.75, 0, 0.75, 1.5, 2.25, 9])[:, None].repeat(300, axis=1)
    return np.log(np.diff(change.distort(ends, rng), axis=0) / np.diff(ends, axis=0))


def log_class_factors_of(change, rng):
    return np.log(change.class_factors(2000, rng))


SIZES = {
    "shift": shift_of,
    "scale": log_gain_of,
    "warp": log_slopes_of,
    "mixing": leaks_of,
    "composition_spread": log_class_factors_of,
}


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", SIZES)
def test_a_distortion_is_of_the_size_that_is_said_times_the_strength(name, strength):
    sizes = {**dict.fromkeys(SIZES, 0.0), name: 0.3}
    change = Augmentation(probability=1.0, composition=1.0, **sizes)
    drawn = SIZES[name](change.scaled(strength), np.random.default_rng(0))
    assert drawn.std() == pytest.approx(0.3 * strength, rel=0.1)
    assert abs(drawn.mean()) < 5 * drawn.std() / np.sqrt(drawn.size)


@given(seeds)
def test_a_marker_does_not_leak_into_itself(seed):
    change = Augmentation(1, shift=0, scale=0, warp=0, mixing=0.5)
    out = change.distort(np.diag([1.0, -2, 3, 4]), np.random.default_rng(seed))
    np.testing.assert_allclose(np.diag(out), [1, -2, 3, 4], rtol=1e-12)


def test_a_draw_changes_all_classes_or_dilutes_one_or_leaves_them():
    change = Augmentation(composition=0.5, dilution=0.3)
    found = [change.class_factors(3, np.random.default_rng(seed)) for seed in range(1500)]
    changed = [f for f in found if f is not None and (f != 1).sum() > 1]
    diluted = np.array([f for f in found if f is not None and (f != 1).sum() == 1])
    for share, n in ((0.5, len(changed)), (0.3, len(diluted))):
        assert abs(n / 1500 - share) < 4 * np.sqrt(share * (1 - share) / 1500)
    # Any of them, down to 1e-4 of its share, every order of magnitude alike.
    assert np.bincount(diluted.argmin(1), minlength=3).min() > len(diluted) / 5
    exponents = np.log10(diluted.min(1))
    assert (diluted.max(1) == 1).all()
    assert np.histogram(exponents, np.arange(-4, 1))[0].min() > len(diluted) / 6
    assert exponents.min() >= -4


# -- loss ----------------------------------------------------------------------------------------


def cell_loss(logits, y, sample, *, ratio=None, weight=(1.0, 1.0, 1.0), training=True):
    """Loss and its gradient."""
    logits = torch.as_tensor(logits).requires_grad_()
    ratio = np.zeros(logits.shape) if ratio is None else np.broadcast_to(ratio, logits.shape)
    inputs = {"sample": torch.as_tensor(sample), "log_odds_ratio": torch.as_tensor(ratio.copy())}
    loss = CellLoss(torch.tensor(weight, dtype=torch.float64)).train(training)
    value = loss(logits, torch.as_tensor(y), inputs)
    return value.item(), torch.autograd.grad(value, logits)[0].numpy()


def three_samples(seed, n=40):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3)), rng.integers(-1, 3, n), np.sort(rng.integers(0, 3, n))


@given(seeds, st.booleans())
def test_every_sample_counts_once_in_the_loss_however_many_of_its_cells_are_drawn(seed, training):
    logits, y, sample = three_samples(seed)
    once, _ = cell_loss(logits, y, sample, training=training)
    rows = np.repeat(np.arange(40), np.where(sample == 1, 5, 1))
    more, _ = cell_loss(logits[rows], y[rows], sample[rows], training=training)
    assert more == pytest.approx(once, rel=1e-9)
    # It is the mean over samples, of those with a label.
    alone = [
        cell_loss(logits[sample == s], y[sample == s], np.zeros((sample == s).sum(), int),
                  training=training)[0]
        for s in range(3)
        if (y[sample == s] >= 0).any()
    ]  # fmt: skip
    assert once == pytest.approx(np.mean(alone), rel=1e-9)


@given(seeds, st.booleans())
def test_a_class_weight_counts_each_of_its_cells_so_many_times(seed, training):
    logits, y, sample = three_samples(seed)
    heavy, _ = cell_loss(logits, y, sample, weight=(1.0, 3.0, 2.0), training=training)
    rows = np.repeat(np.arange(40), np.select([y == 1, y == 2], [3, 2], 1))
    repeated, _ = cell_loss(logits[rows], y[rows], sample[rows], training=training)
    assert heavy == pytest.approx(repeated, rel=1e-9)


@given(seeds, st.booleans())
def test_cells_without_label_have_no_loss(seed, training):
    logits, y, sample = three_samples(seed)
    for codes in (y, np.where(sample == 1, -1, y)):  # of some cells, of a whole sample
        value, gradient = cell_loss(logits, codes, sample, training=training)
        known = codes >= 0
        assert (gradient[~known] == 0).all()
        assert (np.abs(gradient[known]).max(1) > 0).all()
        _, number = np.unique(sample[known], return_inverse=True)
        same, _ = cell_loss(logits[known], codes[known], number, training=training)
        assert value == pytest.approx(same, rel=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_loss_is_least_at_the_samples_own_shares_although_a_class_is_drawn_more_often(training):
    share, more = np.array([0.7, 0.2, 0.1]), np.array([1.0, 2.0, 5.0])
    y = np.repeat([0, 1, 2], np.rint(100 * share * more).astype(int))
    own = np.tile(np.log(share), (len(y), 1))
    sample = np.zeros(len(y), int)
    least, gradient = cell_loss(own, y, sample, ratio=np.log(more), training=training)
    np.testing.assert_allclose(gradient.sum(0), 0, atol=1e-12)
    for step in np.r_[np.eye(3), -np.eye(3)]:
        assert cell_loss(own + step, y, sample, ratio=np.log(more), training=training)[0] > least
    # Control: where nothing is said of it, the shares of the draw are learnt.
    assert np.abs(cell_loss(own, y, sample, training=training)[1].sum(0)).max() > 0.01


@given(seeds)
def test_in_validation_no_confidence_costs_more_than_two(seed):
    logits, y, sample = three_samples(seed)
    y = np.abs(y)
    confident = 1e3 * logits
    assert 0 <= cell_loss(confident, y, sample, training=False)[0] <= 2
    assert cell_loss(confident, y, sample)[0] > 2
    worst = np.where(np.eye(3)[(y + 1) % 3], 1e3, 0)
    assert cell_loss(worst, y, sample, training=False)[0] == pytest.approx(2)


# -- thresholds ----------------------------------------------------------------------------------


def brute_f1(log_odds, positive, sample, cut):
    scores = []
    for s in np.unique(sample):
        t, v = positive[sample == s], log_odds[sample == s] >= cut
        if t.any():
            scores.append(2 * (t & v).sum() / (t.sum() + v.sum()))
    return np.mean(scores)


@given(seeds)
def test_f1_threshold_is_about_as_good_as_the_best_and_near_even_odds(seed):
    rng = np.random.default_rng(seed)
    n = 400
    sample, positive = rng.integers(0, 3, n), rng.random(n) < 0.2
    log_odds = rng.normal(size=n) + 3 * positive - 1
    cut = best_f1_threshold(log_odds, positive, sample)
    grid = np.arange(-12, 12.05, 0.05)
    table = np.array(
        [
            [
                brute_f1(log_odds[sample == s], positive[sample == s], sample[sample == s], c)
                for c in grid
            ]
            for s in np.unique(sample)
        ]
    )
    lost = table[:, [table.mean(0).argmax()]] - table
    bar = np.maximum(1e-3, 2 * lost.std(0, ddof=1) / np.sqrt(3))
    position = np.abs(grid - cut).argmin()
    assert lost.mean(0)[position] <= bar[position] + 1e-9
    nearer = np.abs(grid) < abs(cut) - 0.01
    assert (lost.mean(0) > bar - 1e-9)[nearer].all()


def test_f1_threshold_leaves_even_odds_only_for_a_reason():
    two_groups = np.r_[np.full(50, -2.0), np.full(50, 6.0)]
    sample = np.tile(np.arange(5), 20)
    assert best_f1_threshold(two_groups, two_groups > 0, sample) == 0
    assert best_f1_threshold(two_groups + 4, two_groups > 0, sample) == pytest.approx(2.05)
    assert best_f1_threshold(two_groups, np.zeros(100, bool), sample) == 0


@given(seeds, st.floats(0.001, 0.5))
def test_false_positive_threshold_is_the_lowest_that_holds(seed, rate):
    rng = np.random.default_rng(seed)
    log_odds, positive = np.round(rng.normal(size=300), 1), rng.random(300) < 0.1
    negatives = log_odds[~positive]
    cut = false_positive_threshold(log_odds, positive, rate)
    assert (negatives >= cut).mean() <= rate
    lower = negatives[negatives < cut].max()
    assert (negatives >= lower).mean() > rate
