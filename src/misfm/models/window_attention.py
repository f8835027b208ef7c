"""Attention within windows while training on a CPU, a few windows at a time.

PyTorch's fused attention has neither dropout nor a gradient of the bias on a CPU; its fallback writes and
reads the scores of all windows a dozen times, 160 MB each at level 2 of PCT-Net. Here windows are
gathered, attended and scattered in turn while their scores stay in the cache; backward computes them
again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from misfm.models.cpu import fill_mask


class WindowLayout(NamedTuple):
    """Where the tokens of a grid go, for M windows of N slots; windows with the same mask are neighbours.

    Attributes:
        to_windows: (M * N,) token of each slot; the number of tokens stands for padding.
        to_tokens: (tokens,) slot of each token.
        masks: (P, N, N) what is added to the attention, one for each distinct pattern.
        counts: windows of each pattern.
    """

    to_windows: Tensor
    to_tokens: Tensor
    masks: Tensor
    counts: list[int]


def attend_in_turn(qkv: Tensor, bias: Tensor, layout: WindowLayout, dropout: float) -> Tensor:
    """Attention of each token over its window.

    Args:
        qkv: (B, tokens + 1, 3, heads, c) queries, keys and values; the last token stands for padding.
        bias: (heads, N, N) what is added to the scores of every window.
        layout: the windows.
        dropout: probability, in [0, 1), of dropping an attention weight.

    Returns:
        (B, tokens, heads * c).
    """
    return cast(Tensor, _AttendInTurn.apply(qkv, bias.to(qkv.dtype), layout, dropout))  # type: ignore[no-untyped-call]


class _AttendInTurn(torch.autograd.Function):
    """Every result of the size of the scores goes into a buffer that all windows share."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, layout: WindowLayout, dropout: float) -> Tensor:
        batch, tokens, _, heads, width = qkv.shape
        out = qkv.new_empty(batch, tokens, heads * width)
        kept = _masks(batch, bias, layout) if dropout else None
        buffers = _buffers(bias)
        for chunk in _chunks(batch, bias, layout):
            query, key, value = _gather(qkv, chunk)
            weights = _weights(query, key, chunk.bias, buffers[0])
            if kept is not None:
                fill_mask(kept[chunk.windows].flatten(), dropout)
                weights.mul_(_as_factors(kept, chunk, buffers[1]))
            attended = torch.bmm(weights, value).mul_(1 / (1 - dropout))
            out[chunk.sample].index_copy_(0, chunk.slots.flatten(), _by_slot(attended, chunk).flatten(1))
        ctx.save_for_backward(qkv, bias, kept)
        ctx.layout, ctx.dropout = layout, dropout
        return out[:, :-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        qkv, bias, kept = ctx.saved_tensors
        batch, tokens, _, heads, width = qkv.shape
        towards_qkv, towards_bias = torch.zeros_like(qkv), torch.zeros_like(bias)
        above = gradient.new_zeros(batch, tokens, 1, heads, width)
        above.flatten(2)[:, :-1] = gradient / (1 - ctx.dropout)
        buffers = _buffers(bias)
        for chunk in _chunks(batch, bias, ctx.layout):
            query, key, value = _gather(qkv, chunk)
            (towards_out,) = _gather(above, chunk)
            weights = _weights(query, key, chunk.bias, buffers[0])
            dropped, scores = weights, buffers[1][: len(weights)]
            if kept is not None:
                factors = _as_factors(kept, chunk, buffers[2])
                dropped = torch.mul(weights, factors, out=scores)
            towards_value = torch.bmm(dropped.transpose(1, 2), towards_out)
            torch.bmm(towards_out, value.transpose(1, 2), out=scores)
            if kept is not None:
                scores.mul_(factors)
            _softmax_backward(scores, weights, -1, weights.dtype, grad_input=scores)
            for window in scores.view(-1, *bias.shape):
                towards_bias += window
            towards_query = torch.bmm(scores, key).mul_(width**-0.5)
            towards_key = torch.bmm(scores.transpose(1, 2), query)
            parts = [_by_slot(part, chunk) for part in (towards_query, towards_key, towards_value)]
            towards_qkv[chunk.sample].index_add_(0, chunk.slots.flatten(), torch.stack(parts, dim=1))
        return towards_qkv, towards_bias, None, None


_softmax_backward = torch.ops.aten._softmax_backward_data.out


class _Chunk(NamedTuple):
    """Windows of one sample with the same mask.

    Attributes:
        sample: which sample.
        windows: where they are among all windows of the batch.
        slots: (m, N) tokens.
        bias: (heads, N, N) what is added to their scores.
    """

    sample: int
    windows: slice
    slots: Tensor
    bias: Tensor


def _chunks(batch: int, bias: Tensor, layout: WindowLayout) -> Iterator[_Chunk]:
    """All windows, one for each thread at a time."""
    size, start = torch.get_num_threads(), 0
    groups = torch.split(layout.to_windows.view(-1, bias.shape[-1]), layout.counts)
    for sample in range(batch):
        for mask, group in zip(layout.masks.to(bias.dtype), groups, strict=True):
            masked = bias + mask
            for slots in torch.split(group, size):
                yield _Chunk(sample, slice(start, start + len(slots)), slots, masked)
                start += len(slots)


def _buffers(bias: Tensor) -> Tensor:
    """Three buffers for the scores of one chunk."""
    heads, num_slots, _ = bias.shape
    return bias.new_empty(3, torch.get_num_threads() * heads, num_slots, num_slots)


def _masks(batch: int, bias: Tensor, layout: WindowLayout) -> Tensor:
    return torch.empty(batch * sum(layout.counts), *bias.shape, dtype=torch.uint8)


def _as_factors(kept: Tensor, chunk: _Chunk, buffer: Tensor) -> Tensor:
    mask = kept[chunk.windows].flatten(0, 1)
    return buffer[: len(mask)].copy_(mask)


def _gather(tokens: Tensor, chunk: _Chunk) -> Tensor:
    """(B, tokens, parts, heads, c) -> (parts, m * heads, N, c)."""
    windows = tokens[chunk.sample].index_select(0, chunk.slots.flatten())
    return windows.view(*chunk.slots.shape, *tokens.shape[2:]).permute(2, 0, 3, 1, 4).flatten(1, 2)


def _by_slot(windows: Tensor, chunk: _Chunk) -> Tensor:
    """(m * heads, N, c) -> (m * N, heads, c)."""
    return windows.view(len(chunk.slots), -1, *windows.shape[1:]).transpose(1, 2).flatten(0, 1)


def _weights(query: Tensor, key: Tensor, bias: Tensor, buffer: Tensor) -> Tensor:
    """Softmax of the scores of (m * heads, N, c); scales ``query`` in place."""
    scores = buffer[: len(query)]
    torch.bmm(query.mul_(query.shape[-1] ** -0.5), key.transpose(1, 2), out=scores)
    scores.view(-1, *bias.shape).add_(bias)
    return torch.softmax(scores, -1, out=scores)
