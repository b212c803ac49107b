"""Whole samples by chunk against the same net at once: outputs and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcm_estimators import ReluFormerClassifier
from fcm_estimators._cells.rows import FileRows
from fcm_estimators._fitting import net as _training
from fcm_estimators.nn import PolygonFormer, ReluFormer, streamed
from fcm_estimators.nn._kernels import Kernels, _normalised
from fcm_estimators.nn.relu_attention import PARTIAL_ROWS
from fcm_estimators.nn.sources import PackedCells, Piece, Stored
from fcm_estimators.nn.streaming import Stream, streamed_contexts
from tests.helpers import toy_cohort

N_MARKERS = 5


def build(kind, seed=0):
    """A net with weights far from those of the start, in double precision."""
    torch.manual_seed(seed)
    encoder = {"hidden_dim": 8, "n_heads": 2, "n_layers": 3}
    if kind == "classes":
        net = ReluFormer(N_MARKERS, 3, **encoder)
    else:
        net = PolygonFormer(N_MARKERS, [(0, 1), (2, 3)], n_vertices=8, **encoder)
    net = net.double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        net.input_mean.normal_()
        net.input_scale.uniform_(0.5, 2)
    return net


def cells_of(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, N_MARKERS, generator=generator, dtype=torch.float64)


def both(net, x, offsets, weight, chunk_size):
    """Outputs and gradients of the net at once and by chunk."""
    parameters = list(net.parameters())
    found = []
    for by_chunk in (False, True):
        at = x.clone().requires_grad_()
        if by_chunk:
            outputs = streamed(
                net,
                at,
                offsets,
                context_weight=weight,
                parameters=parameters,
                chunk_size=chunk_size,
            ).outputs
        else:
            outputs = net(at, offsets, context_weight=weight)
        factor = torch.linspace(-1, 1, outputs.numel(), dtype=x.dtype).view_as(outputs)
        grads = torch.autograd.grad((outputs * factor).sum(), [at, *parameters])
        found.append([outputs.detach(), *grads])
    return found


@pytest.mark.parametrize("kind", ["classes", "gates"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 36, 37, 38, 10])
@pytest.mark.parametrize("offsets", [[0, 37], [0, 1, 20, 37], [0, 0, 36, 37]])
def test_chunks_change_neither_outputs_nor_gradients(kind, weighted, chunk_size, offsets):
    x = cells_of(37)
    weight = torch.linspace(0, 2, 37, dtype=torch.float64) if weighted else None
    at_once, by_chunk = both(build(kind), x, offsets, weight, chunk_size)
    for expected, got in zip(at_once, by_chunk, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    chunk_size=st.integers(1, 30),
    seed=st.integers(0, 99),
    kind=st.sampled_from(["classes", "gates"]),
)
def test_samples_of_any_size_in_chunks_of_any_size(sizes, chunk_size, seed, kind):
    offsets = [0, *np.cumsum(sizes).tolist()]
    at_once, by_chunk = both(
        build(kind, seed), cells_of(offsets[-1], seed), offsets, None, chunk_size
    )
    for expected, got in zip(at_once, by_chunk, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)


def test_keys_that_are_all_zero_and_a_sample_without_weight():
    net = build("classes")
    with torch.no_grad():
        net.layers[1].key.weight.zero_()
        net.layers[1].key.bias.fill_(-1.0)
    weight = torch.ones(20, dtype=torch.float64)
    weight[:8] = 0
    at_once, by_chunk = both(net, cells_of(20), [0, 8, 20], weight, 6)
    for expected, got in zip(at_once, by_chunk, strict=True):
        assert torch.isfinite(got).all()
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_contexts_are_those_of_the_net_and_polygons_pass_gradients_on():
    net, x = build("gates"), cells_of(50).requires_grad_()
    for got, expected in zip(streamed_contexts(net, x), net.contexts(x), strict=True):
        for part, reference in zip(got, expected, strict=True):
            torch.testing.assert_close(part, reference.detach(), rtol=1e-10, atol=1e-12)
    corner = net.polygons(x, extend=False)[0, 1, 3, 0]
    (expected,) = torch.autograd.grad(corner, x)
    contexts = streamed(net, x, chunk_size=16).contexts
    again = net.polygons(x, contexts=contexts, extend=False)[0, 1, 3, 0]
    torch.testing.assert_close(again, corner)
    torch.testing.assert_close(torch.autograd.grad(again, x)[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["classes", "gates"])
def test_rows_kept_in_files_give_the_same(kind):
    net, x = build(kind), cells_of(40)
    found = []
    for store in (Stored.new, FileRows):
        stream = Stream(net, PackedCells(x), chunk_size=7, keep_layers=True, store=store)
        outputs = torch.cat([part for _, _, part in stream.outputs()])
        into = Stored(torch.zeros_like(x)) if store is Stored.new else FileRows(40, N_MARKERS, x)
        stream.backward(lambda start, stop, out: torch.ones_like(out), into=into)
        found.append((outputs, into.get(0, 40)))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_backward_is_for_once():
    stream = Stream(build("classes"), PackedCells(cells_of(9)), keep_layers=True)
    stream.backward(lambda start, stop, out: torch.ones_like(out))
    with pytest.raises(RuntimeError, match="backward before"):
        stream.backward(lambda start, stop, out: torch.ones_like(out))
    forward_only = Stream(build("classes"), PackedCells(cells_of(9)))
    with pytest.raises(RuntimeError, match="not kept"):
        forward_only.backward(None)


def test_single_precision_by_chunk_stays_close_to_double_precision():
    net, x = build("classes"), cells_of(30_000)
    single = net.float()
    got = streamed(single, x.float()).outputs
    expected = build("classes")(x)
    assert (got.double() - expected).abs().max() < 1e-4


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["classes", "gates"])
def test_half_precision_sums_its_contexts_in_more(kind, precision):
    net, x = build(kind).float(), cells_of(30_000).float()
    # Sums of keys of this size overflow float16.
    with torch.no_grad():
        net.layers[0].key.bias.add_(10.0)
    expected, got = streamed(net, x), streamed(net, x, precision=precision)
    assert got.outputs.dtype == torch.float32
    wrong = (got.outputs - expected.outputs).abs()
    assert torch.isfinite(wrong).all()
    assert wrong.median() < 0.02 * expected.outputs.abs().median()
    key, reference = got.contexts[0].key, expected.contexts[0].key
    # The weights themselves are rounded to 2 ** -9.
    torch.testing.assert_close(key, reference, rtol=5e-3, atol=1e-4)
    with pytest.raises(ValueError, match="gradients"):
        streamed(net, x.requires_grad_(), precision=precision)


def test_the_mode_of_the_caller_is_not_changed():
    net, x = build("classes"), cells_of(20)
    stream = Stream(net, PackedCells(x), chunk_size=5)
    for _ in stream.outputs():
        assert torch.is_grad_enabled()
    assert not streamed(net, x).outputs.requires_grad


def test_large_batches_train_by_chunk_as_small_ones_do(monkeypatch):
    cohort = toy_cohort(2, 400)
    weights = []
    for limit in (100, 10_000):
        monkeypatch.setattr(_training, "_ONE_GRAPH", limit)
        clf = ReluFormerClassifier(
            n_members=0,
            sample_key="sample",
            label_key="cell_type",
            max_epochs=1,
            steps_per_epoch=3,
            random_state=0,
        ).fit(cohort)
        weights.append(torch.cat([p.flatten() for p in clf.net_.module_.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_layer_norm_for_gpus_is_the_layer_norm(dtype):
    torch.manual_seed(0)
    h = 5 * torch.randn(300, 32, dtype=dtype) + 3
    weight, bias = torch.randn(2, 32, dtype=dtype)
    expected = torch.nn.functional.layer_norm(h, [32], weight, bias, 1e-5)
    torch.testing.assert_close(_normalised(h, weight, bias, 1e-5), expected)


def test_sums_for_gpus_are_the_sums():
    torch.manual_seed(0)
    first, n = PARTIAL_ROWS + 7, 2 * PARTIAL_ROWS + 500
    net, x, found = ReluFormer(3, 2).double(), torch.randn(n, 3).double(), []
    for on_gpu in (False, True):
        kernels = Kernels(list(net.layers), n, net.input_mean)
        kernels._on_gpu = on_gpu
        sums = kernels.zero_sums(2)
        with torch.no_grad():
            kernels.add(sums, kernels.project(0, x), [Piece(0, 0, first), Piece(1, first, n)], None)
        found.append(sums)
    torch.testing.assert_close(*found)
