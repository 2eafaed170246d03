"""A subject cut out of its picture, and looks of it that no copy-and-paste could repeat: other size, side, tilt, place and light,
partly covered. Randomness is drawn in one place, from the generator that is passed in.

Shapes   H W picture · L side of the crop in picture pixels · S side of the image encoder's input
Cutout   [4 . .] in 0..1: colours times mask, then the mask; so nothing of the surroundings shines through at the edge
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from torch import Tensor

MARGIN = 0.05       # blank border around the subject, as share of its longer side
BLACK = (0.0, 0.0, 0.0)

# field -> (smallest, largest); a pair must ascend
RANGES = {
    "clean": (0, 1), "scale": (0.05, 4), "flip": (0, 1), "rotation": (0, 180), "translation": (0, 1), "brightness": (0, 0.99),
    "contrast": (0, 0.99), "saturation": (0, 0.99), "hue": (0, 0.5), "occlusion": (0, 1), "occluded": (0, 0.95),
}


@dataclass(frozen=True)
class Augmentation:
    """How far references may differ from the picture. A field outside its range is a ValueError that names it.

    clean        chance that a reference is left as it was cut out, 0..1
    scale        (smallest, largest) factor on the subject's size, 0.05..4; (1, 1) = none
    flip         chance of left and right exchanged, 0..1
    rotation     degrees, uniform within plus and minus it, 0..180
    translation  share of the side, uniform within plus and minus it on both axes, 0..1
    brightness   the factor is uniform within 1 plus and minus it, 0..0.99; contrast and saturation likewise
    hue          turn of the colour circle, uniform within plus and minus it, 0..0.5; small, or a red dog becomes a blue one
    occlusion    chance that a part is covered by a rectangle or from one side, 0..1
    occluded     (smallest, largest) share of the subject's visible pixels that is then covered, 0..0.95
    """

    clean: float = 0.1
    scale: tuple[float, float] = (0.6, 1.1)
    flip: float = 0.5
    rotation: float = 15.0
    translation: float = 0.1
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.02
    occlusion: float = 0.3
    occluded: tuple[float, float] = (0.1, 0.4)

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            ends = value if isinstance(value, (tuple, list)) else (value, value)
            if len(ends) != 2 or not low <= ends[0] <= ends[1] <= high:
                raise ValueError(f"augmentation.{name} is {value!r}, expected within {low} to {high}" + (
                    ", the smaller end first" if isinstance(value, (tuple, list)) else ""))

    @classmethod
    def identity(cls) -> Augmentation:
        """References exactly as they were cut out."""
        return cls(0, (1, 1), 0, 0, 0, 0, 0, 0, 0, 0, (0, 0))


@dataclass(frozen=True)
class Look:
    """One draw of an `Augmentation`. rotation in degrees; shift as share of the side, right and down; covered = share of the subject;
    cover = (rectangle rather than side, its angle or aspect 0..1, its centre among the subject's pixels 0..1)."""

    scale: float = 1.0
    flipped: bool = False
    rotation: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    covered: float = 0.0
    cover: tuple[bool, float, float] = (False, 0.0, 0.0)


def random_look(wanted: Augmentation, generator: torch.Generator) -> Look:
    """Always takes the same count of numbers, so one strength changed leaves the other draws as they were."""
    u = torch.rand(16, generator=generator, dtype=torch.float64).tolist()
    if u[0] < wanted.clean:
        return Look()

    def around(centre: float, width: float, at: float) -> float:
        return centre + width * (2 * at - 1)

    def between(ends: tuple[float, float], at: float) -> float:
        return ends[0] + (ends[1] - ends[0]) * at

    return Look(
        scale=between(wanted.scale, u[1]), flipped=u[2] < wanted.flip, rotation=around(0, wanted.rotation, u[3]),
        shift=(around(0, wanted.translation, u[4]), around(0, wanted.translation, u[5])),
        brightness=around(1, wanted.brightness, u[6]), contrast=around(1, wanted.contrast, u[7]),
        saturation=around(1, wanted.saturation, u[8]), hue=around(0, wanted.hue, u[9]),
        covered=between(wanted.occluded, u[11]) if u[10] < wanted.occlusion else 0.0, cover=(u[12] < 0.5, u[13], u[14]),
    )


# ---------------------------------------------------------------- from the picture to a reference

def reference(pixels: Tensor, mask: Tensor, side: int, wanted: Augmentation, generator: torch.Generator,
              background: tuple[float, float, float] = BLACK) -> Tensor:
    """Picture [3 H W] in 0..1 and mask [H W] in 0..1 -> the subject on a blank background under one random look [3 S S] in 0..1."""
    return on_background(apply_look(resize(cut_out(pixels, mask), side), random_look(wanted, generator)), background)


def cut_out(pixels: Tensor, mask: Tensor, margin: float = MARGIN) -> Tensor:
    """Picture [3 H W] in 0..1 and mask [H W] in 0..1 -> the cutout [4 L L], subject in the middle. ValueError for an empty mask."""
    rows, columns = mask.amax(1).nonzero().flatten(), mask.amax(0).nonzero().flatten()
    if not len(rows):
        raise ValueError("the mask is empty: there is no subject to cut out")
    area = (..., slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    alpha = mask[area].to(pixels)[None]
    cutout = torch.cat([pixels[area] * alpha, alpha])
    height, width = cutout.shape[-2:]
    side = max(height, width) + 2 * round(margin * max(height, width))
    left, top = (side - width) // 2, (side - height) // 2
    return F.pad(cutout, (left, side - width - left, top, side - height - top))


def resize(cutout: Tensor, side: int) -> Tensor:
    """Cutout [4 L L] -> [4 S S]."""
    if cutout.shape[-1] == side:
        return cutout
    return F.interpolate(cutout[None], size=(side, side), mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)


def on_background(cutout: Tensor, background: tuple[float, float, float] = BLACK) -> Tensor:
    """Cutout [4 S S] -> picture [3 S S] in 0..1."""
    return cutout[:3] + (1 - cutout[3:]) * cutout.new_tensor(background).view(3, 1, 1)


def apply_look(cutout: Tensor, look: Look) -> Tensor:
    """Cutout [4 S S] -> [4 S S]. The neutral look gives back the same values."""
    return cover(place(recolour(cutout, look), look), look)


def recolour(cutout: Tensor, look: Look) -> Tensor:
    """Brightness, contrast (around the subject's own mean grey), saturation, hue."""
    if (look.brightness, look.contrast, look.saturation, look.hue) == (1, 1, 1, 0):
        return cutout
    alpha = cutout[3:]
    colours = (cutout[:3] / alpha.clamp_min(1e-4)).clamp(0, 1)
    colours = TF.adjust_brightness(colours, look.brightness)
    grey = (TF.rgb_to_grayscale(colours) * alpha).sum() / alpha.sum().clamp_min(1e-4)
    colours = (grey + look.contrast * (colours - grey)).clamp(0, 1)
    colours = TF.adjust_hue(TF.adjust_saturation(colours, look.saturation), look.hue)
    return torch.cat([colours * alpha, alpha])


def place(cutout: Tensor, look: Look) -> Tensor:
    """Flipped, then turned, resized and moved; what leaves the square is cut off."""
    if look.flipped:
        cutout = cutout.flip(-1)
    if (look.scale, look.rotation, *look.shift) == (1, 0, 0, 0):
        return cutout
    shift = [round(part * cutout.shape[-1]) for part in look.shift]
    bilinear = TF.InterpolationMode.BILINEAR
    return TF.affine(cutout, look.rotation, shift, look.scale, shear=[0.0], interpolation=bilinear, fill=[0.0])


def cover(cutout: Tensor, look: Look) -> Tensor:
    """The stated share of the subject's mask is gone: what lies within a rectangle, or beyond a line, grown until it is enough."""
    alpha = cutout[3].flatten()
    if look.covered <= 0 or not alpha.any():
        return cutout
    order = _nearness(cutout[3], look).flatten().argsort()
    hidden = torch.empty_like(alpha, dtype=torch.bool)
    sums = alpha[order].double().cumsum(0)
    hidden[order] = sums <= look.covered * sums[-1]
    return cutout * ~hidden.view_as(cutout[3])


def _nearness(alpha: Tensor, look: Look) -> Tensor:
    """How early each pixel is covered [S S], smallest first."""
    rectangle, at, centre = look.cover
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in alpha.shape), indexing="ij")
    if not rectangle:
        angle = 2 * math.pi * at
        return x * math.cos(angle) + y * math.sin(angle)
    inside = alpha.flatten().nonzero().flatten()
    row, column = divmod(int(inside[int(centre * len(inside))]), alpha.shape[1])
    aspect = 2 ** (2 * at - 1)              # half to twice as wide as tall
    return torch.maximum((x - column - 0.25).abs() / aspect, (y - row - 0.125).abs() * aspect)      # off the grid: few ties
