"""Which traits a caption tells of its nouns, and a head that reads them from the nouns' states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..small_world import descriptions, scenes, sizes, sprites

TRAITS = {trait: len(words) for trait, words in sprites.WORDS.items()}


class ToldHeads(nn.Module):
    """Linear heads that read from a noun's state which traits the caption told of it."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(sizes.TEXT["hidden_size"], sum(TRAITS.values()))

    def forward(self, states: Tensor, drawn: Sequence[scenes.Scene]) -> Tensor:
        """States of captions [B TOKENS W] -> mean cross-entropy of the told traits; 0 when no
        caption tells any."""
        rows, columns, values = told_traits(drawn)
        nouns = states[torch.tensor(rows), torch.tensor(columns)]
        wanted, total, number = torch.tensor(values).view(-1, len(TRAITS)), 0.0, 0
        for trait, logits in enumerate(self.head(nouns).split([*TRAITS.values()], -1)):
            known = wanted[:, trait] >= 0
            number += int(known.sum())
            total = total + F.cross_entropy(logits[known], wanted[known, trait], reduction="sum")
        return total / max(number, 1)


def told_traits(drawn: Sequence[scenes.Scene]) -> tuple[list[int], list[int], list[list[int]]]:
    """Row, column and told values of every noun; a value is -1 where its trait is not told."""
    rows, columns, values = [], [], []
    for row, scene in enumerate(drawn):
        nouns = [i for i, word in enumerate(scene.caption.split(), 1) if word in sprites.CLASSES]
        for column, placed in zip(nouns, scene.placed, strict=True):
            told, known = told_names(placed), descriptions.traits(placed.identity)
            rows.append(row)
            columns.append(column)
            values.append([known[trait] if trait in told else -1 for trait in TRAITS])
    return rows, columns, values


def told_names(placed: scenes.Placed) -> set[str]:
    """The traits that a caption tells of an individual."""
    names, left = set(), list(placed.told)
    for trait, word in zip(TRAITS, descriptions.words_of(placed.identity), strict=True):
        if left and left[0] == word:
            names.add(trait)
            left.pop(0)
    return names
