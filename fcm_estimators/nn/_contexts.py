"""Operations on contexts of several samples: select, add, divide."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fcm_estimators.nn.relu_attention import AttentionContext
from fcm_estimators.nn.sources import Piece


def packed(pieces: Sequence[Piece]) -> tuple[slice | list[int], list[int]]:
    """Samples of a chunk, as a slice if they are consecutive, and their row limits."""
    samples = [piece.sample for piece in pieces]
    offsets = [0, *(piece.stop for piece in pieces)]
    # A slice needs no index tensor, which would make the program wait for a GPU.
    if samples and samples[-1] - samples[0] + 1 == len(samples):
        return slice(samples[0], samples[-1] + 1), offsets
    return samples, offsets


def of_samples(context: AttentionContext, samples: slice | list[int]) -> AttentionContext:
    """Contexts of the given samples."""
    return AttentionContext(context.key_value[samples], context.key[samples])


def leaves(context: AttentionContext) -> AttentionContext:
    return AttentionContext(*(part.detach().requires_grad_() for part in context))


def zeros_like(context: AttentionContext) -> AttentionContext:
    return AttentionContext(*(torch.zeros_like(part) for part in context))


def divided(context: AttentionContext, total: Tensor) -> AttentionContext:
    """Divide the sums of each sample by the weight of its cells."""
    key_value, key = context
    return AttentionContext(key_value / total[:, None, None, None], key / total[:, None, None])


def add_parts(
    context: AttentionContext, samples: slice | list[int], parts: Sequence[Tensor]
) -> None:
    for into, part in zip(context, parts, strict=True):
        into[samples] += part
