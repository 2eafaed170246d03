"""The base models of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import comfy.clip_vision
import comfy.sd

from .. import small_world

SMALL_WORLD = "small-world"
BASE_PARTS = ("checkpoint", "image_encoder")


class BaseModels(NamedTuple):
    """ComfyUI's MODEL, CLIP, CLIP_VISION and VAE."""

    model: Any
    clip: Any
    clip_vision: Any
    vae: Any


def load_base(base: str | Mapping[str, str]) -> BaseModels:
    """The models of a run's "base".

    base  "small-world", or {"checkpoint": file, "image_encoder": file}

    ValueError for another kind of base, FileNotFoundError for a file that is not there.
    """
    if base == SMALL_WORLD:
        return BaseModels(*small_world.load())
    _check_files(base)
    model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(
        base["checkpoint"], output_vae=True, output_clip=True
    )
    return BaseModels(model, clip, comfy.clip_vision.load(base["image_encoder"]), vae)


def load_vae(base: str | Mapping[str, str]) -> tuple[Any, Any]:
    """MODEL and VAE of a run's "base", without its encoders; errors as in `load_base`."""
    if base == SMALL_WORLD:
        models = BaseModels(*small_world.load())
        return models.model, models.vae
    _check_files(base)
    model, _, vae, *_ = comfy.sd.load_checkpoint_guess_config(
        base["checkpoint"], output_vae=True, output_clip=False
    )
    return model, vae


def _check_files(base: object) -> None:
    """ValueError for another kind of base, FileNotFoundError for a file that is not there."""
    if not isinstance(base, Mapping) or set(base) != set(BASE_PARTS):
        raise ValueError(
            f'base is {base!r}, expected "{SMALL_WORLD}" or files for {BASE_PARTS}: '
            '{"checkpoint": "sd_xl_base_1.0.safetensors", '
            '"image_encoder": "clip_vit_l.safetensors"}'
        )
    for part in BASE_PARTS:
        if not Path(base[part]).is_file():
            raise FileNotFoundError(f"base.{part}: there is no file {base[part]}")
