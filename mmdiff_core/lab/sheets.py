"""Images in dots as one PNG: small, exact, and something one can look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

COLUMNS = 32


def save_sheet(images: Tensor, path: Path) -> None:
    """Images [N 3 S S] in 0..1, in rows of 32."""
    dots = (images.detach().float().clamp(0, 1) * 255).round().byte().cpu()
    blank = dots.new_zeros(-len(dots) % COLUMNS, *dots.shape[1:])
    rows = torch.cat([dots, blank]).unflatten(0, (-1, COLUMNS))  # R C 3 S S
    sheet = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet.numpy()).save(path, "PNG")


def load_sheet(path: Path, count: int, side: int) -> Tensor:
    """The first `count` images [count 3 side side] in 0..1. ValueError for a sheet of fewer."""
    with Image.open(path) as opened:
        sheet = torch.from_numpy(np.array(opened.convert("RGB"))).float() / 255
    rows = sheet.unflatten(0, (-1, side)).unflatten(2, (COLUMNS, side))  # R S C S 3
    images = rows.permute(0, 2, 4, 1, 3).flatten(0, 1)
    if len(images) < count:
        raise ValueError(
            f"{path} has room for {len(images)} images, expected {count}; give --images the number "
            "that was drawn"
        )
    return images[:count].contiguous()
