"""Pictures with "faces" that the stand-in detector finds: magenta discs on grey."""

from __future__ import annotations

import cv2
import numpy as np

from mmdiff_core.references import faces

GREY = (128, 128, 128)

MAGENTA = (255, 0, 255)

SQUARES = ((255, 255, 0), (0, 0, 0), (0, 255, 255))


def picture(*discs: tuple[int, int, int], size: tuple[int, int] = (600, 900)) -> np.ndarray:
    """Discs (x, y, radius) on grey.

    Each before a square of its own colour, so that embeddings differ.
    """
    image = np.full((*size, 3), GREY, np.uint8)
    for (x, y, radius), behind in zip(discs, SQUARES, strict=False):
        cv2.rectangle(image, (x - radius, y - radius), (x + radius, y + radius), behind, -1)
        cv2.circle(image, (x, y), radius, MAGENTA, -1)
    return image


THREE = ((150, 200, 40), (500, 300, 90), (750, 150, 60))


def middles(found: tuple[faces.Face, ...]) -> list[tuple[float, float]]:
    return [((f.box[0] + f.box[2]) / 2, (f.box[1] + f.box[3]) / 2) for f in found]


def near(face: faces.Face, disc: tuple[int, int, int], tolerance: float) -> bool:
    x, y, radius = disc
    return bool(
        np.allclose(face.box, (x - radius, y - radius, x + radius, y + radius), atol=tolerance)
    )
