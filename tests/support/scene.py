"""A narrow model with an adapter and two subjects bound to a prompt, and how to sample it."""

from __future__ import annotations

from dataclasses import replace

import comfy.cldm.cldm
import comfy.controlnet
import comfy.ldm.modules.attention
import comfy.model_management
import comfy.ops
import comfy.sample
import comfy.samplers
import torch

from mmdiff_core.host.application import Strength
from mmdiff_core.host.conditioning import BoundPrompt, carry

from support import make

SIGMAS = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.0])

LORA_ONLY, IMAGE_ONLY, BOTH = Strength(fuse_scale=0.0), Strength(lora=0.0), Strength()


class Scene:
    """A narrow model with an adapter and two subjects bound to a prompt."""

    def __init__(self, like: str = "sdxl", routed: bool = False):
        self.mmdiff = make.random_mmdiff(replace(make.narrow_config(like), routed=routed))
        self.adapter = self.mmdiff.adapter
        self.model = make.narrow_model(like)
        self.pooled = 160 if like == "sdxl" else None
        self.subjects = (
            make.random_subject(self.mmdiff, "ann", 1),
            make.random_subject(self.mmdiff, "bob", 2, references=2),
        )
        self.plain = make.random_conditioning(pooled=self.pooled)
        self.negative = make.random_conditioning(pooled=self.pooled, seed=4)

    def bound(self, subjects=None) -> list:
        return carry(
            self.plain,
            BoundPrompt(self.subjects if subjects is None else subjects, self.adapter.fingerprint),
        )

    def another_prompt(self) -> list:
        """Another text, with the last subject."""
        text = make.random_conditioning(pooled=self.pooled, seed=9)
        return carry(text, BoundPrompt(self.subjects[1:], self.adapter.fingerprint))

    def sample(
        self, model, positive, negative=None, cfg=3.0, batch=1, size=(8, 8), sigmas=SIGMAS, seed=0
    ):
        noise = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(seed)).repeat(
            batch, 1, 1, 1
        )
        return comfy.sample.sample_custom(
            model,
            noise,
            cfg,
            comfy.samplers.sampler_object("euler"),
            sigmas,
            positive,
            negative or self.negative,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=0,
        )


# ---------------------------------------------------------------- how often things happen


def calls_of(scene, model, positive, negative=None) -> list[int]:
    """Batch size of every UNet call of a run."""
    sizes = []
    handle = model.model.diffusion_model.register_forward_pre_hook(
        lambda m, args: sizes.append(len(args[0]))
    )
    scene.sample(model, positive, negative)
    handle.remove()
    return sizes


# ---------------------------------------------------------------- masks


def half_masks(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    left = torch.zeros(size, size)
    left[:, : size // 2] = 1
    return left, 1 - left


ONE_STEP = torch.tensor([4.0, 0.0])

STEPS = torch.tensor([4.0, 2.0, 1.0, 0.0])


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=2e-4)


def count_calls(model):
    """A context: batch size of every UNet call."""

    class Calls(list):
        def __enter__(self):
            self.handle = model.model.diffusion_model.register_forward_pre_hook(
                lambda m, args: self.append(len(args[0]))
            )
            return self

        def __exit__(self, *error):
            self.handle.remove()

    return Calls()


def predict(scene, model, positive, **options) -> torch.Tensor:
    """The denoised latents of the conditional side alone, one step, one call."""
    return scene.sample(model, positive, cfg=1.0, sigmas=ONE_STEP, **options)
