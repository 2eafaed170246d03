"""Where the subject is on its reference images: from masks, or from boxes of a detector.

Shapes   R images · H W their size in pixels
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..regions.boxes import corner_and_size
from ..regions.masks import checked_masks
from ..untrusted import quoted


def reference_regions(
    sizes: Sequence[tuple[int, int]], mask: object, boxes: object
) -> list[Tensor | None]:
    """Where the subject is on each image, of which `sizes` has height and width in pixels: from
    MASK [1|R h w], or from BOUNDING_BOX (one {x, y, width, height}, a list of them, or a list for
    each image, of which the first counts), or nowhere in particular. ValueError says what does not
    fit."""
    count = len(sizes)
    given = boxes is not None and not (isinstance(boxes, (list, tuple)) and not boxes)
    if mask is not None and given:
        raise ValueError("both region and boxes are connected; connect only one of them")
    if mask is not None:
        return _masks(mask, sizes)
    if not given:
        return [None] * count
    firsts = [_first(box) for box in _listed(boxes)]
    if len(firsts) not in (1, count):
        raise ValueError(
            f"boxes for {len(firsts)} images, but there are {count}; connect one box, or one per "
            "image"
        )
    each = firsts * (count if len(firsts) == 1 else 1)
    return [
        _box_mask(box, *size, i) for i, (box, size) in enumerate(zip(each, sizes, strict=True), 1)
    ]


def _masks(mask: object, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    masks = checked_masks(mask, "region")
    if len(masks) not in (1, len(sizes)):
        raise ValueError(
            f"{len(masks)} masks for {len(sizes)} images; connect one mask, or one per image"
        )
    return [
        one if one.shape == size else F.interpolate(one[None, None], size=size, mode="area")[0, 0]
        for one, size in zip(masks.expand(len(sizes), -1, -1), sizes, strict=True)
    ]


def _listed(boxes: object) -> Sequence:
    if isinstance(boxes, Mapping):
        return [boxes]
    if isinstance(boxes, (list, tuple)):
        return boxes
    raise ValueError(
        f"boxes is {quoted(boxes)}, expected boxes of x, y, width and height in pixels"
    )


def _first(box: object) -> object:
    """The box of one image, or the first of its boxes; None where it has none."""
    if isinstance(box, (list, tuple)):
        return box[0] if box else None
    return box


def _box_mask(box: object, height: int, width: int, number: int) -> Tensor:
    if box is None:
        raise ValueError(f"image {number} has no box; add one, or leave the image out")
    x, y, wide, high = corner_and_size(box, f"the box of image {number}")
    left, right = (round(min(max(edge, 0), width)) for edge in (x, x + wide))
    top, bottom = (round(min(max(edge, 0), height)) for edge in (y, y + high))
    mask = torch.zeros(height, width)
    mask[top : max(top, bottom), left : max(left, right)] = 1
    if not mask.any():
        raise ValueError(
            f"the box {quoted(box)} lies outside image {number} of {width} x {height} pixels"
        )
    return mask
