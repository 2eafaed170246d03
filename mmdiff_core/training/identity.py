"""An auxiliary objective: every position inside a subject's mask tells which subject stands there.

Linear heads read the UNet's features after its attention layers and are compared with the image
encoder's CLS of all subjects of the batch (InfoNCE). The other subject of the same image is among
the wrong answers, so the objective asks for binding directly, also at noise levels at which the
denoising loss says little about single positions. The idea of supervising hidden features with a
frozen encoder is REPA's (Yu et al. 2024). The heads are not part of the adapter.

Shapes   B examples · S subjects · P positions · C width of a layer · E width of CLS
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 0.1
INSIDE = 0.5        # share of a position that must be the subject's to count


class IdentityHeads(nn.Module):
    """One linear head for each observed layer."""

    def __init__(self, widths: Mapping[str, int], embedding: int):
        super().__init__()
        self.paths = tuple(widths)
        self.heads = nn.ModuleList(nn.Linear(width, embedding) for width in widths.values())

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor], cls: Tensor,
                present: Tensor) -> Tensor:
        """Loss of each example [B], averaged over layers.

        features  by layer [B P C]
        masks     by layer [B S P] in 0..1
        cls       [B S E], compared without gradient
        present   [B S] bool
        """
        total = cls.new_zeros(len(cls))
        for path, head in zip(self.paths, self.heads, strict=True):
            total = total + contrast(head(features[path].float()), masks[path], cls, present)
        return total / len(self.heads)


def contrast(told: Tensor, masks: Tensor, cls: Tensor, present: Tensor) -> Tensor:
    """Cross-entropy of naming, at every position inside a mask, the subject among all of the batch.

    told [B P E], masks [B S P], cls [B S E], present [B S] -> [B], the mean over the example's
    subjects; 0 for an example without subjects.
    """
    known = F.normalize(cls.detach()[present].float(), dim=-1)              # n E
    if len(known) == 0:
        return told.flatten(1).sum(1) * 0
    logits = F.normalize(told, dim=-1) @ known.T / TEMPERATURE              # B P n
    numbers = torch.zeros_like(present, dtype=torch.long)
    numbers[present] = torch.arange(len(known), device=present.device)
    inside = (masks > INSIDE) & present[..., None]                          # B S P
    right = logits.log_softmax(-1)[
        torch.arange(len(logits), device=logits.device)[:, None, None],
        torch.arange(logits.shape[1], device=logits.device)[None, None],
        numbers[..., None],
    ]                                                                       # B S P
    each = -(right * inside).sum(-1) / inside.sum(-1).clamp_min(1)
    counted = inside.any(-1)
    return (each * counted).sum(1) / counted.sum(1).clamp_min(1)


class Observed:
    """Keeps the outputs of some modules during a block of code."""

    def __init__(self, modules: Mapping[str, nn.Module]):
        self.modules, self.features = modules, {}

    def __enter__(self) -> Observed:
        def keep(path: str):
            return lambda _module, _inputs, out: self.features.__setitem__(path, out)

        self.handles = [m.register_forward_hook(keep(path)) for path, m in self.modules.items()]
        return self

    def __exit__(self, *_error: object) -> None:
        for handle in self.handles:
            handle.remove()


def grid_of(positions: int, latent: Sequence[int]) -> tuple[int, int]:
    """The grid of a layer with that many positions on a latent (h, w).

    ValueError: no whole downscale of the latent has that many positions.
    """
    height, width = latent
    for factor in (1, 2, 4, 8, 16):
        grid = (-(-height // factor), -(-width // factor))
        if grid[0] * grid[1] == positions:
            return grid
    raise ValueError(
        f"a layer has {positions} positions, which fits no grid of a {height} x {width} latent"
    )
