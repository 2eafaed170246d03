"""Aspect-ratio buckets: picture sizes near one area, each picture in the nearest, and an order in which batches share a bucket.

Shapes   H W picture · h w bucket · n subjects     All sizes are (height, width) in pixels.
"""
from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]


def bucket_sizes(side: int = 512, multiple: int = 64, aspect: float = 2.0) -> tuple[Size, ...]:
    """All sizes of whole `multiple`s with at most side x side pixels, as large as that allows, whose longer side is at most `aspect`
    times the shorter; from flat to tall. ValueError when `side` is smaller than `multiple` or `aspect` below 1."""
    if multiple < 1 or side < multiple or aspect < 1:
        raise ValueError(
            f"no buckets for side {side}, multiple {multiple} and aspect {aspect}: the multiple must be at least 1, the side at least "
            "the multiple, the aspect at least 1"
        )
    across = [(multiple * k, side * side // (multiple * k) // multiple * multiple) for k in range(1, side // multiple + 1)]
    flat = [(h, w) for h, w in across if w <= aspect * h]
    return tuple(sorted({*flat, *((w, h) for h, w in flat)}, key=lambda s: s[0] / s[1]))


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> int:
    """Index of the bucket whose aspect ratio is nearest, in octaves; the first of equals."""
    wanted = math.log(size[0] / size[1])
    return min(range(len(buckets)), key=lambda i: abs(math.log(buckets[i][0] / buckets[i][1]) - wanted))


# ---------------------------------------------------------------- a picture into its bucket

def fit(pixels: Tensor, masks: Tensor, boxes: Tensor, bucket: Size) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Crop to the bucket's shape where most of the subjects stays, then resize.

    pixels [3 H W] in 0..1 -> [3 h w] in 0..1         masks [n H W] in 0..1 -> [n h w] in 0..1, a pixel's share
    boxes  [n 4] x0 y0 x1 y1 pixels -> the same, clipped     and the share of every mask that was kept [n] in 0..1
    """
    top, left, height, width = crop_window(masks, tuple(pixels.shape[-2:]), bucket)
    area = (..., slice(top, top + height), slice(left, left + width))
    kept = masks[area].float().sum((1, 2)) / masks.float().sum((1, 2)).clamp_min(1e-6)
    scale = torch.tensor([bucket[1] / width, bucket[0] / height] * 2)
    moved = (boxes.float() - torch.tensor([left, top] * 2)) * scale
    moved = torch.minimum(moved.clamp_min(0), torch.tensor([bucket[1], bucket[0]] * 2, dtype=torch.float32))
    return _resize(pixels[area], bucket), _resize(masks[area].float(), bucket), moved, kept


def _resize(images: Tensor, size: Size) -> Tensor:
    if images.shape[-2:] == size or not len(images):
        return images.reshape(len(images), *size)
    return F.interpolate(images[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)


def crop_window(masks: Tensor, size: Size, bucket: Size) -> tuple[int, int, int, int]:
    """(top, left, height, width): the largest part of a picture of this size with the bucket's shape, where the worst kept of the
    masks [n H W] keeps most; then where all together keep most; then nearest to the middle."""
    scale = min(size[0] / bucket[0], size[1] / bucket[1])
    height, width = (max(1, min(full, round(part * scale))) for full, part in zip(size, bucket))
    return _best_start(masks, 1, height), _best_start(masks, 2, width), height, width


def _best_start(masks: Tensor, axis: int, length: int) -> int:
    """First row (axis 1) or column (axis 2) of the best window of `length`."""
    full = masks.shape[axis]
    starts = torch.arange(full - length + 1)
    if len(starts) == 1:
        return 0
    ranks = -(starts - (full - length) / 2).abs() / full           # in -0.5..0: less than any share that counts
    if len(masks):
        profile = masks.sum(3 - axis, dtype=torch.float64)
        sums = F.pad((profile / profile.sum(1, keepdim=True).clamp_min(1e-6)).cumsum(1), (1, 0))
        kept = (sums[:, length:] - sums[:, :full - length + 1]).mul(1e4).round()       # n, starts; in hundredths of a percent
        ranks = ranks + kept.amin(0) * (1e4 * len(masks) + 1) + kept.sum(0)
    return int(ranks.argmax())


# ---------------------------------------------------------------- the order of a run

def seeded(*key: object) -> torch.Generator:
    """A CPU generator that follows from the key alone, on any machine."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


@lru_cache(maxsize=64)      # a few epochs of a few buckets; a pure function, kept because every example asks
def permutation(count: int, *key: object) -> Tensor:
    """0..count-1 in an order that follows from the key [count]."""
    return torch.randperm(count, generator=seeded(*key))


class Place(NamedTuple):
    """Which picture is number so-and-so: place `position` of the `turn`-th permutation of a bucket's pictures."""

    bucket: int
    turn: int
    position: int


@dataclass(frozen=True)
class BucketOrder:
    """An endless order of pictures in which aligned groups of `group` share a bucket, and every picture comes equally often.

    Each bucket is read in one permutation after the other, cut into groups; a group may span two of them. Epoch e has of each bucket
    the groups that are full after e + 1 times its pictures but not after e, in an order of its own; so what is left over is not
    dropped and not repeated, it comes in the next epoch.
    """

    counts: tuple[int, ...]
    seed: int
    group: int

    def at(self, index: int) -> Place:
        """Place of example `index`, from 0."""
        number, within = divmod(index, self.group)
        epoch = self.epoch_of(number)
        bucket, group = self._group(epoch, number - self.groups_before(epoch))
        turn, position = divmod(group * self.group + within, self.counts[bucket])
        return Place(bucket, turn, position)

    def groups_before(self, epoch: int) -> int:
        return sum(epoch * count // self.group for count in self.counts)

    def epoch_of(self, number: int) -> int:
        """Epoch of group `number`: the last one that begins at or before it."""
        epoch = number * self.group // sum(self.counts)
        while self.groups_before(epoch + 1) <= number:
            epoch += 1
        return epoch

    def _group(self, epoch: int, place: int) -> tuple[int, int]:
        """(bucket, the bucket's group) at a place of an epoch."""
        first = [epoch * count // self.group for count in self.counts]
        sizes = [(epoch + 1) * count // self.group - start for count, start in zip(self.counts, first)]
        number = int(permutation(sum(sizes), self.seed, "groups", epoch)[place])
        for bucket, size in enumerate(sizes):
            if number < size:
                return bucket, first[bucket] + number
            number -= size
        raise AssertionError("an epoch's places are as many as its groups")
