"""Command: a contact sheet of the small world: the references, eight seeds, and where each subject was read.

    python -m mmdiff_core.host.sheet REF1.png [REF2.png ...] --prompt "a ghost<|subj|> and a cat<|subj|> at night" --out sheet.png
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .start import use_comfyui

MAPS_AT = 0.5           # noise level, as fraction of the timesteps
SIDE = 128


def read_reference(path: Path) -> Tensor:
    """A picture file as the image encoder wants it [1 3 K K] in 0..1."""
    from ..references.pixels import object_pixels
    from ..small_world.sizes import VISION
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).movedim(-1, 0)
    return object_pixels(pixels, VISION["image_size"])[None]


def read_prompt(text: str, references: list[Path]):
    """A prompt with markers and a reference for each -> the example that asks for them. ValueError when the numbers differ."""
    from ..small_world import scenes, sizes
    from ..training.example import Example, ExampleSubject
    from .text import MARKER
    parts = text.split(MARKER)
    if len(parts) - 1 != len(references):
        raise ValueError(f"the prompt has {len(parts) - 1} {MARKER}, but {len(references)} pictures came; give one picture per marker")
    side, spans, at = scenes.SIDE * sizes.DOT, [], 0
    for part in parts[:-1]:
        at += len(part)
        spans.append((at - len(part.split()[-1]), at))
    subjects = tuple(ExampleSubject(s, torch.zeros(side, side), read_reference(p)) for s, p in zip(spans, references, strict=True))
    return Example(torch.zeros(3, side, side), "".join(parts), subjects)


def make(references: list[Path], prompt: str, out: Path, seeds: int = 8) -> None:
    """Draw and save the sheet: a row of references, two rows of pictures, a row of maps per subject."""
    from ..training.task import draw_noise
    from . import contact, small_world
    from .evaluate import load_task
    from .sampling import decode, sample_latents
    task = load_task(small_world.WEIGHTS / "adapter.safetensors")
    examples = [read_prompt(prompt, references)] * seeds
    noise, _ = draw_noise(range(seeds), (small_world.sizes.CHANNELS, 16, 16), 1, 0)
    latents = sample_latents(task, examples, noise, **small_world.sizes.SAMPLING)
    at = torch.full((seeds,), int(MAPS_AT * (len(task.bridge.alphas) - 1)))
    alpha = task.bridge.alphas[at].view(-1, 1, 1, 1)
    _, maps = task.maps(alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, at, task.conditions(examples), (16, 16))
    shown = [contact.to_bytes(s.references[0].movedim(0, -1)) for s in examples[0].subjects]
    drawn = [contact.to_bytes(p) for p in decode(task, latents)]
    rows = [shown, drawn] + [[contact.heat(maps[b, s]) for b in range(seeds)] for s in range(len(shown))]
    out.parent.mkdir(parents=True, exist_ok=True)
    contact.tile(rows, SIDE).save(out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mmdiff_core.host.sheet", description=__doc__)
    parser.add_argument("references", type=Path, nargs="+")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args(argv)
    try:
        use_comfyui()
        make(args.references, args.prompt, args.out, args.seeds)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
