"""What trains the small world's base: nouns' columns, told traits, and attention to the nouns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mmdiff_core.small_world import descriptions, scenes, sizes


def described(number: int) -> scenes.Scene:
    scene = scenes.scene("train", 1, number, count=2)
    return descriptions.describe(scene, np.random.default_rng(number))


def test_every_noun_of_a_plain_caption_comes_from_the_same_noun_of_the_told_one():
    from mmdiff_core.lab.unet_task import source_columns

    for number in range(30):
        told = described(number)
        plain = descriptions.plainly(told).caption
        words = ["", *told.caption.split()], ["", *plain.split()]
        for column, source in enumerate(source_columns(told.caption, plain)):
            if source < sizes.TOKENS:
                assert words[0][source] == words[1][column]
            else:
                assert source == sizes.TOKENS + column


def test_told_names_are_the_traits_whose_words_stand_in_the_caption():
    from mmdiff_core.lab.told import TRAITS, told_names

    for number in range(30):
        for placed in described(number).placed:
            words = dict(zip(TRAITS, descriptions.words_of(placed.identity), strict=True))
            assert sorted(words[name] for name in told_names(placed)) == sorted(placed.told)


class Attention(nn.Module):
    """Cross-attention of one head whose positions choose a column of the context."""

    def __init__(self):
        super().__init__()
        self.heads = 1
        self.to_q = self.to_k = nn.Identity()

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return x


def test_attention_to_the_own_noun_costs_less_than_attention_to_the_other_one():
    from mmdiff_core.lab.noun_maps import NounMaps

    unet = nn.Module()
    unet.attn2 = Attention()
    context = 12 * torch.eye(4)[None]
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :, :2], masks[1, :, 2:] = True, True
    maps, costs = NounMaps(unet), []
    for left, right in ((1, 2), (2, 1)):
        chosen = torch.tensor([left, left, right, right]).repeat(4)
        unet.attn2(context[:, chosen], context=context)
        costs.append(float(maps.loss([[1, 2]], [masks])))
    assert costs[0] < 0.01 and costs[1] > 5
    unet.attn2(context[:, torch.zeros(16, dtype=torch.long)], context=context)
    assert float(maps.loss([[]], [masks])) == 0


def test_the_text_encoder_alone_is_not_trained_from_nothing():
    from mmdiff_core.__main__ import main

    with pytest.raises(SystemExit, match="--init"):
        main(["pretrain", "text", "nowhere"])
