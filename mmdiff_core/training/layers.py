"""What the trainer puts into the UNet's cross-attention: text plus subjects, by inference's own
functions, and the attention maps where they are constrained or asked for.

Shapes   B examples · S subjects · N subject tokens · T text tokens · H heads · P latent positions
         M measures
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bases import Slot, TransformerBlock
from ..method import losses
from ..method.attention import (
    Router,
    add_image_branch,
    by_head,
    full,
    image_probabilities,
    probabilities,
    weigh,
)
from ..regions.self_attention import ApartColumns, attend_apart
from .bridge import Grid
from .conditions import Conditions, HeldLayer

NOT_HELD = HeldLayer(None, None, None)
MEASURES = ("text_constraint", "image_constraint", "text_inside", "image_inside")


@dataclass(frozen=True, eq=False)
class LayerAttention:
    """The cross-attention of one layer; a `SlotCall`.

    attend      the text's attention: (q, k, v, heads, bias) -> [B P HD]
    fuse_scale  lambda
    measured    whether this layer's maps are constrained
    constrain   the constraint's form: (maps [B H P S], masks [B S P], present [B S]) -> [B]
    """

    slot: Slot
    conditions: Conditions
    attend: Callable[..., Tensor]
    fuse_scale: float
    measured: bool
    constrain: Callable[..., Tensor] = losses.balanced_l1

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, grid: Grid
    ) -> tuple[Tensor, Tensor | None]:
        """The attention [B P HD], and the MEASURES [B M] where it is measured."""
        conditions = self.conditions
        if self.measured and conditions.held is None:
            return self._measure(q, k, v, heads, grid)
        held = NOT_HELD if conditions.held is None else conditions.held(grid)
        out = self.attend(q, k, v, heads, None if held.nouns is None else held.nouns.to(q))
        if not conditions.keys:
            return out, None
        key, value = conditions.keys[self.slot]
        bias, gate = conditions.bias, conditions.gate
        if held.tokens is not None:
            bias, gate = bias + held.tokens, gate * held.gate
        key, value = by_head(key.to(q), heads), by_head(value.to(q), heads)
        # finite also in float16, so that a subject that is not there has a softmax
        bias = bias.clamp_min(torch.finfo(q.dtype).min / 2).to(q)
        added = key, value, self.fuse_scale, bias, gate[:, None].to(q)
        return add_image_branch(out, q, *added, router=self.router), None

    @property
    def router(self) -> Router | None:
        """The layer's router, where the adapter has one."""
        return self.conditions.routers.get(self.slot)

    def _measure(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, grid: Grid
    ) -> tuple[Tensor, Tensor]:
        """The same by way of the probabilities, with both constraints and both inside shares."""
        conditions = self.conditions
        text, image = self._probabilities(q, k, heads)
        out = weigh(text, v)
        if image is not None:
            value = conditions.keys[self.slot][1].to(v)
            out = out + self.fuse_scale * weigh(image, value) * conditions.gate.to(v)
        masks, present = conditions.masks_at(grid), conditions.present
        terms, shares = [], []
        for probability in self._subject_maps(text, image):
            if probability is None:
                nothing = text.new_zeros(len(text))
                terms.append(nothing)
                shares.append(nothing)
            else:
                terms.append(self.constrain(probability, masks, present))
                shares.append(losses.inside_share(probability.detach(), masks, present))
        return out, torch.stack([*terms, *shares], 1)

    def subject_maps(self, q: Tensor, k: Tensor, heads: int) -> tuple[Tensor, Tensor | None]:
        """Probability of attending to each subject's noun, and to its tokens [B H P S]."""
        return self._subject_maps(*self._probabilities(q, k, heads))

    def _subject_maps(self, text: Tensor, image: Tensor | None) -> tuple[Tensor, Tensor | None]:
        conditions = self.conditions
        nouns = losses.noun_probability(text, conditions.nouns)
        if image is None:
            return nouns, None
        subjects = conditions.present.shape[1]
        return nouns, losses.subject_probability(image, conditions.owner, subjects)

    def _probabilities(self, q: Tensor, k: Tensor, heads: int) -> tuple[Tensor, Tensor | None]:
        """Of both branches [B H P T], [B H P N]."""
        text = probabilities(q, k, heads)
        if not self.conditions.keys:
            return text, None
        key = self.conditions.keys[self.slot][0].to(q)
        return text, image_probabilities(q, key, heads, full(self.conditions.bias), self.router)


@dataclass(frozen=True, eq=False)
class SelfAttention:
    """The self-attention of one layer, kept inside the subjects' regions; a `SlotCall`.

    held, attend  as the conditions and the cross-attention have them
    """

    held: Callable[[Grid], HeldLayer]
    attend: Callable[..., Tensor]

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, grid: Grid
    ) -> tuple[Tensor, None]:
        """The attention [B P HD]."""

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.attend(q, k, v, heads, None)

        columns = ApartColumns.of(self.held(grid).apart, q.shape[-1] // heads, q.dtype)
        return attend_apart(attend, q, k, v, heads, columns), None


@dataclass(frozen=True, eq=False)
class MappedAttention:
    """A layer's attention that measures its subjects' maps on one grid; a `SlotCall`."""

    layer: LayerAttention
    grid: Grid

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, grid: Grid
    ) -> tuple[Tensor, Tensor]:
        """The attention [B P HD], and text maps beside image maps [B 2S h w]."""
        out, _ = self.layer(q, k, v, heads, grid)
        text, image = self.layer.subject_maps(q, k, heads)
        image = torch.zeros_like(text) if image is None else image
        maps = torch.cat([text, image], -1).mean(1)  # B P 2S
        maps = maps.transpose(1, 2).unflatten(-1, grid)
        return out, F.interpolate(maps, size=self.grid, mode="bilinear")


def constrained_slots(blocks: Sequence[TransformerBlock], layers: str) -> frozenset[Slot]:
    """Slots of the constrained layers: all, the widest ("deep"), or the others ("shallow")."""
    widest = max(block.width for block in blocks)
    slots = []
    for block in blocks:
        if layers == "all" or (block.width == widest) == (layers == "deep"):
            slots.append(block.slot)
    return frozenset(slots)
