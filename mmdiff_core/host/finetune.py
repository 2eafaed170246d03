"""Command: the other way to a given subject, for comparison: fine-tune the base on its references (DreamBooth-like).

    python -m mmdiff_core.host.finetune OUT.json [--subjects 16] [--pictures 32] [--steps 300] [--references 5]

For every subject the whole UNet is trained on its references (at the scenes' size, on their blank ground, at random places) and, as prior
preservation, on as many other scenes; then it draws the same trials as the adapter. OUT.json: the counts, and what a subject costs.
"""
from __future__ import annotations

import argparse
import json
import logging
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..small_world import scenes, trials
from ..small_world.examples import SmallWorldExamples, enlarge
from ..training.example import Example
from ..training.task import MMDiffTask
from .evaluate import SEED, draw, load_reader, load_task
from .start import use_comfyui

log = logging.getLogger(__name__)
BATCH, RATE = 8, 2e-4
QUESTION = trials.Question("one")


def as_scene(reference: Tensor, rng: np.random.Generator) -> Tensor:
    """A reference [3 K K] at the scenes' size, at a random place of its own blank ground [3 S S]."""
    small = F.avg_pool2d(reference[None], 2)[0]
    picture = reference[:, :1, :1].expand(-1, scenes.SIDE, scenes.SIDE).clone()
    x, y = (int(v) for v in rng.integers(0, scenes.SIDE - small.shape[-1] + 1, 2))
    picture[:, y:y + small.shape[1], x:x + small.shape[2]] = small
    return picture


def fine_tune(task: MMDiffTask, kind: str, references: Tensor, steps: int, seed: int) -> float:
    """Train the task's UNet on one subject; seconds it took."""
    unet = task.bridge.unet.requires_grad_(True)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    rng, prior = np.random.default_rng(seed), SmallWorldExamples(seed=seed + 1, caption_dropout=0.1, subject_dropout=1.0)
    began = time.time()
    for step in range(steps):
        number = (seed * steps + step) * BATCH
        own = [
            Example(enlarge(as_scene(references[rng.integers(len(references))], rng)), f"a {kind}", (), number + i)
            for i in range(BATCH // 2)
        ]
        with torch.autocast("cpu", torch.bfloat16):
            loss = task([*own, *prior.batch(number + BATCH // 2, BATCH // 2)])["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    unet.requires_grad_(False)
    return time.time() - began


def trials_of(subject: int, pictures: int, references: int) -> list[trials.Trial]:
    """The same individual in as many scenes."""
    first = trials.make_trial(replace(QUESTION, references=references), SEED, subject)
    kind, who = first.wanted[0]
    found = []
    for i in range(pictures):
        scene = trials.make_trial(QUESTION, SEED, 10_000 + subject * pictures + i).scene
        scene = replace(scene, placed=(replace(scene.placed[0], kind=kind, identity=who),))
        found.append(trials.Trial(scene, replace(first.example, caption=scene.caption, subjects=(), index=i), first.strangers))
    return found


def run(args: argparse.Namespace) -> dict:
    reader, tally, seconds = load_reader(), trials.Tally(), []
    for subject in range(args.subjects):
        asked = trials.make_trial(replace(QUESTION, references=args.references), SEED, subject)
        task = load_task(None)
        seconds.append(fine_tune(task, asked.wanted[0][0], asked.example.subjects[0].references, args.steps, subject))
        wanted = trials_of(subject, args.pictures, args.references)
        tally = tally.merge(trials.count(wanted, draw(task, [t.example for t in wanted]), reader))
        log.info("subject %d of %d: %.0f s, so far %s", subject + 1, args.subjects, seconds[-1], vars(tally))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cost = {"seconds_per_subject": sum(seconds) / len(seconds), "steps": args.steps, "peak_memory_bytes": peak}
    return {"fine-tuned": {QUESTION.name: vars(tally), "cost": cost}}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mmdiff_core.host.finetune", description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--subjects", type=int, default=16)
    parser.add_argument("--pictures", type=int, default=32, help="of every subject")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--references", type=int, default=5)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_comfyui(cpu=True)
    args.out.write_text(json.dumps(run(args), indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
