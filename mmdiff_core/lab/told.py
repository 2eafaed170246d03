"""Which traits a caption tells of its nouns, and a head that reads them from the nouns' states."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..small_world import descriptions, scenes, sizes, sprites

TRAITS = {trait: len(words) for trait, words in sprites.WORDS.items()}


class ToldHeads(nn.Module):
    """Linear heads that read from a noun's state which traits the caption told of it."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(sizes.TEXT["hidden_size"], sum(TRAITS.values()))

    def forward(self, states: Tensor, nouns: Tensor, known: Tensor) -> Tensor:
        """Mean cross-entropy of the told traits; 0 when no caption tells any.

        states  of captions [B T W]
        nouns   columns of the nouns [B N]
        known   the told values [B N traits], -1 where a trait is not told
        """
        of_nouns = states.gather(1, nouns[..., None].expand(-1, -1, states.shape[-1]))
        total = states.new_zeros(())
        for trait, logits in enumerate(self.head(of_nouns).split([*TRAITS.values()], -1)):
            total = total + F.cross_entropy(
                logits.flatten(0, 1), known[..., trait].flatten(), ignore_index=-1, reduction="sum"
            )
        return total / (known >= 0).sum().clamp_min(1)


def told_values(scene: scenes.Scene, most: int) -> list[list[int]]:
    """Told values of each noun of the scene's caption [most traits]; -1 where one is not told."""
    values = [[-1] * len(TRAITS) for _ in range(most)]
    for row, placed in zip(values, scene.placed, strict=False):
        told, known = told_names(placed), descriptions.traits(placed.identity)
        for number, trait in enumerate(TRAITS):
            row[number] = known[trait] if trait in told else -1
    return values


def told_names(placed: scenes.Placed) -> set[str]:
    """The traits that a caption tells of an individual."""
    names, left = set(), list(placed.told)
    for trait, word in zip(TRAITS, descriptions.words_of(placed.identity), strict=True):
        if left and left[0] == word:
            names.add(trait)
            left.pop(0)
    return names
