"""Multi-modal cross-attention (MM-Diff, arXiv 2403.15059, section 3.3). Pure torch: knows no host.

    out = softmax(Q K_t') V_t + lambda * softmax(Q K_i') V_i

The text half is the host's own attention; here is the image half. Training and inference call the same functions.

Shapes   B batch · P latent positions · N subject tokens · H heads · D head width
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Softmax attention, [B P HD] x [1|B N HD] -> [B P HD]; `bias` [1|B 1 P N] is added to the logits."""
    q, k, v = (rearrange(x, "B L (H D) -> B H L D", H=heads) for x in (q, k.expand(len(q), -1, -1), v.expand(len(q), -1, -1)))
    return rearrange(F.scaled_dot_product_attention(q, k, v, bias), "B H L D -> B L (H D)")


def probabilities(q: Tensor, k: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """softmax(Q K') [B H P N] in at least float32, for maps and for the constraints on them; attention itself never needs it."""
    q, k = (rearrange(x, "B L (H D) -> B H L D", H=heads) for x in (q, k.expand(len(q), -1, -1)))
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    logits = full(logits)
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


def add_to_rows(out: Tensor, start: int, stop: int, seen: Tensor) -> Tensor:
    """`out` [B P HD] with `seen` added to rows start..stop; the other rows keep their bits.

    Writes into `out` when no gradient is wanted: it is the fresh result of an attention call.
    """
    if start == 0 and stop == len(out):
        return out + seen
    if torch.is_grad_enabled() and (out.requires_grad or seen.requires_grad):
        return torch.cat([out[:start], out[start:stop] + seen, out[stop:]])
    out[start:stop] += seen
    return out
