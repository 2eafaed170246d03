"""Experiment, run when named.

What found regions do in the small world, through the pack's own nodes' functions.

    python tests/tools/found_regions.py [--pictures 64] [--adapter FILE]
        [--question "two of a class"] settle:sharpness:image_share[:u][:n][:s] ...

u = updated at every step, n = nouns held too, s = self-attention bounded; "free" is always first.
drawn[:DOTS][:n][:s] = boxes round the true places, that many dots (of 32) larger on every side and
kept apart. Prints a line each.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
sys.path[:0] = [os.environ["COMFYUI_PATH"], str(PACK)]

from mmdiff_core.host.start import use_comfyui  # noqa: E402

use_comfyui(cpu=True)

import comfy.sample  # noqa: E402
import torch  # noqa: E402

from mmdiff_core.host import small_world  # noqa: E402
from mmdiff_core.host.apply import Strength, apply  # noqa: E402
from mmdiff_core.host.encode import encode_subject  # noqa: E402
from mmdiff_core.host.models import load_mmdiff  # noqa: E402
from mmdiff_core.host.prompt import encode_prompt  # noqa: E402
from mmdiff_core.lab.answers import SEED, load_reader  # noqa: E402
from mmdiff_core.lab.evaluate import asked  # noqa: E402
from mmdiff_core.method.subjects import FindRegions, PromptSubject  # noqa: E402
from mmdiff_core.regions.shaping import Shaping, Sources, shape_regions  # noqa: E402
from mmdiff_core.small_world import sizes  # noqa: E402
from mmdiff_core.small_world.trials import count, make_trial  # noqa: E402
from mmdiff_core.training.noise import draw_noise  # noqa: E402


class World:
    """The small world's models, and the trials with their subjects encoded."""

    def __init__(self, question: str, pictures: int, adapter: Path | None):
        self.model, self.clip, self.clip_vision, self.vae = small_world.load()
        self.mmdiff = load_mmdiff(adapter) if adapter else small_world.load_adapter()
        self.patched = apply(self.model, self.mmdiff.adapter, Strength(fuse_scale=1.0))
        kind = asked([question], False)[0]
        self.trials = [make_trial(kind, SEED, i) for i in range(pictures)]
        self.encoded = [self.encode(trial.example) for trial in self.trials]

    def encode(self, example) -> tuple:
        found = []
        for i, shown in enumerate(example.subjects):
            references = shown.references.movedim(1, -1)
            made = encode_subject(self.mmdiff, self.clip_vision, references, None, f"s{i}")
            found.append(PromptSubject(made.subject))
        return tuple(found)

    def draw(self, settings: str) -> torch.Tensor:
        """The trials' pictures [N 3 32 32] with one kind of regions."""
        pairs = zip(self.trials, self.encoded, strict=True)
        return torch.stack(
            [self.picture(trial.example, subjects, settings) for trial, subjects in pairs]
        )

    def picture(self, example, subjects: tuple, settings: str) -> torch.Tensor:
        subjects = with_regions(example, subjects, settings)
        prompt = encode_prompt(self.clip, self.mmdiff, marked(example), "", subjects)
        noise, _ = draw_noise([example.index], (sizes.CHANNELS, 16, 16), 1, SEED)
        how = (sizes.SAMPLING[name] for name in ("steps", "cfg", "sampler_name", "scheduler"))
        latents = comfy.sample.sample(
            self.patched,
            noise,
            *how,
            prompt.positive,
            prompt.negative,
            torch.zeros_like(noise),
            denoise=1.0,
            disable_pbar=True,
            seed=0,
        )
        return self.vae.decode(latents)[0, :: sizes.DOT, :: sizes.DOT].movedim(-1, 0)


def marked(example) -> str:
    """The caption with a marker behind each subject's noun."""
    text, at = "", 0
    for subject in example.subjects:
        text, at = text + example.caption[at : subject.span[1]] + "<|subj|>", subject.span[1]
    return text + example.caption[at:]


def with_regions(example, subjects: tuple, settings: str) -> tuple:
    if settings == "free":
        return subjects
    if settings.startswith("drawn"):
        return with_drawn_regions(example, subjects, settings.split(":")[1:])
    settle, sharpness, image_share, *flags = settings.split(":")
    find = FindRegions(float(settle), "u" in flags, float(sharpness), float(image_share))
    return tuple(s.within(find=find, **held(flags)) for s in subjects)


def held(flags: Sequence[str]) -> dict[str, bool]:
    return {"hold_nouns": "n" in flags, "bound_self_attention": "s" in flags}


def with_drawn_regions(example, subjects: tuple, flags: list[str]) -> tuple:
    larger = sum(int(flag) for flag in flags if flag not in ("n", "s"))
    true = {i: subject.mask for i, subject in enumerate(example.subjects, 1)}
    shaping = Shaping(grow=larger, exclusive=True)
    names = [subject.name for subject in subjects]
    regions = shape_regions(names, Sources(masks=true), (32, 32), shaping)
    pairs = zip(subjects, regions, strict=True)
    return tuple(s.within(mask=mask, **held(flags)) for s, mask in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--question", default="two of a class")
    args = parser.parse_args()
    world, reader = World(args.question, args.pictures, args.adapter), load_reader()
    for settings in ["free", *args.settings]:
        began = time.time()
        shares = count(world.trials, world.draw(settings), reader).shares()
        told = [
            f"{name} {100 * p:.0f} ({100 * a:.0f}-{100 * b:.0f})"
            for name, (p, a, b) in shares.items()
        ]
        seconds = time.time() - began
        sys.stdout.write(f"{args.question}, {settings}: {', '.join(told)}; {seconds:.0f} s\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
