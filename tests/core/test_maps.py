"""Where subjects are read: true probabilities, added up rightly, and the regions and pictures made
from them. Pure torch.
"""

from __future__ import annotations

import pytest
import torch

from mmdiff_core.bases import SDXL
from mmdiff_core.method.attention import attend
from mmdiff_core.regions import attention_maps, map_images
from mmdiff_core.regions.attention_bias import noun_bias, token_bias
from mmdiff_core.regions.attention_maps import (
    AttentionMaps,
    Canvas,
    members,
    noun_map,
    owners,
    token_map,
)
from mmdiff_core.regions.layer_weights import named_layers


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_probabilities_of_all_columns_sum_to_one_at_every_position():
    q, k = random(2, 12, 32), random(2, 7, 32, seed=1)
    every = noun_map(q, k, 4, members([[c] for c in range(7)], 7))
    assert torch.allclose(every.sum(1), torch.ones(2, 12), atol=1e-6) and (every >= 0).all()


def test_a_nouns_map_is_the_softmax_that_attention_uses():
    q, k, v = random(1, 12, 32), random(1, 7, 32, seed=1), torch.zeros(1, 7, 32)
    v[:, [2, 5]] = 1  # attention to a column that carries 1 is that column's probability
    read = attend(q, k, v, 4).unflatten(-1, (4, 8)).mean(-1).mean(-1)
    assert torch.allclose(noun_map(q, k, 4, members([[2, 5]], 7))[:, 0], read, atol=1e-6)


def test_a_text_that_the_host_repeats_has_the_same_map():
    q, k = random(1, 12, 32), random(1, 7, 32, seed=1)
    nouns = members([[2], [5]], 7)
    assert torch.allclose(
        noun_map(q, k.repeat(1, 3, 1), 4, nouns), noun_map(q, k, 4, nouns), atol=1e-6
    )


def test_a_prompt_read_without_what_was_added_behind_it_has_its_own_map():
    q, k = random(1, 12, 32), random(1, 7, 32, seed=1)
    assert torch.equal(
        noun_map(q, k, 4, members([[2], [5]], 14)), noun_map(q, k, 4, members([[2], [5]], 7))
    )


def test_token_maps_of_all_subjects_sum_to_one_and_follow_the_regions():
    q, key = random(2, 12, 32), random(1, 4, 12, 8, seed=1)
    tokens = members(owners([4, 8]), 12)
    free = token_map(q, key, 4, tokens)
    assert torch.allclose(free.sum(1), torch.ones(2, 12), atol=1e-6)
    left = torch.tensor([[1.0] * 6 + [0.0] * 6, [0.0] * 6 + [1.0] * 6])[None]
    held = token_map(q, key, 4, tokens, token_bias(left, [4, 8], torch.float32))
    assert torch.allclose(held[:, 0, :6], torch.ones(2, 6)) and torch.equal(
        held[:, 0, 6:], torch.zeros(2, 6)
    )


def test_a_held_noun_is_hardly_read_outside_its_region_and_others_are_untouched():
    bias = noun_bias(torch.tensor([[[1.0, 0.5, 0.0]]]), members([[1]], 3), torch.float32)
    assert bias.shape == (1, 1, 3, 3) and torch.equal(bias[..., [0, 2]], torch.zeros(1, 1, 3, 2))
    assert (
        bias[0, 0, 0, 1] == 0
        and bias[0, 0, 1, 1] == pytest.approx(-0.693, abs=1e-3)
        and bias[0, 0, 2, 1] == -12
    )


def test_maps_of_different_layers_are_averaged_on_one_grid():
    canvas = Canvas.blank(1, 1, (4, 4))
    canvas.add(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), 0)
    canvas.add(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4), 0)
    text, image = canvas.mean()
    assert torch.equal(text, torch.full((1, 1, 4, 4), 0.5)) and torch.equal(image, text)


def test_an_areas_maps_lie_where_the_area_is():
    canvas = Canvas.blank(1, 1, (4, 4))
    canvas.add(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), 0, (0, 2, 4, 2))
    text, _ = canvas.mean()
    assert torch.equal(text[0, 0, :, 2:], torch.ones(4, 2)) and torch.equal(
        text[0, 0, :, :2], torch.zeros(4, 2)
    )


def two_blobs() -> torch.Tensor:
    """Two subjects, left and right; the first one's word is read ten times as much everywhere."""
    maps_ = torch.full((1, 2, 8, 8), 0.01)
    maps_[0, 0, 2:6, 0:3], maps_[0, 1, 2:6, 5:8] = 0.5, 0.05
    maps_[0, 0] += 0.05
    return maps_


def test_every_place_belongs_to_the_subject_that_is_read_there_most_for_its_own_measure():
    found = attention_maps.find_regions(two_blobs(), torch.full((1, 2, 8, 8), 0.5), 8.0)
    assert found.amax(1).allclose(torch.ones(1, 8, 8))
    assert (
        found[0, 0, 3, 1] == 1
        and found[0, 1, 3, 1] < 0.01
        and found[0, 1, 3, 6] == 1
        and found[0, 0, 3, 6] < 0.01
    )


def test_a_place_is_inside_where_a_noun_is_read_more_than_in_its_mean():
    inside = attention_maps.find_places(two_blobs(), two_blobs(), 8.0)[0, -1]
    assert inside[3, 1] > 0.9 and inside[3, 6] > 0.9
    assert inside[0, 4] < 0.2 and inside[7, 4] < 0.2


def test_without_sharpness_nobody_loses_a_place():
    assert torch.equal(
        attention_maps.find_regions(two_blobs(), two_blobs(), 0.0), torch.ones(1, 2, 8, 8)
    )


def test_heat_overlays_and_strips_have_a_picture_for_every_subject():
    recorded = AttentionMaps(("ann", "bob"), torch.rand(3, 2, 2, 8, 12), torch.rand(3, 2, 2, 8, 12))
    mean = map_images.stretch(recorded.of("both").mean(0))
    assert mean.amin() == 0 and mean.amax() == 1
    over = map_images.overlay(torch.rand(2, 64, 96, 3), mean)
    assert over.shape == (2, 2, 64, 96, 3) and over.min() >= 0 and over.max() <= 1
    drawn = map_images.strip(map_images.stretch(recorded.of("nouns")[:, 0]), side=96)
    assert drawn.shape == (1, 2 * (64 + 4) + 4, 3 * (96 + 4) + 4, 3)


def test_an_unknown_kind_of_map_is_an_error():
    with pytest.raises(ValueError, match="expected one of"):
        AttentionMaps((), torch.zeros(1, 1, 0, 2, 2), torch.zeros(1, 1, 0, 2, 2)).of("words")


def test_layers_are_chosen_by_name_and_an_unknown_name_says_which_there_are():
    blocks = SDXL.blocks
    assert {slot[0] for slot in named_layers("middle, output.1", blocks)} == {
        "middle",
        "output",
    } and len(named_layers("middle", blocks)) == 10
    with pytest.raises(
        ValueError, match="layer 'top': this model has no such layer; it has all, input"
    ):
        named_layers("top", blocks)


def test_when_nothing_was_recorded_the_message_says_what_to_connect():
    with pytest.raises(ValueError, match="no attention was recorded: connect `maps`"):
        map_images.show_maps([], torch.zeros(1, 8, 8, 3), "both", 0.5)


def test_pictures_of_another_run_are_refused_with_both_counts():
    recorded = [AttentionMaps(("ann",), torch.rand(1, 2, 1, 4, 4), torch.rand(1, 2, 1, 4, 4))]
    with pytest.raises(ValueError, match="generated 2 images, but 1 were given"):
        map_images.show_maps(recorded, torch.zeros(1, 8, 8, 3), "both", 0.5)
    over, masks, steps, said = map_images.show_maps(recorded, torch.zeros(2, 8, 8, 4), "both", 0.5)
    assert (
        over.shape == (2, 8, 8, 3)
        and masks.shape == (2, 8, 8)
        and len(steps) == 1
        and said.endswith("ann")
    )
