"""ComfyUI's CLIP_VISION in both of its roles: the adapter's partly fine-tuned copy for CLS, the
untouched one for patches.

The copy is weight patches on a clone: one set of weights in memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import comfy.model_management as mm
import torch
from torch import Tensor

from ..config import MMDiffConfig
from ..method.adapter import MMDiffAdapter
from ..references.pixels import normalise
from .models import add_patches_strictly, set_patches

PENULTIMATE = -2
PROJECTION = "visual_projection.weight"
AT_ONCE = 64  # images in one call of the encoder


def is_clip(clip_vision) -> bool:
    """Whether CLIP_VISION has a CLIP's projection; SigLIP and DINO have none."""
    return PROJECTION in clip_vision.model.state_dict()


def check_encoder(clip_vision, config: MMDiffConfig) -> None:
    """ValueError when CLIP_VISION is not the encoder the adapter was trained with."""
    state = clip_vision.model.state_dict()
    projection = state.get(PROJECTION)
    if projection is None:
        own = f"connect the image encoder that comes with {config.name}"
        usual = "load CLIP ViT-L/14 with Load CLIP Vision"
        advice = usual if config.cls_width == 768 else own
        raise ValueError(f"the image encoder has no CLIP projection; {advice}")
    cls, width = projection.shape
    if (cls, width) != (config.cls_width, config.vision_width):
        raise ValueError(
            f"the image encoder has width {width} and projection {cls}, {config.name} needs "
            f"{config.vision_width} and {config.cls_width}"
            + (
                ": load CLIP ViT-L/14 (224 px) with Load CLIP Vision"
                if config.cls_width == 768
                else ""
            )
        )
    size, expected = _image_size(state), config.image_size
    if size not in (None, expected):
        raise ValueError(
            f"the image encoder reads images of {size} x {size} pixels, {config.name} needs one "
            f"for {expected} x {expected}"
            + ("; load CLIP ViT-L/14 (224 px, not 336)" if config.cls_width == 768 else "")
        )


def _image_size(state: dict[str, Tensor]) -> int | None:
    """Side in pixels of the images that an encoder reads, or None where its weights do not tell."""
    embeddings = "vision_model.embeddings."
    positions = state.get(f"{embeddings}position_embedding.weight")
    patches = state.get(f"{embeddings}patch_embedding.weight")
    if positions is None or patches is None:
        return None
    return math.isqrt(len(positions) - 1) * patches.shape[-1]


def encoder_fingerprint(clip_vision) -> str:
    """Which image encoder this is: a short hash of its projection and its patch embedding."""
    state, digest = clip_vision.model.state_dict(), hashlib.sha256()
    for key in (PROJECTION, "vision_model.embeddings.patch_embedding.weight"):
        digest.update(state[key].detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def fine_tuned(clip_vision, adapter: MMDiffAdapter):
    """A patcher on the same weights with the adapter's fine-tuned ones set over them.

    The host skips weight patches of parameters that stand beside other modules (the class
    embedding), so those are exchanged as objects.
    """
    patcher = clip_vision.patcher.clone()
    bare = {key for key in adapter.vision if stands_beside_modules(patcher.model, key)}
    for key in bare:
        weight = torch.nn.Parameter(adapter.vision[key], requires_grad=False)
        patcher.add_object_patch(key, weight)
    layers = {key: weight for key, weight in adapter.vision.items() if key not in bare}
    add_patches_strictly(patcher, set_patches(layers), 1.0, "the image encoder")
    return patcher


def stands_beside_modules(model: torch.nn.Module, key: str) -> bool:
    """Whether a parameter belongs to a module that has modules with parameters of their own."""
    path, _, name = key.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return False        # `add_patches_strictly` says what is missing
    own = module._parameters.get(name) is not None
    return own and any(True for child in module.children() for _ in child.parameters())


def _run(clip_vision, patcher, pixels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised pixels [R 3 S S] -> projected CLS [r C] and penultimate states [r L W], float32 on
    the CPU, of `AT_ONCE` images after the other."""
    mm.load_model_gpu(patcher)
    for part in pixels.split(AT_ONCE):
        with torch.no_grad():
            _, penultimate, cls, *_ = clip_vision.model(
                pixel_values=part.to(patcher.load_device).float(), intermediate_output=PENULTIMATE
            )
        yield cls.float().cpu(), penultimate.float().cpu()


def cls_of_pixels(clip_vision, adapter: MMDiffAdapter, pixels: Tensor) -> Tensor:
    """Padded images [R 3 S S] in 0..1 -> CLS of the fine-tuned encoder [R C]."""
    run = _run(clip_vision, fine_tuned(clip_vision, adapter), normalise(pixels))
    return torch.cat([cls for cls, _ in run])


def plain_cls(clip_vision, pixels: Tensor) -> Tensor:
    """Pixels [R 3 S S] in 0..1 -> CLS of the untouched encoder [R C]."""
    run = _run(clip_vision, clip_vision.patcher, normalise(pixels))
    return torch.cat([cls for cls, _ in run])


def patch_embeddings(clip_vision, pixels: Tensor) -> Tensor:
    """Pixels [R 3 S S] in 0..1 -> penultimate states of the untouched encoder [R L W]."""
    run = _run(clip_vision, clip_vision.patcher, normalise(pixels))
    return torch.cat([states for _, states in run])
