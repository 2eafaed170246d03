"""Subjects of random numbers."""
from __future__ import annotations

import torch
import torch.nn.functional as F

from mmdiff_core.subjects import Subject

ADAPTER = "0123456789abcdef"


def subject(name: str = "ann", seed: int = 0, references: int = 2) -> Subject:
    g = torch.Generator().manual_seed(seed)
    return Subject(
        name=name, tokens=torch.randn(4 * references, 16, generator=g), words={"l": torch.randn(8, generator=g), "g": torch.randn(12, generator=g)},
        references=references, adapter=ADAPTER, weight=0.7, encoder="feed", identity=F.normalize(torch.randn(8, generator=g), dim=0),
        pictures_seen=torch.randint(0, 256, (references, 64, 64, 3), dtype=torch.uint8, generator=g),
    )
