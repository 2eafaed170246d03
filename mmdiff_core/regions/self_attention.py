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
from typing import NamedTuple

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


class ApartColumns(NamedTuple):
    """What q and k of one width get beside their own columns in every head [1|B P 1 C]; made once a
    run.

    own     of q: a, times the square root of the new width
    others  of k: minus the sum of the others' a
    """

    own: Tensor
    others: Tensor

    @classmethod
    def of(cls, columns: Tensor, width: int, dtype: torch.dtype) -> ApartColumns:
        """From `apart`'s [1|B P S], for heads of this width."""
        more = -(-columns.shape[-1] // COLUMNS) * COLUMNS
        others = columns - columns.sum(-1, keepdim=True)
        pair = (columns * math.sqrt(width + more), others)
        room = (0, more - columns.shape[-1])
        return cls(*(F.pad(x, room)[:, :, None].to(dtype).contiguous() for x in pair))


def attend_apart(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    columns: ApartColumns,
) -> Tensor:
    """Self-attention [B P HD] with the sum above in its logits.

    attend   (q, k, v) [B P HD'] -> softmax(q k' / sqrt(D')) v [B P HD'], for the same heads
    columns  for heads of width D; `own` times 0 where nothing is to be kept apart
    """
    q, k, v = (x.unflatten(-1, (heads, -1)) for x in (q, k, v))
    width, more = q.shape[-1], columns.own.shape[-1]
    rows = len(q), -1, heads, -1
    wide_q = torch.cat([q * math.sqrt((width + more) / width), columns.own.expand(rows)], -1)
    wide_k = torch.cat([k, columns.others.expand(rows)], -1)
    out = attend(wide_q.flatten(2), wide_k.flatten(2), F.pad(v, (0, more)).flatten(2))
    return out.unflatten(-1, (heads, -1))[..., :width].flatten(2)
