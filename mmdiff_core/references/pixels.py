"""Reference picture -> the pixels an image encoder expects, exactly as released (datasets.py of the
official code)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MARGIN = 0.05  # around a cut-out, as share of its longer side


def to_uint8(image: Tensor) -> Tensor:
    """ComfyUI's IMAGE values, float 0..1, as the bytes they came from."""
    return (image.float().clamp(0, 1) * 255).round().to(torch.uint8)


def pad_to_square(image: Tensor) -> Tensor:
    """[3 h w] with black bars of |h - w| // 2 on both sides; an odd difference leaves one pixel,
    as in the official code."""
    height, width = image.shape[-2:]
    bar = abs(height - width) // 2
    return F.pad(image, (bar, bar, 0, 0) if height > width else (0, 0, bar, bar))


def object_pixels(image: Tensor, size: int = 224) -> Tensor:
    """uint8 [3 h w] -> float [3 size size] in 0..1: padded, resized bilinear with antialias,
    rounded to bytes, / 255."""
    padded = pad_to_square(image).float()[None]
    resized = F.interpolate(
        padded, size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return resized[0].round().clamp(0, 255) / 255


def cut_out(image: Tensor, region: Tensor) -> Tensor:
    """uint8 [3 H W] and where the subject is [H W] in 0..1 -> uint8 [3 h w]: what lies around it
    black, cropped to it with a margin, as the subjects of the training data are. ValueError for an
    empty region."""
    inside = region > 0.5
    rows, columns = (inside.any(axis).nonzero().flatten() for axis in (1, 0))
    if not len(rows):
        raise ValueError("the region is empty: it covers no part of the image")
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    cropped = (
        (image.float() * region.clamp(0, 1)).round().to(torch.uint8)[:, top:bottom, left:right]
    )
    margin = round(MARGIN * max(bottom - top, right - left))
    return F.pad(cropped, (margin,) * 4)


def reference_regions(images: Tensor, mask: Tensor | None, boxes: object) -> list[Tensor | None]:
    """Where the subject is on each picture of IMAGE [R H W 3]: from MASK [1|R h w], or from
    BOUNDING_BOX (one {x, y, width, height}, a list of them, or a list for each picture, of which
    the first counts), or nowhere in particular. ValueError says what does not fit."""
    count, height, width = images.shape[:3]
    if mask is not None and boxes:
        raise ValueError("both region and boxes are connected; connect only one of them")
    if mask is not None:
        mask = mask.reshape(-1, *mask.shape[-2:]).float()
        if len(mask) not in (1, count):
            raise ValueError(
                f"{len(mask)} masks for {count} images; connect one mask, or one per image"
            )
        if mask.shape[-2:] != (height, width):
            mask = F.interpolate(mask[:, None], size=(height, width), mode="area")[:, 0]
        return list(mask.expand(count, -1, -1))
    if not boxes:
        return [None] * count
    given = [boxes] if isinstance(boxes, dict) else list(boxes)
    firsts = [box if isinstance(box, dict) else (box[0] if len(box) else None) for box in given]
    if len(firsts) not in (1, count):
        raise ValueError(
            f"boxes for {len(firsts)} images, but there are {count}; connect one box, or one per "
            "image"
        )
    return [
        _box_mask(box, height, width, i)
        for i, box in enumerate(firsts * (count if len(firsts) == 1 else 1), 1)
    ]


def _box_mask(box: dict | None, height: int, width: int, number: int) -> Tensor:
    if box is None:
        raise ValueError(f"image {number} has no box; add one, or leave the image out")
    left, top = max(0, round(box["x"])), max(0, round(box["y"]))
    mask = torch.zeros(height, width)
    mask[
        top : max(top, round(box["y"] + box["height"])),
        left : max(left, round(box["x"] + box["width"])),
    ] = 1
    if not mask.any():
        raise ValueError(f"the box {box} lies outside image {number} of {width} x {height} pixels")
    return mask


def normalise(pixels: Tensor) -> Tensor:
    """Pixels [... 3 h w] in 0..1 as CLIP wants them."""
    mean, std = (
        torch.tensor(x, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1)
        for x in (CLIP_MEAN, CLIP_STD)
    )
    return (pixels - mean) / std
