"""One MM-Diff training step: examples in, losses out. The base is behind a `Bridge`; attention is inference's own.

Shapes   B examples · S most subjects of an example · R most references of a subject · T tokens per reference · N = S R T
         P latent positions · D context width
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bases import Slot, TransformerBlock
from ..method.adapter import key_value
from ..method.attention import add_image_branch, attention_on, by_head, full, probabilities, weigh
from . import losses
from .config import RunConfig
from .example import Example
from .trainable import TrainableAdapter

HIDDEN = -1e6        # added to the logits of tokens that are not there (as released)


class Bridge(Protocol):
    """The frozen base model: whoever has one can train on it."""

    prediction_type: str
    alphas: Tensor      # [timesteps] share of the picture's variance at each, descending

    def latents(self, pixels: Tensor) -> Tensor:
        """Pictures [B 3 H W] in 0..1 -> latents as the UNet sees them [B C h w]."""

    def conditioning(self, captions: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]], size: tuple[int, int],
                     fuse: Callable[[str, Tensor], Tensor] | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """Captions -> context [B L D], vector or None, and every noun's column [B S]. `fuse(encoder, words [n W])` gives what replaces
        the nouns, in reading order over the batch."""

    def vision(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Reference pixels [n 3 S S] in 0..1 -> CLS of the fine-tuned encoder [n C] and patches of the untouched one [n L W]."""

    def projections(self, block: TransformerBlock) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """to_k and to_v of a layer without LoRA."""

    def predict(self, noisy: Tensor, timesteps: Tensor, context: Tensor, vector: Tensor | None, slots: Mapping[Slot, SlotCall],
                checkpointing: bool) -> tuple[Tensor, list[tuple[Slot, Tensor]]]:
        """The UNet with something in its cross-attention slots -> prediction, and what the slots measured."""


@dataclass(frozen=True, eq=False)
class SlotCall:
    """The attention of one layer: (q, k, v, heads, grid) -> (what goes to to_out, measures [B M] or None)."""

    call: Callable[[Tensor, Tensor, Tensor, int, tuple[int, int]], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, eq=False)
class Conditions:
    """Everything about a batch that does not depend on the noise level."""

    context: Tensor
    vector: Tensor | None
    nouns: Tensor                                   # [B S]
    keys: dict[Slot, tuple[Tensor, Tensor]]         # [B N D] each; empty without subject tokens
    bias: Tensor                                    # [B 1 1 N]
    gate: Tensor                                    # [B 1 1] 1 where an example shows subjects
    owner: Tensor                                   # [N] token -> subject
    present: Tensor                                 # [B S]
    masks: Tensor | None                            # [B S H W]
    # constraint masks: layer's grid -> bias [B 1 P N] and gate [B P 1]
    held: Callable[[tuple[int, int]], tuple[Tensor, Tensor]] | None = None
    # masks on a layer's grid [B S P], each made once
    grids: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def masks_at(self, grid: tuple[int, int]) -> Tensor:
        if grid not in self.grids:
            self.grids[grid] = losses.masks_on_grid(self.masks, grid)
        return self.grids[grid]


MEASURES = ("text_constraint", "image_constraint", "text_inside", "image_inside")


class MMDiffTask(nn.Module):
    """`forward(examples)` -> scalar losses, means over the examples; "loss" is what is minimised."""

    def __init__(self, adapter: TrainableAdapter, bridge: Bridge, run: RunConfig):
        super().__init__()
        self.adapter = adapter
        self.bridge = bridge
        self.run = run
        self.blocks = adapter.config.base.blocks
        self.constrained = constrained_slots(self.blocks, run.constraint.layers)
        self.attend = attention_on(bridge.alphas.device)

    # ------------------------------------------------------------ one step
    def forward(self, batch: Sequence[Example]) -> dict[str, Tensor]:
        device = self.bridge.alphas.device
        latents = self.bridge.latents(torch.stack([e.pixels for e in batch]).to(device))
        noise, timesteps = draw_noise([e.index for e in batch], latents.shape[1:], len(self.bridge.alphas), self.run.seed,
                                      self.run.objective.middle, self.run.objective.high)
        noise, timesteps = noise.to(latents), timesteps.to(device)
        alpha, sigma = self.bridge.alphas[timesteps].sqrt(), (1 - self.bridge.alphas[timesteps]).sqrt()
        a, b = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
        conditions = self.conditions(batch)
        prediction, measured = self.predict(a * latents + b * noise, timesteps, conditions)
        target = losses.denoising_target(self.bridge.prediction_type, latents, noise, a, b)
        weight = losses.min_snr_weight(self.bridge.prediction_type, (alpha / sigma) ** 2, self.run.objective.min_snr)
        index, wanted = torch.tensor([e.index for e in batch], device=device), self.run.objective
        where = None if wanted.subject_weight == 1 else losses.weigh_subjects(
            conditions.masks, tuple(latents.shape[-2:]), losses.fading_weight(index, wanted.subject_weight, wanted.subject_weight_until)
        )
        denoising = losses.denoising_loss(prediction, target, weight, where)
        return self.total(denoising, measured, timesteps, index, conditions.present.any(1))

    def total(self, denoising: Tensor, measured: Tensor, timesteps: Tensor, index: Tensor, shown: Tensor) -> dict[str, Tensor]:
        """Per-example terms [B] and measures [B M] -> the weighted sum and everything worth a line in the log."""
        wanted = self.run.constraint
        gate = losses.noise_gate(timesteps / len(self.bridge.alphas), wanted.first, wanted.last)
        grown = (index + 1).float().div(max(wanted.warmup, 1)).clamp_max(1) if wanted.warmup else torch.ones_like(gate)
        text, image, *_ = measured.unbind(1)
        loss = denoising + gate * grown * (wanted.text * text + wanted.image * image)
        named = dict(zip(MEASURES, measured.detach().sum(0) / shown.sum().clamp_min(1), strict=True))
        return {"loss": loss.mean(), "denoising": denoising.detach().mean(), **named}

    def predict(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """Prediction, and the measures [B M] averaged over the constrained layers (zeros when there are no masks)."""
        slots = {block.slot: SlotCall(self.slot(block.slot, conditions)) for block in self.blocks}
        out, measured = self.bridge.predict(
            noisy, timesteps, conditions.context, conditions.vector, slots, self.run.objective.checkpointing
        )
        if not measured:
            return out, noisy.new_zeros(len(noisy), len(MEASURES))
        return out, torch.stack([m for _, m in measured]).mean(0)

    def slot(self, slot: Slot, conditions: Conditions) -> Callable:
        """What stands in one layer's cross-attention: text, plus subjects, plus the maps where they are constrained."""
        measure = conditions.masks is not None and slot in self.constrained

        def call(q: Tensor, k: Tensor, v: Tensor, heads: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
            if measure and conditions.held is None:
                return self.measured(q, k, v, heads, grid, slot, conditions)
            out = self.attend(q, k, v, heads)
            if conditions.keys:
                key, value = conditions.keys[slot]
                bias, gate = conditions.bias, conditions.gate
                if conditions.held is not None:
                    region, open_ = conditions.held(grid)
                    bias, gate = bias + region, gate * open_
                key, value = by_head(key.to(q), heads), by_head(value.to(q), heads)
                out = add_image_branch(out, q, key, value, self.run.objective.fuse_scale, bias.to(q), gate[:, None].to(q))
            return out, None

        return call

    def measured(self, q: Tensor, k: Tensor, v: Tensor, heads: int, grid: tuple[int, int], slot: Slot, conditions: Conditions
                 ) -> tuple[Tensor, Tensor]:
        """One layer's attention by way of its probabilities, and from them both constraints and both inside shares [B M]."""
        text, image = self.attention_maps(q, k, heads, slot, conditions)
        out = weigh(text, v)
        if image is not None:
            seen = weigh(image, conditions.keys[slot][1].to(v)) * conditions.gate.to(v)
            out = out + self.run.objective.fuse_scale * seen
        masks = conditions.masks_at(grid)
        nothing = text.new_zeros(len(text))
        maps = self.subject_maps(text, image, conditions)
        terms = [nothing if m is None else losses.balanced_l1(m, masks, conditions.present) for m in maps]
        shares = [nothing if m is None else losses.inside_share(m.detach(), masks, conditions.present) for m in maps]
        return out, torch.stack([*terms, *shares], 1)

    @torch.no_grad()
    def maps(self, noisy: Tensor, timesteps: Tensor, conditions: Conditions, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Where every subject is read: text and image maps [B S h w] in 0..1, mean over heads and layers, on one grid."""
        def slot(block: TransformerBlock) -> SlotCall:
            inner = self.slot(block.slot, conditions)

            def call(q: Tensor, k: Tensor, v: Tensor, heads: int, own: tuple[int, int]) -> tuple[Tensor, Tensor]:
                out, _ = inner(q, k, v, heads, own)
                text, image = self.subject_maps(*self.attention_maps(q, k, heads, block.slot, conditions), conditions)
                both = torch.cat([text, torch.zeros_like(text) if image is None else image], -1).mean(1)       # B P 2S
                both = F.interpolate(both.transpose(1, 2).unflatten(-1, own), size=grid, mode="bilinear")
                return out, both

            return SlotCall(call)

        _, measured = self.bridge.predict(
            noisy, timesteps, conditions.context, conditions.vector, {b.slot: slot(b) for b in self.blocks}, False
        )
        return torch.stack([m for _, m in measured]).mean(0).chunk(2, dim=1)

    def attention_maps(self, q: Tensor, k: Tensor, heads: int, slot: Slot, conditions: Conditions) -> tuple[Tensor, Tensor | None]:
        """Probabilities of both branches at a layer [B H P T], [B H P N]."""
        text = probabilities(q, k, heads)
        return text, probabilities(q, conditions.keys[slot][0].to(q), heads, full(conditions.bias)) if conditions.keys else None

    def subject_maps(self, text: Tensor, image: Tensor | None, conditions: Conditions) -> tuple[Tensor, Tensor | None]:
        """Both branches' probabilities -> of reading each subject's noun, and its tokens, at every position [B H P S]."""
        nouns = losses.noun_probability(text, conditions.nouns)
        return nouns, None if image is None else losses.subject_probability(image, conditions.owner, conditions.present.shape[1])

    # ------------------------------------------------------------ before the UNet
    def conditions(self, batch: Sequence[Example], measured: bool = True) -> Conditions:
        """Subjects and captions of a batch, padded to its most subjects and references; with masks where maps are measured."""
        device = self.bridge.alphas.device
        most = max(1, max(len(e.subjects) for e in batch))
        references = max([1, *(len(s.references) for e in batch for s in e.subjects)])
        places = [(b, s, r) for b, e in enumerate(batch) for s, subject in enumerate(e.subjects) for r in range(len(subject.references))]
        side = self.adapter.config.image_size
        pixels = torch.cat([s.references for e in batch for s in e.subjects] or [torch.zeros(1, 3, side, side)]).to(device)
        cls, patches = self.bridge.vision(pixels)
        present = torch.tensor([[s < len(e.subjects) for s in range(most)] for e in batch], device=device)
        firsts = [i for i, (_, _, r) in enumerate(places) if r == 0]
        words = self.adapter.subjects.subject_words(cls[firsts] if firsts else cls[:0])

        def fuse(encoder: str, nouns: Tensor) -> Tensor:
            return self.adapter.subjects.fuse_words(encoder, nouns, words[encoder])

        height, width = batch[0].pixels.shape[-2:]
        context, vector, columns = self.bridge.conditioning(
            [e.caption for e in batch], [[s.span for s in e.subjects] for e in batch], (height, width),
            fuse if self.run.adapter.text_fusion and firsts else None,
        )
        query, patches = self.queries(batch, cls, patches)
        keys, bias = self.subject_keys(query, patches, places, (len(batch), most, references))
        owner = torch.arange(most, device=device).repeat_interleave(references * self.adapter.config.tokens_per_reference)
        return Conditions(context, vector, columns, keys, bias, present.any(1).view(-1, 1, 1).float(), owner, present,
                          pad_masks(batch, most).to(device) if measured else None)

    def queries(self, batch: Sequence[Example], cls: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """What query tokens are made of [n Q] and the patches they read [n L W]: CLS and the references themselves, or, for a portrait
        adapter, face embeddings and aligned crops."""
        if not self.adapter.config.variant.reads_faces:
            return cls, patches
        found = [s.faces for e in batch for s in e.subjects]
        if any(faces is None for faces in found):
            raise ValueError("a portrait adapter needs subjects with faces: give data.faces, a face analysis model pack")
        if not found:
            return cls.new_zeros(len(cls), self.adapter.config.query_width), patches
        crops = torch.cat([crops for _, crops in found]).to(cls.device)
        return torch.cat([embeddings for embeddings, _ in found]).to(cls), self.bridge.vision(crops)[1]

    def subject_keys(self, query: Tensor, patches: Tensor, places: list[tuple[int, int, int]], shape: tuple[int, int, int]
                     ) -> tuple[dict[Slot, tuple[Tensor, Tensor]], Tensor]:
        """K and V of all subjects at every layer [B N D], and the bias that hides what is not there [B 1 1 N]."""
        batch, most, references = shape
        count = self.adapter.config.tokens_per_reference
        made = self.adapter.subjects.subject_tokens(query, patches)                      # n T D
        tokens = made.new_zeros(batch, most, references, count, made.shape[-1])
        there = torch.zeros(batch, most, references, dtype=torch.bool, device=made.device)
        if places:
            where = tuple(torch.tensor(axis, device=made.device) for axis in zip(*places, strict=True))
            tokens = tokens.index_put(where, made[: len(places)])
            there[where] = True
        else:
            tokens = tokens + 0 * made.sum()            # every parameter takes part in every step
        bias = torch.where(there[..., None].expand(-1, -1, -1, count), 0.0, HIDDEN).reshape(batch, 1, 1, -1)
        if not self.run.adapter.subject_tokens:
            return {}, bias
        view, flat, keys = self.adapter.view(), tokens.flatten(1, 3), {}
        for block in self.blocks:
            key, value = key_value(view, block, flat, *self.bridge.projections(block), lora_strength=0)
            keys[block.slot] = (key, value)
        return keys, bias


def constrained_slots(blocks: Sequence[TransformerBlock], layers: str) -> frozenset[Slot]:
    """Slots of the layers the constraint looks at: all, the widest ("deep"), or the others ("shallow")."""
    widest = max(b.width for b in blocks)
    return frozenset(b.slot for b in blocks if layers == "all" or (b.width == widest) == (layers == "deep"))


def draw_noise(indices: Sequence[int], shape: Sequence[int], timesteps: int, seed: int, middle: float = 0.0,
               high: float = 0.0) -> tuple[Tensor, Tensor]:
    """Noise [B ...] and timestep [B] of each example: they follow from its number and the run's seed, on whatever process it is drawn.

    Timesteps are uniform, but for two shares of the examples: `middle`, the mean of three uniform ones, where shapes are decided, and
    `high`, 1 less the product of two, where colours and places are.
    """
    noise, steps = [], []
    for index in indices:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)
        several = torch.rand(4, generator=generator)
        if several[3] < middle:
            fraction = several[:3].mean()
        elif several[3] < middle + high:
            fraction = 1 - several[0] * several[1]
        else:
            fraction = several[0]
        steps.append((fraction * timesteps).long().clamp_max(timesteps - 1))
        noise.append(torch.randn(tuple(shape), generator=generator))
    return torch.stack(noise), torch.stack(steps)


def pad_masks(batch: Sequence[Example], most: int) -> Tensor:
    """Masks of all subjects [B S H W], zeros where there is none."""
    height, width = batch[0].pixels.shape[-2:]
    out = torch.zeros(len(batch), most, height, width)
    for b, example in enumerate(batch):
        for s, subject in enumerate(example.subjects):
            out[b, s] = subject.mask
    return out
