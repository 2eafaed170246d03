"""What teaches the text encoder, before the UNet, which words belong to which noun."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..host.frozen_base.encoders import text_states
from ..small_world import descriptions
from ..training.example import Example
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

    def forward(self, batch: Sequence[Example]) -> dict[str, Tensor]:
        drawn = [self.scene(example.index) for example in batch]
        plain = [descriptions.plainly(scene) for scene in drawn]
        ids = torch.tensor([self.ids(scene.caption) for scene in drawn])
        bare = torch.tensor([self.ids(scene.caption) for scene in plain])
        traits = self.told(text_states(self.text, F.embedding(ids, self.rows))[0], drawn)
        with torch.no_grad():
            wanted = text_states(self.before, F.embedding(bare, self.rows_before))[0]
        kept = F.mse_loss(text_states(self.text, F.embedding(bare, self.rows))[0], wanted)
        kept = kept / wanted.var()
        return {"loss": traits + kept, "traits": traits.detach(), "kept": kept.detach()}

    def files(self, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        fixed = {f"unet.{name}": value for name, value in self.unet.state_dict().items()}
        return super().files({**weights, **fixed})
