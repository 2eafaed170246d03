"""A contact sheet of the small world: the references, several seeds, and the subjects' maps.

Where the references' folder has an individuals.json that says exactly who they show, the exact
ruler's verdict stands under each image.
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...references.pixels import object_pixels
from ...small_world import scenes, score, sizes
from ...training.example import Example, ExampleSubject
from ...training.noise import draw_noise
from ..nouns import MARKER
from ..sampling import decode, sample_latents
from ..small_world import WEIGHTS
from .build import load_task
from .contact import heat, maps_at, tile, to_bytes

MAPS_AT = 0.5           # noise level, as fraction of the timesteps
SIDE = 128              # of the sheet's images, in pixels
GRID = (16, 16)         # of the latents
INDIVIDUALS = "individuals.json"
STRANGERS = 32          # individuals that nobody asked for, among the ruler's candidates


def read_reference(path: Path) -> Tensor:
    """An image file as the image encoder expects it [1 3 K K] in 0..1."""
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).movedim(-1, 0)
    return object_pixels(pixels, sizes.VISION["image_size"])[None]


def read_prompt(text: str, references: Sequence[Path]) -> Example:
    """A prompt with markers, and a reference for each. ValueError when the numbers differ."""
    *parts, end = text.split(MARKER)
    if len(parts) != len(references):
        raise ValueError(
            f"the prompt has {len(parts)} {MARKER}, but {len(references)} images were given; give "
            "one image per marker"
        )
    side, at, subjects = scenes.SIDE * sizes.DOT, 0, []
    for part, path in zip(parts, references):
        at += len(part)
        span = (at - len(part.split()[-1]), at)
        subjects.append(ExampleSubject(span, torch.zeros(side, side), read_reference(path)))
    return Example(torch.zeros(3, side, side), "".join([*parts, end]), tuple(subjects))


def draw_sheet(references: Sequence[Path], prompt: str, out: Path, seeds: int = 8) -> None:
    """Save a row of references, a row of `seeds` images, and a row of maps per subject."""
    task = load_task(WEIGHTS / "adapter.safetensors")
    example = read_prompt(prompt, references)
    batch = [example] * seeds
    noise, _ = draw_noise(range(seeds), (sizes.CHANNELS, *GRID), 1, 0)
    latents = sample_latents(task, batch, noise, **sizes.SAMPLING)
    _, maps = maps_at(task, latents, noise, task.conditions(batch), MAPS_AT, GRID)
    rows = [[to_bytes(s.references[0].movedim(0, -1)) for s in example.subjects]]
    images = decode(task, latents)
    rows.append([to_bytes(pixels) for pixels in images])
    captions = [(), verdicts(references, images)]
    for s in range(len(references)):
        rows.append([heat(maps[seed, s]) for seed in range(seeds)])
    out.parent.mkdir(parents=True, exist_ok=True)
    tile(rows, SIDE, captions=captions).save(out)


def verdicts(references: Sequence[Path], images: Tensor) -> list[str]:
    """What the exact ruler says of each image [n H W 3]; nothing where a reference is unknown."""
    wanted = [individual(path) for path in references]
    if any(candidate is None for candidate in wanted):
        return []
    rng = np.random.default_rng(0)
    strangers = [scenes.random_identity(rng, "test") for _ in range(STRANGERS)]
    texts = []
    for image in images:
        dots = image[::sizes.DOT, ::sizes.DOT].movedim(-1, 0)
        named = score.binding(dots, wanted, strangers)
        texts.append("all right" if named.complete else ", ".join(sorted(named.verdicts)))
    return texts


def individual(path: Path) -> score.Candidate | None:
    """Who a reference shows, by the individuals.json beside it; None if that does not say."""
    listed = path.parent / INDIVIDUALS
    if not listed.is_file():
        return None
    traits = json.loads(listed.read_text(encoding="utf-8")).get(path.name)
    if traits is None:
        return None
    kind = traits.pop("kind")
    return kind, scenes.Identity(**traits)
