"""Builds the small SDXL of the recorded reference numbers as ordinary ComfyUI objects (MODEL, CLIP,
VAE, CLIP_VISION).

Its weights are random: it shows that the method is computed right, not what pictures look like.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import comfy.cldm.cldm
import comfy.clip_vision
import comfy.controlnet
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep
from safetensors.torch import load_file

REFERENCE = Path(__file__).resolve().parents[2] / "reference"
VOCABULARY = 49408
TABLES = {"text_encoder": (1, 96), "text_encoder_2": (2, 160)}  # name -> (seed, width)
ADM_STEP_WIDTH = 32


def token_table(seed: int, width: int, rows: int = VOCABULARY) -> torch.Tensor:
    """The recorded recipe: splitmix64 of (seed << 32) + index, its top 11 bits k -> (k - 1024) /
    2048, float32.
    """

    def shifted(z: torch.Tensor, by: int) -> torch.Tensor:
        return (z >> by) & ((1 << (64 - by)) - 1)  # logical shift of the two's complement bits

    def signed(value: int) -> int:
        return value - (1 << 64) if value >= 1 << 63 else value

    z = torch.arange(rows * width, dtype=torch.int64) + (seed << 32) + 1
    z = z * signed(0x9E3779B97F4A7C15)
    z = (z ^ shifted(z, 30)) * signed(0xBF58476D1CE4E5B9)
    z = (z ^ shifted(z, 27)) * signed(0x94D049BB133111EB)
    z = z ^ shifted(z, 31)
    return ((shifted(z, 53) - 1024).float() / 2048).reshape(rows, width)


def recipe_tensors(
    shapes: dict[str, list[int]], seed: int = 100, scale: dict[str, float] | None = None
) -> dict[str, torch.Tensor]:
    """Weights without stored numbers.

    Key i in sorted order is `token_table(seed + i)`, scaled to keep variance.
    """
    out = {}
    for i, (key, shape) in enumerate(sorted(shapes.items())):
        rows = math.prod(shape[:-1]) if len(shape) > 1 else 1
        table = token_table(seed + i, shape[-1], rows).reshape(shape)
        if len(shape) == 1:
            out[key] = 1 + table / 2 if key.endswith("weight") else table / 4
        else:
            out[key] = table * (scale or {}).get(
                key, 2.0 ** round(math.log2(3.4641 / shape[-1] ** 0.5))
            )
    return out


def read_weights(name: str, folder: Path = REFERENCE) -> dict[str, torch.Tensor]:
    """unet_comfy, clip_vision, text_encoder or text_encoder_2 as float32, token table included."""
    state = {
        k: v.float() if v.is_floating_point() else v
        for k, v in load_file(folder / "weights" / f"{name}.safetensors").items()
    }
    if name in TABLES:
        state["text_model.embeddings.token_embedding.weight"] = token_table(*TABLES[name])
    return state


def read_config(name: str, folder: Path = REFERENCE) -> dict:
    return json.loads((folder / "configs" / f"{name}.json").read_text(encoding="utf-8"))


def model(folder: Path = REFERENCE, dtype: torch.dtype = torch.float32, unet: dict | None = None):
    """MODEL: the small UNet in ComfyUI's own SDXL wrapper.

    `unet` overrides the config and leaves weights random.
    """
    config = unet or read_config("unet_comfy", folder)
    supported = comfy.supported_models.SDXL({**config, "dtype": dtype})
    # SDXL's extra config forces 64-wide heads: set again
    supported.unet_config.update({**config, "dtype": dtype})
    supported.set_inference_dtype(dtype, None)
    base = supported.get_model({}, "", device=torch.device("cpu"))
    if unet is None:
        base.embedder = Timestep(ADM_STEP_WIDTH)
        base.diffusion_model.load_state_dict(
            {k: v.to(dtype) for k, v in read_weights("unet_comfy", folder).items()}, strict=True
        )
    base.eval().requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(
        base,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def controlnet(folder: Path = REFERENCE):
    """CONTROL_NET: an SDXL ControlNet as wide as the small UNet, with seeded random weights."""
    config = read_config("unet_comfy", folder)
    del config["out_channels"], config["use_temporal_resblock"]
    with torch.random.fork_rng():
        torch.manual_seed(4)
        control = comfy.cldm.cldm.ControlNet(
            **config, hint_channels=3, operations=comfy.ops.manual_cast
        )
        for parameter in control.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    control.eval().requires_grad_(False)
    return comfy.controlnet.ControlNet(
        control,
        load_device=comfy.model_management.get_torch_device(),
        manual_cast_dtype=torch.float32,
    )


def clip(folder: Path = REFERENCE, embeddings: str | None = None):
    """CLIP with both small text encoders."""
    configs = {
        "clip_l": read_config("text_encoder", folder),
        "clip_g": read_config("text_encoder_2", folder),
    }
    for config in configs.values():
        config |= {"eos_token_id": 49407, "bos_token_id": 49406}
    target = comfy.supported_models.SDXL({}).clip_target()
    options = {f"{name}_model_config": config for name, config in configs.items()}
    built = comfy.sd.CLIP(
        target, embedding_directory=embeddings, model_options={**options, "dtype": torch.float32}
    )
    for encoder, name in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2")):
        state = read_weights(name, folder)
        missing, unexpected = getattr(built.cond_stage_model, encoder).transformer.load_state_dict(
            state, strict=False
        )
        if unexpected or set(missing) - {"text_projection.weight"}:
            raise ValueError(f"{name}: missing {missing}, unexpected {unexpected}")
    return built


def clip_vision(folder: Path = REFERENCE):
    """CLIP_VISION: the small untouched image encoder."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "clip_vision.json"
        path.write_text(json.dumps(read_config("clip_vision", folder)), encoding="utf-8")
        built = comfy.clip_vision.ClipVisionModel(str(path))
    missing, unexpected = built.load_sd(read_weights("clip_vision", folder))
    if missing or unexpected:
        raise ValueError(f"clip_vision: missing {missing}, unexpected {unexpected}")
    built.model.float()
    return built


def vae_config(channels: int) -> dict:
    """Of a VAE of SDXL's kind, 32 channels wide, whose latents have so many channels."""
    widths = {
        "double_z": True,
        "z_channels": channels,
        "resolution": 128,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    return {"params": {"ddconfig": widths, "embed_dim": channels}}


def vae():
    """VAE: a small decoder with seeded random weights; it turns latents into coloured noise."""
    config = vae_config(4)
    state = comfy.sd.AutoencoderKL(**config["params"]).state_dict()
    seeded = recipe_tensors({k: list(v.shape) for k, v in state.items()}, seed=500)
    return comfy.sd.VAE(sd=seeded, config=config)
