"""A last stage of the training: images that the adapter draws are rewarded for showing every given
subject once.

Images are drawn from noise to a late step of a short schedule, and what the UNet there takes the
finished image to be keeps its gradient (ReFL, Xu et al. 2023). Who is found in it is matched one to
one with who was given (UMO, Cheng et al. 2025). The usual losses go on beside it, so that images
stay what they are. Nothing here depends on the base; a `Scorer` does.

Shapes   B examples · S subjects · F found · C h w latent · H W image
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..evaluation.matching import hungarian
from ..host.sampling import decode_with_gradient
from ..training.bridge import latents_of
from ..training.conditions import Conditions
from ..training.example import Example
from ..training.noise import draw_noise
from ..training.task import MMDiffTask

STREAM = 17  # keeps these draws apart from others of the same seed and example


@dataclass(frozen=True)
class Stage:
    """What is drawn, and how it counts.

    weight   of the reward beside the usual losses, 0 = nothing is drawn
    images   drawn of each batch, those with the most subjects; the others are denoised only
    steps    of the schedule, its timesteps at equal distances
    first    of the steps whose guess of the image may keep its gradient, from 0
    last     of these steps
    guesses  that keep their gradient, of each image
    cfg      scale of the guidance, as where images are sampled
    apart    weight of the similarity to another given subject
    enough   similarity above which a subject is right and gives no gradient
    """

    weight: float = 0.1
    images: int = 8
    steps: int = 10
    first: int = 3
    last: int = 7
    guesses: int = 2
    cfg: float = 3.0
    apart: float = 0.5
    enough: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last < self.steps:
            raise ValueError(
                f"the steps with gradient are {self.first}..{self.last} of {self.steps}; expected "
                "0 <= first <= last < steps"
            )
        if not 1 <= self.guesses <= self.last + 1 - self.first:
            raise ValueError(
                f"{self.guesses} guesses of an image are asked of the steps "
                f"{self.first}..{self.last}; expected 1 to {self.last + 1 - self.first}"
            )

    def late_steps(self, number: int, seed: int) -> list[int]:
        """The steps that keep their gradient in the batch that begins with this example."""
        rng = np.random.default_rng((seed, number, STREAM))
        late = rng.choice(range(self.first, self.last + 1), self.guesses, replace=False)
        return sorted(late.tolist())


class Scorer(Protocol):
    """Who is seen in drawn images. It is kept apart from what judges the trained adapter."""

    def __call__(self, images: Tensor, batch: Sequence[Example]) -> list[Tensor]:
        """Images [B H W 3] in 0..1 -> for each one the similarities [S F] of its subjects to what
        was found in it, at most 1 and 0 for strangers, with the images' gradient."""


class RewardedTask(MMDiffTask):
    """`forward(batch)` -> the usual losses, "reward" and "own" (mean similarity of the matched
    pairs); "loss" is what is minimised."""

    def __init__(self, task: MMDiffTask, stage: Stage, scorer: Scorer):
        """On the adapter and the base of `task`, with its run."""
        super().__init__(task.adapter, task.bridge, task.run)
        self.stage, self.scorer = stage, scorer

    def forward(self, batch: Sequence[Example]) -> dict[str, Tensor]:
        terms = self.denoise(batch)
        drawn = most_subjects(batch, self.stage.images) if self.stage.weight else []
        if not drawn:
            zero = terms["loss"].new_zeros(())
            return terms | {"reward": zero, "own": zero}
        reward, own = self.reward(drawn)
        loss = terms["loss"] - self.stage.weight * reward
        return terms | {"loss": loss, "reward": reward.detach(), "own": own.detach()}

    def reward(self, batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Mean reward, and mean similarity of the matched pairs, of images that are drawn for
        these examples."""
        both = []
        for guess in self.guesses(batch):
            for table in self.scorer(decode_with_gradient(self, guess), batch):
                both.append(matched_reward(table, self.stage.apart, self.stage.enough))
        rewards, own = zip(*both, strict=True)
        return torch.stack(rewards).mean(), torch.stack(own).mean()

    def guesses(self, batch: Sequence[Example]) -> list[Tensor]:
        """What the finished images [B C h w] seem to be at late steps, with gradient."""
        stage, numbers = self.stage, [example.index for example in batch]
        late = stage.late_steps(numbers[0], self.run.seed)
        given = self.conditions(batch, measured=False)
        with torch.no_grad():
            blank = [replace(example, caption="", subjects=()) for example in batch]
            nothing = self.conditions(blank, measured=False)
            shape = latents_of(self.bridge, batch[:1]).shape[1:]
        noisy, _ = draw_noise(numbers, shape, 1, self.run.seed + STREAM)
        alphas, guesses = self.bridge.alphas, []
        noisy = noisy.to(alphas)
        levels = torch.linspace(len(alphas) - 1, 0, stage.steps + 1)[:-1].round().long().tolist()
        for step in range(late[-1] + 1):
            with torch.set_grad_enabled(step in late):
                guess = self._guess(noisy, levels[step], given, nothing)
            if step in late:
                guesses.append(guess)
            if step < late[-1]:
                noisy = renoised(
                    noisy, guess.detach(), alphas[levels[step]], alphas[levels[step + 1]]
                )
        return guesses

    def _guess(
        self, noisy: Tensor, timestep: int, given: Conditions, nothing: Conditions
    ) -> Tensor:
        """The finished latents [B C h w] under guidance; the gradient passes the prediction that
        has the subjects."""
        alpha = self.bridge.alphas[timestep]
        timesteps = torch.full((len(noisy),), timestep, device=noisy.device)
        with torch.no_grad():
            without, _ = self.predict(noisy, timesteps, nothing)
        with_subjects, _ = self.predict(noisy, timesteps, given)
        out = without + self.stage.cfg * (with_subjects - without)
        a, b = alpha.sqrt(), (1 - alpha).sqrt()
        return a * noisy - b * out if self.bridge.prediction_type == "v" else (noisy - b * out) / a


def most_subjects(batch: Sequence[Example], images: int) -> list[Example]:
    """Up to `images` of the examples that have several subjects, those with the most first."""
    several = [example for example in batch if len(example.subjects) > 1]
    return sorted(several, key=lambda example: -len(example.subjects))[:images]


def renoised(noisy: Tensor, guess: Tensor, alpha: Tensor, following: Tensor) -> Tensor:
    """Latents at the following step's share of the image, without new noise (DDIM)."""
    noise = (noisy - alpha.sqrt() * guess) / (1 - alpha).sqrt()
    return following.sqrt() * guess + (1 - following).sqrt() * noise


def matched_reward(table: Tensor, apart: float, enough: float) -> tuple[Tensor, Tensor]:
    """Similarities [S F] of the given to the found -> the mean reward of the given, and their mean
    similarity to whom they are matched with.

    A subject's reward is the similarity of its pair, up to `enough`, less `apart` times the largest
    one of the found to another subject; 0 where nothing was left to match.
    """
    own, rewards = [], []
    for subject, found in enumerate(hungarian(table)):
        seen = table.new_zeros(len(table)) if found is None else table[:, found]
        others = torch.cat([seen[:subject], seen[subject + 1 :], seen.new_zeros(1)])
        own.append(seen[subject])
        rewards.append(seen[subject].clamp_max(enough) - apart * others.amax())
    return torch.stack(rewards).mean(), torch.stack(own).mean()
