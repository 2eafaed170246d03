"""Experiment, run when named: what found regions do in the small world, through the pack's own nodes' functions.

    python tests/found_regions.py [--pictures 64] [--adapter FILE] [--question "two of a class"] settle:sharpness:image_share[:u][:n] ...

u = updated at every step, n = nouns held too; "free" is always first. drawn[:DOTS][:n] = boxes round the true places, that many dots (of 32)
larger on every side and kept apart. Prints a line each.
"""
from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
sys.path[:0] = [os.environ["COMFYUI_PATH"], str(PACK)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--question", default="two of a class")
    args = parser.parse_args()
    from mmdiff_core.host.start import use_comfyui
    use_comfyui(cpu=True)
    import comfy.sample
    import torch

    from mmdiff_core.host import small_world
    from mmdiff_core.host.apply import Strength, apply
    from mmdiff_core.host.encode import encode_prompt, encode_subject
    from mmdiff_core.host.evaluate import SEED, asked, load_reader
    from mmdiff_core.host.models import load_mmdiff
    from mmdiff_core.method.subjects import FindRegions, PromptSubject
    from mmdiff_core.regions.shaping import Shaping, shape_regions
    from mmdiff_core.small_world import sizes
    from mmdiff_core.small_world.trials import count, make_trial
    from mmdiff_core.training.task import draw_noise

    model, clip, clip_vision, vae = small_world.load()
    mmdiff = load_mmdiff(args.adapter) if args.adapter else small_world.load_adapter()
    patched, reader = apply(model, mmdiff.adapter, Strength(fuse_scale=1.0)), load_reader()
    trials = [make_trial(asked([args.question], False)[0], SEED, i) for i in range(args.pictures)]
    encoded = [
        tuple(PromptSubject(encode_subject(mmdiff, clip_vision, s.references.movedim(1, -1), None, f"s{i}").subject) for i, s in enumerate(t.example.subjects))
        for t in trials
    ]

    def draw(settings: str) -> torch.Tensor:
        pictures = []
        for trial, subjects in zip(trials, encoded, strict=True):
            text, at = "", 0
            for s in trial.example.subjects:
                text, at = text + trial.example.caption[at:s.span[1]] + "<|subj|>", s.span[1]
            text += trial.example.caption[at:]
            if settings.startswith("drawn"):
                _, *flags = settings.split(":")
                shaping = Shaping(grow=sum(int(f) for f in flags if f != "n"), exclusive=True)
                boxes = {i: e.mask for i, e in enumerate(trial.example.subjects, 1)}
                regions = shape_regions([s.name for s in subjects], boxes, (), {}, (32, 32), shaping)
                subjects = tuple(s.within(mask=m, hold_nouns="n" in flags) for s, m in zip(subjects, regions, strict=True))
            elif settings != "free":
                settle, sharpness, image_share, *flags = settings.split(":")
                find = FindRegions(float(settle), "u" in flags, float(sharpness), float(image_share))
                subjects = tuple(s.within(find=find, hold_nouns="n" in flags) for s in subjects)
            prompt = encode_prompt(clip, mmdiff, text, "", subjects)
            noise, _ = draw_noise([trial.example.index], (sizes.CHANNELS, 16, 16), 1, SEED)
            latents = comfy.sample.sample(
                patched, noise, sizes.SAMPLING["steps"], sizes.SAMPLING["cfg"], sizes.SAMPLING["sampler_name"], sizes.SAMPLING["scheduler"],
                prompt.positive, prompt.negative, torch.zeros_like(noise), denoise=1.0, disable_pbar=True, seed=0,
            )
            pictures.append(vae.decode(latents)[0, ::sizes.DOT, ::sizes.DOT].movedim(-1, 0))
        return torch.stack(pictures)

    for settings in ["free", *args.settings]:
        began = time.time()
        shares = count(trials, draw(settings), reader).shares()
        told = ", ".join(f"{name} {100 * p:.0f} ({100 * a:.0f}-{100 * b:.0f})" for name, (p, a, b) in shares.items())
        sys.stdout.write(f"{args.question}, {settings}: {told}; {time.time() - began:.0f} s\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
