"""Fine-tuning the base on single subjects, for comparison."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..host.frozen_base.build import load_task
from ..small_world import scenes, trials
from ..small_world.backgrounds import background
from ..small_world.examples import SmallWorldExamples, enlarge
from ..training.example import Example
from ..training.task import MMDiffTask
from .answers import SEED, draw, load_reader

log = logging.getLogger(__name__)
BATCH = 8
RATE, STEPS = 1e-4, 300
GROUND = 0.01  # more than this from the corner's colour, in 0..1, is the subject
QUESTION = trials.Question("one")


def set_in_scene(kind: str, reference: Tensor, scene: scenes.Scene) -> tuple[Tensor, str]:
    """A reference [3 K K] cut out of its blank ground, at the scenes' size and in the place of the
    scene's one subject [3 S S]; and the caption.
    """
    cut = (reference - reference[:, :1, :1]).abs().amax(0, keepdim=True).gt(GROUND).float()
    small, mask = (F.avg_pool2d(part[None], 2)[0] for part in (reference * cut, cut))
    (stands,) = scene.placed
    height, width = small.shape[-2:]
    top = stands.y - (height - scenes.TALL) // 2  # the subject is in the middle of the reference
    left = stands.x - (width - scenes.WIDTH) // 2
    right, below = scenes.SIDE - left - width, scenes.SIDE - top - height
    around = (left, right, top, below)  # where negative, it is cropped
    ground = torch.tensor(background(scene.place, scene.style)).movedim(-1, 0)
    small, mask = (F.pad(part, around) for part in (small, mask))
    caption = replace(scene, placed=(replace(stands, kind=kind),)).caption
    return ground * (1 - mask) + small, caption


def fine_tune(
    task: MMDiffTask,
    kind: str,
    references: Tensor,
    seed: int,
    *,
    steps: int = STEPS,
    rate: float = RATE,
) -> float:
    """Train the task's UNet on one subject; seconds it took."""
    unet = task.bridge.unet.requires_grad_(True)
    parameters = unet.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    rng = np.random.default_rng(seed)
    prior = SmallWorldExamples(seed=seed + 1, caption_dropout=0.1, subject_dropout=1.0)
    began = time.time()
    for step in range(steps):
        number = (seed * steps + step) * BATCH
        own = []
        for offset in range(BATCH // 2):
            reference = references[rng.integers(len(references))]
            scene = scenes.scene("train", seed, number + offset, 1)
            shown, caption = set_in_scene(kind, reference, scene)
            own.append(Example(enlarge(shown), caption, (), number + offset))
        loss = task([*own, *prior.batch(number + BATCH // 2, BATCH // 2)])["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    unet.requires_grad_(False)
    return time.time() - began


def trials_of(subject: int, images: int, references: int) -> list[trials.Trial]:
    """The same individual in as many scenes."""
    first = trials.make_trial(replace(QUESTION, references=references), SEED, subject)
    kind, who = first.wanted[0]
    of_subject = []
    for number in range(images):
        scene = trials.make_trial(QUESTION, SEED, 10_000 + subject * images + number).scene
        placed = replace(scene.placed[0], kind=kind, identity=who)
        scene = replace(scene, placed=(placed,))
        example = replace(first.example, caption=scene.caption, subjects=(), index=number)
        of_subject.append(trials.Trial(scene, example, first.strangers))
    return of_subject


def compare(
    subjects: Sequence[int], images: int, references: int, *, steps: int, rate: float
) -> dict:
    """Counts over all subjects, and what one costs, as a results file has them."""
    reader, tally, seconds = load_reader(), trials.Tally(), []
    for subject in subjects:
        asked = trials.make_trial(replace(QUESTION, references=references), SEED, subject)
        task, (kind, _) = load_task(None), asked.wanted[0]
        shown = asked.example.subjects[0].references
        seconds.append(fine_tune(task, kind, shown, subject, steps=steps, rate=rate))
        wanted = trials_of(subject, images, references)
        drawn = draw(task, [trial.example for trial in wanted])
        tally = tally.merge(trials.count(wanted, drawn, reader))
        log.info("subject %d: %.0f s, so far %s", subject, seconds[-1], vars(tally))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cost = {
        "seconds_per_subject": sum(seconds) / len(seconds),
        "steps": steps,
        "rate": rate,
        "peak_memory_bytes": peak,
    }
    return {"fine-tuned": {QUESTION.name: vars(tally), "cost": cost}}
