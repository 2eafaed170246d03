"""How well images follow a prompt: cosines in the space that a CLIP's text encoder and image
encoder share.

Shapes   B images · H W pixels · P width of the shared space
"""

from __future__ import annotations

import time

import comfy.model_management as mm
import torch
import torch.nn.functional as F
from torch import Tensor

from ..evaluation.picking import PromptFidelity
from ..references.pixels import checked_images
from ..untrusted import quoted_list
from .nouns import read, without_markers
from .vision import PROJECTION

BIG_G = "CLIP ViT-bigG/14"
# Text encoders of a CLIP, by ComfyUI's names of them, whose pooled output is projected into the
# space of BIG_G. Others are left out on purpose: checkpoints of SD1.5 hold no projection for "l",
# and ComfyUI does not set one that is missing, so that its output is whatever the memory held.
SHARED = (
    frozenset({"l", "g"}),  # SDXL; pooled is that of "g"
    frozenset({"g"}),  # SDXL's refiner, or clip_g by itself
)
AT_ONCE = 16  # images in one call of the encoder


def prompt_fidelity(
    images: Tensor, prompt: str, clip: object | None, clip_vision: object | None, within: float
) -> PromptFidelity | None:
    """The cosine of each of IMAGE [B H W 3] with the prompt, -1..1; None where neither prompt nor
    encoders were given. Markers do not count, nor does what is beyond 75 tokens.

    CLIP-T is the same score by ViT-B/32. ValueError where a part is missing, or where the encoders
    share no space.
    """
    given = {"prompt": prompt.strip(), "clip": clip, "clip_vision": clip_vision}
    missing = [name for name, value in given.items() if value is None or value == ""]
    if len(missing) == len(given):
        return None
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} of MM-Diff Pick Best is not given; to order images by the "
            "prompt as well it needs prompt, clip and clip_vision, else none of the three"
        )
    began, text = time.perf_counter(), _text_embedding(clip, prompt)
    _check_image_encoder(clip_vision, text.shape[-1])
    pixels, seen = checked_images(images, "images"), []
    for part in pixels.split(AT_ONCE):
        mm.throw_exception_if_processing_interrupted()
        with torch.no_grad():
            seen.append(clip_vision.encode_image(part).image_embeds.float().cpu())
    cosines = F.cosine_similarity(torch.cat(seen), text, dim=-1)
    seconds = (time.perf_counter() - began) / len(pixels)
    return PromptFidelity(tuple(cosines.tolist()), within, seconds)


def _text_embedding(clip, prompt: str) -> Tensor:
    """The projected pooled output [1 P] of a text encoder, float32 on the CPU."""
    tokens = read(clip.tokenize, without_markers(prompt))
    if frozenset(tokens) not in SHARED:
        raise ValueError(
            f"clip has the text encoders {quoted_list(sorted(tokens))}, whose reading of a whole "
            "prompt no image encoder is known to share (SD1.5's checkpoints hold no projection for "
            "it, the small world has none): connect SDXL's CLIP, or clip_g from Load CLIP, with "
            f"{BIG_G} as clip_vision; or leave prompt, clip and clip_vision out"
        )
    with torch.no_grad():
        _, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
    pooled = pooled.float().cpu()
    if not bool(torch.isfinite(pooled).all()) or not bool(pooled.any()):
        raise ValueError(
            "the text encoder of clip gives nothing for a whole prompt (its file may lack "
            "text_projection): connect the CLIP of an SDXL checkpoint, or another clip_g"
        )
    return pooled


def _check_image_encoder(clip_vision, width: int) -> None:
    """ValueError for an image encoder that shares no space of that width."""
    projection = clip_vision.model.state_dict().get(PROJECTION)
    found = "none" if projection is None else str(len(projection))
    if found != str(width):
        raise ValueError(
            f"clip_vision has a CLIP projection to {found} numbers, expected {width} as clip has: "
            f"connect {BIG_G} from Load CLIP Vision; the image "
            "encoder of the subjects is another one"
        )
