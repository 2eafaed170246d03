"""Cross-attention that finds the nouns: a loss for the base's training.

Large text-to-image models attend to the noun of what they draw at a position; the small base, left
alone, draws from the whole caption at once, and then nothing that is said of one noun reaches one
subject.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NounMaps:
    """Keeps the cross-attention's probabilities [B P T] (mean over heads) of a forward pass."""

    def __init__(self, unet: nn.Module):
        self.maps: list[Tensor] = []
        for name, module in unet.named_modules():
            if name.endswith("attn2"):
                module.register_forward_hook(self._keep, with_kwargs=True)

    def _keep(self, module: nn.Module, inputs: tuple, named: dict, _out: Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        context = named["context"] if "context" in named else inputs[1]
        query, key = module.to_q(inputs[0]), module.to_k(context)
        query, key = (x.unflatten(-1, (module.heads, -1)).transpose(1, 2) for x in (query, key))
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        self.maps.append(logits.softmax(-1).mean(1))

    def loss(self, nouns: Sequence[Sequence[int]], masks: Sequence[np.ndarray]) -> Tensor:
        """Mean of -log(probability of the own noun) over the positions inside the subjects, all
        layers alike; the maps are forgotten.

        nouns  the columns of each example's nouns; examples without any do not count
        masks  of each example's subjects, in the order of the nouns [n S S]
        """
        rows = [row for row, columns in enumerate(nouns) for _ in columns]
        columns = [column for own in nouns for column in own]
        shown = []
        for own, of_scene in zip(nouns, masks, strict=True):
            shown += [torch.from_numpy(mask) for mask in of_scene[: len(own)]]
        maps, self.maps = self.maps, []
        if not rows:
            return torch.zeros(())
        inside = torch.stack(shown).float()[:, None]
        total = torch.zeros(())
        for probability in maps:
            side = round(probability.shape[1] ** 0.5)
            where = F.adaptive_avg_pool2d(inside, (side, side)).flatten(1)
            own = probability[torch.tensor(rows), :, torch.tensor(columns)]
            total = total - (where * own.clamp_min(1e-6).log()).sum() / where.sum()
        return total / len(maps)
