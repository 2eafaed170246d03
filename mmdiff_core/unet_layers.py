"""The transformer blocks of each supported UNet, in the released checkpoint's order. The only place that knows it.

The release numbers its attention processors down blocks, up blocks, middle block; attn1 before attn2 in each
(the order of the official code's attention processors). ComfyUI addresses the same layers by a slot
(block, id, index) and a module path.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

Slot = tuple[str, int, int]


@dataclass(frozen=True)
class TransformerBlock:
    """One BasicTransformerBlock: where ComfyUI keeps it and how wide it is."""

    block: str      # "input", "output" or "middle"
    id: int         # number of the block within input_blocks / output_blocks; 0 in the middle
    index: int      # number within its SpatialTransformer
    width: int      # channels of the layer

    @property
    def slot(self) -> Slot:
        """Key of `patches_replace["attn2"]`."""
        return (self.block, self.id, self.index)

    @property
    def path(self) -> str:
        """Module path below `diffusion_model`."""
        stem = "middle_block" if self.block == "middle" else f"{self.block}_blocks.{self.id}"
        return f"{stem}.1.transformer_blocks.{self.index}"


# (block, id, depth, width); input ids ascending, then output ids ascending, then the middle
SpatialRow = tuple[str, int, int, int]


def _rows(block: str, ids: tuple[int, ...], depth: int, width: int) -> tuple[SpatialRow, ...]:
    return tuple((block, i, depth, width) for i in ids)


LAYOUTS: dict[str, tuple[SpatialRow, ...]] = {
    "sdxl": (
        *_rows("input", (4, 5), 2, 640), *_rows("input", (7, 8), 10, 1280),
        *_rows("output", (0, 1, 2), 10, 1280), *_rows("output", (3, 4, 5), 2, 640),
        ("middle", 0, 10, 1280),
    ),
    "sd15": (
        *_rows("input", (1, 2), 1, 320), *_rows("input", (4, 5), 1, 640), *_rows("input", (7, 8), 1, 1280),
        *_rows("output", (3, 4, 5), 1, 1280), *_rows("output", (6, 7, 8), 1, 640), *_rows("output", (9, 10, 11), 1, 320),
        ("middle", 0, 1, 1280),
    ),
    # the small SDXL of the recorded reference numbers
    "tiny": (*_rows("input", (4, 5), 2, 64), *_rows("output", (0, 1, 2), 2, 64), ("middle", 0, 2, 64)),
    # the small trained world
    "small-world": (
        *_rows("input", (1, 2), 1, 64), ("input", 4, 1, 128), *_rows("output", (0, 1), 1, 128), *_rows("output", (2, 3, 4), 1, 64),
        ("middle", 0, 1, 128),
    ),
}

SELF_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")
IMAGE_PROJECTIONS = ("to_k_image", "to_v_image")
CROSS_PROJECTIONS = SELF_PROJECTIONS + IMAGE_PROJECTIONS


def transformer_blocks(base: str) -> tuple[TransformerBlock, ...]:
    """All transformer blocks of a base in checkpoint order. Raises ValueError for an unknown base."""
    if base not in LAYOUTS:
        raise ValueError(f"unknown base {base!r}; this version knows {sorted(LAYOUTS)}")
    return tuple(
        TransformerBlock(block, i, index, width) for block, i, depth, width in LAYOUTS[base] for index in range(depth)
    )


def projections(attention: str) -> tuple[str, ...]:
    """Names of the LoRA pairs of "attn1" or "attn2"."""
    return CROSS_PROJECTIONS if attention == "attn2" else SELF_PROJECTIONS


def projection_shape(block: TransformerBlock, attention: str, projection: str, context_width: int) -> tuple[int, int]:
    """(out, in) of the base weight a LoRA pair adds to."""
    reads_context = attention == "attn2" and projection not in ("to_q", "to_out")
    return block.width, context_width if reads_context else block.width


def layer_pairs(base: str) -> Iterator[tuple[int, TransformerBlock, str, str]]:
    """(processor number, block, attention, projection) for every LoRA pair of a base, in checkpoint order."""
    for number, block in enumerate(transformer_blocks(base)):
        for offset, attention in enumerate(("attn1", "attn2")):
            for projection in projections(attention):
                yield 2 * number + offset, block, attention, projection
