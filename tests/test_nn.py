"""Laws of the network: against the dense form, published numbers and symmetries of sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcm_estimators._fitting.net import _head_penalty
from fcm_estimators.nn import ReluFormer
from fcm_estimators.nn.relu_attention import (
    attend,
    attention_context,
    dense_attend,
    dense_attention,
    head_overlap,
    head_unevenness,
    received_attention,
)

GOLDEN = Path(__file__).parent / "data" / "reluformer_published.npz"
seeds = st.integers(0, 2**31 - 1)


def make_net(seed=0, n_markers=5, n_outputs=3, **kwargs):
    torch.manual_seed(seed)
    return ReluFormer(n_markers, n_outputs, **kwargs).double()


def cells(seed, n, m=5):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, m)))


def published_net():
    golden = np.load(GOLDEN)
    net = ReluFormer(10, 3, n_layers=3, eps=1e-5 / len(golden["x"])).double()
    weights = {
        (f"layers.{key[5:]}" if key.startswith("layer") else key): torch.from_numpy(golden[key])
        for key in golden
        if key.startswith(("layer", "output"))
    }
    missing, unexpected = net.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) == {"input_mean", "input_scale", "input_lowest", "input_highest"}
    return net, golden


def test_published_logits_are_reproduced():
    net, golden = published_net()
    logits = net(torch.from_numpy(golden["x"]))
    np.testing.assert_allclose(logits.detach().numpy(), golden["logits"], atol=1e-10, rtol=0)


def test_published_received_attention_is_reproduced():
    net, golden = published_net()
    x = torch.from_numpy(golden["x"])
    received = [
        received_attention(s.q, s.k, s.context, [0, len(x)], 4, net.layers[0].eps)
        for s in net.trace(x)
    ]
    np.testing.assert_allclose(
        torch.stack(received).detach().numpy(), golden["received_attention"], atol=1e-10, rtol=0
    )


@given(seeds, st.integers(1, 40), st.sampled_from([1, 2, 4]))
def test_linear_attention_equals_dense_in_outputs_and_gradients(seed, n, n_heads):
    results = []
    for form in ("linear", "dense"):
        q, k, v = (cells(seed + i, n, 8).requires_grad_() for i in range(3))
        if form == "linear":
            out = attend(q, attention_context(k, v, [0, n], n_heads), [0, n], n_heads, 1e-2)
        else:
            out = dense_attend(q, k, v, n_heads, 1e-2)
        out.pow(2).sum().backward()
        results.append([out.detach(), q.grad, k.grad, v.grad])
    for linear, dense in zip(*results, strict=True):
        torch.testing.assert_close(linear, dense, rtol=1e-9, atol=1e-11)


@given(seeds, st.integers(1, 40))
def test_received_attention_is_the_column_mean_of_the_dense_matrix(seed, n):
    q, k, v = (cells(seed + i, n, 8) for i in range(3))
    queries = torch.from_numpy(np.random.default_rng(seed).random(n) < 0.5)
    context = attention_context(k, v, [0, n], 4)
    dense = dense_attention(q, k, 4, 1e-2)
    got = received_attention(q, k, context, [0, n], 4, 1e-2)
    torch.testing.assert_close(got, dense.mean(1).T, rtol=1e-9, atol=1e-12)
    some = received_attention(q, k, context, [0, n], 4, 1e-2, queries=queries)
    want = dense[:, queries].mean(1).T if queries.any() else torch.zeros(n, 4).double()
    torch.testing.assert_close(some, want, rtol=1e-9, atol=1e-12)


@given(seeds, st.integers(2, 60))
def test_permuting_cells_permutes_outputs(seed, n):
    net, x = make_net(seed), cells(seed, n)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    torch.testing.assert_close(net(x[order]), net(x)[order], rtol=1e-9, atol=1e-10)


@given(seeds, st.integers(1, 30), st.integers(2, 4))
def test_repeating_every_cell_changes_no_output(seed, n, times):
    net, x = make_net(seed), cells(seed, n)
    torch.testing.assert_close(
        net(x.repeat(times, 1)), net(x).repeat(times, 1), rtol=1e-9, atol=1e-10
    )


@given(seeds, st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_other_samples_of_the_batch_change_nothing(seed, sizes):
    net = make_net(seed)
    parts = [cells(seed + i, n) for i, n in enumerate(sizes)]
    offsets = [0, *np.cumsum(sizes).tolist()]
    packed = net(torch.cat(parts), offsets)
    alone = torch.cat([net(part) for part in parts])
    torch.testing.assert_close(packed, alone, rtol=1e-9, atol=1e-10)


@given(seeds, st.integers(1, 30), st.integers(1, 30))
def test_cells_without_context_weight_only_read(seed, n, n_readers):
    net, x, readers = make_net(seed), cells(seed, n), cells(seed + 1, n_readers)
    weight = torch.cat([torch.ones(n), torch.zeros(n_readers)])
    both = net(torch.cat([x, readers]), context_weight=weight)
    torch.testing.assert_close(both[:n], net(x), rtol=1e-9, atol=1e-10)
    given_contexts = net(readers, contexts=net.contexts(x))
    torch.testing.assert_close(both[n:], given_contexts, rtol=1e-9, atol=1e-10)


def test_large_samples_are_summed_in_parts_without_a_seam():
    net, x = make_net(), cells(1, 8192 * 2 + 1)
    context = net.contexts(x)[0]
    k, v = (f(net.standardise(x)) for f in (net.layers[0].key, net.layers[0].value))
    phi = k.relu().unflatten(1, (4, 8))
    want = torch.einsum("nhi,nhj->hij", phi, v.unflatten(1, (4, 8))) / len(x)
    torch.testing.assert_close(context.key_value[0], want, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(context.key[0], phi.mean(0), rtol=1e-9, atol=1e-12)


def test_single_precision_agrees_with_double_on_a_large_sample():
    net, x = make_net(), cells(2, 100_000)
    single = make_net().float()(x.float())
    np.testing.assert_allclose(single.detach().numpy(), net(x).detach().numpy(), atol=1e-4)


def test_sample_whose_keys_are_all_zero_is_finite():
    net, x = make_net(), cells(3, 20)
    with torch.no_grad():
        for layer in net.layers:
            layer.key.bias.fill_(-1e6)
    out = net(x)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_gradients_are_per_unit_of_the_callers_values():
    net, x = make_net(), cells(4, 12)
    with torch.no_grad():
        net.input_mean += 3.0
        net.input_scale *= 10.0
    x = (x * 10 + 3).requires_grad_()
    (gradient,) = torch.autograd.grad(net(x)[:, 0].sum(), x)
    step = 1e-5
    moved = x.detach().clone()
    moved[5, 2] += step
    back = x.detach().clone()
    back[5, 2] -= step
    with torch.no_grad():
        difference = (net(moved)[:, 0].sum() - net(back)[:, 0].sum()) / (2 * step)
    torch.testing.assert_close(gradient[5, 2], difference, rtol=1e-6, atol=1e-9)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"hidden_dim=30.*n_heads=4"):
        ReluFormer(5, 2, hidden_dim=30)


def test_overlap_of_heads():
    alike = torch.ones(6, 3)
    assert head_overlap(alike, [0, 2, 6]) == pytest.approx(1)
    apart = torch.eye(3).repeat(2, 1)
    assert head_overlap(apart, [0, 3, 6]) == pytest.approx(0)
    assert head_overlap(alike[:, :1], [0, 6]) == 0
    half = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    assert head_overlap(half, [0, 2]) == pytest.approx(0.5**0.5)
    nothing = torch.zeros(4, 2, requires_grad=True)
    head_overlap(nothing, [0, 4]).backward()
    assert torch.isfinite(nothing.grad).all()


def test_unevenness_of_heads():
    every = torch.ones(6)
    # Each head has a cell of its own: together they look at all of them alike.
    assert head_unevenness(torch.eye(3).repeat(2, 1), [0, 3, 6], every) == pytest.approx(0)
    few = torch.tensor([[4.0, 0], [0, 0], [0, 0], [0, 0]])
    assert head_unevenness(few, [0, 4], torch.ones(4)) == pytest.approx(0.5)
    # Cells without weight do not count.
    assert head_unevenness(few, [0, 4], torch.tensor([1.0, 0, 0, 0])) == pytest.approx(0)
    nothing = torch.zeros(4, 2, requires_grad=True)
    head_unevenness(nothing, [0, 4], torch.ones(4)).backward()
    assert torch.isfinite(nothing.grad).all()


@given(seeds, st.floats(0, 3))
def test_cells_that_only_read_do_not_count_among_those_that_heads_share_out(seed, evenness):
    net, x, readers = make_net(seed), cells(seed, 30), cells(seed + 1, 9)
    both = torch.cat([x[:20], readers, x[20:]])
    weight = torch.cat([torch.ones(20), torch.zeros(9), torch.ones(10)]).double()
    alone = _head_penalty(
        net, list(net.trace(x, [0, 20, 30])), [0, 20, 30], torch.ones(30).double(), evenness
    )
    steps = list(net.trace(both, [0, 29, 39], context_weight=weight))
    with_readers = _head_penalty(net, steps, [0, 29, 39], weight, evenness)
    torch.testing.assert_close(with_readers, alone, rtol=1e-9, atol=1e-12)
