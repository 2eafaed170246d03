"""Regions from masks and boxes: united, grown, kept apart, softened. Pure torch: knows no host.

Shapes   H W the canvas that the regions are worked out on
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import Box, box_mask

FREE = EVERYWHERE, BACKGROUND = "everywhere", "outside the others' regions"
HARDLY = 0.01  # a region that is nowhere more than this is none


@dataclass(frozen=True)
class Shaping:
    """What is done to every region. Pixels are the canvas's.

    feather    softens inwards over so many pixels
    grow       moves the border outwards by so many pixels; negative: inwards
    strength   1 = a subject never acts outside its region; below, it keeps 1 - strength there
    exclusive  where regions overlap, only the earliest of their subjects keeps the place
    free       what a subject without a region may do: act everywhere, or only outside the others'
               regions
    """

    feather: float = 0.0
    grow: int = 0
    strength: float = 1.0
    exclusive: bool = False
    free: str = EVERYWHERE


@dataclass(frozen=True, eq=False)
class Sources:
    """What regions are made from. Subjects are counted from 1.

    boxes  drawn or found boxes
    masks  given masks [h w] by subject; they and the subject's boxes are united
    kept   regions [h w] that subjects without masks and boxes have already: left as they are, but
           the others keep out of them
    """

    boxes: Sequence[Box] = ()
    masks: Mapping[int, Tensor] = field(default_factory=dict)
    kept: Mapping[int, Tensor] = field(default_factory=dict)

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to work on: the largest given mask's, so that masks alone stay as they
        are; else the largest kept region's; without one the image's."""
        masks = self.masks or self.kept
        sizes = [tuple(mask.shape) for mask in masks.values()]
        return max(sizes, key=lambda size: size[0] * size[1]) if sizes else (height, width)


def grow(mask: Tensor, pixels: int) -> Tensor:
    """Move the border of a mask [H W] outwards, or for a negative number inwards, by a square
    brush; the picture's edge is no border."""
    if pixels < 0:
        return 1 - grow(1 - mask, -pixels)
    return _running_max(_running_max(mask, pixels).T, pixels).T.contiguous()


def _running_max(mask: Tensor, radius: int) -> Tensor:
    """The largest value within `radius` columns, by doubling the window."""
    width, window = mask.shape[1], 1
    out = F.pad(mask, (radius, radius), value=-torch.inf)
    while window < 2 * radius + 1:
        shift = min(window, 2 * radius + 1 - window)
        out = torch.maximum(out[:, : out.shape[1] - shift], out[:, shift:])
        window += shift
    return out[:, :width]


def feather_inwards(mask: Tensor, feather: float) -> Tensor:
    """Soften a mask [H W] over about `feather` pixels inside its border; nothing outside it is ever
    opened."""
    if feather <= 0:
        return mask
    radius = max(1, round(feather))
    offsets = torch.arange(-radius, radius + 1, dtype=mask.dtype, device=mask.device)
    kernel = torch.exp(-0.5 * (offsets / (radius / 2)) ** 2)
    kernel = kernel / kernel.sum()
    soft = F.pad(mask[None, None], (radius,) * 4, mode="replicate")
    soft = F.conv2d(F.conv2d(soft, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[0, 0]
    return torch.minimum(mask, (2 * soft - 1).clamp(0, 1))


def resized(mask: Tensor, height: int, width: int) -> Tensor:
    return (
        mask
        if mask.shape == (height, width)
        else F.interpolate(mask[None, None], size=(height, width), mode="area")[0, 0]
    )


def shape_regions(
    names: Sequence[str], sources: Sources, canvas: tuple[int, int], shaping: Shaping
) -> list[Tensor | None]:
    """Each subject's region [H W] in 0..1, or None = everywhere."""
    drawn = {i: resized(mask, *canvas) for i, mask in sources.masks.items()}
    for box in sources.boxes:
        mask = box_mask(box, *canvas)
        drawn[box.subject] = (
            torch.maximum(drawn[box.subject], mask) if box.subject in drawn else mask
        )
    _check_somewhere(drawn, {box.subject for box in sources.boxes}, names)
    drawn = {i: _grown(drawn[i], shaping.grow, i, names) for i in sorted(drawn)}
    kept = {i: mask for i, mask in sources.kept.items() if i not in drawn}
    held = {i: resized(mask.float(), *canvas) for i, mask in kept.items()}
    if shaping.exclusive:
        drawn = keep_apart(drawn, held, names)
    drawn = {i: feather_inwards(mask, shaping.feather) for i, mask in drawn.items()}
    drawn |= background(drawn | held, names) if shaping.free == BACKGROUND else {}
    return [
        soften(drawn[i], shaping.strength) if i in drawn else kept.get(i)
        for i in range(1, len(names) + 1)
    ]


def _check_somewhere(
    drawn: Mapping[int, Tensor], boxed: Set[int], names: Sequence[str]
) -> None:
    """ValueError for a subject that its mask and boxes leave nowhere."""
    for number, mask in drawn.items():
        if mask.max() >= HARDLY:
            continue
        who = f"subject {number} ({names[number - 1]})"
        if number in boxed:
            raise ValueError(f"the boxes of {who} are smaller than a pixel; draw them larger")
        raise ValueError(
            f"mask_{number} is black everywhere, so that {who} could appear nowhere; paint its "
            "region white, or disconnect the mask"
        )


def _grown(mask: Tensor, pixels: int, number: int, names: Sequence[str]) -> Tensor:
    if not pixels:
        return mask
    out = grow(mask, pixels)
    if mask.any() and not out.any():
        raise ValueError(
            f"grow {pixels} leaves nothing of the region of subject {number} "
            f"({names[number - 1]}); use a value closer to 0"
        )
    return out


def keep_apart(
    drawn: Mapping[int, Tensor], held: Mapping[int, Tensor], names: Sequence[str]
) -> dict[int, Tensor]:
    """Regions without overlap: a later subject loses what an earlier one has. `held` regions are
    not cut themselves."""
    out: dict[int, Tensor] = {}
    taken: Tensor | None = None
    for number in sorted({*drawn, *held}):
        mask = drawn[number] if number in drawn else held[number]
        if number in drawn:
            out[number] = mask if taken is None else torch.minimum(mask, 1 - taken)
            if mask.any() and out[number].max() < HARDLY:
                raise ValueError(
                    f"exclusive leaves subject {number} ({names[number - 1]}) without a region: "
                    "earlier subjects cover all of it; move the regions apart, or change the order "
                    "of the subjects"
                )
        taken = mask if taken is None else torch.maximum(taken, mask)
    return out


def background(regions: Mapping[int, Tensor], names: Sequence[str]) -> dict[int, Tensor]:
    """What the regions leave of the picture, for every subject that has none; nobody's regions
    leave everything, and that is no region."""
    without = [i for i in range(1, len(names) + 1) if i not in regions]
    if not regions or not without:
        return {}
    rest = 1 - torch.stack(list(regions.values())).amax(0)
    if rest.max() < HARDLY:
        raise ValueError(
            f"subject {without[0]} ({names[without[0] - 1]}) has no region, and the others' "
            "regions cover the whole image; give it a region, or set free_subjects to "
            f"{EVERYWHERE!r}"
        )
    return dict.fromkeys(without, rest)


def soften(mask: Tensor, strength: float) -> Tensor:
    """Outside its region a subject keeps 1 - strength."""
    return mask if strength >= 1 else 1 - strength * (1 - mask)
