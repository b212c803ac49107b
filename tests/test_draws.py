"""Laws of training draws and of the distortions they apply."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcm_estimators._fitting.augmentation import Augmentation
from fcm_estimators._fitting.calibration import best_f1_threshold, false_positive_threshold
from fcm_estimators._fitting.draws import DrawPlan, SampleDraws

seeds = st.integers(0, 2**31 - 1)
NONE = Augmentation(1, 0, 0, 0, 0, 0, 0, 0)


def draws(y, offsets, *, cells=50, top_up=0.0, augmentation=None, seed=0, n_classes=2, **kwargs):
    y = np.asarray(y)
    x = np.column_stack([np.arange(len(y)), np.ones(len(y))]).astype(np.float32)
    plan = DrawPlan(5, 2, cells, top_up, augmentation)
    return SampleDraws(
        x, y, offsets, mean=np.zeros(2, "f4"), scale=np.ones(2, "f4"), n_classes=n_classes,
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


def test_half_of_the_draws_stay_as_measured():
    z = np.ones((1, 3))
    left = [
        (Augmentation().distort(z, np.random.default_rng(seed)) == z).all() for seed in range(400)
    ]
    assert 0.4 < np.mean(left) < 0.6


def test_strength_scales_the_distortion():
    z = np.zeros((1, 1000))

    def spread(strength):
        return Augmentation(1.0).scaled(strength).distort(z, np.random.default_rng(0)).std()

    assert spread(2.0) == pytest.approx(2 * spread(1.0), rel=1e-6)


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
    bar = np.maximum(1e-3, lost.std(0, ddof=1) / np.sqrt(3))
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
