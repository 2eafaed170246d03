"""Contact sheets: what a run draws, and the attention maps of its subjects."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ...training.bridge import latents_of
from ...training.conditions import Conditions, pad_masks
from ...training.example import Example
from ...training.noise import draw_noise
from ...training.task import MMDiffTask
from ..sampling import decode, sample_latents

NAMES = 130         # pixels to the left for the names of rows
CAPTION = 14        # pixels below a row for its captions
MAPS_AT = 0.6       # noise level, as fraction of the timesteps, at which maps are shown


def tile(
    rows: Sequence[Sequence[np.ndarray]], side: int, gap: int = 4, names: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
) -> Image.Image:
    """Rows of uint8 images, each scaled to `side` by nearest neighbour, on white.

    names     of the rows, to their left
    captions  of each row's images, below them; () for a row without
    """
    width, margin = max(map(len, rows)), NAMES if names else 0
    tops, height = [], gap
    for y in range(len(rows)):
        tops.append(height)
        height += side + gap + (CAPTION if y < len(captions) and captions[y] else 0)
    sheet = np.full((height, margin + width * (side + gap) + gap, 3), 255, np.uint8)
    for top, row in zip(tops, rows, strict=True):
        for x, image in enumerate(row):
            scaled = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
            left = margin + gap + x * (side + gap)
            sheet[top:top + side, left:left + side] = np.asarray(scaled)
    out = Image.fromarray(sheet)
    pen = ImageDraw.Draw(out)
    for top, name in zip(tops, names):
        pen.text((gap, top + side // 2 - 6), name.replace("_", " "), fill="black")
    for top, texts in zip(tops, captions):
        for x, text in enumerate(texts):
            pen.text((margin + gap + x * (side + gap), top + side + 1), text, fill="black")
    return out


def to_bytes(image: Tensor) -> np.ndarray:
    """[H W 3] or [H W] in 0..1 -> uint8 RGB [H W 3]."""
    image = image.detach().cpu().float()
    if image.ndim == 2:
        image = image[..., None].expand(-1, -1, 3)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def heat(probability: Tensor) -> np.ndarray:
    """A map [h w] in 0..1 -> uint8 RGB [h w 3]: black, red, yellow, white."""
    p = probability.detach().cpu().float().clamp(0, 1)
    channels = [(p * 3).clamp(0, 1), (p * 3 - 1).clamp(0, 1), (p * 3 - 2).clamp(0, 1)]
    return to_bytes(torch.stack(channels, -1))


@torch.no_grad()
def maps_at(
    task: MMDiffTask, latents: Tensor, noise: Tensor, conditions: Conditions, level: float,
    grid: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Attention maps of text and image branch [B S h w] at a noise level, 0..1 of the timesteps."""
    alphas = task.bridge.alphas
    timestep = int(level * (len(alphas) - 1))
    timesteps = torch.full((len(latents),), timestep, device=alphas.device)
    alpha = alphas[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    return task.maps(noisy, timesteps, conditions, grid)


@torch.no_grad()
def training_grid(
    task: MMDiffTask, batch: Sequence[Example], path: Path, steps: int = 20, cfg: float = 2.0
) -> None:
    """Save a sheet with a column per example.

    Rows: its image, a reference, what the model draws, then each subject's mask and both its maps.
    """
    alphas, blank = task.bridge.alphas, np.full((8, 8, 3), 230, np.uint8)
    latents = latents_of(task.bridge, batch)
    numbers = [example.index for example in batch]
    noise, _ = draw_noise(numbers, latents.shape[1:], len(alphas), task.run.seed)
    noise, grid = noise.to(latents), tuple(latents.shape[-2:])
    drawn = decode(task, sample_latents(task, batch, noise, steps, cfg))
    conditions = task.conditions(batch)
    text, image = maps_at(task, latents, noise, conditions, MAPS_AT, grid)
    masks = F.interpolate(pad_masks(batch, conditions.present.shape[1]), size=grid, mode="area")
    shown = [example.pixels.movedim(0, -1) for example in batch if example.encoded is None]
    rows = [list(map(to_bytes, shown or decode(task, latents))), []]
    for example in batch:
        subjects = example.subjects
        rows[1].append(to_bytes(subjects[0].references[0].movedim(0, -1)) if subjects else blank)
    rows.append([to_bytes(pixels) for pixels in drawn])
    brightest = text.amax().clamp_min(1e-6)
    for s, present in enumerate(conditions.present.T.tolist()):
        for part, show in ((masks, to_bytes), (text / brightest, heat), (image, heat)):
            rows.append([show(part[b, s]) if there else blank for b, there in enumerate(present)])
    tile(rows, 128).save(path)
