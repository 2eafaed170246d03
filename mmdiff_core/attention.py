"""Multi-modal cross-attention (MM-Diff, arXiv 2403.15059, section 3.3). Pure torch: knows no host.

    out = softmax(Q K_t') V_t + lambda * softmax(Q K_i') V_i

The text half is the host's own attention; here is the image half. Training and inference call the same functions.

Shapes   B batch · P latent positions · N subject tokens · H heads · D head width
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
    """Rows start..stop of [B L HD] -> [stop-start H L D], a view. Made by a single operation where operations count, twice a layer at
    every step; torch.compile and autograd get the three that they can follow."""
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        return by_head(x[start:stop], heads)
    width, (row, position, channel) = x.shape[-1] // heads, x.stride()
    shape, strides = (stop - start, heads, x.shape[1], width), (row, width * channel, position, channel)
    return x.as_strided(shape, strides, x.storage_offset() + start * row)


def attend_by_head(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention, [B H P D] x [1|B H N D] -> [B H P D]; `bias` [1|B 1 P N] is added to the logits."""
    k, v = (x if len(x) == len(q) else x.expand(len(q), -1, -1, -1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, bias)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """The same, [B P HD] x [1|B N HD] -> [B P HD]."""
    return attend_by_head(by_head(q, heads), by_head(k, heads), by_head(v, heads), bias).transpose(1, 2).flatten(2)


def attend_by_products(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """The same as `attend` as plain matrix products in the type of q: for training on a CPU, where the fused attention is slow
    backwards."""
    q, k, v = (by_head(x, heads) for x in (q, k, v))
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    seen = torch.softmax(logits if bias is None else logits + bias, dim=-1) @ v
    return seen.transpose(1, 2).flatten(2)


def attention_on(device: torch.device | str) -> Callable[..., Tensor]:
    """The attention to train with there: (q, k, v, heads, bias) -> [B P HD]."""
    return attend_by_products if torch.device(device).type == "cpu" else attend


def weigh(probability: Tensor, v: Tensor) -> Tensor:
    """What attention with these probabilities [B H P N] makes of values [B N HD]: [B P HD]. With `probabilities` this is `attend`, for
    whoever needs the map as well."""
    return (probability.to(v) @ by_head(v, probability.shape[1])).transpose(1, 2).flatten(2)


def probabilities(q: Tensor, k: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """softmax(Q K') [B H P N] in at least float32, for maps and for the constraints on them; attention itself never needs it."""
    return probabilities_by_head(by_head(q, heads), by_head(k, heads), bias)


def probabilities_by_head(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same, [B H P D] x [1|B H N D] -> [B H P N]."""
    logits = full(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5)
    return torch.softmax(logits if bias is None else logits + bias, dim=-1)


def full(x: Tensor) -> Tensor:
    """Half precisions as float32; others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def see_subjects(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None, gate: Tensor | None) -> Tensor:
    """The image branch, [B P HD]: all subjects' tokens share one softmax; `gate` [1 P 1] in 0..1 mutes positions.

    lambda (fuse_scale) and the subjects' weights are already in `v`.
    """
    seen = attend(q, k, v, heads, bias)
    return seen if gate is None else seen * gate


def add_to_rows(out: Tensor, start: int, stop: int, seen: Tensor, gate: Tensor | None = None) -> Tensor:
    """`out` [B P HD] with `seen` [stop-start H P D], times `gate` [1 1 P|1 1], added to rows start..stop; the others keep their bits.

    Writes into `out` when no gradient is wanted: it is the fresh result of an attention call.
    """
    if torch.is_grad_enabled() and (out.requires_grad or seen.requires_grad):
        added = (seen if gate is None else seen * gate).transpose(1, 2).flatten(2)
        return torch.cat([out[:start], out[start:stop] + added, out[stop:]])
    rows = rows_by_head(out, start, stop, seen.shape[1])
    if gate is None:
        rows.add_(seen)
    else:
        rows.addcmul_(seen, gate)
    return out
