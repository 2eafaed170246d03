"""A run's training module on ComfyUI's models: for training, for scores, for pictures. Needs torch and the host alone."""
from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...training.config import RunConfig
from ...training.task import MMDiffTask
from ...training.trainable import TrainableAdapter, from_flat

SMALL_WORLD = "small-world"
BASE_PARTS = ("checkpoint", "image_encoder")


def load_base(base: str | Mapping[str, str]) -> tuple:
    """MODEL, CLIP, CLIP_VISION and VAE of a run's "base": "small-world", or {"checkpoint": file, "image_encoder": file}."""
    if base == SMALL_WORLD:
        from .. import small_world
        return small_world.load()
    if not isinstance(base, Mapping) or set(base) != set(BASE_PARTS):
        raise ValueError(f'base is {base!r}, expected "{SMALL_WORLD}" or files for {BASE_PARTS}: '
                         '{"checkpoint": "sd_xl_base_1.0.safetensors", "image_encoder": "clip_vit_l.safetensors"}')
    if missing := [name for name in BASE_PARTS if not Path(base[name]).is_file()]:
        raise FileNotFoundError(f"base.{missing[0]}: there is no file {base[missing[0]]}")
    import comfy.clip_vision
    import comfy.sd
    model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(base["checkpoint"], output_vae=True, output_clip=True)
    return model, clip, comfy.clip_vision.load(base["image_encoder"]), vae


def build_task(run: RunConfig, device: torch.device | str = "cpu", flat: Mapping[str, Tensor] | None = None,
               base: tuple | None = None) -> MMDiffTask:
    """The run's training module on its base; `flat` are the tensors of a checkpoint to begin from."""
    model, clip, clip_vision, vae = base or load_base(run.base)
    from .bridge import HostBridge
    adapter = TrainableAdapter(run.adapter, clip_vision.model.state_dict(), run.seed)
    if flat is not None:
        from_flat(dict(flat), adapter)
    adapter.to(device)
    dtype = torch.float32 if str(device) == "cpu" else model.model.get_dtype()
    return MMDiffTask(adapter, HostBridge(model, clip, clip_vision, vae, adapter, device, dtype), run)


def hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
