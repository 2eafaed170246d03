"""Pictures for the eye: what a run draws, and where its subjects are read."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ...training.example import Example
from ...training.task import MMDiffTask, draw_noise, pad_masks
from ..sampling import decode, sample_latents

NAMES = 130         # px to the left for the names of rows
HEAT_AT = 0.6       # noise level, as fraction of the timesteps, at which maps are shown


def tile(rows: Sequence[Sequence[np.ndarray]], side: int, gap: int = 4, names: Sequence[str] = ()) -> Image.Image:
    """Rows of uint8 pictures, each scaled to `side` by nearest neighbour, on white; `names` stand to the left of the rows."""
    width, margin = max(len(row) for row in rows), NAMES if names else 0
    sheet = np.full((len(rows) * (side + gap) + gap, margin + width * (side + gap) + gap, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            scaled = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST))
            sheet[gap + y * (side + gap):, margin + gap + x * (side + gap):][:side, :side] = scaled
    out = Image.fromarray(sheet)
    for y, name in enumerate(names):
        ImageDraw.Draw(out).text((gap, gap + y * (side + gap) + side // 2 - 6), name.replace("_", " "), fill="black")
    return out


def to_bytes(image: Tensor) -> np.ndarray:
    """[H W 3] or [H W] in 0..1 -> uint8 RGB."""
    image = image.detach().cpu().float()
    if image.ndim == 2:
        image = image[..., None].expand(-1, -1, 3)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def heat(probability: Tensor) -> np.ndarray:
    """A map [h w] in 0..1 -> black, red, yellow, white."""
    p = probability.detach().cpu().float().clamp(0, 1)
    return to_bytes(torch.stack([(p * 3).clamp(0, 1), (p * 3 - 1).clamp(0, 1), (p * 3 - 2).clamp(0, 1)], -1))


@torch.no_grad()
def training_grid(task: MMDiffTask, examples: Sequence[Example], path: Path, steps: int = 20, cfg: float = 2.0) -> None:
    """One column per example: its picture, a reference, what the model draws, then each subject's mask and both its maps."""
    device = task.bridge.alphas.device
    latents = task.bridge.latents(torch.stack([e.pixels for e in examples]).to(device))
    noise, _ = draw_noise([e.index for e in examples], latents.shape[1:], len(task.bridge.alphas), task.run.seed)
    noise = noise.to(latents)
    drawn = decode(task, sample_latents(task, examples, noise, steps, cfg))
    conditions = task.conditions(examples)
    at = torch.full((len(examples),), int(HEAT_AT * (len(task.bridge.alphas) - 1)), device=device)
    alpha = task.bridge.alphas[at].view(-1, 1, 1, 1)
    text, image = task.maps(alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, at, conditions, tuple(latents.shape[-2:]))
    masks = F.interpolate(pad_masks(examples, conditions.present.shape[1]), size=latents.shape[-2:], mode="area")
    blank = np.full((8, 8, 3), 230, np.uint8)
    rows = [
        [to_bytes(e.pixels.movedim(0, -1)) for e in examples],
        [to_bytes(e.subjects[0].references[0].movedim(0, -1)) if e.subjects else blank for e in examples],
        [to_bytes(picture) for picture in drawn],
    ]
    for s in range(conditions.present.shape[1]):
        there = conditions.present[:, s].tolist()
        rows += [
            [show(part[b, s]) if there[b] else blank for b in range(len(examples))]
            for part, show in ((masks, to_bytes), (text / text.amax().clamp_min(1e-6), heat), (image, heat))
        ]
    tile(rows, 128).save(path)
