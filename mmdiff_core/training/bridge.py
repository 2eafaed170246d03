"""What a training step asks of the frozen base model: whoever has a `Bridge` can train on it.

Shapes   B examples · S subjects · L text tokens · D context width · H W image · h w latents
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..bases import Slot, TransformerBlock
from .example import Example

Grid = tuple[int, int]
Linear = Callable[[Tensor], Tensor]
# (q, k, v, heads, the layer's grid) -> what goes to to_out, and measures [B M] or None
SlotCall = Callable[[Tensor, Tensor, Tensor, int, Grid], tuple[Tensor, "Tensor | None"]]
# (encoder, embeddings of the nouns [n W]) -> what replaces them
Fuse = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Captions, encoded.

    context  [B L D]
    vector   pooled text and sizes [B V]; None where the base has none
    nouns    column of every subject's noun [B S]
    """

    context: Tensor
    vector: Tensor | None
    nouns: Tensor


class Prediction(NamedTuple):
    """The UNet's prediction [B C h w], and what its slots measured, in the order of the calls."""

    prediction: Tensor
    measured: list[Tensor]


class Bridge(Protocol):
    """A frozen base model.

    prediction_type  "eps" or "v"
    alphas           the image's share of the variance at each timestep, descending [timesteps]
    """

    prediction_type: str
    alphas: Tensor

    def latents(self, pixels: Tensor) -> Tensor:
        """Images [B 3 H W] in 0..1 -> latents as the UNet sees them [B C h w]."""

    def conditioning(self, batch: Sequence[Example], fuse: Fuse | None) -> Conditioning:
        """Encode captions, for images of the batch's size.

        fuse  gets the subjects' nouns in reading order over the batch; None = they stay
        """

    def described(self, batch: Sequence[Example]) -> Tensor:
        """States of the nouns [B S D] in captions that tell how the subjects look, of the base's
        own encoders and without gradient."""

    def vision(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode reference pixels [n 3 S S] in 0..1.

        Returns the CLS of the fine-tuned encoder [n C] and the patches of the base's own [n L W].
        """

    def projections(self, block: TransformerBlock) -> tuple[Linear, Linear]:
        """to_k and to_v of a layer without LoRA."""

    def predict(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        context: Tensor,
        vector: Tensor | None,
        slots: Mapping[Slot, SlotCall],
        checkpointing: bool,
        self_slots: Mapping[Slot, SlotCall],
    ) -> Prediction:
        """Run the UNet with these calls in its cross-attention, and in its self-attention."""


def latents_of(bridge: Bridge, batch: Sequence[Example]) -> Tensor:
    """Latents of a batch's images [B C h w]; only those are encoded that were not before."""
    device = bridge.alphas.device
    if all(example.encoded is not None for example in batch):
        return torch.stack([example.encoded.latent for example in batch]).to(device)
    return bridge.latents(torch.stack([example.pixels for example in batch]).to(device))
