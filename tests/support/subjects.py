"""Subjects of random numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mmdiff_core.method.subjects import Subject
from mmdiff_core.regions.boxes import Box
from mmdiff_core.regions.shaping import Shaping, Sources, shape_regions

ADAPTER = "0123456789abcdef"


def subject(name: str = "ann", seed: int = 0, references: int = 2) -> Subject:
    g = torch.Generator().manual_seed(seed)
    return Subject(
        name=name,
        tokens=torch.randn(4 * references, 16, generator=g),
        words={"l": torch.randn(8, generator=g), "g": torch.randn(12, generator=g)},
        references=references,
        adapter=ADAPTER,
        encoder="feed",
        identity=F.normalize(torch.randn(8, generator=g), dim=0),
        thumbnails=torch.randint(0, 256, (references, 64, 64, 3), dtype=torch.uint8, generator=g),
    )


NAMES = ("ann", "bob", "eve")

LEFT, RIGHT = Box(1, 0, 0, 0.5, 1), Box(2, 0.5, 0, 0.5, 1)

CANVAS = (32, 32)


def regions(
    boxes=(), masks=None, kept=None, names=NAMES[:2], **shaping
) -> list[torch.Tensor | None]:
    return shape_regions(names, Sources(boxes, masks or {}, kept or {}), CANVAS, Shaping(**shaping))


A, B, C = ({"x": x, "y": 0, "width": 50, "height": 100} for x in (0, 50, 100))
