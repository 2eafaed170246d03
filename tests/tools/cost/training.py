"""A training run on SDXL at a fifth of its width, of random weights, and its FLOP."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import comfy.ldm.modules.diffusionmodules.model as vae_parts
import comfy.ops
import comfy.sd
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn

from mmdiff_core.bases import SDXL, ImageEncoder
from mmdiff_core.config import CONFIGS
from mmdiff_core.host.frozen_base.base import BaseModels
from mmdiff_core.host.frozen_base.build import build_task
from mmdiff_core.training.config import AdapterConfig, RunConfig
from mmdiff_core.training.data.masks import encode_rle
from mmdiff_core.training.task import MMDiffTask

from .counting import flop_counter
from .setting import SDXL_UNET, TEXT_TOKENS
from .share import attend
from support.photos import CAPTION, picture, segments
from tiny_model import build

NAME, PARTS = "general-sdxl-fifth", 5  # of SDXL's width
CONTEXT, POOLED = 256, 160  # of the two small text encoders
UNET = SDXL_UNET | {
    "model_channels": SDXL_UNET["model_channels"] // PARTS,
    "context_dim": CONTEXT,
    "num_head_channels": 16,
    "adm_in_channels": POOLED + 6 * 256,
}
# SDXL's VAE
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
NARROW_VAE = VAE | {"ch": 32}  # a quarter: its norms have groups of 32

# ---------------------------------------------------------------- FLOP, without weights


def encode_flop(sizes: dict[str, Any], size: int) -> int:
    """FLOP of encoding one image of size x size pixels."""
    with torch.device("meta"), torch.no_grad():
        encoder = vae_parts.Encoder(**sizes)
        for module in encoder.modules():
            if isinstance(module, vae_parts.AttnBlock):
                module.optimized_attention = vae_parts.pytorch_attention
        with flop_counter() as counter:
            encoder(torch.empty(1, 3, size, size))
    return counter.get_total_flops()


def step_flop(unet: dict[str, Any], size: int) -> int:
    """FLOP of one image forward and backward through the frozen UNet, without an adapter.

    The weights get no gradient, all activations do, as LoRA needs it.
    """
    with torch.device("meta"):
        built = UNetModel(
            **unet,
            dtype=torch.float32,
            device=torch.device("meta"),
            operations=comfy.ops.disable_weight_init,
        ).requires_grad_(False)
        side = size // 8
        noisy = torch.empty(1, 4, side, side, requires_grad=True)
        text = torch.empty(1, TEXT_TOKENS, unet["context_dim"], requires_grad=True)
        with flop_counter() as counter:
            out = built(
                noisy,
                timesteps=torch.empty(1),
                context=text,
                y=torch.empty(1, unet["adm_in_channels"]),
                transformer_options={"optimized_attention_override": attend},
            )
            out.sum().backward()
    return counter.get_total_flops()


def flop_markdown(sizes: tuple[int, ...]) -> str:
    """A table of SDXL's own sizes, and of a fifth of its width."""
    rows = [["TFLOP for an image", "VAE encode", "UNet forward and backward", "VAE's share"]]
    rows.append(["---"] * 4)
    for name, vae, unet in (("SDXL", VAE, SDXL_UNET), ("a fifth as wide", NARROW_VAE, UNET)):
        for size in sizes:
            encode, step = encode_flop(vae, size), step_flop(unet, size)
            share = encode / (encode + step)
            shown = [f"{encode / 1e12:.3f}", f"{step / 1e12:.3f}", f"{share:.1%}"]
            rows.append([f"{name}, {size} px", *shown])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


# ---------------------------------------------------------------- a run


def random_weights(module: nn.Module, seed: int) -> None:
    """Weights of numbers that keep what goes through about as large as it was."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, weight[0].numel() ** -0.5, generator=generator)
        else:
            weight.data.fill_(float(name.endswith("weight")))


def narrow_base() -> BaseModels:
    """MODEL, CLIP, CLIP_VISION and VAE, small and random."""
    model = build.model(unet=UNET)
    random_weights(model.model.diffusion_model, 1)
    clip = build.clip()
    for encoder in ("clip_l", "clip_g"):
        transformer = getattr(clip.cond_stage_model, encoder).transformer
        random_weights(transformer.text_projection, 2)
    config = {"params": {"ddconfig": NARROW_VAE, "embed_dim": 4}}
    whole = comfy.sd.AutoencoderKL(**config["params"])
    random_weights(whole, 3)
    vae = comfy.sd.VAE(sd=whole.state_dict(), config=config, dtype=torch.float32)
    return BaseModels(model, clip, build.clip_vision(), vae)


def narrow_task() -> MMDiffTask:
    """A training task on that base."""
    widths = {"l": 96, "g": POOLED}
    text = tuple(dataclasses.replace(e, width=widths[e.name], depth=3) for e in SDXL.text)
    base = dataclasses.replace(
        SDXL,
        name=NAME,
        unet=tuple((b, i, depth, width // PARTS) for b, i, depth, width in SDXL.unet),
        context_width=CONTEXT,
        text=text,
        image=ImageEncoder(width=64, cls_width=96, depth=3, patch=32),
        mlp_ratio=2,
    )
    sizes = {"name": NAME, "base": base, "refiner_head_width": 32}
    CONFIGS[NAME] = dataclasses.replace(CONFIGS["general-sdxl"], **sizes)
    run = RunConfig(adapter=AdapterConfig(name=NAME, rank=16, text_rank=4))
    return build_task(run, base=narrow_base())


def write_photos(folder: Path, count: int, side: int) -> Path:
    """A data set of photos with two things each, side x side pixels."""
    lines = []
    for number in range(count):
        image, masks = picture(number, (side, side))
        image.save(folder / f"{number}.jpg", quality=95)
        told = segments(masks)
        for segment, mask in zip(told, masks, strict=True):
            segment["mask"] = encode_rle(mask)
        facts = {"image": f"{number}.jpg", "caption": CAPTION, "segments": told}
        lines.append(json.dumps(facts) + "\n")
    (folder / "data.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "data.jsonl"


def never(_pixels: Tensor) -> Tensor:
    """In place of the VAE, where all images are encoded."""
    raise AssertionError("an image was encoded in the step")
