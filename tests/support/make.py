"""Random adapters and narrow models with the true layer layouts, for tests that need no recorded
numbers.
"""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import torch

from mmdiff_core import checkpoint, official
from mmdiff_core.config import GENERAL_SD15, PORTRAIT_SDXL, MMDiffConfig
from mmdiff_core.host.models import LoadedMMDiff
from mmdiff_core.subjects import Subject
from mmdiff_core.unet_layers import LAYOUTS

WIDTH_DIVISOR = 10  # 640 -> 64, 1280 -> 128, 320 -> 32
CONTEXT = 64


def narrow_base(like: str) -> str:
    """Register SDXL's or SD1.5's layout with narrow layers as a base; returns its name."""
    name = f"narrow-{like}"
    LAYOUTS[name] = tuple(
        (block, i, depth, width // WIDTH_DIVISOR) for block, i, depth, width in LAYOUTS[like]
    )
    for encoder in ("l", "g"):
        official.TEXT_DEPTHS[name, encoder] = 3
    official.MLP_RATIO[name], official.VISION_DEPTHS[name], official.VISION_PATCH[name] = 2, 3, 32
    return name


def narrow_config(like: str) -> MMDiffConfig:
    base = PORTRAIT_SDXL if like == "sdxl" else GENERAL_SD15
    widths = (("l", 96), ("g", 160)) if like == "sdxl" else (("l", 96),)
    return replace(
        base,
        name=f"narrow-{like}",
        base=narrow_base(like),
        query_width=512 if like == "sdxl" else 96,
        cls_width=96,
        vision_width=64,
        context_width=CONTEXT,
        text_widths=widths,
        refiner_head_width=32,
    )


def random_tensors(
    config: MMDiffConfig, rank: int = 4, seed: int = 0, text: bool = True
) -> dict[str, torch.Tensor]:
    """A whole checkpoint's tensors, random, of a size that moves outputs visibly but not wildly."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"modules.{k}": v for k, v in official.module_shapes(config).items()}
    shapes |= {f"unet.{k}": v for k, v in official.unet_shapes(config, rank).items()}
    for stem in official.text_keys(config) if text else ():
        rows, columns = official.text_shape(config, stem)
        shapes |= {f"text.{stem}.down": (rank, columns), f"text.{stem}.up": (rows, rank)}
    out = {
        key: torch.randn(shape, generator=generator) * (shape[-1] ** -0.5)
        for key, shape in shapes.items()
    }
    return {k: 1 + v if v.ndim == 1 and k.endswith("weight") else v for k, v in out.items()}


def random_mmdiff(config: MMDiffConfig, seed: int = 0) -> LoadedMMDiff:
    flat = random_tensors(config, seed=seed)
    checkpoint.check(config, flat, config.name)
    return LoadedMMDiff(checkpoint.build(config, flat, config.name, ops=comfy.ops.manual_cast))


def random_subject(
    mmdiff: LoadedMMDiff, name: str = "someone", seed: int = 0, references: int = 1
) -> Subject:
    generator = torch.Generator().manual_seed(seed)
    config = mmdiff.config
    return Subject(
        name=name,
        tokens=torch.randn(4 * references, config.context_width, generator=generator),
        words={e: torch.randn(w, generator=generator) for e, w in config.text_widths},
        references=references,
        adapter=mmdiff.adapter.fingerprint,
    )


SHARED = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_heads": -1,
    "num_head_channels": 16,
    "use_spatial_transformer": True,
    "legacy": False,
    "context_dim": CONTEXT,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
UNETS = {
    "sdxl": {
        "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
        "use_linear_in_transformer": True,
        "adm_in_channels": 1696,
        "num_classes": "sequential",
    },
    "sd15": {
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1] * 6 + [0, 0],
        "transformer_depth_output": [1] * 9 + [0] * 3,
        "transformer_depth_middle": 1,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
    },
}


def narrow_model(like: str, dtype: torch.dtype = torch.float32, operations=None):
    """MODEL with all layers of SDXL (70) or SD1.5 (16), a tenth as wide, with random weights.

    `operations` as in comfy.ops.
    """
    config = SHARED | UNETS[like]
    kind = comfy.supported_models.SDXL if like == "sdxl" else comfy.supported_models.SD15
    supported = kind(dict(config))
    supported.unet_config.clear()
    supported.unet_config.update(config | {"dtype": dtype})
    supported.set_inference_dtype(dtype, None)
    supported.custom_operations = operations
    with torch.random.fork_rng():
        torch.manual_seed(1)
        base = supported.get_model({}, "", device=torch.device("cpu"))
        for parameter in base.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    base.eval().requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(
        base,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def random_conditioning(
    width: int = CONTEXT, pooled: int | None = 160, seed: int = 3, length: int = 77
) -> list:
    generator = torch.Generator().manual_seed(seed)
    options = (
        {} if pooled is None else {"pooled_output": torch.randn(1, pooled, generator=generator)}
    )
    return [[torch.randn(1, length, width, generator=generator), options]]
