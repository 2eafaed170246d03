"""How much of a step K and V of the text are, counted on a UNet without weights."""

from __future__ import annotations

import comfy.ops
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from .counting import flop_counter
from .setting import TEXT_TOKENS, Scale

ROWS = 2  # cond and uncond
SIZES = (512, 768, 1024)


def attend(_function, *args, **kwargs) -> Tensor:
    """torch's own attention: the host's for CPUs asks how much memory is free."""
    return attention_pytorch(*args, **kwargs)


def plain_flop(scale: Scale, size: int) -> int:
    """FLOP of one step of the plain model, cond and uncond."""
    with torch.device("meta"), torch.no_grad():
        unet = UNetModel(
            **scale.unet,
            dtype=torch.float32,
            device=torch.device("meta"),
            operations=comfy.ops.disable_weight_init,
        )
        side, numbers = size // 8, scale.unet["adm_in_channels"]
        x, text = torch.empty(ROWS, 4, side, side), torch.empty(ROWS, TEXT_TOKENS, scale.context)
        options = {"optimized_attention_override": attend}
        with flop_counter() as counter:
            unet(
                x,
                timesteps=torch.empty(ROWS),
                context=text,
                y=torch.empty(ROWS, numbers),
                transformer_options=options,
            )
    return counter.get_total_flops()


def text_flop(scale: Scale) -> int:
    """FLOP of K and V of the text in such a step."""
    widths = sum(block.width for block in scale.config.base.blocks)
    return 2 * ROWS * TEXT_TOKENS * scale.context * widths * 2


def share_told(scale: Scale) -> str:
    """A sentence on what a step without them has of a plain one's FLOP."""
    rest = {size: 1 - text_flop(scale) / plain_flop(scale, size) for size in SIZES}
    told = ", ".join(f"{share:.3f} at {size} px" for size, share in rest.items())
    return f"FLOP of a step of true SDXL without K and V of the text, to the plain one: {told}"
