"""The base models that adapters are made for: one record each, and nothing about a base anywhere
else.

A new base is a new record in `BASES`. Widths are feature sizes; nothing here depends on torch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from .untrusted import STRICT, parse

Slot = tuple[str, int, int]
# what a record in a checkpoint may say
Name = Annotated[str, Field(min_length=1, max_length=100)]
EncoderName = Annotated[str, Field(pattern="^[a-z0-9_]{1,16}$")]
Width = Annotated[int, Field(ge=1, le=65536)]
Depth = Annotated[int, Field(ge=1, le=256)]
Pixels = Annotated[int, Field(ge=1, le=4096)]
BlockId = Annotated[int, Field(ge=0, le=999)]
BlockName = Literal["input", "output", "middle"]
SpatialRow = tuple[BlockName, BlockId, Depth, Width]  # block, id, depth, width
MOST_BLOCKS = 1024


@dataclass(frozen=True)
class TransformerBlock:
    """One BasicTransformerBlock of a UNet: its address in ComfyUI and its width.

    block   "input", "output" or "middle"
    id      number of the block within input_blocks or output_blocks; 0 in the middle
    index   number within its SpatialTransformer
    width   channels of the layer
    """

    block: str
    id: int
    index: int
    width: int

    @property
    def slot(self) -> Slot:
        """Key of `patches_replace["attn2"]`."""
        return (self.block, self.id, self.index)

    @property
    def path(self) -> str:
        """Module path below `diffusion_model`."""
        stem = "middle_block" if self.block == "middle" else f"{self.block}_blocks.{self.id}"
        return f"{stem}.1.transformer_blocks.{self.index}"


@dataclass(frozen=True)
class TextEncoder:
    """One CLIP text encoder: ComfyUI's name of it ("l", "g", "h"), its width, its layers."""

    __pydantic_config__ = STRICT

    name: EncoderName
    width: Width
    depth: Depth


@dataclass(frozen=True)
class ImageEncoder:
    """The CLIP vision tower that references are read with.

    width       of its hidden states
    cls_width   of the projected CLS embedding
    depth       number of layers
    patch, size     sides of a patch and of the image, in pixels
    """

    __pydantic_config__ = STRICT

    width: Width
    cls_width: Width
    depth: Depth
    patch: Pixels
    size: Pixels = 224

    def __post_init__(self) -> None:
        if self.patch > self.size:
            raise ValueError(f"a patch of {self.patch} pixels in an image of {self.size}")


@dataclass(frozen=True)
class Base:
    """What an adapter has to know of the model it is made for.

    unet            rows of (block, id, depth, width): input ids ascending, output ids ascending,
                    then the middle. The released checkpoint numbers its layers in this order.
    context_width   width of the text that the UNet's cross-attention reads
    text            its text encoders, in the order of the released checkpoint
    image           the image encoder that its adapters are trained with
    mlp_ratio       width of the encoders' feed-forward layers, as a multiple of their width
    """

    __pydantic_config__ = STRICT

    name: Name
    unet: Annotated[tuple[SpatialRow, ...], Field(min_length=1, max_length=100)]
    context_width: Width
    text: Annotated[tuple[TextEncoder, ...], Field(min_length=1, max_length=4)]
    image: ImageEncoder
    mlp_ratio: Annotated[int, Field(ge=1, le=16)] = 4

    def __post_init__(self) -> None:
        if len({row[:2] for row in self.unet}) < len(self.unet):
            raise ValueError("two rows of unet are for the same block")
        if len(set(self.encoders)) < len(self.text):
            raise ValueError("two text encoders have the same name")
        if (blocks := sum(row[2] for row in self.unet)) > MOST_BLOCKS:
            raise ValueError(f"unet has {blocks} transformer blocks, at most {MOST_BLOCKS}")

    @cached_property
    def blocks(self) -> tuple[TransformerBlock, ...]:
        """All transformer blocks in checkpoint order."""
        return tuple(
            TransformerBlock(block, number, index, width)
            for block, number, depth, width in self.unet
            for index in range(depth)
        )

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the text encoders."""
        return tuple(encoder.name for encoder in self.text)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Base:
        """Inverse of `to_json`. Raises ValueError for text that is no such record, or one with
        sizes out of range."""
        try:
            return parse(cls, text, "the record")
        except ValueError as error:
            raise ValueError(
                f"the record of the base model cannot be read ({error}); expected the fields "
                f"{', '.join(f.name for f in dataclasses.fields(cls))}"
            ) from None


def _rows(block: str, ids: tuple[int, ...], depth: int, width: int) -> tuple[SpatialRow, ...]:
    return tuple((block, i, depth, width) for i in ids)


_SD1_UNET = (
    *_rows("input", (1, 2), 1, 320),
    *_rows("input", (4, 5), 1, 640),
    *_rows("input", (7, 8), 1, 1280),
    *_rows("output", (3, 4, 5), 1, 1280),
    *_rows("output", (6, 7, 8), 1, 640),
    *_rows("output", (9, 10, 11), 1, 320),
    ("middle", 0, 1, 1280),
)
_CLIP_VIT_L = ImageEncoder(width=1024, cls_width=768, depth=24, patch=14)

SDXL = Base(
    name="sdxl",
    context_width=2048,
    image=_CLIP_VIT_L,
    text=(TextEncoder("l", 768, 12), TextEncoder("g", 1280, 32)),
    unet=(
        *_rows("input", (4, 5), 2, 640),
        *_rows("input", (7, 8), 10, 1280),
        *_rows("output", (0, 1, 2), 10, 1280),
        *_rows("output", (3, 4, 5), 2, 640),
        ("middle", 0, 10, 1280),
    ),
)
SD15 = Base("sd15", _SD1_UNET, 768, (TextEncoder("l", 768, 12),), _CLIP_VIT_L)
SD2 = Base("sd2", _SD1_UNET, 1024, (TextEncoder("h", 1024, 24),), _CLIP_VIT_L)
# the small trained world: images of 32 x 32 dots, patches of 4 x 4 of them
SMALL_WORLD = Base(
    name="small-world",
    context_width=128,
    text=(TextEncoder("l", 128, 3),),
    image=ImageEncoder(width=128, cls_width=128, depth=4, patch=4, size=32),
    unet=(
        ("input", 2, 1, 128),
        *_rows("output", (0, 1), 1, 128),
        ("output", 2, 1, 64),
        ("middle", 0, 1, 128),
    ),
)

BASES = {base.name: base for base in (SDXL, SD15, SD2, SMALL_WORLD)}


# ---------------------------------------------------------------- LoRA pairs of a base

SELF_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")
IMAGE_PROJECTIONS = ("to_k_image", "to_v_image")
PROJECTIONS = {"attn1": SELF_PROJECTIONS, "attn2": SELF_PROJECTIONS + IMAGE_PROJECTIONS}


def layer_pairs(base: Base) -> Iterator[tuple[int, TransformerBlock, str, str]]:
    """(processor number, block, attention, projection) of every LoRA pair, in checkpoint order.

    The release numbers its attention processors through all blocks, attn1 before attn2 in each.
    """
    for number, block in enumerate(base.blocks):
        for offset, (attention, projections) in enumerate(PROJECTIONS.items()):
            for projection in projections:
                yield 2 * number + offset, block, attention, projection


def projection_shape(
    base: Base, block: TransformerBlock, attention: str, projection: str
) -> tuple[int, int]:
    """(out, in) of the base weight that a LoRA pair adds to."""
    reads_context = attention == "attn2" and projection not in ("to_q", "to_out")
    return block.width, base.context_width if reads_context else block.width
