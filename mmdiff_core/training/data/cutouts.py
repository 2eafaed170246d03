"""A subject cut out of its image, and the references that are made from it.

Shapes   H W image · L side of the crop in image pixels · S side of the image encoder's input
Cutout   [4 . .] in 0..1: colours times mask, then the mask; so nothing of the surroundings shows
         at the subject's edge
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from torch import Tensor

from .augment import Variation

MARGIN = 0.05  # blank border around the subject, as share of its longer side
BLACK = (0.0, 0.0, 0.0)

Colour = tuple[float, float, float]


def cut_out(pixels: Tensor, mask: Tensor, margin: float = MARGIN) -> Tensor:
    """Pixels [3 H W] and mask [H W], in 0..1 -> the cutout [4 L L] with the subject in the middle.

    ValueError for an empty mask.
    """
    rows, columns = mask.amax(1).nonzero().flatten(), mask.amax(0).nonzero().flatten()
    if not len(rows):
        raise ValueError("the mask is empty: there is no subject to cut out")
    down = slice(int(rows[0]), int(rows[-1]) + 1)
    across = slice(int(columns[0]), int(columns[-1]) + 1)
    alpha = mask[down, across].to(pixels)[None]
    cutout = torch.cat([pixels[:, down, across] * alpha, alpha])
    height, width = cutout.shape[-2:]
    side = max(height, width) + 2 * round(margin * max(height, width))
    left, top = (side - width) // 2, (side - height) // 2
    return F.pad(cutout, (left, side - width - left, top, side - height - top))


def reference(
    cutout: Tensor, side: int, variation: Variation, background: Colour = BLACK
) -> Tensor:
    """Cutout [4 L L] -> the subject on a blank background under this variation [3 S S] in 0..1."""
    return on_background(vary(resize(cutout, side), variation), background)


def resize(cutout: Tensor, side: int) -> Tensor:
    """Cutout [4 L L] -> [4 S S]."""
    if cutout.shape[-1] == side:
        return cutout
    resized = F.interpolate(
        cutout[None], size=(side, side), mode="bilinear", antialias=True, align_corners=False
    )
    return resized[0].clamp(0, 1)


def on_background(cutout: Tensor, background: Colour = BLACK) -> Tensor:
    """Cutout [4 S S] -> pixels [3 S S] in 0..1."""
    return cutout[:3] + (1 - cutout[3:]) * cutout.new_tensor(background).view(3, 1, 1)


def vary(cutout: Tensor, variation: Variation) -> Tensor:
    """Cutout [4 S S] -> [4 S S]. The neutral variation returns the same values."""
    return _cover(_move(_recolour(cutout, variation), variation), variation)


def _recolour(cutout: Tensor, v: Variation) -> Tensor:
    """Brightness, contrast (around the subject's own mean grey), saturation, hue."""
    if (v.brightness, v.contrast, v.saturation, v.hue) == (1, 1, 1, 0):
        return cutout
    alpha = cutout[3:]
    colours = (cutout[:3] / alpha.clamp_min(1e-4)).clamp(0, 1)
    colours = TF.adjust_brightness(colours, v.brightness)
    grey = (TF.rgb_to_grayscale(colours) * alpha).sum() / alpha.sum().clamp_min(1e-4)
    colours = (grey + v.contrast * (colours - grey)).clamp(0, 1)
    colours = TF.adjust_hue(TF.adjust_saturation(colours, v.saturation), v.hue)
    return torch.cat([colours * alpha, alpha])


def _move(cutout: Tensor, v: Variation) -> Tensor:
    """Flip, then rotate, resize and shift; what leaves the square is cut off."""
    if v.flipped:
        cutout = cutout.flip(-1)
    if (v.scale, v.rotation, *v.shift) == (1, 0, 0, 0):
        return cutout
    shift = [round(part * cutout.shape[-1]) for part in v.shift]
    bilinear = TF.InterpolationMode.BILINEAR
    return TF.affine(
        cutout, v.rotation, shift, v.scale, shear=[0.0], interpolation=bilinear, fill=[0.0]
    )


def _cover(cutout: Tensor, v: Variation) -> Tensor:
    """Remove the stated share of the mask, as a rectangle or as all that lies beyond a line."""
    alpha = cutout[3].flatten()
    if v.covered <= 0 or not alpha.any():
        return cutout
    order = _nearness(cutout[3], v).flatten().argsort()
    hidden = torch.empty_like(alpha, dtype=torch.bool)
    sums = alpha[order].double().cumsum(0)
    hidden[order] = sums <= v.covered * sums[-1]
    return cutout * ~hidden.view_as(cutout[3])


def _nearness(alpha: Tensor, v: Variation) -> Tensor:
    """How early each pixel is covered [S S], smallest first."""
    rectangle, at, centre = v.cover
    y, x = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in alpha.shape), indexing="ij"
    )
    if not rectangle:
        angle = 2 * math.pi * at
        return x * math.cos(angle) + y * math.sin(angle)
    inside = alpha.flatten().nonzero().flatten()
    row, column = divmod(int(inside[int(centre * len(inside))]), alpha.shape[1])
    aspect = 2 ** (2 * at - 1)  # half to twice as wide as tall
    # a quarter and an eighth of a pixel off the grid: few ties
    across, down = (x - column - 0.25).abs(), (y - row - 0.125).abs()
    return torch.maximum(across / aspect, down * aspect)
