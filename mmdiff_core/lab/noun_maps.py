"""Cross-attention that finds the nouns: a loss for the base's training.

Large text-to-image models attend to the noun of what they draw at a position; the small base, left
alone, draws from the whole caption at once, and then nothing that is said of one noun reaches one
subject.
"""

from __future__ import annotations

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

    def loss(self, nouns: Tensor, masks: Tensor) -> Tensor:
        """Mean of -log(probability of the own noun) over the positions inside the subjects, all
        layers alike; the maps are forgotten.

        nouns  the columns of each example's nouns [B N]; 0 where there is none: it does not count
        masks  of each example's subjects, in the order of the nouns [B N S S]
        """
        maps, self.maps = self.maps, []
        inside = masks.float() * (nouns > 0)[..., None, None]
        total = nouns.new_zeros((), dtype=torch.float32)
        for probability in maps:
            side = round(probability.shape[1] ** 0.5)
            where = F.adaptive_avg_pool2d(inside, (side, side)).flatten(2)  # B N P
            index = nouns[:, None].expand(-1, probability.shape[1], -1)
            own = probability.gather(2, index).transpose(1, 2)  # B N P
            logs = own.float().clamp_min(1e-6).log()
            total = total - (where * logs).sum() / where.sum().clamp_min(1e-6)
        return total / len(maps)
