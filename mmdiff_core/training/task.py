"""One MM-Diff training step: examples in, losses out. The base is behind a `Bridge`.

Shapes   B examples · S subjects · C h w latents · M measures
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..bases import Slot, TransformerBlock
from ..method import losses
from ..method.attention import attention_on
from .bridge import Bridge, Grid, latents_of
from .conditions import Conditions, make_conditions, pad_masks
from .config import RunConfig
from .describing import describing_loss
from .example import Example
from .identity import IdentityHeads, Observed, grid_of
from .layers import (
    MEASURES,
    LayerAttention,
    MappedAttention,
    SelfAttention,
    constrained_slots,
)
from .noise import draw_noise
from .trainable import TrainableAdapter


class MMDiffTask(nn.Module):
    """`forward(batch)` -> scalar losses, means over the examples; "loss" is what is minimised."""

    def __init__(self, adapter: TrainableAdapter, bridge: Bridge, run: RunConfig):
        super().__init__()
        self.adapter = adapter
        self.bridge = bridge
        self.run = run
        self.blocks = adapter.config.base.blocks
        self.constrained = constrained_slots(self.blocks, run.constraint.layers)
        self.attend = attention_on(bridge.alphas.device)
        self.sigmas = ((1 - bridge.alphas) / bridge.alphas).sqrt().cpu()
        self.identity = self._identity_heads() if run.objective.identity_weight else None

    def forward(self, batch: Sequence[Example]) -> dict[str, Tensor]:
        first = self.run.objective.described_first
        if not first:
            return self.denoise(batch)
        zero = self.bridge.alphas.new_zeros(())
        if batch[0].index >= first:
            return self.denoise(batch) | {"described": zero}
        loss = self._describe(batch)
        names = ("denoising", *MEASURES, *self._extra_terms())
        return dict.fromkeys(names, zero) | {"loss": loss, "described": loss.detach()}

    def _describe(self, batch: Sequence[Example]) -> Tensor:
        """The loss of the first stage, without the UNet."""
        conditions = self.conditions(batch, measured=False)
        described = torch.zeros_like(conditions.present)
        for row, example in zip(described, batch, strict=True):
            for number, subject in enumerate(example.subjects):
                row[number] = bool(subject.told)
        loss = describing_loss(conditions, self.bridge.described(batch), described)
        # every parameter takes part in every step, as gradients over several processes need
        unused = [p.sum() for p in self.parameters() if p.requires_grad]
        return loss + 0 * torch.stack(unused).sum()

    def denoise(self, batch: Sequence[Example]) -> dict[str, Tensor]:
        """The losses of a step of the second stage, whatever the examples' numbers."""
        alphas, wanted = self.bridge.alphas, self.run.objective
        latents = latents_of(self.bridge, batch)
        numbers = [example.index for example in batch]
        noise, timesteps = draw_noise(
            numbers, latents.shape[1:], len(alphas), self.run.seed, wanted.middle, wanted.high
        )
        levels = wanted.noise_levels
        timesteps = levels.replace_steps(timesteps, numbers, self.sigmas, self.run.seed)
        noise, timesteps = noise.to(latents), timesteps.to(alphas.device)
        alpha, sigma = alphas[timesteps].sqrt(), (1 - alphas[timesteps]).sqrt()
        a, b = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
        conditions = self.conditions(batch)
        noisy = a * latents + b * noise
        with Observed(self._observed()) as observed:
            prediction, measured = self.predict(noisy, timesteps, conditions)
        kind = self.bridge.prediction_type
        target = losses.denoising_target(kind, latents, noise, a, b)
        weight = losses.min_snr_weight(kind, (alpha / sigma) ** 2, wanted.min_snr)
        index = torch.tensor(numbers, device=alphas.device)
        where = self._pixel_weights(conditions, latents, index)
        denoising = losses.denoising_loss(prediction, target, weight, where)
        leak = self._leak(batch, noisy, timesteps, prediction) if self.run.constraint.leak else None
        shown = conditions.present.any(1)
        terms = self._total(denoising, measured, leak, timesteps, index, shown)
        if self.identity is None:
            return terms
        named = self._identity_loss(observed.features, conditions, tuple(latents.shape[-2:]))
        loss = terms["loss"] + wanted.identity_weight * named
        return terms | {"loss": loss, "identity": named.detach()}

    def _identity_heads(self) -> IdentityHeads:
        """Heads after the middle and the output layers; all of them have read the subjects."""
        behind = [block for block in self.blocks if block.block != "input"]
        widths = {block.path: block.width for block in behind}
        return IdentityHeads(widths, self.adapter.config.cls_width)

    def _observed(self) -> dict[str, nn.Module]:
        """The UNet's modules whose outputs the identity heads read."""
        if self.identity is None:
            return {}
        return {path: self.bridge.unet.get_submodule(path) for path in self.identity.paths}

    def _identity_loss(
        self, features: Mapping[str, Tensor], conditions: Conditions, latent: Grid
    ) -> Tensor:
        """The identity heads' loss, the mean over the examples."""
        masks = {}
        for path, of_layer in features.items():
            masks[path] = conditions.masks_at(grid_of(of_layer.shape[1], latent))
        return self.identity(features, masks, conditions.cls, conditions.present).mean()

    def _extra_terms(self) -> tuple[str, ...]:
        """Names of the losses that this run has beside the usual ones."""
        wanted = {"identity": self.identity is not None, "leak": self.run.constraint.leak > 0}
        return tuple(name for name, there in wanted.items() if there)

    def _leak(
        self, batch: Sequence[Example], noisy: Tensor, timesteps: Tensor, prediction: Tensor
    ) -> Tensor:
        """What the other subjects change inside one subject's mask [B]; 0 for fewer than two.

        The one is chosen by the example's number.
        """
        rows = [row for row, example in enumerate(batch) if len(example.subjects) > 1]
        leak = prediction.new_zeros(len(batch))
        if not rows:
            return leak
        alone = []
        for example in (batch[row] for row in rows):
            one = example.subjects[example.index % len(example.subjects)]
            alone.append(replace(example, subjects=(one,)))
        with torch.no_grad():
            conditions = self.conditions(alone, measured=False)
            apart, _ = self.predict(noisy[rows], timesteps[rows], conditions)
        masks = pad_masks(alone, 1).to(prediction.device)
        where = torch.tensor(rows, device=prediction.device)
        return leak.index_put((where,), losses.leaked(prediction[rows], apart, masks))

    def _pixel_weights(
        self, conditions: Conditions, latents: Tensor, index: Tensor
    ) -> Tensor | None:
        """How much each position counts [B 1 h w]; None = equally."""
        wanted = self.run.objective
        if wanted.subject_weight == 1:
            return None
        weight = losses.fading_weight(index, wanted.subject_weight, wanted.subject_weight_until)
        return losses.weigh_subjects(conditions.masks, tuple(latents.shape[-2:]), weight)

    def _total(
        self,
        denoising: Tensor,
        measured: Tensor,
        leak: Tensor | None,
        timesteps: Tensor,
        index: Tensor,
        shown: Tensor,
    ) -> dict[str, Tensor]:
        """Terms [B] and measures [B M] -> the weighted sum and everything worth logging.

        leak   [B], or None where it is no part of the loss
        shown  which examples have subjects [B]
        """
        wanted = self.run.constraint
        gate = losses.noise_gate(timesteps / len(self.bridge.alphas), wanted.first, wanted.last)
        grown = torch.ones_like(gate)
        if wanted.warmup:
            grown = (index + 1).float().div(max(wanted.warmup, 1)).clamp_max(1)
        text, image, *_ = measured.unbind(1)
        constraint = wanted.text * text + wanted.image * image
        means = measured.detach().sum(0) / shown.sum().clamp_min(1)
        named = dict(zip(MEASURES, means, strict=True))
        if leak is not None:
            constraint = constraint + wanted.leak * leak
            named["leak"] = leak.detach().mean()
        loss = denoising + gate * grown * constraint
        return {"loss": loss.mean(), "denoising": denoising.detach().mean(), **named}

    def conditions(self, batch: Sequence[Example], measured: bool = True) -> Conditions:
        """What the UNet is conditioned on; `measured`: with the masks to compare the maps to."""
        return make_conditions(batch, self.adapter, self.bridge, self.run, measured)

    def predict(
        self, noisy: Tensor, timesteps: Tensor, conditions: Conditions
    ) -> tuple[Tensor, Tensor]:
        """The prediction [B C h w], and the MEASURES [B M] averaged over the constrained layers.

        The measures are zeros when there are no masks.
        """
        slots = {block.slot: self._attention(block, conditions) for block in self.blocks}
        prediction, measured = self.bridge.predict(
            noisy, timesteps, conditions.context, conditions.vector, slots,
            self.run.objective.checkpointing, self._self_attention(conditions),
        )
        if not measured:
            return prediction, noisy.new_zeros(len(noisy), len(MEASURES))
        return prediction, torch.stack(measured).mean(0)

    @torch.no_grad()
    def maps(
        self, noisy: Tensor, timesteps: Tensor, conditions: Conditions, grid: Grid
    ) -> tuple[Tensor, Tensor]:
        """Attention maps of every subject, of text and image branch [B S h w] in 0..1.

        They are means over heads and layers, on one grid.
        """
        slots = {}
        for block in self.blocks:
            slots[block.slot] = MappedAttention(self._attention(block, conditions), grid)
        _, measured = self.bridge.predict(
            noisy, timesteps, conditions.context, conditions.vector, slots, False, {}
        )
        text, image = torch.stack(measured).mean(0).chunk(2, dim=1)
        return text, image

    def _self_attention(self, conditions: Conditions) -> dict[Slot, SelfAttention]:
        """What is held apart in the self-attention of every layer; nothing is while training."""
        if not conditions.bounds_self_attention:
            return {}
        return {b.slot: SelfAttention(conditions.held, self.attend) for b in self.blocks}

    def _attention(self, block: TransformerBlock, conditions: Conditions) -> LayerAttention:
        measured = conditions.masks is not None and block.slot in self.constrained
        fuse_scale = self.run.objective.fuse_scale
        form = losses.CONSTRAINTS[self.run.constraint.form]
        return LayerAttention(block.slot, conditions, self.attend, fuse_scale, measured, form)
