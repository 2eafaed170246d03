"""Shapes of every tensor a checkpoint may hold, by our flat names without their group."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

from ..bases import Base, layer_pairs, projection_shape
from ..config import MMDiffConfig
from ..method.adapter import SubjectModules, router_path
from ..untrusted import listed
from .released import TEXT_ENCODERS, UNET_FILE, vision_keys

Shape = tuple[int, ...]


def module_shapes(config: MMDiffConfig) -> dict[str, Shape]:
    """Our "modules." keys with shapes, from the modules themselves (built on the meta device)."""
    with torch.device("meta"):
        return {key: tuple(t.shape) for key, t in SubjectModules(config).state_dict().items()}


def unet_shapes(config: MMDiffConfig, rank: int) -> dict[str, Shape]:
    """Our "unet." keys with shapes at a rank."""
    return lora_shapes(config, rank) | router_shapes(config, rank)


def router_shapes(config: MMDiffConfig, rank: int) -> dict[str, Shape]:
    """Those of them that are routers'; none where the adapter has none."""
    shapes: dict[str, Shape] = {}
    for block in config.base.blocks if config.routed else ():
        stem = router_path(block)
        shapes |= {f"{stem}.down": (rank, block.width), f"{stem}.up": (config.context_width, rank)}
    return shapes


def lora_shapes(config: MMDiffConfig, rank: int) -> dict[str, Shape]:
    """Those of them that are LoRA."""
    shapes: dict[str, Shape] = {}
    for _, block, attention, projection in layer_pairs(config.base):
        rows, columns = projection_shape(config.base, block, attention, projection)
        stem = f"{block.path}.{attention}.{projection}"
        shapes |= {f"{stem}.down": (rank, columns), f"{stem}.up": (rows, rank)}
    return shapes


def text_shape(config: MMDiffConfig, stem: str) -> Shape:
    """(out, in) of the text encoder weight that a pair adds to."""
    encoder, projection = stem.split(".", 1)[0], stem.rsplit(".", 1)[1]
    width = config.text_widths[encoder]
    inner = width * config.base.mlp_ratio
    return {"fc1": (inner, width), "fc2": (width, inner)}.get(projection, (width, width))


def vision_shapes(config: MMDiffConfig) -> dict[str, Shape]:
    """Image encoder weights with shapes."""
    width, patch = config.vision_width, config.base.image.patch
    inner, positions = width * config.base.mlp_ratio, (config.image_size // patch) ** 2 + 1
    special: dict[str, Shape] = {
        "patch_embedding.weight": (width, 3, patch, patch),
        "position_embedding.weight": (positions, width),
        "visual_projection.weight": (config.cls_width, width),
        "fc1.weight": (inner, width),
        "fc1.bias": (inner,),
        "fc2.weight": (width, inner),
    }

    def shape(key: str) -> Shape:
        for ending, found in special.items():
            if key.endswith(ending):
                return found
        return (width, width) if re.search(r"_proj\.weight$", key) else (width,)

    return {key: shape(key) for key in vision_keys(config)}


def guess_base(shapes: Mapping[str, Shape], bases: Iterable[Base]) -> Base:
    """The base whose layer widths are those of a unet_adapter_weights.bin, among the bases that the
    layout has room for. ValueError with both sides when none is."""
    names = (f"{i}.to_q_lora.up.weight" for i in range(len(shapes)))
    widths = tuple(shapes[name][0] for name in names if shapes.get(name))
    fitting = [base for base in bases if base.encoders == tuple(TEXT_ENCODERS)]
    for base in fitting:
        if query_widths(base) == widths:
            return base
    counts = {base.name: len(query_widths(base)) for base in fitting}
    raise ValueError(
        f"{UNET_FILE} has {len(widths)} attention layers of widths {listed(sorted(set(widths)))}; "
        f"known bases have {counts}. Is it an adapter for another base model, or another adapter's "
        "file?"
    )


def query_widths(base: Base) -> tuple[int, ...]:
    """Width of every attention layer in checkpoint order."""
    return tuple(
        block.width for _, block, _, projection in layer_pairs(base) if projection == "to_q"
    )
