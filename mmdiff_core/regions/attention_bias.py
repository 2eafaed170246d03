"""Constraint masks at inference: which latent position may see which subject, on any layer's grid.

Shapes   S subjects · N tokens · h w a layer's grid · P = h w
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# height, width, top, left in latent pixels: the part a cond covers
Area = tuple[int, int, int, int]


def crop_to_grid(
    mask: Tensor, grid: tuple[int, int], latent: tuple[int, int], area: Area | None
) -> Tensor:
    """Masks [B C H W] resized to a layer's grid (h, w); with `area` the part of the picture that
    the cond covers is cropped out of the mask first, never squeezed. `latent` is the whole latent's
    (height, width). A position holds the share of its area that is masked, so nothing bleeds over a
    border."""
    mask = mask.float()
    if area is not None:
        height, width, top, left = area
        mask = F.interpolate(mask, size=latent, mode="area")
        mask = mask[..., top : top + height, left : left + width]
    return F.interpolate(mask, size=grid, mode="area").clamp(0, 1)


def on_grid(
    mask: Tensor, grid: tuple[int, int], latent: tuple[int, int], area: Area | None
) -> Tensor:
    """The same for one mask [H W] -> [h w]."""
    return crop_to_grid(mask[None, None], grid, latent, area)[0, 0]


def shares(
    masks: Sequence[Tensor | None],
    grid: tuple[int, int],
    latent: tuple[int, int],
    area: Area | None,
    device: torch.device,
) -> Tensor:
    """How much each place is open to each subject [1 S P], in 0..1; a None mask = everywhere."""
    return torch.stack(
        [
            torch.ones(grid, device=device)
            if mask is None
            else on_grid(mask.to(device), grid, latent, area)
            for mask in masks
        ]
    ).flatten(1)[None]


def token_bias(seen: Tensor, tokens: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Shares [B S P] -> logit bias [B 1 P N] of subjects with `tokens[s]` tokens each: a place sees
    the tokens of a subject in proportion to its share, and where no subject is allowed all alike
    (the gate closes it)."""
    # exp(...) is exactly 0, and no NaN where all is hidden
    hidden = torch.finfo(dtype).min / 2
    bias = torch.where(seen > 0, seen.clamp_min(1e-6).log(), torch.full_like(seen, hidden))
    bias = torch.where(seen.amax(1, keepdim=True) > 0, bias, torch.zeros_like(bias))
    per_token = torch.cat(
        [row.expand(-1, count, -1) for row, count in zip(bias.split(1, 1), tokens, strict=True)], 1
    )
    return per_token.transpose(1, 2)[:, None].to(dtype).contiguous()


HELD = -12.0  # logit bias of a held noun where its subject may not be: a share of 6e-6


def noun_bias(seen: Tensor, nouns: Tensor, dtype: torch.dtype) -> Tensor:
    """Shares [B S P] -> logit bias [B 1 P T] that holds every subject's nouns (`nouns` [T S] by
    `maps.members`) to its places."""
    held = seen.clamp_min(1e-6).log().clamp_min(HELD)
    return (nouns.to(held) @ held).transpose(1, 2)[:, None].to(dtype).contiguous()
