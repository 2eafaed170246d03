"""Attention maps as images: over the image that was sampled, and as a strip over the steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_maps import AttentionMaps

HEAT = torch.tensor(
    [[0.0, 0.0, 0.15], [0.25, 0.05, 0.55], [0.85, 0.2, 0.35], [1.0, 0.7, 0.2], [1.0, 1.0, 0.85]]
)


def stretch(maps: Tensor) -> Tensor:
    """Maps [... h w] -> 0..1, each from its least to its largest value; a map without any
    difference is 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-8)


def heat_colours(values: Tensor) -> Tensor:
    """0..1 [...] -> colours [... 3]: dark where nothing is read, bright where most is."""
    at = values.clamp(0, 1) * (len(HEAT) - 1)
    below = at.floor().long().clamp_max(len(HEAT) - 2)
    return torch.lerp(HEAT[below], HEAT[below + 1], (at - below)[..., None])


def overlay(pictures: Tensor, maps: Tensor, opacity: float = 0.6) -> Tensor:
    """Pictures [B H W 3] and maps [B S h w] in 0..1 -> heat over each picture, a subject after the
    other [B S H W 3]. Where little is read the picture shows, in grey, so that colours are the
    heat's."""
    B, S = maps.shape[:2]
    large = F.interpolate(maps, size=pictures.shape[1:3], mode="bilinear", align_corners=False)
    grey = (pictures @ torch.tensor([0.299, 0.587, 0.114]))[:, None, :, :, None].expand(
        B, S, -1, -1, 3
    )
    share = (opacity * (0.35 + 0.65 * large))[..., None]
    return grey * (1 - share) + heat_colours(large) * share


def strip(maps: Tensor, side: int = 96, gap: int = 4) -> Tensor:
    """Maps [parts S h w] in 0..1 -> one picture [1 H W 3]: a row for each subject, the steps from
    left to right."""
    parts, subjects, h, w = maps.shape
    height, width = (
        (side, max(1, round(side * w / h))) if h >= w else (max(1, round(side * h / w)), side)
    )
    tiles = heat_colours(
        F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)
    )
    out = torch.full((subjects * (height + gap) + gap, parts * (width + gap) + gap, 3), 0.1)
    for p in range(parts):
        for s in range(subjects):
            top, left = gap + s * (height + gap), gap + p * (width + gap)
            out[top : top + height, left : left + width] = tiles[p, s]
    return out[None]


def show_maps(
    recorded: Sequence[AttentionMaps], image: Tensor, kind: str, opacity: float
) -> tuple[Tensor, Tensor, Tensor, str]:
    """Overlays [B S H W 3] flattened, masks [B S h w] at the pictures' size flattened, the strip,
    and the order in words."""
    if not recorded:
        raise ValueError(
            "no attention was recorded: connect `maps` from the MM-Diff Watch Attention node whose "
            "model generated these images, and sample with a prompt of MM-Diff Text Encode that "
            "uses subjects"
        )
    if any(m.text.shape[1] != len(image) for m in recorded):
        raise ValueError(
            f"the recorded run generated {recorded[0].text.shape[1]} images, but {len(image)} were "
            "given; connect the decoded images of the same run"
        )
    pictures = image[..., :3].float().cpu()
    every = torch.cat([m.of(kind) for m in recorded], 2)  # parts B S h w
    mean = stretch(every.mean(0))
    large = F.interpolate(mean, size=pictures.shape[1:3], mode="bilinear", align_corners=False)
    names = [name for m in recorded for name in m.names]
    return (
        overlay(pictures, mean, opacity).flatten(0, 1),
        large.flatten(0, 1),
        strip(stretch(every[:, 0])),
        "in each image: " + ", ".join(names),
    )
