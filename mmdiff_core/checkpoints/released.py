"""Key knowledge of the released checkpoint (three .bin files) as tables, with one reader in each
direction.

Upstream's spellings live here and nowhere else. Groups of our flat layout:
    modules.<SubjectModules key>          unet.<path>.<attn>.<projection>.down|up
    text.<l|g>.layers.<i>.<...>.down|up   vision.<transformers CLIP key>
"""

from __future__ import annotations

import re

from ..bases import layer_pairs
from ..config import MMDiffConfig

UNET_FILE = "unet_adapter_weights.bin"
TEXT_FILE = "text_encoder_adapter_weights.bin"
CUSTOM_FILE = "custom_weights.bin"
FILES = (UNET_FILE, TEXT_FILE, CUSTOM_FILE)
BASE_FILE = "base.json"  # beside them, the record of a base that `bases.BASES` does not have

# custom_weights.bin: group -> {upstream module: ours}; {} runs over the refiner's blocks
MODULES: dict[str, dict[str, str]] = {
    "obj_embeds_proj": {
        "layernorm": "subject_to_text.norm",
        "fc": "subject_to_text.hidden",
        "proj_1": "subject_to_text.project.l",
        "proj_2": "subject_to_text.project.g",
    },
    "face_embeds_proj": {
        "proj.0": "query.hidden",
        "proj.2": "query.tokens",
        "layer_norm": "query.norm",
        "refiner.proj_in": "refiner.project_patches",
        "refiner.proj_out": "refiner.project_out",
        "refiner.norm_out": "refiner.norm_out",
        "refiner.layers.{}.0.norm1": "refiner.blocks.{}.norm_patches",
        "refiner.layers.{}.0.norm2": "refiner.blocks.{}.norm_queries",
        "refiner.layers.{}.0.to_q": "refiner.blocks.{}.to_q",
        "refiner.layers.{}.0.to_kv": "refiner.blocks.{}.to_kv",
        "refiner.layers.{}.0.to_out": "refiner.blocks.{}.to_out",
        "refiner.layers.{}.1.0": "refiner.blocks.{}.feed_forward.0",
        "refiner.layers.{}.1.1": "refiner.blocks.{}.feed_forward.1",
        "refiner.layers.{}.1.3": "refiner.blocks.{}.feed_forward.3",
    },
    "mm_fuse_one": {"layernorm": "fuse.l.norm", "fc1": "fuse.l.hidden", "fc2": "fuse.l.out"},
    "mm_fuse_two": {"layernorm": "fuse.g.norm", "fc1": "fuse.g.hidden", "fc2": "fuse.g.out"},
}
VISION_GROUP = "image_encoder"

UNET_PROJECTIONS = {
    "to_q": "to_q_lora",
    "to_k": "to_k_lora",
    "to_v": "to_v_lora",
    "to_out": "to_out_lora",
    "to_k_image": "to_k_lora_image",
    "to_v_image": "to_v_lora_image",
}
# the layout has room for these two
TEXT_ENCODERS = {"l": "text_encoder", "g": "text_encoder_2"}
# projection -> (upstream's newer stem, older stem), within
# "<encoder>.text_model.encoder.layers.<i>."
TEXT_PROJECTIONS = {
    "self_attn.q_proj": ("self_attn.q_proj.lora_linear_layer", "self_attn.to_q_lora"),
    "self_attn.k_proj": ("self_attn.k_proj.lora_linear_layer", "self_attn.to_k_lora"),
    "self_attn.v_proj": ("self_attn.v_proj.lora_linear_layer", "self_attn.to_v_lora"),
    "self_attn.out_proj": ("self_attn.out_proj.lora_linear_layer", "self_attn.to_out_lora"),
    "mlp.fc1": ("mlp.fc1.lora_linear_layer", "mlp.fc1.lora_linear_layer"),
    "mlp.fc2": ("mlp.fc2.lora_linear_layer", "mlp.fc2.lora_linear_layer"),
}
TEXT_FAMILIES = {
    "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    "mlp": ("mlp.fc1", "mlp.fc2"),
}

VISION_LAYER = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    *("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"),
)
_LAYER_KEY = "vision_model.encoder.layers.{{}}.{}.{}"
# transformers' CLIP vision tower below "vision_model.": what may be fine-tuned
VISION_KEYS = (
    "vision_model.embeddings.class_embedding",
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.embeddings.position_embedding.weight",
    "vision_model.pre_layrnorm.weight",
    "vision_model.pre_layrnorm.bias",
    "vision_model.post_layernorm.weight",
    "vision_model.post_layernorm.bias",
    "visual_projection.weight",
    *map(_LAYER_KEY.format, VISION_LAYER, len(VISION_LAYER) * ["weight"]),
    *map(_LAYER_KEY.format, VISION_LAYER, len(VISION_LAYER) * ["bias"]),
)
# a buffer of older transformers, not a weight
VISION_IGNORED = ("vision_model.embeddings.position_ids",)


def module_keys(config: MMDiffConfig) -> dict[str, tuple[str, str]]:
    """Our "modules." stem -> (group, upstream stem)."""
    table = {}
    for group, stems in MODULES.items():
        for theirs, ours in stems.items():
            for i in range(config.refiner_depth if "{}" in ours else 1):
                table[ours.format(i)] = (group, theirs.format(i))
    return {k: v for k, v in table.items() if not _of_absent_encoder(k, config)}


def _of_absent_encoder(stem: str, config: MMDiffConfig) -> bool:
    match = re.match(r"(?:fuse|subject_to_text\.project)\.(\w+)", stem)
    return match is not None and match[1] not in config.encoders


def unet_keys(config: MMDiffConfig) -> dict[str, str]:
    """Our "unet." stem -> upstream stem "<processor number>.<projection>_lora"."""
    return {
        f"{block.path}.{attention}.{projection}": f"{number}.{UNET_PROJECTIONS[projection]}"
        for number, block, attention, projection in layer_pairs(config.base)
    }


def text_stems(config: MMDiffConfig) -> list[str]:
    """Our "text." stems: attention and mlp of every layer of every text encoder."""
    return [
        f"{encoder.name}.layers.{i}.{projection}"
        for encoder in config.base.text
        for i in range(encoder.depth)
        for projection in TEXT_PROJECTIONS
    ]


def text_keys(config: MMDiffConfig, old_style: bool = False) -> dict[str, str]:
    """Our "text." stem -> upstream stem, in upstream's newer or older spelling."""
    keys = {}
    for stem in text_stems(config):
        encoder, _, layer, projection = stem.split(".", 3)
        theirs = TEXT_PROJECTIONS[projection][old_style]
        keys[stem] = f"{TEXT_ENCODERS[encoder]}.text_model.encoder.layers.{layer}.{theirs}"
    return keys


def vision_keys(config: MMDiffConfig) -> tuple[str, ...]:
    """Every image encoder weight that a checkpoint may bring."""
    layers = range(config.base.image.depth)
    return tuple(key.format(i) for key in VISION_KEYS for i in (layers if "{}" in key else (0,)))
