"""The frames of one prompt as a batch: the noise or the text walks slowly from one to another.

Shapes   F frames · C h w latent · S image side in dots
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..evaluation.experiments import (
    BASE,
    OVERLAP,
    OWN_NOISE,
    PROMPT_WALK,
    WINDOW,
    WINDOWS,
    Cell,
)
from ..host.frames import HostedWorld, Windows
from ..host.sampling import Toward, decode, sample_latents
from ..small_world import scenes, score, sizes
from ..small_world.examples import enlarge
from ..small_world.sprites import PLACES
from ..small_world.trials import STRANGERS, Trial
from ..training.example import Example
from ..training.task import MMDiffTask
from .answers import noise_for

# without noise between the steps, which would be another one in every frame
SAMPLING = {**sizes.SAMPLING, "sampler_name": "euler"}
FAR = 500_000  # from a trial's number to that of the noise at the end of its walk
SUBJECT = "<|subj|>"


def noise_of_frames(cell: Cell, example: Example, count: int) -> Tensor:
    """Unit noise [F C h w] of the frames; the first one's is the trial's own.

    A walk goes along the great circle to other noise, a quarter turn in all: every frame's noise is
    unit noise too.
    """
    number = example.index
    if cell.frames == OWN_NOISE:
        return noise_for([replace(example, index=number + FAR * n) for n in range(count)])
    first, last = noise_for([example, replace(example, index=number + FAR)])
    if cell.frames == PROMPT_WALK:
        return first.expand(count, -1, -1, -1).clone()
    turns = torch.linspace(0, math.pi / 2, count).view(-1, 1, 1, 1)
    return turns.cos() * first + turns.sin() * last


def another_place(trial: Trial) -> str:
    """The trial's caption at the next place of the small world."""
    places = tuple(PLACES)
    there = places[(places.index(trial.scene.place) + 1) % len(places)]
    return replace(trial.scene, place=there).caption


def draw_frames(task: MMDiffTask, cell: Cell, trial: Trial, count: int) -> Tensor:
    """Images [F 3 S S] in dots of one trial."""
    example, toward = trial.example, None
    if cell.drawn_by == BASE:
        example = replace(example, subjects=())
    if cell.frames == PROMPT_WALK:
        shares = torch.linspace(0, 1, count).tolist()
        toward = Toward([another_place(trial)] * count, shares)
    noise = noise_of_frames(cell, trial.example, count)
    latents = sample_latents(task, [example] * count, noise, **SAMPLING, toward=toward)
    return decode(task, latents.float())[:, :: sizes.DOT, :: sizes.DOT].movedim(-1, 1)


def load_host(adapter: Path) -> HostedWorld:
    """The small world in ComfyUI."""
    return HostedWorld.load(adapter)


def draw_by_host(world: HostedWorld, cell: Cell, trial: Trial, count: int) -> Tensor:
    """Images [F 3 S S] in dots of one trial, by the host's sampler, in its windows where the cell
    says so."""
    noise = noise_of_frames(cell, trial.example, count)
    marked = trial.example.caption
    for _, end in sorted(trial.example.spans, reverse=True):
        marked = f"{marked[:end]}{SUBJECT}{marked[end:]}"
    shown = [enlarge(s.references.float()).movedim(1, -1) for s in trial.example.subjects]
    windows = Windows(WINDOW, OVERLAP) if cell.host == WINDOWS else None
    images = world.draw(marked, shown, noise, windows, **SAMPLING)
    return images[:, :: sizes.DOT, :: sizes.DOT].movedim(-1, 1)


def likeness_between(trial: Trial, images: Sequence[Tensor], embed: score.Embed) -> list[float]:
    """Cosine of what stands in the subject's silhouette in each frame and in the next [F - 1].

    Where it stands is read with individuals of its class that nobody asked for among the
    candidates, so that it is found as well where the base draws another one.
    """
    (kind, who), *_ = trial.wanted
    candidates = [(kind, who), *((kind, other) for other in trial.strangers[:STRANGERS])]
    cut = []
    for image in images:
        found = score.find(image, candidates, 1)[0]
        cut.append(score.cut_out(image, scenes.Placed(kind, who, found.x, found.y)))
    features = embed(torch.cat(cut))
    return F.cosine_similarity(features[:-1], features[1:], dim=-1).tolist()
