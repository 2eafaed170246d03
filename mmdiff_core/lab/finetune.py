"""Fine-tuning the base on single subjects, for comparison."""

from __future__ import annotations

import logging
import resource
import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..host.frozen_base.build import load_task
from ..small_world import scenes, trials
from ..small_world.examples import SmallWorldExamples, enlarge
from ..training.example import Example
from ..training.task import MMDiffTask
from .answers import SEED, draw, load_reader

log = logging.getLogger(__name__)
BATCH, RATE = 8, 2e-4
QUESTION = trials.Question("one")


def as_scene(reference: Tensor, rng: np.random.Generator) -> Tensor:
    """A reference [3 K K] at the scenes' size on its own background, at a random position on the
    grid that subjects stand on."""
    small = F.avg_pool2d(reference[None], 2)[0]
    scene = reference[:, :1, :1].expand(-1, scenes.SIDE, scenes.SIDE).clone()
    height, width = small.shape[-2:]
    inside = (width - scenes.WIDTH) // 2, (height - scenes.TALL) // 2  # the subject in it
    free = (scenes.SIDE - width) // scenes.GRID
    x, y = (
        scenes.GRID * int(v) + own % scenes.GRID
        for v, own in zip(rng.integers(0, free, 2), inside, strict=True)
    )
    scene[:, y : y + height, x : x + width] = small
    return scene


def fine_tune(task: MMDiffTask, kind: str, references: Tensor, steps: int, seed: int) -> float:
    """Train the task's UNet on one subject; seconds it took."""
    unet = task.bridge.unet.requires_grad_(True)
    parameters = unet.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    rng = np.random.default_rng(seed)
    prior = SmallWorldExamples(seed=seed + 1, caption_dropout=0.1, subject_dropout=1.0)
    began = time.time()
    for step in range(steps):
        number = (seed * steps + step) * BATCH
        own = []
        for offset in range(BATCH // 2):
            shown = as_scene(references[rng.integers(len(references))], rng)
            own.append(Example(enlarge(shown), f"a {kind}", (), number + offset))
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


def compare(subjects: int, images: int, steps: int, references: int) -> dict:
    """Counts over all subjects, and what one costs, as a results file has them."""
    reader, tally, seconds = load_reader(), trials.Tally(), []
    for subject in range(subjects):
        asked = trials.make_trial(replace(QUESTION, references=references), SEED, subject)
        task, (kind, _) = load_task(None), asked.wanted[0]
        shown = asked.example.subjects[0].references
        seconds.append(fine_tune(task, kind, shown, steps, subject))
        wanted = trials_of(subject, images, references)
        drawn = draw(task, [trial.example for trial in wanted])
        tally = tally.merge(trials.count(wanted, drawn, reader))
        log.info(
            "subject %d of %d: %.0f s, so far %s", subject + 1, subjects, seconds[-1], vars(tally)
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cost = {
        "seconds_per_subject": sum(seconds) / subjects,
        "steps": steps,
        "peak_memory_bytes": peak,
    }
    return {"fine-tuned": {QUESTION.name: vars(tally), "cost": cost}}
