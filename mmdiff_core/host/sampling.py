"""Images from a model in training: ComfyUI's own samplers and schedules over
`MMDiffTask.predict`, many prompts in one batch.

The graph's way (Apply MM-Diff Attention, KSampler) gives the same images one prompt at a time; a
test holds them together.

Shapes   B examples · C h w latent
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import comfy.k_diffusion.sampling
import comfy.samplers
import torch
from torch import Tensor

from ..method.subjects import NOUNS, SELF, TOKENS
from ..regions.attention_bias import noun_bias, shares, token_bias
from ..regions.attention_maps import members
from ..regions.self_attention import apart, exclusive
from ..training.bridge import Grid
from ..training.conditions import Conditions, HeldLayer
from ..training.example import Example
from ..training.task import MMDiffTask


@dataclass(frozen=True, eq=False)
class Toward:
    """Other captions, and how far each example's text is mixed towards its own one of them, as
    ConditioningAverage mixes two prompts. The subjects' nouns stand at the same places in both.

    captions  one for each example
    shares    in 0..1
    """

    captions: Sequence[str]
    shares: Sequence[float]

    def mix(self, task: MMDiffTask, examples: Sequence[Example], own: Conditions) -> Conditions:
        """The first rows of `own` are the examples'; further rows stay as they are."""
        pairs = zip(examples, self.captions, strict=True)
        there = task.conditions([replace(e, caption=c) for e, c in pairs], measured=False)
        count = len(examples)
        if not torch.equal(own.nouns[:count], there.nouns):
            raise ValueError("the subjects' nouns must stand at the same places in both captions")
        share = torch.tensor(self.shares).view(-1, 1, 1).to(own.context)
        context = torch.cat(
            [torch.lerp(own.context[:count], there.context, share), own.context[count:]]
        )
        return replace(own, context=context)


class Denoiser:
    """(x, sigma) -> denoised, with classifier-free guidance between the examples and their
    unconditional twins."""

    def __init__(
        self,
        task: MMDiffTask,
        examples: Sequence[Example],
        cfg: float,
        held: Sequence[str] = (),
        toward: Toward | None = None,
    ):
        blank = [replace(example, caption="", subjects=()) for example in examples]
        every = [*examples, *blank] if cfg != 1 else list(examples)
        self.task, self.cfg, self.count = task, cfg, len(examples)
        self.sampling = task.bridge.base.model_sampling
        # where the host's samplers look for the schedule
        innermost = SimpleNamespace(model_sampling=self.sampling)
        self.inner_model = SimpleNamespace(model_sampling=self.sampling, inner_model=innermost)
        self.conditions: Conditions = task.conditions(every, measured=False)
        if toward is not None:
            self.conditions = toward.mix(task, examples, self.conditions)
        if held:
            regions = Holding(every, self.conditions, tuple(held))
            self.conditions = replace(
                self.conditions, held=regions, bounds_self_attention=SELF in held
            )

    def __call__(self, x: Tensor, sigma: Tensor, **_options) -> Tensor:
        sigma = sigma[:1].view(1, 1, 1, 1)
        a, b = (sigma**2 + 1) ** -0.5, sigma * (sigma**2 + 1) ** -0.5
        noisy = x * a
        twice = torch.cat([noisy, noisy]) if self.cfg != 1 else noisy
        timesteps = self.sampling.timestep(sigma.flatten()).expand(len(twice))
        out, _ = self.task.predict(twice, timesteps, self.conditions)
        both = torch.cat([x] * (len(twice) // len(x)))
        predicts_v = self.task.bridge.prediction_type == "v"
        denoised = twice * a - b * out if predicts_v else both - sigma * out
        if self.cfg == 1:
            return denoised
        cond, uncond = denoised.split(self.count)
        return uncond + self.cfg * (cond - uncond)


@dataclass(frozen=True, eq=False)
class Holding:
    """A layer's grid -> what holds the examples' subjects to their masks there, by inference's own
    `attention_bias`; made once for each grid.

    examples    as the conditions have them
    held        of TOKENS, NOUNS, SELF
    """

    examples: Sequence[Example]
    conditions: Conditions
    held: tuple[str, ...]
    made: dict[Grid, HeldLayer] = field(default_factory=dict)

    def __call__(self, grid: Grid) -> HeldLayer:
        if grid not in self.made:
            self.made[grid] = self._make(grid)
        return self.made[grid]

    def _make(self, grid: Grid) -> HeldLayer:
        """The rows of all examples."""
        open_to = [self._shares(example, grid) for example in self.examples]
        most = self.conditions.present.shape[1]
        each = [len(self.conditions.owner) // most] * most
        tokens = gate = nouns = columns = None
        if TOKENS in self.held:
            tokens = torch.cat([token_bias(row, each, torch.float32) for row in open_to])
            gate = torch.cat([row.amax(1)[..., None] for row in open_to])
        if NOUNS in self.held:
            nouns = torch.cat([self._nouns(row, at) for at, row in enumerate(open_to)])
        if SELF in self.held:
            columns = torch.cat([apart(exclusive(row)) for row in open_to])
        return HeldLayer(tokens, gate, nouns, columns)

    def _shares(self, example: Example, grid: Grid) -> Tensor:
        """How far each position is open to each subject [1 S P]; not at all to absent ones."""
        present = self.conditions.present
        masks = [s.mask for s in example.subjects]
        masks += [torch.zeros(example.size)] * (present.shape[1] - len(masks))
        latent = tuple(side // 8 for side in example.size)
        return shares(masks, grid, latent, None, present.device)

    def _nouns(self, open_to: Tensor, row: int) -> Tensor:
        """Bias of the text [1 1 P L] for the example in a row of the batch."""
        given = self.conditions
        pairs = zip(given.nouns[row].tolist(), given.present[row].tolist(), strict=True)
        columns = [[column] if there else [] for column, there in pairs]
        length = given.context.shape[1]
        return noun_bias(open_to, members(columns, length, open_to.device), torch.float32)


@torch.no_grad()
def sample_latents(
    task: MMDiffTask,
    examples: Sequence[Example],
    noise: Tensor,
    steps: int = 20,
    cfg: float = 2.0,
    sampler_name: str = "euler",
    scheduler: str = "normal",
    held: Sequence[str] = (),
    seed: int = 0,
    toward: Toward | None = None,
) -> Tensor:
    """Latents [B C h w] as the UNet sees them, from unit noise. The examples bring captions and
    references; their pixels only say how large the image is. `held`: what of every subject is kept
    inside its mask (TOKENS, NOUNS, SELF), as with Multi-Subject Constraint Masks. `seed`: of the
    noise that samplers add between the steps. `toward`: captions that the texts are mixed with."""
    denoiser = Denoiser(task, examples, cfg, held, toward)
    sigmas = comfy.samplers.calculate_sigmas(denoiser.sampling, scheduler, steps)
    start = denoiser.sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise), True)
    run = getattr(comfy.k_diffusion.sampling, f"sample_{sampler_name}")
    return run(
        denoiser, start.to(noise), sigmas.to(noise.device), extra_args={"seed": seed}, disable=True
    )


@torch.no_grad()
def redraw_latents(
    task: MMDiffTask,
    examples: Sequence[Example],
    latents: Tensor,
    noise: Tensor,
    level: float,
    steps: int = 20,
    cfg: float = 2.0,
    sampler_name: str = "euler",
    scheduler: str = "normal",
) -> Tensor:
    """Latents [B C h w] noised to `level` (fraction of the timesteps) and sampled from there."""
    denoiser = Denoiser(task, examples, cfg)
    sigmas = comfy.samplers.calculate_sigmas(denoiser.sampling, scheduler, steps)
    highest = denoiser.sampling.sigma(torch.tensor(level * 999.0))
    sigmas = sigmas[sigmas <= highest]
    run = getattr(comfy.k_diffusion.sampling, f"sample_{sampler_name}")
    return run(denoiser, latents + noise * sigmas[0], sigmas, extra_args={"seed": 0}, disable=True)


@torch.no_grad()
def decode(task: MMDiffTask, latents: Tensor) -> Tensor:
    """Latents -> images [B H W 3] in 0..1, through the base's own VAE."""
    return decode_with_gradient(task, latents)


def decode_with_gradient(task: MMDiffTask, latents: Tensor) -> Tensor:
    """As `decode`; the images' gradient reaches the latents."""
    bridge = task.bridge
    first_stage = bridge.vae.first_stage_model.to(latents.device)
    weight = next(first_stage.parameters())
    pixels = first_stage.decode(bridge.base.process_latent_out(latents).to(weight.dtype)).float()
    return bridge.vae.process_output(pixels).movedim(1, -1)
