"""Bounded self-attention: what is inside one subject's region does not attend to what is inside
another's, so that looks do not travel between them (after Bounded Attention, arXiv 2403.16990).
Pure torch.

With the exclusive shares x_s(p) of subject s at position p, the logit of position i to position j
gets

    - sum_{s != t} a_s(i) a_t(j),    a_s = sqrt(-log(max(1 - x_s^2, e^-30)))

which hides j from i (by e^-30) where each is one subject's alone, is 0 where either is nobody's or
shared, and lets 1 - x^2 pass where both have the share x. The sum is a product of few columns, so
it is written into q and k, and no matrix of all positions by all positions is made: any attention
of the host can compute it.

Shapes   B rows · S subjects · P positions · H heads · D head width
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = math.exp(-30)  # what is left of attention between two subjects
COLUMNS = 8  # heads grow by a multiple of it: fast attention asks for that


def exclusive(shares: Tensor) -> Tensor:
    """Shares [B S P] in 0..1 -> how far each position is one subject's alone [B S P]: what others
    share in is nobody's."""
    others = []
    for s in range(shares.shape[1]):
        others.append(torch.cat([shares[:, :s], shares[:, s + 1 :]], 1).neg().add(1).prod(1))
    return shares * torch.stack(others, 1)


def apart(alone: Tensor) -> Tensor:
    """Exclusive shares x [B S P] -> the columns a [B P S] of the sum above, float32."""
    hidden = (1 - alone.float() ** 2).clamp_min(LEAST)
    return hidden.log().neg().clamp_min(0).sqrt().transpose(1, 2).contiguous()


def attend_apart(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    columns: Tensor,
) -> Tensor:
    """Self-attention [B P HD] with the sum above in its logits.

    attend   (q, k, v) [B P HD'] -> softmax(q k' / sqrt(D')) v [B P HD'], for the same heads
    columns  [1|B P S] by `apart`, times 0 where nothing is held apart
    """
    width = q.shape[-1] // heads
    more = -(-columns.shape[-1] // COLUMNS) * COLUMNS
    scale = math.sqrt(width + more)
    others = columns - columns.sum(-1, keepdim=True)
    out = attend(
        _widened(q * (scale / math.sqrt(width)), columns * scale, heads, more),
        _widened(k, others, heads, more),
        _widened(v, columns.new_zeros(columns.shape), heads, more),
    )
    return out.unflatten(-1, (heads, -1))[..., :width].flatten(2)


def _widened(x: Tensor, columns: Tensor, heads: int, more: int) -> Tensor:
    """[B P HD] and [1|B P S] -> [B P H(D + more)], the columns in every head."""
    own = F.pad(columns.to(x), (0, more - columns.shape[-1]))[:, :, None]
    own = own.expand(len(x), -1, heads, -1)
    return torch.cat([x.unflatten(-1, (heads, -1)), own], -1).flatten(2)
