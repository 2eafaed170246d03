"""Constraint masks at inference: which latent position may see which subject, on any layer's grid.

Shapes   S subjects · N tokens · h w a layer's grid · P = h w
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Area = tuple[int, int, int, int]     # height, width, top, left in latent pixels: the part a cond covers


def on_grid(mask: Tensor, grid: tuple[int, int], latent: tuple[int, int], area: Area | None) -> Tensor:
    """A mask [H W] resized to a layer's grid (h, w); with `area` the part of the picture that the cond covers is cropped
    out of the mask first, never squeezed. `latent` is the whole latent's (height, width). A position holds the share of
    its area that is masked, so nothing bleeds over a border."""
    mask = mask[None, None].float()
    if area is not None:
        height, width, top, left = area
        mask = F.interpolate(mask, size=latent, mode="area")
        mask = mask[..., top:top + height, left:left + width]
    return F.interpolate(mask, size=grid, mode="area")[0, 0].clamp(0, 1)


def regions(masks: Sequence[Tensor | None], tokens: Sequence[int], grid: tuple[int, int],
            latent: tuple[int, int], area: Area | None, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Logit bias [1 1 P N] and output gate [1 P 1] of subjects with `tokens[s]` tokens each; a None mask = everywhere.

    A position sees the tokens of a subject in proportion to its mask; where no subject is allowed the gate is 0.
    """
    seen = torch.stack([
        torch.ones(grid, device=device) if mask is None else on_grid(mask.to(device), grid, latent, area) for mask in masks
    ]).flatten(1)
    gate = seen.amax(0)
    hidden = torch.finfo(dtype).min / 2                      # exp(...) is exactly 0, and no NaN where all is hidden
    bias = torch.where(seen > 0, seen.clamp_min(1e-6).log(), torch.full_like(seen, hidden))
    bias = torch.where(gate > 0, bias, torch.zeros_like(bias))
    per_token = torch.cat([row.expand(count, -1) for row, count in zip(bias.split(1), tokens, strict=True)])
    return per_token.T[None, None].to(dtype).contiguous(), gate[None, :, None].to(dtype)
