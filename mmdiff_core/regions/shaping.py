"""Where each subject may act, as a person draws it: boxes and masks, grown, kept apart, softened, and shown. Pure torch: knows no host.

Shapes   S subjects · H W the canvas the regions are worked out on
"""
from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

COLOURS = ("#ff6b5e", "#4fa3ff", "#ffc53d", "#5fd17a", "#c584ff", "#3ad6d0")     # subject 1 to 6; web/box_maths.js has the same
MOST = len(COLOURS)
FREE = EVERYWHERE, BACKGROUND = "everywhere", "outside the others' regions"
LARGEST_PREVIEW = 512
HARDLY = 0.01        # a region that is nowhere more than this is none
EXAMPLE = '[{"subject": 1, "x": 0, "y": 0, "width": 0.5, "height": 1}]'


@dataclass(frozen=True)
class Box:
    """A rectangle for one subject (counted from 1); corner and size as shares of the picture, 0..1."""

    subject: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Shaping:
    """What is done to every region. Pixels are the canvas's.

    feather    softens inwards over so many pixels
    grow       moves the border outwards by so many pixels; negative: inwards
    strength   1 = a subject never acts outside its region; below, it keeps 1 - strength there
    exclusive  where regions overlap, only the earliest of their subjects keeps the place
    free       what a subject without a region may do: act everywhere, or only outside the others' regions
    """

    feather: float = 0.0
    grow: int = 0
    strength: float = 1.0
    exclusive: bool = False
    free: str = EVERYWHERE


# ---------------------------------------------------------------- boxes


def parse_boxes(text: str, subjects: int = MOST) -> tuple[Box, ...]:
    """The boxes drawn on the node, from their JSON. A box is cut to the picture. ValueError says which entry is wrong, and how."""
    try:
        entries = json.loads(text.strip() or "[]")
    except json.JSONDecodeError as error:
        raise ValueError(f"boxes is not JSON ({error}); write {EXAMPLE}, or [] for none") from None
    if not isinstance(entries, list):
        raise ValueError(f"boxes is {_short(entries)}, expected a list of boxes; write {EXAMPLE}, or [] for none")
    return tuple(_parsed(entry, number, subjects) for number, entry in enumerate(entries, 1))


def _parsed(entry: object, number: int, subjects: int) -> Box:
    if not isinstance(entry, dict):
        raise ValueError(f"box {number} is {_short(entry)}, expected an object like {EXAMPLE[1:-1]}")
    if lacking := [key for key in Box.__dataclass_fields__ if key not in entry]:
        raise ValueError(f"box {number} has no {' and no '.join(map(repr, lacking))}; a box is like {EXAMPLE[1:-1]}")
    subject = entry["subject"]
    if isinstance(subject, bool) or not isinstance(subject, (int, float)) or subject % 1 != 0:
        raise ValueError(f"box {number} is for subject {_short(subject)}, expected a whole number, 1 for the first subject")
    if not 1 <= subject <= subjects:
        raise ValueError(f"box {number} is for subject {subject:g}, but there are only subjects 1 to {subjects}; delete the box, or "
                         "connect the subject")
    return _inside(Box(int(subject), *(_number(entry[key], key, f"box {number}") for key in ("x", "y", "width", "height"))),
                   f"box {number}", "shares of the picture, 0 to 1")


def _number(value: object, key: str, which: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{which} has {key} {_short(value)}, expected a number")
    return float(value)


def _inside(box: Box, which: str, unit: str) -> Box:
    """The part of the box that is in the picture."""
    if box.width <= 0 or box.height <= 0:
        raise ValueError(f"{which} is {box.width:g} wide and {box.height:g} high, expected more than 0; delete it, or draw it again")
    left, top = max(box.x, 0.0), max(box.y, 0.0)
    right, bottom = min(box.x + box.width, 1.0), min(box.y + box.height, 1.0)
    if right <= left or bottom <= top:
        raise ValueError(f"{which} lies outside the picture (x {box.x:g}, y {box.y:g}, {box.width:g} x {box.height:g}; {unit})")
    return replace(box, x=left, y=top, width=right - left, height=bottom - top)


def found_boxes(found: object, width: int, height: int, subjects: int) -> tuple[Box, ...]:
    """BOUNDING_BOX (pixels of a picture of `width` x `height`) to boxes of the subjects in order.

    One box, or a list of them: the n-th is the n-th subject's. One picture's list in a list: the same. Several lists: all of the n-th
    are the n-th subject's. Subjects beyond them get none. ValueError where there is none at all, or more than subjects.
    """
    given = _listed(found)
    if len(given) == 1 and not isinstance(given[0], Mapping):
        given = _listed(given[0])
    lists = [_listed(item) for item in given]
    if not any(lists):
        raise ValueError("found_boxes has no box: the node before it found nothing; disconnect it, or give it a clearer picture")
    if len(lists) > subjects:
        raise ValueError(f"found_boxes has boxes for {len(lists)} subjects, but there are {subjects}; pick the wanted boxes first")
    return tuple(_of_pixels(box, number, width, height) for number, boxes in enumerate(lists, 1) for box in boxes)


def _listed(found: object) -> list:
    if isinstance(found, Mapping):
        return [found]
    if found is None or isinstance(found, (list, tuple)):
        return list(found or ())
    raise ValueError(f"found_boxes has {_short(found)}, expected boxes of x, y, width and height in pixels")


def _of_pixels(box: object, subject: int, width: int, height: int) -> Box:
    which = f"the found box of subject {subject}"
    keys = ("x", "y", "width", "height")
    if not isinstance(box, Mapping) or any(key not in box for key in keys):
        raise ValueError(f"{which} is {_short(box)}, expected x, y, width and height in pixels")
    x, y, w, h = (_number(box[key], key, which) for key in keys)
    return _inside(Box(subject, x / width, y / height, w / width, h / height), which,
                   f"shares of {width} x {height} pixels: set width and height to the size of the picture it was found on")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


# ---------------------------------------------------------------- masks


def box_mask(box: Box, height: int, width: int) -> Tensor:
    """A box on a canvas [H W]; a pixel that it covers in part has that share of 1."""
    def covered(start: float, length: float, count: int) -> Tensor:
        edges = torch.arange(count + 1, dtype=torch.float64) / count
        share = (edges[1:].clamp(max=start + length) - edges[:-1].clamp(min=start)).clamp(min=0) * count
        return share.round(decimals=4)                       # 0.1 + 0.2 is a little more than 0.3: no pixel is touched by that
    return torch.outer(covered(box.y, box.height, height), covered(box.x, box.width, width)).float()


def grow(mask: Tensor, pixels: int) -> Tensor:
    """Move the border of a mask [H W] outwards, or for a negative number inwards, by a square brush; the picture's edge is no border."""
    if pixels < 0:
        return 1 - grow(1 - mask, -pixels)
    return _running_max(_running_max(mask, pixels).T, pixels).T.contiguous()


def _running_max(mask: Tensor, radius: int) -> Tensor:
    """The largest value within `radius` columns, by doubling the window."""
    width, window = mask.shape[1], 1
    out = F.pad(mask, (radius, radius), value=-torch.inf)
    while window < 2 * radius + 1:
        shift = min(window, 2 * radius + 1 - window)
        out = torch.maximum(out[:, :out.shape[1] - shift], out[:, shift:])
        window += shift
    return out[:, :width]


def feather_inwards(mask: Tensor, feather: float) -> Tensor:
    """Soften a mask [H W] over about `feather` pixels inside its border; nothing outside it is ever opened."""
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
    return mask if mask.shape == (height, width) else F.interpolate(mask[None, None], size=(height, width), mode="area")[0, 0]


def canvas_of(masks: Sequence[Tensor], height: int, width: int) -> tuple[int, int]:
    """Height and width to work on: the largest given mask's, so that masks alone stay as they are; without one the picture's."""
    sizes = [tuple(mask.shape) for mask in masks]
    return max(sizes, key=lambda size: size[0] * size[1]) if sizes else (height, width)


def regions_of_subjects(names: Sequence[str], masks: Mapping[int, Tensor], boxes: Sequence[Box], kept: Mapping[int, Tensor],
                        canvas: tuple[int, int], shaping: Shaping) -> list[Tensor | None]:
    """Each subject's region [H W] in 0..1, or None = everywhere. All are counted from 1.

    masks   given masks [h w] by subject; they and the subject's boxes are united
    kept    regions that subjects without masks and boxes have already: left as they are, but the others keep out of them
    """
    drawn: dict[int, Tensor] = {i: resized(mask, *canvas) for i, mask in masks.items()}
    for box in boxes:
        mask = box_mask(box, *canvas)
        drawn[box.subject] = torch.maximum(drawn[box.subject], mask) if box.subject in drawn else mask
    drawn = {i: _grown(drawn[i], shaping.grow, i, names) for i in sorted(drawn)}
    held = {i: resized(mask.float(), *canvas) for i, mask in kept.items() if i not in drawn}
    if shaping.exclusive:
        drawn = keep_apart(drawn, held, names)
    drawn = {i: feather_inwards(mask, shaping.feather) for i, mask in drawn.items()}
    drawn |= background(drawn | held, names) if shaping.free == BACKGROUND else {}
    return [soften(drawn[i], shaping.strength) if i in drawn else kept.get(i) for i in range(1, len(names) + 1)]


def _grown(mask: Tensor, pixels: int, number: int, names: Sequence[str]) -> Tensor:
    if not pixels:
        return mask
    out = grow(mask, pixels)
    if mask.any() and not out.any():
        raise ValueError(f"grow {pixels} leaves nothing of the region of subject {number} ({names[number - 1]}); shrink it by less")
    return out


def keep_apart(drawn: Mapping[int, Tensor], held: Mapping[int, Tensor], names: Sequence[str]) -> dict[int, Tensor]:
    """Regions without overlap: a later subject loses what an earlier one has. `held` regions are not cut themselves."""
    out: dict[int, Tensor] = {}
    taken: Tensor | None = None
    for number in sorted({*drawn, *held}):
        mask = drawn[number] if number in drawn else held[number]
        if number in drawn:
            out[number] = mask if taken is None else torch.minimum(mask, 1 - taken)
            if mask.any() and out[number].max() < HARDLY:
                raise ValueError(f"exclusive leaves subject {number} ({names[number - 1]}) nothing: the subjects before it cover its "
                                 "whole region; move the regions apart, or change the subjects' order")
        taken = mask if taken is None else torch.maximum(taken, mask)
    return out


def background(regions: Mapping[int, Tensor], names: Sequence[str]) -> dict[int, Tensor]:
    """What the regions leave of the picture, for every subject that has none; nobody's regions leave everything, and that is no region."""
    without = [i for i in range(1, len(names) + 1) if i not in regions]
    if not regions or not without:
        return {}
    rest = 1 - torch.stack(list(regions.values())).amax(0)
    if rest.max() < HARDLY:
        raise ValueError(f"subject {without[0]} ({names[without[0] - 1]}) has no region, and the others' regions cover the whole picture; "
                         f"give it one, or set free_subjects to {EVERYWHERE!r}")
    return dict.fromkeys(without, rest)


def soften(mask: Tensor, strength: float) -> Tensor:
    """Outside its region a subject keeps 1 - strength."""
    return mask if strength >= 1 else 1 - strength * (1 - mask)


# ---------------------------------------------------------------- the preview


def preview(names: Sequence[str], regions: Sequence[Tensor | None], width: int, height: int) -> Tensor:
    """IMAGE [1 h w 3]: every region in its subject's colour with its name, and who is free; the longer side is at most 512."""
    scale = min(1.0, LARGEST_PREVIEW / max(width, height))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    picture = torch.full((*size, 3), 0.13)
    labels: list[tuple[str, str, tuple[int, int]]] = []
    for number, (name, region) in enumerate(zip(names, regions, strict=True), 1):
        if region is None:
            continue
        shown = resized(region.float().cpu(), *size).clamp(0, 1)
        picture = torch.lerp(picture, torch.tensor(rgb(number)) / 255, 0.65 * shown[..., None])
        labels.append((f"{number} {name}", colour(number), middle(shown)))
    image = Image.fromarray((picture * 255).round().to(torch.uint8).numpy())
    _write(image, labels, [(f"{i} {name}: free", colour(i)) for i, (name, region) in enumerate(zip(names, regions), 1) if region is None])
    return torch.from_numpy(np.asarray(image).copy()).float()[None] / 255


def colour(number: int) -> str:
    """A subject's colour, counted from 1; past the table they come again."""
    return COLOURS[(number - 1) % MOST]


def rgb(number: int) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour(number)[1:])
    return red, green, blue


def middle(mask: Tensor) -> tuple[int, int]:
    """(x, y) well inside a mask [H W]: near its centre of mass, but in it."""
    height, width = mask.shape
    coarse = F.adaptive_avg_pool2d(mask[None, None], 32)
    inner = F.avg_pool2d(coarse, 9, 1, 4)[0, 0]
    at = (torch.arange(32) + 0.5) / 32
    total = coarse.sum().clamp_min(1e-6)
    y, x = (coarse[0, 0].sum(1) @ at) / total, (coarse[0, 0].sum(0) @ at) / total
    best = int((inner - 0.2 * ((at[:, None] - y) ** 2 + (at - x) ** 2)).argmax())
    return int(at[best % 32] * width), int(at[best // 32] * height)


def _write(image: Image.Image, labels: Sequence[tuple[str, str, tuple[int, int]]], free: Sequence[tuple[str, str]]) -> None:
    """Names at their places, inside the picture, dark on their colour; those who are free below one another at the top left."""
    draw = ImageDraw.Draw(image)
    size = max(8, min(image.size) // 20)
    font = ImageFont.load_default(size)
    placed = [(text, tone, at, "mm") for text, tone, at in labels]
    placed += [(text, tone, (3, 3 + round(i * 1.5 * size)), "la") for i, (text, tone) in enumerate(free)]
    for text, tone, at, anchor in placed:
        left, top, right, bottom = draw.textbbox(at, text, font=font, anchor=anchor)
        dx = max(2 - left, min(0, image.width - 2 - right))
        dy = max(2 - top, min(0, image.height - 2 - bottom))
        at = at[0] + dx, at[1] + dy
        draw.rounded_rectangle((left + dx - 3, top + dy - 2, right + dx + 3, bottom + dy + 2), 3, fill=tone)
        draw.text(at, text, fill="#101010", font=font, anchor=anchor)
