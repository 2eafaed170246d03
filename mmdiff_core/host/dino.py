"""DINOv2 as ComfyUI's Load CLIP Vision loads it (large and giant): CLS embeddings of images.

Shapes   n images · h w pixels · Q width of DINOv2
"""

from __future__ import annotations

from collections.abc import Sequence

import comfy.model_management as mm
import torch
from torch import Tensor

from ..references.pixels import pad_to_square

SIGN = "encoder.layer.0.layer_scale1.lambda1"  # a weight that ComfyUI's other image encoders lack


def is_dino(clip_vision) -> bool:
    """Whether a CLIP_VISION is DINOv2. DINOv3 has other weights."""
    return SIGN in clip_vision.model.state_dict()


def dino_cls(clip_vision, images: Sequence[Tensor]) -> Tensor:
    """Images, each uint8 [3 h w] -> their CLS embeddings [n Q] after the model's final norm,
    float32 on the CPU.

    Each is padded to a square, so that nothing is cut off, and then prepared by ComfyUI itself for
    this model: 518 x 518 by bicubic interpolation, ImageNet's mean and deviation.
    """
    embedded = []
    for image in images:
        mm.throw_exception_if_processing_interrupted()
        pixels = pad_to_square(image).movedim(0, -1)[None].float() / 255
        with torch.no_grad():
            seen = clip_vision.encode_image(pixels, crop=False)
        embedded.append(seen.image_embeds.float().cpu())
    return torch.cat(embedded)
