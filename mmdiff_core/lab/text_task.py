"""What teaches the text encoder, before the UNet, which words belong to which noun."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..host.frozen_base.encoders import text_states
from .scene_batch import SceneBatch
from .unet_task import UNetTask


class TextTask(UNetTask):
    """Captions -> text encoder: a noun's state tells the words before it, and captions without
    such words keep the states that the UNet knows. The UNet's files stay as they are."""

    def __init__(self, init: Path, seed: int):
        super().__init__(init, seed, 0.0)
        del self.layout
        self.unet.requires_grad_(False)
        self.before = copy.deepcopy(self.text).requires_grad_(False)
        self.register_buffer("rows_before", self.rows.detach().clone(), persistent=False)

    def forward(self, batch: SceneBatch) -> dict[str, Tensor]:
        batch = batch.to(self.alphas.device)
        states = text_states(self.text, F.embedding(batch.told, self.rows))[0]
        traits = self.told(states, batch.told_nouns, batch.known)
        with torch.no_grad():
            wanted = text_states(self.before, F.embedding(batch.plain, self.rows_before))[0]
        plain = text_states(self.text, F.embedding(batch.plain, self.rows))[0]
        kept = F.mse_loss(plain, wanted) / wanted.var()
        return {"loss": traits + kept, "traits": traits.detach(), "kept": kept.detach()}

    def files(self, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        fixed = {f"unet.{name}": value for name, value in self.unet.state_dict().items()}
        return super().files({**weights, **fixed})
