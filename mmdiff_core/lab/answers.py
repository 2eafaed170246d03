"""Who answers the questions: an adapter, the base alone, the floor and the ceiling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..host import small_world
from ..host.frozen_base.encoders import vision_states
from ..host.sampling import decode, redraw_latents, sample_latents
from ..references.pixels import normalise
from ..small_world import descriptions, sizes
from ..small_world.score import Embed, EncoderRuler, Reader
from ..small_world.trials import Question, Tally, Trial, count, make_trial, true_image, unrelated
from ..training.example import Example
from ..training.noise import draw_noise
from ..training.task import MMDiffTask

SEED = 99
CEILING_LEVEL = 0.3  # noise level, as fraction of the timesteps, from which the ceiling is drawn
Draw = Callable[[Sequence[Trial]], Tensor]  # trials -> images [B 3 S S] in dots


def load_reader() -> Reader:
    """The network that reads classes and places."""
    reader = Reader()
    weights = small_world.read(small_world.WEIGHTS, "reader")
    reader.load_state_dict({key: weight.float() for key, weight in weights.items()})
    return reader.eval()


def load_embed() -> Embed:
    """The frozen image encoder of the small world: images [n 3 K K] in 0..1 -> CLS [n C]."""
    weights = small_world.read(small_world.WEIGHTS, "vision")
    encoder = small_world.clip_vision(weights).model

    @torch.no_grad()
    def embed(images: Tensor) -> Tensor:
        return vision_states(encoder, normalise(images))[0].float()

    return embed


def noise_for(examples: Sequence[Example]) -> Tensor:
    """Noise [B C h w] that follows from the trials' numbers."""
    side = sizes.UNET["image_size"]
    return draw_noise([e.index for e in examples], (sizes.CHANNELS, side, side), 1, SEED)[0]


def draw(task: MMDiffTask, examples: Sequence[Example], held: Sequence[str] = ()) -> Tensor:
    """Images in dots [B 3 S S], from noise that follows from the trials' numbers."""
    noise = noise_for(examples).to(task.bridge.alphas.device)
    latents = sample_latents(task, examples, noise, **sizes.SAMPLING, held=held)
    return decode(task, latents.float())[:, :: sizes.DOT, :: sizes.DOT].movedim(-1, 1)


def draw_with(task: MMDiffTask, question: Question, without: bool = False) -> Draw:
    """What an adapter answers; `without` leaves all subjects out."""

    def answer(trials: Sequence[Trial]) -> Tensor:
        examples = [replace(t.example, subjects=()) if without else t.example for t in trials]
        return draw(task, examples, question.held)

    return answer


def draw_told(task: MMDiffTask) -> Draw:
    """What the base alone answers when the caption describes the individuals in words."""

    def answer(trials: Sequence[Trial]) -> Tensor:
        captions = [descriptions.fully(trial.scene).caption for trial in trials]
        pairs = zip(trials, captions, strict=True)
        return draw(task, [replace(t.example, caption=c, subjects=()) for t, c in pairs])

    return answer


def draw_floor(trials: Sequence[Trial]) -> Tensor:
    """Perfect renderings of individuals that nobody asked for."""
    return torch.stack([unrelated(t, t.example.index) for t in trials])


def draw_ceiling(task: MMDiffTask) -> Draw:
    """True renderings, noised to `CEILING_LEVEL` and drawn again by the base alone."""

    def answer(trials: Sequence[Trial]) -> Tensor:
        images = torch.stack([true_image(t.scene) for t in trials])
        large = images.repeat_interleave(sizes.DOT, -1).repeat_interleave(sizes.DOT, -2)
        examples = [replace(t.example, subjects=()) for t in trials]
        latents = redraw_latents(
            task,
            examples,
            task.bridge.latents(large),
            noise_for(examples),
            CEILING_LEVEL,
            **sizes.SAMPLING,
        )
        return decode(task, latents.float())[:, :: sizes.DOT, :: sizes.DOT].movedim(-1, 1)

    return answer


def ask(
    answer: Draw,
    question: Question,
    pictures: int,
    reader: Reader,
    second: EncoderRuler | None = None,
    looked_at: int | None = None,
    batch: int = 32,
) -> Tally:
    """All images of one question; the second ruler sees the first `looked_at`, None = all."""
    tally = Tally()
    for start in range(0, pictures, batch):
        stop = min(start + batch, pictures)
        trials = [make_trial(question, SEED, i) for i in range(start, stop)]
        looks = second if looked_at is None or start < looked_at else None
        tally = tally.merge(count(trials, answer(trials), reader, looks))
    return tally
