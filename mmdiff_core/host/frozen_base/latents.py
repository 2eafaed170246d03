"""ComfyUI's VAE as what encodes a run's images, and what an encoded data set must agree with."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...evaluation.extractors import hash_of
from ...references.faces.packs import home
from ...training.data.config import FileData
from ...training.data.encoded.recipe import Encoder, Recipe
from ...training.data.reading import read_records
from ...training.data.records import Record


class LatentEncoder:
    """A VAE and its base: images [B 3 H W] in 0..1 -> latents as the UNet sees them [B C h w].

    The latent is the mean of the VAE's posterior: the same image always gives the same latent.
    """

    def __init__(self, base: Any, vae: Any) -> None:
        """The model inside of ComfyUI's MODEL, and its VAE."""
        self.base, self.vae = base, vae

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        first_stage = self.vae.first_stage_model.to(pixels.device)
        weight = next(first_stage.parameters())
        with torch.autocast(pixels.device.type, enabled=False):  # its own type in every run
            encoded = first_stage.encode(self.vae.process_input(pixels).to(weight.dtype))
            return self.base.process_latent_in(encoded.float())

    @cached_property
    def facts(self) -> Encoder:
        """The hash of its weights and of the latents' scale, its type and sizes."""
        digest, dtype = hashlib.sha256(), next(self.vae.first_stage_model.parameters()).dtype
        for name, weight in sorted(self.vae.first_stage_model.state_dict().items()):
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
            plain = weight.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy().tobytes())
        channels = self.vae.latent_channels
        ends = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, channels, 1, 1)
        digest.update(self.base.process_latent_in(ends).float().numpy().tobytes())
        name = str(dtype).removeprefix("torch.")
        downscale = int(self.vae.spacial_compression_encode())
        return Encoder(digest.hexdigest(), name, channels, downscale)


def recipe_of(files: FileData, encoder: LatentEncoder) -> Recipe:
    """What a run's encoded records must have been made with."""
    faces = files.faces
    digest = None if faces is None else hash_of(home(Path(faces.root), faces.model))
    return Recipe.of(files.config, encoder.facts, digest)


def read_all(files: FileData) -> list[Record]:
    """The records of all of a run's files."""
    return [record for path in files.records for record in read_records(Path(path)).records]
