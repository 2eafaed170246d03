"""What was found: a face, and the form of the images it is looked for in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Box = tuple[float, float, float, float]  # x1 y1 x2 y2


@dataclass(frozen=True, eq=False)
class Face:
    """One detected face, in pixels of the image given."""

    box: Box
    score: float  # detector confidence 0..1
    landmarks: np.ndarray  # [5 2] eyes, nose, mouth corners as (x, y)
    embedding: np.ndarray  # [512] unit length ArcFace embedding
    # of a picked face: all that could have been picked, from left to right, itself too
    among: tuple[Box, ...] = ()

    @property
    def area(self) -> float:
        x1, y1, x2, y2 = self.box
        return (x2 - x1) * (y2 - y1)

    def is_inside(self, region: np.ndarray) -> bool:
        """Whether the middle of the box is in `region` [H W], 0..1."""
        x1, y1, x2, y2 = self.box
        height, width = region.shape
        row = min(max(int((y1 + y2) / 2), 0), height - 1)
        column = min(max(int((x1 + x2) / 2), 0), width - 1)
        return bool(region[row, column] > 0.5)


def check_image(image: object, label: str) -> None:
    """ValueError that names the image by `label`, unless it is a uint8 RGB array [H W 3]."""
    found = type(image).__name__
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return
        found = f"{image.dtype} {list(image.shape)}"
    raise ValueError(f"{label}: expected a uint8 RGB array [height width 3], got {found}")
