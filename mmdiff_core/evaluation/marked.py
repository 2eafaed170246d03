"""Images with what was found in them: boxes with names and scores, and a line of words below.

Shapes   H W the image's pixels
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..regions.preview import colour
from .verdicts import Box, ImageLikeness

LEAST_SIDE = 384  # smaller images are enlarged by whole pixels, for words to be legible
LINES_ACROSS, TEXT_HEIGHT = 240, 8  # a line's width as a part of the longer side; in line widths
GROUND, WORDS, OTHER = "#16161c", "#f2f2f2", "#9a9aa5"
ROWS = 3  # of words below an image


def mark(image: Tensor, likeness: ImageLikeness, names: Sequence[str], words: str) -> Tensor:
    """An image uint8 [H W 3] with the subjects' boxes, and `words` on a dark bar below it."""
    canvas, scale = _enlarged(image)
    pen = ImageDraw.Draw(canvas)
    line = max(1, round(max(canvas.size) / LINES_ACROSS))
    for box in likeness.others:
        _box(pen, box, scale, OTHER, line)
    labels = []
    for number, (name, score, box) in enumerate(
        zip(names, likeness.scores, likeness.boxes, strict=True), 1
    ):
        if box is not None:
            _box(pen, box, scale, colour(number), line)
            labels.append((f"{name} {score:.2f}", colour(number), box))
    for text, tone, box in labels:
        _label(pen, text, tone, (box[0] * scale, box[1] * scale), canvas.size, line)
    return with_words(torch.from_numpy(np.asarray(canvas).copy()), words)


def with_words(image: Tensor, words: str) -> Tensor:
    """An image uint8 [H W 3] on a dark bar with words, as many rows as fit; the bar is always
    equally high, so that images of a batch keep one size."""
    canvas, _ = _enlarged(image)
    size = _text_size(canvas.size)
    bar = round(size * (1.35 * ROWS + 0.8))
    whole = Image.new("RGB", (canvas.width, canvas.height + bar), GROUND)
    whole.paste(canvas, (0, 0))
    pen, font = ImageDraw.Draw(whole), _font(size)
    width = max(8, int(canvas.width / (font.getlength("n") or size)))
    rows = [row for part in words.split("\n") for row in textwrap.wrap(part, width) or [""]]
    if len(rows) > ROWS:
        rows = [*rows[: ROWS - 1], f"{rows[ROWS - 1][: width - 1]}…"]
    for number, row in enumerate(rows):
        at = (round(size * 0.5), canvas.height + round(size * (0.4 + 1.35 * number)))
        pen.text(at, row, fill=WORDS, font=font)
    return torch.from_numpy(np.asarray(whole).copy())


def _enlarged(image: Tensor) -> tuple[Image.Image, int]:
    """The image, and by how many it was enlarged."""
    opened = Image.fromarray(image.numpy())
    scale = max(1, -(-LEAST_SIDE // max(opened.size)))
    size = opened.width * scale, opened.height * scale
    return opened.resize(size, Image.Resampling.NEAREST) if scale > 1 else opened.copy(), scale


def _text_size(size: tuple[int, int]) -> int:
    return max(12, round(max(size) / LINES_ACROSS) * TEXT_HEIGHT)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font; of one small size only before Pillow 10.1."""
    try:
        return ImageFont.load_default(size)
    except TypeError:
        return ImageFont.load_default()


def _box(pen: ImageDraw.ImageDraw, box: Box, scale: int, tone: str, line: int) -> None:
    x1, y1, x2, y2 = (round(side * scale) for side in box)
    pen.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=tone, width=line)


def _label(
    pen: ImageDraw.ImageDraw,
    text: str,
    tone: str,
    corner: tuple[float, float],
    size: tuple[int, int],
    line: int,
) -> None:
    """A text on its colour, above the corner of a box, inside the image."""
    font = _font(_text_size(size))
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 4 * line, bottom - top + 4 * line
    x = min(max(0, round(corner[0])), max(0, size[0] - width))
    y = min(max(0, round(corner[1]) - height), max(0, size[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=tone)
    pen.text((x + 2 * line - left, y + 2 * line - top), text, fill="#101010", font=font)
