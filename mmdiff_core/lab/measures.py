"""What is measured beside the questions: maps inside the masks, the references' gain, leakage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..method.losses import denoising_loss, denoising_target, weigh_subjects
from ..small_world import scenes, score
from ..small_world.examples import SmallWorldExamples
from ..small_world.trials import Question, Trial, make_trial
from ..training.example import Example
from ..training.layers import MEASURES
from ..training.noise import draw_noise
from ..training.task import MMDiffTask
from .answers import SEED, draw

LEVELS = (0.3, 0.6, 0.8, 0.95)
ONLY = 1e4  # weight of the subjects' pixels where the background should not count


@torch.no_grad()
def inside(task: MMDiffTask, pictures: int, batch: int = 32) -> dict[str, float]:
    """Mean attention probability inside the own mask, of text and image maps.

    Measured on true images of held-out individuals with two subjects.
    """
    source = SmallWorldExamples(
        seed=SEED, split="test", caption_dropout=0, subject_dropout=0, count=2
    )
    rows = [task.denoise(source.batch(start, batch)) for start in range(0, pictures, batch)]
    means = {}
    for name in MEASURES:
        if name.endswith("inside"):
            means[name] = float(torch.stack([row[name] for row in rows]).mean())
    return means


@torch.no_grad()
def gain(
    task: MMDiffTask, pictures: int, levels: Sequence[float] = LEVELS, batch: int = 64
) -> dict[str, float]:
    """By how much the right references lower the error inside the subjects: 1 - own / swapped.

    Swapped are the references of another image; levels are fractions of the timesteps. Measured on
    true images of held-out individuals, it is far more sensitive than drawn images.
    """
    own = swapped = 0.0
    for start in range(0, pictures, batch):
        errors = _errors(task, start, min(batch, pictures - start), levels)
        own, swapped = own + errors[0], swapped + errors[1]
    shares = (1 - own / swapped).tolist()
    return {f"{level}": share for level, share in zip(levels, shares, strict=True)}


def _errors(task: MMDiffTask, start: int, pictures: int, levels: Sequence[float]) -> Tensor:
    """Squared errors inside the subjects, summed over the images [2 levels].

    The first row has their own references, the second those of the next image.
    """
    own, swapped = _own_and_swapped(start, pictures)
    latents = task.bridge.latents(torch.stack([example.pixels for example in own]))
    noise, _ = draw_noise([example.index for example in own], latents.shape[1:], 1, SEED)
    sides = [task.conditions(part) for part in (own, swapped)]
    where = weigh_subjects(sides[0].masks, tuple(latents.shape[-2:]), ONLY)
    errors, alphas = torch.zeros(2, len(levels)), task.bridge.alphas
    for column, level in enumerate(levels):
        at = torch.full((pictures,), int(level * (len(alphas) - 1)))
        a, b = (part.sqrt().view(-1, 1, 1, 1) for part in (alphas[at], 1 - alphas[at]))
        target = denoising_target(task.bridge.prediction_type, latents, noise, a, b)
        for row, conditions in enumerate(sides):
            prediction, _ = task.predict(a * latents + b * noise, at, conditions)
            loss = denoising_loss(prediction, target, torch.ones(pictures), where)
            errors[row, column] = loss.sum()
    return errors


def _own_and_swapped(start: int, pictures: int) -> tuple[list[Example], list[Example]]:
    """Examples with their own references, and with those of the next example."""
    source = SmallWorldExamples(seed=SEED, split="test", caption_dropout=0, subject_dropout=0)
    *own, beyond = source.batch(start, pictures + 1)
    swapped = []
    for example, other in zip(own, (*own[1:], beyond), strict=True):
        shown = other.subjects[0].references
        subjects = tuple(replace(subject, references=shown) for subject in example.subjects)
        swapped.append(replace(example, subjects=subjects))
    return own, swapped


def leakage(task: MMDiffTask, pictures: int, question: Question) -> dict[str, float]:
    """How much the first subject's region changes when the second one is only its bare class.

    Mean absolute difference in 0..255 between {A, B} and {A, B as its class}, from the same noise:
    inside A, where it stands in the first image, and over the whole image.
    """
    return _change(task, pictures, question, _bare)


def exchange(task: MMDiffTask, pictures: int, question: Question) -> dict[str, float]:
    """The same when the second subject is another individual of its class, in the same region."""
    return _change(task, pictures, question, _exchanged)


def _bare(trial: Trial) -> Example:
    return replace(trial.example, subjects=trial.example.subjects[:1])


def _exchanged(trial: Trial) -> Example:
    first, second = trial.example.subjects
    shown = scenes.reference(trial.wanted[1][0], trial.strangers[0])
    other = torch.from_numpy(shown).movedim(-1, 0)[None].to(second.references)
    return replace(trial.example, subjects=(first, replace(second, references=other)))


@torch.no_grad()
def _change(
    task: MMDiffTask,
    pictures: int,
    question: Question,
    changed: Callable[[Trial], Example],
    batch: int = 32,
) -> dict[str, float]:
    inside, whole = [], []
    for start in range(0, pictures, batch):
        stop = min(start + batch, pictures)
        trials = [make_trial(question, SEED, i) for i in range(start, stop)]
        both = draw(task, [t.example for t in trials], question.held)
        others = draw(task, [changed(trial) for trial in trials], question.held)
        for trial, one, other in zip(trials, both, others, strict=True):
            match = score.find(one, trial.wanted[:1], 1)[0]
            apart = (one - other).abs() * 255
            region = score.region_of(trial.wanted[0], match)
            inside.append(float(apart[:, region].mean()))
            whole.append(float(apart.mean()))
    return {"inside": sum(inside) / len(inside), "whole": sum(whole) / len(whole)}
