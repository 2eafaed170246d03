"""The frames of a batch through the host's own sampler, whole or in context windows along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import comfy.context_windows as windows
import comfy.sample
import torch
from torch import Tensor

from ..method.subjects import PromptSubject
from . import small_world
from .application import Strength
from .apply import apply
from .encode import encode_subject
from .models import BaseModels, LoadedMMDiff, Readers, load_mmdiff
from .prompt import encode_prompt

SCHEDULE, FUSE = "standard_static", "pyramid"  # the names of the node's choices


class BatchWindows(windows.IndexListContextHandler):
    """The host's windows along the batch. ComfyUI 0.3.75 compares all sigmas of a run with those of
    all frames, which have another number; every frame has the same one, so the first is asked."""

    def set_step(self, timestep: Tensor, model_options: dict) -> None:
        super().set_step(timestep[:1], model_options)


class Windows(NamedTuple):
    """How many images a window holds, and how many of them two windows share."""

    length: int
    overlap: int


def with_windows(model, wanted: Windows):
    """A clone of a MODEL that draws longer batches in windows, as the node Context Windows (Manual)
    does for axis 0."""
    clone = model.clone()
    clone.model_options["context_handler"] = handler = BatchWindows(
        windows.get_matching_context_schedule(SCHEDULE),
        windows.get_matching_fuse_method(FUSE),
        wanted.length,
        wanted.overlap,
        dim=0,
    )
    # newer hosts would draw the image before each window along with it, for causal video models
    handler.causal_window_fix = False
    windows.create_prepare_sampling_wrapper(clone)
    return clone


@dataclass(frozen=True, eq=False)
class HostedWorld:
    """The small world's models in ComfyUI, with its adapter applied."""

    base: BaseModels
    mmdiff: LoadedMMDiff
    model: object

    @classmethod
    def load(cls, adapter: Path) -> HostedWorld:
        base = small_world.load()
        mmdiff = load_mmdiff(adapter, Readers(base.clip_vision))
        patched = apply(base.model, mmdiff.adapter, Strength(fuse_scale=1.0))
        return cls(base, mmdiff, patched)

    @torch.no_grad()
    def draw(
        self,
        caption: str,
        references: Sequence[Tensor],
        noise: Tensor,
        wanted: Windows | None,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
    ) -> Tensor:
        """Images [F H W 3] in 0..1 of unit noise [F C h w].

        caption     with a `<|subj|>` behind each subject's noun
        references  [R H W 3] in 0..1 of each subject
        wanted      windows along the batch; None = the batch as a whole
        """
        model = self.model if wanted is None else with_windows(self.model, wanted)
        subjects, vision = [], self.base.clip_vision
        for number, shown in enumerate(references, 1):
            encoded = encode_subject(self.mmdiff, vision, shown, None, f"subject {number}")
            subjects.append(PromptSubject(encoded.subject))
        prompt = encode_prompt(self.base.clip, self.mmdiff, caption, "", tuple(subjects))
        sides = (prompt.positive, prompt.negative)
        latents = comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            sampler_name,
            scheduler,
            *sides,
            torch.zeros_like(noise),
            seed=0,
            disable_pbar=True,
        )
        return self.base.vae.decode(latents)
