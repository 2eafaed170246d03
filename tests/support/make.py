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

from mmdiff_core.bases import BASES, Base, ImageEncoder
from mmdiff_core.checkpoints import checkpoint, released, shapes
from mmdiff_core.config import CONFIGS, MMDiffConfig
from mmdiff_core.host.models import LoadedMMDiff
from mmdiff_core.method.subjects import PromptSubject, Subject

WIDTH_DIVISOR = 10  # 640 -> 64, 1280 -> 128, 320 -> 32
CONTEXT = 64
TEXT_WIDTHS = {"l": 96, "g": 160, "h": 96}


def narrow_base(like: str) -> Base:
    """The record of a base with the layers of another one, a tenth as wide."""
    full = BASES[like]
    unet = tuple((block, i, depth, width // WIDTH_DIVISOR) for block, i, depth, width in full.unet)
    text = tuple(replace(e, width=TEXT_WIDTHS[e.name], depth=3) for e in full.text)
    image = ImageEncoder(width=64, cls_width=96, depth=3, patch=32)
    return Base(f"narrow-{like}", unet, CONTEXT, text, image, mlp_ratio=2)


def narrow_config(like: str) -> MMDiffConfig:
    full = CONFIGS["portrait-sdxl" if like == "sdxl" else f"general-{like}"]
    return replace(full, name=f"narrow-{like}", base=narrow_base(like), refiner_head_width=32)


def random_tensors(
    config: MMDiffConfig, rank: int = 4, seed: int = 0, text: bool = True
) -> dict[str, torch.Tensor]:
    """A whole checkpoint's tensors, random, of a size that moves outputs visibly but not wildly."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {f"modules.{k}": v for k, v in shapes.module_shapes(config).items()}
    sizes |= {f"unet.{k}": v for k, v in shapes.unet_shapes(config, rank).items()}
    for stem in released.text_stems(config) if text else ():
        rows, columns = shapes.text_shape(config, stem)
        sizes |= {f"text.{stem}.down": (rank, columns), f"text.{stem}.up": (rows, rank)}
    out = {
        key: torch.randn(shape, generator=generator) * (shape[-1] ** -0.5)
        for key, shape in sizes.items()
    }
    return {k: 1 + v if v.ndim == 1 and k.endswith("weight") else v for k, v in out.items()}


def random_mmdiff(config: MMDiffConfig, seed: int = 0) -> LoadedMMDiff:
    flat = random_tensors(config, seed=seed)
    checkpoint.check(config, flat, config.name)
    return LoadedMMDiff(checkpoint.build(config, flat, config.name, ops=comfy.ops.manual_cast))


def random_subject(
    mmdiff: LoadedMMDiff, name: str = "someone", seed: int = 0, references: int = 1
) -> PromptSubject:
    generator = torch.Generator().manual_seed(seed)
    config = mmdiff.config
    return PromptSubject(
        Subject(
            name=name,
            tokens=torch.randn(4 * references, config.context_width, generator=generator),
            words={e: torch.randn(w, generator=generator) for e, w in config.text_widths.items()},
            references=references,
            adapter=mmdiff.adapter.fingerprint,
        )
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
UNETS["sd2"] = UNETS["sd15"] | {"use_linear_in_transformer": True}
FAMILIES = {
    "sdxl": comfy.supported_models.SDXL,
    "sd15": comfy.supported_models.SD15,
    "sd2": comfy.supported_models.SD20,
}


def narrow_model(like: str, dtype: torch.dtype = torch.float32, operations=None):
    """MODEL with all layers of SDXL (70), SD1.5 or SD2 (16), a tenth as wide, random weights.

    `operations` as in comfy.ops.
    """
    config = SHARED | UNETS[like]
    supported = FAMILIES[like](dict(config))
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
