"""Aspect-ratio buckets: image sizes of about one area; an image goes into the nearest one.

Shapes   H W image · h w bucket · n subjects     All sizes are (height, width) in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]


def bucket_sizes(side: int = 512, multiple: int = 64, aspect: float = 2.0) -> tuple[Size, ...]:
    """All sizes in whole `multiple`s with at most side x side pixels, from flat to tall.

    Each is as large as that allows, and its longer side is at most `aspect` times the shorter.
    ValueError when `side` is smaller than `multiple`, or `aspect` is below 1.
    """
    if multiple < 1 or side < multiple or aspect < 1:
        raise ValueError(
            f"no buckets for side {side}, multiple {multiple} and aspect {aspect}: the multiple "
            "must be at least 1, the side at least the multiple, the aspect at least 1"
        )
    sizes: set[Size] = set()
    for height in range(multiple, side + 1, multiple):
        width = side * side // height // multiple * multiple
        if width <= aspect * height:
            sizes |= {(height, width), (width, height)}
    return tuple(sorted(sizes, key=lambda size: size[0] / size[1]))


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> int:
    """Index of the bucket whose aspect ratio is nearest, in octaves; the first of equals."""
    wanted = math.log(size[0] / size[1])
    distances = [abs(math.log(height / width) - wanted) for height, width in buckets]
    return distances.index(min(distances))


class Crop(NamedTuple):
    """Part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, images: Tensor) -> Tensor:
        """Images [... H W] -> their part [... height width]."""
        rows = slice(self.top, self.top + self.height)
        return images[..., rows, self.left : self.left + self.width]


class Cropped(NamedTuple):
    """An image in its bucket: pixels [3 h w] in 0..1, masks [n h w] in 0..1 (a pixel's share).

    kept  the share of every mask that the crop left [n], 0..1
    """

    pixels: Tensor
    masks: Tensor
    kept: Tensor


def crop_to_bucket(pixels: Tensor, masks: Tensor, bucket: Size) -> Cropped:
    """pixels [3 H W] and masks [n H W] in 0..1, cropped and resized where most of the subjects
    stays."""
    crop = best_crop(masks, tuple(masks.shape[-2:]), bucket)
    return Cropped(_resize(crop.of(pixels), bucket), *crop_masks(masks, crop, bucket))


def crop_masks(masks: Tensor, crop: Crop, bucket: Size) -> tuple[Tensor, Tensor]:
    """Masks [n H W] in 0..1 -> the crop's [n h w], and the share of each that it left [n]."""
    part = crop.of(masks).float()
    kept = part.sum((1, 2)) / masks.float().sum((1, 2)).clamp_min(1e-6)
    return _resize(part, bucket), kept


def _resize(images: Tensor, size: Size) -> Tensor:
    if images.shape[-2:] == size or not len(images):
        return images.reshape(len(images), *size)
    resized = F.interpolate(
        images[None], size=size, mode="bilinear", antialias=True, align_corners=False
    )
    return resized[0].clamp(0, 1)


def best_crop(masks: Tensor, size: Size, bucket: Size) -> Crop:
    """The largest part of an image of this size that has the bucket's shape.

    Of all positions, the one where the worst kept of the masks [n H W] keeps most; then where all
    together keep most; then the one nearest to the middle.
    """
    scale = min(size[0] / bucket[0], size[1] / bucket[1])
    height, width = (max(1, min(full, round(part * scale))) for full, part in zip(size, bucket))
    return Crop(_best_start(masks, 1, height), _best_start(masks, 2, width), height, width)


def _best_start(masks: Tensor, axis: int, length: int) -> int:
    """First row (axis 1) or column (axis 2) of the best crop of `length`."""
    full = masks.shape[axis]
    starts = torch.arange(full - length + 1)
    if len(starts) == 1:
        return 0
    # -0.5..0: less than any share that counts
    ranks = -(starts - (full - length) / 2).abs() / full
    if len(masks):
        profile = masks.sum(3 - axis, dtype=torch.float64)
        shares = profile / profile.sum(1, keepdim=True).clamp_min(1e-6)
        sums = F.pad(shares.cumsum(1), (1, 0))
        # [n starts], in hundredths of a percent
        kept = (sums[:, length:] - sums[:, : full - length + 1]).mul(1e4).round()
        ranks = ranks + kept.amin(0) * (1e4 * len(masks) + 1) + kept.sum(0)
    return int(ranks.argmax())
