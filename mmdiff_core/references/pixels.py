"""Reference image -> the pixels an image encoder expects, exactly as released (datasets.py of the
official code)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from .regions import reference_regions

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MARGIN = 0.05  # around a cut-out, as share of its longer side
NO_MORE: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class ReferenceImages:
    """The reference images of one subject.

    pixels   R of uint8 [3 H W], each of a size of its own
    regions  where the subject is on each of them [H W] in 0..1, or None
    """

    pixels: tuple[Tensor, ...]
    regions: tuple[Tensor | None, ...]


def read_references(
    images: object,
    region: object = None,
    boxes: object = None,
    more: Mapping[str, object] = NO_MORE,
) -> ReferenceImages:
    """IMAGE [R H W 1|3|4] and `more` of them by the names of their inputs, and where the subject
    is: MASK or BOUNDING_BOX, as `regions.reference_regions` reads them. ValueError says what cannot
    be used."""
    pixels: list[Tensor] = []
    for name, batch in {"image": images, **more}.items():
        pixels += to_uint8(checked_images(batch, name).cpu()).movedim(-1, 1)
    sizes = [tuple(each.shape[-2:]) for each in pixels]
    return ReferenceImages(tuple(pixels), tuple(reference_regions(sizes, region, boxes)))


def checked_images(images: object, what: str = "image") -> Tensor:
    """IMAGE [R H W C] with 1, 3 or 4 channels -> [R H W 3]: grey repeated, alpha dropped.
    ValueError for anything else: another type or form, no image, no pixels, values that are not
    numbers."""
    if not torch.is_tensor(images) or images.ndim != 4:
        kind = "None" if images is None else f"of type {type(images).__name__}"
        form = f"a tensor of {images.ndim} axes" if torch.is_tensor(images) else kind
        raise ValueError(f"{what} is {form}, expected images (IMAGE)")
    count, height, width, channels = images.shape
    if not count:
        raise ValueError(f"{what} is an empty batch; connect at least one image")
    if not height or not width:
        raise ValueError(f"{what} has a size of {width} x {height} pixels; connect a larger image")
    if channels not in (1, 3, 4):
        raise ValueError(
            f"{what} has {channels} channels, expected 1 (grey), 3 (RGB) or 4 (RGB and alpha)"
        )
    usable = torch.isfinite(images).flatten(1).all(1)
    if not bool(usable.all()):
        number = 1 + int((~usable).nonzero()[0])
        raise ValueError(
            f"{what} {number} of {count} contains values that are not finite numbers (NaN or "
            "infinite): the node that made it failed; look at it with Preview Image"
        )
    return images.expand(-1, -1, -1, 3) if channels == 1 else images[..., :3]


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


def enlarged(seen: Tensor, side: int = 128) -> Tensor:
    """Images [R h w 3] as they are, or, where they are smaller than `side`, enlarged by whole
    pixels for display."""
    times = max(1, -(-side // min(seen.shape[1:3])))
    return seen.repeat_interleave(times, 1).repeat_interleave(times, 2)


def reduced(images: Tensor, side: int = 768) -> Tensor:
    """Images [R h w 3] as they are, or, where they are larger than `side`, as small as that for
    display."""
    scale = side / max(images.shape[1:3])
    if scale >= 1:
        return images
    size = [max(1, round(length * scale)) for length in images.shape[1:3]]
    return F.interpolate(images.movedim(-1, 1), size=size, mode="area").movedim(1, -1)


def thumbnails(pixels: Tensor, side: int) -> Tensor:
    """What the image encoder read [R 3 S S] in 0..1 -> [R side side 3] uint8, to recognise a saved
    subject by."""
    small = F.interpolate(
        pixels.float().cpu(),
        size=(side, side),
        mode="area" if pixels.shape[-1] >= side else "nearest",
    )
    return (small.clamp(0, 1) * 255).round().byte().movedim(1, -1).contiguous()


def normalise(pixels: Tensor) -> Tensor:
    """Pixels [... 3 h w] in 0..1 as CLIP wants them."""
    mean, std = (
        torch.tensor(x, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1)
        for x in (CLIP_MEAN, CLIP_STD)
    )
    return (pixels - mean) / std
