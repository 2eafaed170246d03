"""Everything about a batch that does not depend on the noise level.

Shapes   B examples · S most subjects of an example · R most references of a subject
         T tokens per reference · N = S R T · n references of the batch · P latent positions
         D context width · E width of CLS
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..bases import Slot
from ..method.adapter import key_value, make_router
from ..method.attention import Router
from ..method.losses import masks_on_grid
from .bridge import Bridge, Grid
from .config import RunConfig
from .example import Example
from .trainable import TrainableAdapter

HIDDEN = -1e6  # added to the logits of tokens that are not there (as released)


class HeldLayer(NamedTuple):
    """What holds subjects to their regions in one layer.

    tokens  added to the logits of the subject tokens [B 1 P N], or None
    gate    of the image branch [B P 1], or None
    nouns   added to the logits of the text [B 1 P L], or None
    apart   columns of `regions.self_attention` [B P S] that keep self-attention inside regions
    """

    tokens: Tensor | None
    gate: Tensor | None
    nouns: Tensor | None
    apart: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Conditions:
    """What the UNet is conditioned on.

    context   [B L D]
    vector    pooled text and sizes [B V], or None
    nouns     column of every subject's noun [B S]
    tokens    the subject tokens [B N D], padded by zeros
    keys      {slot: (K, V)} of the subject tokens, [B N D] each; empty without subject tokens
    bias      added to the logits of the subject tokens [B 1 1 N]
    gate      1 where an example has subjects, else 0 [B 1 1]
    owner     subject of each token [N]
    present   which subjects there are, bool [B S]
    cls       CLS of every subject's first reference, without gradient [B S E]
    masks     [B S H W] in 0..1, or None where nothing is measured
    held      the subjects' regions on a layer's grid, or None
    bounds_self_attention  whether those hold self-attention apart
    routers   {slot: router of the subjects}; empty without routers
    """

    context: Tensor
    vector: Tensor | None
    nouns: Tensor
    tokens: Tensor
    keys: dict[Slot, tuple[Tensor, Tensor]]
    bias: Tensor
    gate: Tensor
    owner: Tensor
    present: Tensor
    cls: Tensor
    masks: Tensor | None
    held: Callable[[Grid], HeldLayer] | None = None
    bounds_self_attention: bool = False
    routers: dict[Slot, Router] = field(default_factory=dict)
    _grids: dict[Grid, Tensor] = field(default_factory=dict)

    def masks_at(self, grid: Grid) -> Tensor:
        """Masks on a layer's grid [B S P], each made once."""
        if grid not in self._grids:
            self._grids[grid] = masks_on_grid(self.masks, grid)
        return self._grids[grid]


class Layout(NamedTuple):
    """How the references of a batch lie in tensors that are padded to the most of each.

    positions  (example, subject, reference) of each reference, in reading order
    """

    examples: int
    subjects: int
    references: int
    positions: list[tuple[int, int, int]]

    @classmethod
    def of(cls, batch: Sequence[Example]) -> Layout:
        """The layout of these examples."""
        positions, subjects, references = [], 1, 1
        for b, example in enumerate(batch):
            subjects = max(subjects, len(example.subjects))
            for s, subject in enumerate(example.subjects):
                references = max(references, len(subject.references))
                positions += [(b, s, r) for r in range(len(subject.references))]
        return cls(len(batch), subjects, references, positions)


def make_conditions(
    batch: Sequence[Example],
    adapter: TrainableAdapter,
    bridge: Bridge,
    run: RunConfig,
    measured: bool = True,
) -> Conditions:
    """Encode captions and subjects; `measured`: with the masks that the maps are compared to."""
    device, layout = bridge.alphas.device, Layout.of(batch)
    cls, patches = bridge.vision(_references(batch, adapter.config.image_size).to(device))
    firsts = [i for i, (_, _, reference) in enumerate(layout.positions) if reference == 0]
    words = adapter.subjects.subject_words(cls[firsts] if firsts else cls[:0])

    def fuse(encoder: str, nouns: Tensor) -> Tensor:
        return adapter.subjects.fuse_words(encoder, nouns, words[encoder])

    fused = run.adapter.text_fusion and firsts
    text = bridge.conditioning(batch, fuse if fused else None)
    query, patches = _queries(batch, cls, patches, adapter, bridge)
    tokens, there = _subject_tokens(query, patches, layout, adapter)
    keys = _keys(tokens, adapter, bridge) if run.adapter.subject_tokens else {}
    counts = torch.tensor([len(e.subjects) for e in batch], device=device)
    owner = torch.arange(layout.subjects, device=device).repeat_interleave(
        layout.references * adapter.config.tokens_per_reference
    )
    return Conditions(
        context=text.context,
        vector=text.vector,
        nouns=text.nouns,
        tokens=tokens,
        keys=keys,
        bias=torch.where(there, 0.0, HIDDEN)[:, None, None],
        gate=(counts > 0).view(-1, 1, 1).float(),
        owner=owner,
        present=torch.arange(layout.subjects, device=device) < counts[:, None],
        cls=_first_cls(cls.detach(), layout),
        masks=pad_masks(batch, layout.subjects).to(device) if measured else None,
        routers=_routers(tokens, there, layout, adapter) if adapter.config.routed else {},
    )


def _references(batch: Sequence[Example], side: int) -> Tensor:
    """All subjects' references [n 3 side side]; a black one where there is none."""
    references = [s.references for example in batch for s in example.subjects]
    return torch.cat(references or [torch.zeros(1, 3, side, side)])


def _first_cls(cls: Tensor, layout: Layout) -> Tensor:
    """CLS [n E] of each subject's first reference [B S E]; zeros where there is no subject."""
    first = cls.new_zeros(layout.examples, layout.subjects, cls.shape[-1])
    firsts = [(n, b, s) for n, (b, s, reference) in enumerate(layout.positions) if reference == 0]
    if firsts:
        number, example, subject = torch.tensor(firsts, device=cls.device).unbind(1)
        first[example, subject] = cls[number]
    return first


def _queries(
    batch: Sequence[Example],
    cls: Tensor,
    patches: Tensor,
    adapter: TrainableAdapter,
    bridge: Bridge,
) -> tuple[Tensor, Tensor]:
    """What query tokens are made of [n Q], and the patches that the refiner attends to [n L W].

    These are CLS and the references themselves or, for a portrait adapter, face embeddings and
    aligned crops.
    """
    if not adapter.config.variant.reads_faces:
        return cls, patches
    faces = [subject.faces for example in batch for subject in example.subjects]
    if any(found is None for found in faces):
        raise ValueError(
            "a portrait adapter needs subjects with faces: give data.faces, a face analysis model "
            "pack"
        )
    if not faces:
        return cls.new_zeros(len(cls), adapter.config.query_width), patches
    embeddings = torch.cat([found.embeddings for found in faces]).to(cls)
    crops = torch.cat([found.crops for found in faces]).to(cls.device)
    return embeddings, bridge.vision(crops)[1]


def _subject_tokens(
    query: Tensor, patches: Tensor, layout: Layout, adapter: TrainableAdapter
) -> tuple[Tensor, Tensor]:
    """All subjects' tokens [B N D], padded by zeros, and which of them there are, bool [B N]."""
    made = adapter.subjects.subject_tokens(query, patches)  # n T D
    count, (batch, most, references, positions) = made.shape[1], layout
    tokens = made.new_zeros(batch, most, references, count, made.shape[-1])
    there = torch.zeros(batch, most, references, dtype=torch.bool, device=made.device)
    if positions:
        where = tuple(torch.tensor(positions, device=made.device).unbind(1))
        tokens = tokens.index_put(where, made[: len(positions)])
        there[where] = True
    else:
        tokens = tokens + 0 * made.sum()  # every parameter takes part in every step
    there = there[..., None].expand(-1, -1, -1, count).reshape(batch, -1)
    return tokens.flatten(1, 3), there


def _keys(
    tokens: Tensor, adapter: TrainableAdapter, bridge: Bridge
) -> dict[Slot, tuple[Tensor, Tensor]]:
    """K and V of the subject tokens at every layer [B N D]."""
    view, keys = adapter.view(), {}
    for block in adapter.config.base.blocks:
        to_k, to_v = bridge.projections(block)
        key, value = key_value(view, block, tokens, to_k, to_v, lora_strength=0)
        keys[block.slot] = (key, value)
    return keys


def _routers(
    tokens: Tensor, there: Tensor, layout: Layout, adapter: TrainableAdapter
) -> dict[Slot, Router]:
    """The router of every layer, from tokens [B N D] of which some are `there`, bool [B N]."""
    own, count = tokens.unflatten(1, (layout.subjects, -1)), there.view(*there.shape, 1)
    count = count.unflatten(1, (layout.subjects, -1)).sum(2).clamp_min(1)
    means, each = own.sum(2) / count, layout.subjects * (own.shape[2],)  # absent ones are zeros
    view, routers = adapter.view(), {}
    for block in adapter.config.base.blocks:
        routers[block.slot] = make_router(view, block, means, each)
    return routers


def pad_masks(batch: Sequence[Example], most: int) -> Tensor:
    """Masks of all subjects [B S H W]; zeros where there is none."""
    height, width = batch[0].size
    shown = [subject.mask for example in batch for subject in example.subjects]
    device = shown[0].device if shown else None
    masks = torch.zeros(len(batch), most, height, width, device=device)
    if shown:
        where = [(b, s) for b, example in enumerate(batch) for s in range(len(example.subjects))]
        masks[tuple(torch.tensor(where, device=masks.device).unbind(1))] = torch.stack(shown)
    return masks
