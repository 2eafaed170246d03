"""An image of the subjects' regions: each in its subject's colour, with its name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .shaping import resized

# subject 1 to 6; web/box_maths.js has the same
COLOURS = ("#ff6b5e", "#4fa3ff", "#ffc53d", "#5fd17a", "#c584ff", "#3ad6d0")
LARGEST_PREVIEW = 512


def preview(
    names: Sequence[str], regions: Sequence[Tensor | None], width: int, height: int
) -> Tensor:
    """IMAGE [1 h w 3]: every region in its subject's colour with its name, and who is free; the
    longer side is at most 512."""
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
    _write(
        image,
        labels,
        [
            (f"{i} {name}: free", colour(i))
            for i, (name, region) in enumerate(zip(names, regions), 1)
            if region is None
        ],
    )
    return torch.from_numpy(np.asarray(image).copy()).float()[None] / 255


def colour(number: int) -> str:
    """A subject's colour, counted from 1; past the table they come again."""
    return COLOURS[(number - 1) % len(COLOURS)]


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


def _write(
    image: Image.Image,
    labels: Sequence[tuple[str, str, tuple[int, int]]],
    free: Sequence[tuple[str, str]],
) -> None:
    """Names at their places, inside the picture, dark on their colour; those who are free below one
    another at the top left."""
    draw = ImageDraw.Draw(image)
    size = max(8, min(image.size) // 20)
    font = ImageFont.load_default(size)
    placed = [(text, tone, at, "mm") for text, tone, at in labels]
    placed += [
        (text, tone, (3, 3 + round(i * 1.5 * size)), "la") for i, (text, tone) in enumerate(free)
    ]
    for text, tone, at, anchor in placed:
        left, top, right, bottom = draw.textbbox(at, text, font=font, anchor=anchor)
        dx = max(2 - left, min(0, image.width - 2 - right))
        dy = max(2 - top, min(0, image.height - 2 - bottom))
        at = at[0] + dx, at[1] + dy
        draw.rounded_rectangle(
            (left + dx - 3, top + dy - 2, right + dx + 3, bottom + dy + 2), 3, fill=tone
        )
        draw.text(at, text, fill="#101010", font=font, anchor=anchor)
