"""What is measured: SDXL at some width, an adapter, subjects and prompts of random numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from mmdiff_core.bases import SDXL
from mmdiff_core.checkpoints import shapes
from mmdiff_core.config import PORTRAIT_SDXL, MMDiffConfig
from mmdiff_core.method.adapter import MMDiffAdapter, SubjectModules, collect_pairs
from mmdiff_core.method.subjects import PromptSubject, Region, Subject

from tiny_model import build

TRUE_CHANNELS = 320

TEXT_TOKENS, POOLED_WIDTH = 77, 1280

NOUNS = ((3,), (8,))  # text columns of two subjects' nouns

TOKENS = PORTRAIT_SDXL.tokens_per_reference

SDXL_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": TRUE_CHANNELS,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "use_linear_in_transformer": True,
    "context_dim": 2048,
    "num_head_channels": 64,
    "num_heads": -1,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}


@dataclass(frozen=True)
class Scale:
    """How wide the UNet is: SDXL's blocks and layers, `channels` instead of 320 wide."""

    channels: int
    context: int
    head: int
    rank: int

    @property
    def unet(self) -> dict[str, Any]:
        widths = {
            "model_channels": self.channels,
            "context_dim": self.context,
            "num_head_channels": self.head,
        }
        return {**SDXL_UNET, **widths}

    @property
    def config(self) -> MMDiffConfig:
        if self.channels == TRUE_CHANNELS:
            return PORTRAIT_SDXL
        unet = tuple(
            (b, i, n, width * self.channels // TRUE_CHANNELS) for b, i, n, width in SDXL.unet
        )
        base = dataclasses.replace(
            SDXL, name=f"sdxl-{self.channels}", unet=unet, context_width=self.context
        )
        return dataclasses.replace(PORTRAIT_SDXL, name=f"portrait-{base.name}", base=base)


SCALES = {"full": Scale(TRUE_CHANNELS, 2048, 64, 64), "reduced": Scale(64, 256, 16, 8)}


def make_model(scale: Scale, dtype: torch.dtype):
    """MODEL with random weights, on its device.

    The host leaves them unset: they could be slow numbers.
    """
    model = build.model(dtype=dtype, unet=scale.unet)
    comfy.model_management.load_model_gpu(model)
    for name, weight in model.model.diffusion_model.named_parameters():
        if weight.ndim > 1:
            generator = torch.Generator(weight.device).manual_seed(len(name))
            weight.data.normal_(0, weight[0].numel() ** -0.5, generator=generator)
        else:
            weight.data.fill_(float(name.endswith("weight")))
    return model


def make_adapter(scale: Scale, dtype: torch.dtype) -> MMDiffAdapter:
    """An adapter with random LoRA pairs.

    What encodes photographs has no part in it: no weights there.
    """
    generator = torch.Generator().manual_seed(1)
    sizes = shapes.unet_shapes(scale.config, scale.rank)
    pairs = {
        key: (torch.randn(shape, generator=generator) * 0.02).to(dtype)
        for key, shape in sizes.items()
    }
    with torch.device("meta"):
        modules = SubjectModules(scale.config)
    return MMDiffAdapter(
        scale.config, modules, collect_pairs(pairs), {}, {}, "benchmark", "random adapter"
    )


def make_masks(count: int, size: int) -> list[Tensor]:
    """Upright stripes of the picture side by side; a single one is its left half."""
    edges = [round(i * size / max(count, 2)) for i in range(count + 1)]
    masks = [torch.zeros(size, size) for _ in range(count)]
    for mask, left, right in zip(masks, edges, edges[1:]):
        mask[:, left:right] = 1
    return masks


def make_subjects(
    adapter: MMDiffAdapter, masks: Sequence[Tensor | None]
) -> tuple[PromptSubject, ...]:
    """Subjects of random tokens, one reference each."""
    generator = torch.Generator().manual_seed(2)
    made = []
    for number, mask in enumerate(masks, 1):
        tokens = torch.randn(TOKENS, adapter.config.context_width, generator=generator)
        subject = Subject(f"subject {number}", tokens, {}, 1, adapter.fingerprint)
        made.append(PromptSubject(subject, region=Region(mask)))
    return tuple(made)


def make_text(scale: Scale, seed: int) -> list:
    """CONDITIONING of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, TEXT_TOKENS, scale.context, generator=generator)
    return [[text, {"pooled_output": torch.randn(1, POOLED_WIDTH, generator=generator)}]]
