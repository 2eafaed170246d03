"""Where subjects are read, the boxes around that, and what is written into images."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from mmdiff_core.evaluation.marked import ROWS, mark, with_words
from mmdiff_core.evaluation.regions import largest_part, owner_of, read_regions, region_box
from mmdiff_core.evaluation.verdicts import ImageLikeness
from mmdiff_core.regions.attention_maps import AttentionMaps


def maps_of(*spots: tuple[int, int], names: tuple[str, ...] = ("Alan", "Ben")) -> AttentionMaps:
    """Maps of one image on 8 x 8, each subject read most in the 3 x 3 positions from a corner."""
    maps = torch.full((2, 1, len(spots), 8, 8), 0.02)
    for subject, (y, x) in enumerate(spots):
        maps[:, :, subject, y : y + 3, x : x + 3] = 0.6
    return AttentionMaps(names, maps, maps.clone())


def test_each_subject_is_read_where_its_maps_are_largest_and_nowhere_else():
    (regions,) = read_regions([maps_of((1, 0), (4, 5))], ["Ben", "Alan"], 1)
    assert regions.shape == (2, 8, 8) and not (regions[0] & regions[1]).any()
    ben, alan = (region.nonzero().float().mean(0) for region in regions)
    assert ben.tolist() == [5, 6] and alan.tolist() == [2, 1]


def test_subjects_of_two_prompts_are_found_by_their_names():
    recorded = [maps_of((1, 0), names=("Alan",)), maps_of((4, 5), names=("Ben",))]
    (regions,) = read_regions(recorded, [" BEN ", "alan"], 1)
    assert regions[0, 5, 6] and regions[1, 2, 1]


def test_a_subject_that_is_read_most_nowhere_still_has_a_region():
    maps = maps_of((2, 2), (2, 2))
    maps.text[:, :, 0] *= 0.5
    maps.image[:, :, 0] = maps.image[:, :, 1] * 0.5
    (regions,) = read_regions([maps], ["Alan", "Ben"], 1)
    assert regions.flatten(1).any(1).all()


def test_of_several_parts_of_a_region_only_the_largest_counts():
    region = torch.zeros(8, 8, dtype=torch.bool)
    region[0, 0] = region[3:6, 4:7] = True
    assert largest_part(region).nonzero().float().mean(0).tolist() == [4, 5]
    assert not largest_part(torch.zeros(8, 8, dtype=torch.bool)).any()


def test_a_box_is_in_pixels_with_a_margin_and_inside_the_image():
    region = torch.zeros(8, 8, dtype=torch.bool)
    region[2:4, 3:6] = True
    assert region_box(region, 400, 800) == pytest.approx((285, 85, 615, 215))
    assert region_box(~torch.zeros_like(region), 400, 800) == (0, 0, 800, 400)
    assert region_box(torch.zeros_like(region), 400, 800) == (0, 0, 800, 400)


def test_a_box_belongs_to_the_subject_whose_region_covers_it_most():
    regions = torch.zeros(2, 8, 8, dtype=torch.bool)
    regions[0, :, :3], regions[1, :, 5:] = True, True
    assert owner_of((0, 0, 250, 800), regions, 800, 800) == 0
    assert owner_of((400, 0, 800, 800), regions, 800, 800) == 1
    assert owner_of((310, 0, 480, 800), regions, 800, 800) is None
    assert owner_of((0, 0, 800, 800), regions, 800, 800) is None
    assert owner_of((-50, -50, 1, 1), regions, 800, 800) == 0


@pytest.mark.parametrize("size", product((16, 128, 700), repeat=2))
def test_marked_images_of_a_batch_have_one_size_whatever_is_written(size):
    image = torch.full((*size, 3), 128, dtype=torch.uint8)
    nothing = ImageLikeness((0.0,), (None,))
    box = ImageLikeness((0.5,), ((-5.0, 2.0, size[1] * 2.0, 9.0),), ((0.0, 0.0, 3.0, 3.0),))
    marked = [
        mark(image, each, ("A very long name" * 4,), words)
        for each, words in ((nothing, ""), (box, "many words " * 60), (box, "two\nlines"))
    ]
    assert len({tuple(each.shape) for each in marked}) == 1
    assert marked[0].dtype == torch.uint8 and max(marked[0].shape) >= 384


def test_words_that_do_not_fit_are_cut_and_the_image_above_them_is_unchanged():
    image = torch.randint(0, 255, (500, 600, 3), dtype=torch.uint8)
    shown = with_words(image, "word " * 500)
    assert torch.equal(shown[:500], image) and ROWS == 3
    assert (shown[500:] != shown[-1, -1]).any()
