"""MASK as ComfyUI's nodes give it, checked.

Shapes   H W the mask's size in pixels
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..untrusted import quoted


def checked_masks(mask: object, what: str) -> Tensor:
    """MASK [B H W] or [H W] -> [B H W] float32 on the CPU, in 0..1. ValueError for anything else:
    another type or form, no pixels, values that are not numbers."""
    if not torch.is_tensor(mask) or mask.ndim not in (2, 3, 4):
        raise ValueError(f"{what} is {quoted(mask)}, expected a mask")
    if 0 in mask.shape:
        raise ValueError(
            f"{what} is empty: its size is {' x '.join(map(str, mask.shape))}; connect a mask with "
            "at least one pixel"
        )
    masks = mask.reshape(-1, *mask.shape[-2:]).float().cpu()
    if not bool(torch.isfinite(masks).all()):
        raise ValueError(f"{what} contains values that are not finite numbers (NaN or infinite)")
    return masks.clamp(0, 1)


def one_mask(mask: object, what: str) -> Tensor:
    """The same for a single mask: [H W]."""
    masks = checked_masks(mask, what)
    if len(masks) != 1:
        raise ValueError(f"{what} is a batch of {len(masks)} masks; each input takes a single mask")
    return masks[0]
