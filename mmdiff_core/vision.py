"""Reference picture -> the pixels an image encoder expects, exactly as released (datasets.py of the official code)."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def to_uint8(image: Tensor) -> Tensor:
    """ComfyUI's IMAGE values, float 0..1, as the bytes they came from."""
    return (image.float().clamp(0, 1) * 255).round().to(torch.uint8)


def pad_to_square(image: Tensor) -> Tensor:
    """[3 h w] with black bars of |h - w| // 2 on both sides; an odd difference leaves one pixel (reference quirk 13)."""
    height, width = image.shape[-2:]
    bar = abs(height - width) // 2
    return F.pad(image, (bar, bar, 0, 0) if height > width else (0, 0, bar, bar))


def object_pixels(image: Tensor, size: int = 224) -> Tensor:
    """uint8 [3 h w] -> float [3 size size] in 0..1: padded, resized bilinear with antialias, rounded to bytes, / 255."""
    padded = pad_to_square(image).float()[None]
    resized = F.interpolate(padded, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized[0].round().clamp(0, 255) / 255


def normalise(pixels: Tensor) -> Tensor:
    """Pixels [... 3 h w] in 0..1 as CLIP wants them."""
    mean, std = (torch.tensor(x, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1) for x in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std
