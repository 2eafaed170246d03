"""Boxes, landmarks and numbers drawn on an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .face import Face, check_image

BOX, POINT = (0, 255, 0), (255, 255, 0)
LINES_ACROSS = 320  # a line's width, as a part of the longer side
TEXT_HEIGHT = 11  # in widths of a line


def draw(image: np.ndarray, faces: Sequence[Face]) -> np.ndarray:
    """A copy of a uint8 RGB image [H W 3] with every face's box, landmarks and number from the
    left."""
    check_image(image, "image to draw on")
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    line = max(1, round(max(image.shape[:2]) / LINES_ACROSS))
    font = _font(TEXT_HEIGHT * line)
    for number, face in enumerate(faces, 1):
        x1, y1, x2, y2 = (round(v) for v in face.box)
        pen.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=BOX, width=line)
        for x, y in face.landmarks:
            pen.ellipse((x - 2 * line, y - 2 * line, x + 2 * line, y + 2 * line), fill=POINT)
        pen.text((max(x1, 0) + 2 * line, max(y1, 0) + line), str(number), fill=BOX, font=font)
    return np.array(canvas)


def _font(height: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font; of one small size only before Pillow 10.1."""
    try:
        return ImageFont.load_default(height)
    except TypeError:
        return ImageFont.load_default()
