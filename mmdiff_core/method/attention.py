"""Multi-modal cross-attention (MM-Diff, arXiv 2403.15059). Pure torch: knows no host.

    out = softmax(Q K_t') V_t + lambda * softmax(Q K_i') V_i

`add_image_branch` is that equation. Its first term, the text branch, is computed by whoever calls
it: in ComfyUI by the host's own attention or by another pack that holds the layer.

Shapes   B batch · R rows of it · P latent positions · N subject tokens · H heads · D head width
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def by_head(x: Tensor, heads: int) -> Tensor:
    """[B L HD] -> [B H L D], a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def rows_by_head(x: Tensor, start: int, stop: int, heads: int) -> Tensor:
    """Rows start..stop of [B L HD] -> [stop-start H L D], a view. Made by a single operation where
    operations count, twice a layer at every step; torch.compile and autograd get the three that
    they can follow."""
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        return by_head(x[start:stop], heads)
    width, (row, position, channel) = x.shape[-1] // heads, x.stride()
    shape, strides = (
        (stop - start, heads, x.shape[1], width),
        (row, width * channel, position, channel),
    )
    return x.as_strided(shape, strides, x.storage_offset() + start * row)


def attend_by_head(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention, [B H P D] x [1|B H N D] -> [B H P D]; `bias` [1|B 1 P N] is added to the
    logits."""
    k, v = (x if len(x) == len(q) else x.expand(len(q), -1, -1, -1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, bias)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """The same, [B P HD] x [1|B N HD] -> [B P HD]."""
    return (
        attend_by_head(by_head(q, heads), by_head(k, heads), by_head(v, heads), bias)
        .transpose(1, 2)
        .flatten(2)
    )


def attend_by_products(
    q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None
) -> Tensor:
    """The same as `attend` as plain matrix products in the type of q: for training on a CPU, where
    the fused attention is slow backwards."""
    q, k, v = (by_head(x, heads) for x in (q, k, v))
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    seen = torch.softmax(logits if bias is None else logits + bias, dim=-1) @ v
    return seen.transpose(1, 2).flatten(2)


def attention_on(device: torch.device | str) -> Callable[..., Tensor]:
    """The attention to train with there: (q, k, v, heads, bias) -> [B P HD]."""
    return attend_by_products if torch.device(device).type == "cpu" else attend


def weigh(probability: Tensor, v: Tensor) -> Tensor:
    """What attention with these probabilities [B H P N] makes of values [B N HD]: [B P HD]. With
    `probabilities` this is `attend`, for whoever needs the map as well."""
    return (probability.to(v) @ by_head(v, probability.shape[1])).transpose(1, 2).flatten(2)


def probabilities(q: Tensor, k: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """softmax(Q K') [B H P N] in at least float32, for maps and for the constraints on them;
    attention itself never needs it."""
    return probabilities_by_head(by_head(q, heads), by_head(k, heads), bias)


def probabilities_by_head(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same, [B H P D] x [1|B H N D] -> [B H P N]."""
    logits = full(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5)
    return torch.softmax(logits if bias is None else logits + bias, dim=-1)


def full(x: Tensor) -> Tensor:
    """Half precisions as float32; others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def add_image_branch(
    text: Tensor,
    q: Tensor,
    key: Tensor,
    value: Tensor,
    fuse_scale: float,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    rows: tuple[int, int] | None = None,
) -> Tensor:
    """The multi-modal cross-attention of one layer: softmax(Q K_t') V_t + lambda * softmax(Q K_i' +
    bias) V_i * gate.

    text        [B P HD], the first term: the text's own attention, by whoever computes it
    q           [B P HD]
    key, value  [1|R H N D] of all subjects' tokens, which share one softmax
    fuse_scale  lambda
    bias        [1|R 1 P N] added to the logits, or None
    gate        [1|R 1 P 1], or [1 1 1 1], in 0..1: mutes positions; None = 1
    rows        start and stop of the R rows of the batch that show these subjects; None = all.
                The other rows keep their bits

    Writes into `text` where no gradient is wanted: it is the fresh result of an attention call.
    Training, inference and the tests call this one function.
    """
    start, stop = rows or (0, len(q))
    heads = key.shape[1]
    if key.shape[2] == 0:
        return text
    seen = attend_by_head(rows_by_head(q, start, stop, heads), key, value, bias)
    if torch.is_grad_enabled() and (text.requires_grad or seen.requires_grad):
        added = fuse_scale * (seen if gate is None else seen * gate).transpose(1, 2).flatten(2)
        return torch.cat([text[:start], text[start:stop] + added, text[stop:]])
    own = rows_by_head(text, start, stop, heads)
    if gate is None:
        own.add_(seen, alpha=fuse_scale)
    else:
        own.addcmul_(seen, gate, value=fuse_scale)
    return text
