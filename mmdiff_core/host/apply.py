"""Apply: a clone of a model that shows subjects. LoRA as weight patches, the image branch in the
attn2 slots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import comfy.patcher_extension
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ..bases import SELF_PROJECTIONS, TransformerBlock
from ..method.adapter import MMDiffAdapter
from .application import Application, Strength
from .models import add_patches_strictly, lora_patches
from .slot import SubjectAttention

Wrappers = comfy.patcher_extension.WrappersMP
Callbacks = comfy.patcher_extension.CallbacksMP
CLONE_KEY = "mmdiff-slots"


def apply(model, adapter: MMDiffAdapter, strength: Strength, keep_text: bool = True):
    """A clone of the model that shows subjects. The model itself stays as it is. `keep_text`: make
    the text's K and V once a run where that is safe (`kept_text`).

    Raises ValueError when the model is not one the adapter fits, or when it already has this
    adapter.
    """
    blocks = check_unet(model, adapter)
    application = Application(adapter, strength, blocks, keep_text)
    if application.key in model.wrappers.get(Wrappers.SAMPLER_SAMPLE, {}):
        raise ValueError(
            f"{adapter.source} is already applied to this model; use one Apply MM-Diff Attention "
            "per adapter"
        )
    patched = model.clone()
    if CLONE_KEY not in patched.callbacks.get(Callbacks.ON_CLONE, {}):
        patched.add_callback_with_key(Callbacks.ON_CLONE, CLONE_KEY, own_slots)
    if strength.lora != 0:
        add_patches_strictly(
            patched, lora_patches(adapter.unet, lora_keys(blocks)), strength.lora, "the model"
        )
    patched.add_wrapper_with_key(Wrappers.SAMPLER_SAMPLE, application.key, application.on_run)
    if strength.fuse_scale != 0:
        fill_slots(patched, application)
        patched.add_wrapper_with_key(Wrappers.APPLY_MODEL, application.key, application.on_apply)
        patched.add_wrapper_with_key(Wrappers.DIFFUSION_MODEL, application.key, application.on_call)
    return patched


def check_unet(model, adapter: MMDiffAdapter) -> tuple[TransformerBlock, ...]:
    """The adapter's blocks, all of them found in the model with the right widths; else a ValueError
    for the person."""
    unet, base = model.model.diffusion_model, adapter.config.base
    if not isinstance(unet, UNetModel):
        raise ValueError(
            "MM-Diff works on Stable Diffusion UNets (SDXL, SD1.5); this model is a "
            f"{type(model.model).__name__} with a {type(unet).__name__}. Load an SDXL checkpoint."
        )
    there = {
        name: m
        for name, m in unet.named_modules()
        if isinstance(m, BasicTransformerBlock) and m.attn2 is not None
    }
    wrong = [
        b
        for b in base.blocks
        if b.path not in there
        or there[b.path].attn2.heads * there[b.path].attn2.dim_head != b.width
    ]
    if wrong or len(there) != len(base.blocks):
        raise ValueError(
            f"the adapter {adapter.source} is for {base.name} with {len(base.blocks)} "
            f"cross-attention layers; this model has {len(there)}"
            + (f", and {wrong[0].path} is not as expected" if wrong else "")
            + ". Use a checkpoint of the adapter's base model."
        )
    # not the weight's shape: formats such as nvfp4 pack two numbers into one
    width = there[base.blocks[0].path].attn2.to_k.in_features
    if width != base.context_width:
        raise ValueError(
            f"the model expects prompt embeddings of width {width}, the adapter needs "
            f"{base.context_width}; is this a model of the {base.name} family?"
        )
    return base.blocks


def lora_keys(blocks: Sequence[TransformerBlock]) -> dict[str, str]:
    """Pair name -> weight key in the model, for the LoRA that is baked into the layers."""
    keys = {}
    for block in blocks:
        for attention in ("attn1", "attn2"):
            for projection in SELF_PROJECTIONS:
                name = f"{block.path}.{attention}.{projection}"
                layer = f"{name}.0" if projection == "to_out" else name
                keys[name] = f"diffusion_model.{layer}.weight"
    return keys


def own_slots(model, clone) -> None:
    """ON_CLONE: the clone's slots are its own, whatever the host's version shares, so that what is
    added to one is not in the other."""
    options = clone.model_options.get("transformer_options", {})
    held = options.get("patches_replace", {}).get("attn2", {})
    held.update(
        {slot: patch.own() for slot, patch in held.items() if isinstance(patch, SubjectAttention)}
    )


def fill_slots(patched, application: Application) -> None:
    """A block with one transformer layer (SD1.5) is filled under its short name (block, id), where
    other packs look for it; the host prefers the long one (block, id, index), so that is taken
    where somebody holds it."""
    held = patched.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    depth = Counter(block.slot[:2] for block in application.adapter.config.base.blocks)
    for block in application.blocks:
        short = block.slot[:2]
        slot = short if depth[short] == 1 and block.slot not in held else block.slot
        before = held.get(block.slot, held.get(short))
        patch = SubjectAttention(
            application.key, block.slot, application.scales[block.slot], before
        )
        patched.set_model_attn2_replace(patch, *slot)
