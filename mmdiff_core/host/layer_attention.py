"""What can be read from the attention of one layer, for whoever looks at it while sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..bases import Slot, TransformerBlock
from ..method.attention import Router
from ..method.subjects import PromptSubject, count_tokens
from ..regions.attention_bias import Area
from ..regions.attention_maps import (
    Canvas,
    CanvasArea,
    members,
    noun_map,
    owners,
    routed_map,
    token_map,
)

WATCHED = 12  # layers that are looked at, spread over the model


def watched_slots(blocks: Sequence[TransformerBlock]) -> frozenset[Slot]:
    """At most `WATCHED` layers, spread evenly."""
    every = max(1, -(-len(blocks) // WATCHED))
    return frozenset(block.slot for block in blocks[every // 2 :: every])


class Watcher(Protocol):
    """Whoever looks at a prompt's attention during a call."""

    slots: frozenset[Slot]  # the layers it looks at

    def look(self, layer: LayerAttention) -> None: ...


@dataclass(frozen=True, eq=False)
class LayerAttention:
    """What one layer shows of one group of rows.

    q [B P HD], k [B T HD] of its rows; key [1|B H N D] of the subjects; `bias` as the image branch
    has it; the layer's grid; `first` row's number in the latent batch; the part of the image its
    cond covers; the router, where the adapter has one.
    """

    q: Tensor
    k: Tensor
    heads: int
    key: Tensor
    bias: Tensor | None
    grid: tuple[int, int]
    first: int
    area: Area | None
    latent: tuple[int, int]
    router: Router | None = None


@dataclass(frozen=True, eq=False)
class Columns:
    """Which text columns [T S] and which tokens [N S] are each subject's, on the device."""

    nouns: Tensor
    tokens: Tensor

    def to(self, device: torch.device) -> Columns:
        return Columns(self.nouns.to(device), self.tokens.to(device))

    @classmethod
    def of(
        cls,
        subjects: Sequence[PromptSubject],
        nouns: Sequence[Sequence[int]],
        length: int,
        device: torch.device,
    ) -> Columns:
        tokens = count_tokens(subjects)
        return cls(members(nouns, length, device), members(owners(tokens), sum(tokens), device))

    def maps(self, layer: LayerAttention) -> tuple[Tensor, Tensor]:
        """Text and image maps of a layer [B S h w]."""
        text = noun_map(layer.q, layer.k, layer.heads, self.nouns)
        if layer.router is None:
            image = token_map(layer.q, layer.key, layer.heads, self.tokens, layer.bias)
        else:
            image = routed_map(layer.router, layer.q, self.tokens, layer.bias)
        return text.unflatten(-1, layer.grid), image.unflatten(-1, layer.grid)


def canvas_area(
    canvas: Canvas, area: Area | None, latent: tuple[int, int]
) -> CanvasArea | None:
    """The part of the canvas that a cond's area covers."""
    if area is None:
        return None
    height, width, top, left = area
    down, across = (side / whole for side, whole in zip(canvas.grid, latent, strict=True))
    y, x = round(top * down), round(left * across)
    return (
        y,
        x,
        max(1, round((top + height) * down) - y),
        max(1, round((left + width) * across) - x),
    )
