"""Where subjects may act: boxes, masks and what is done to them, and the node Multi-Subject
Constraint Masks around it.
"""

from __future__ import annotations

import json

import pytest
import torch

from mmdiff_core.regions.boxes import Box, box_mask, boxes_of_pixels, parse_boxes
from mmdiff_core.regions.shaping import (
    BACKGROUND,
    Shaping,
    Sources,
    feather_inwards,
    grow,
    shape_regions,
)

from support.subjects import CANVAS, LEFT, NAMES, RIGHT, A, B, C, regions

# ---------------------------------------------------------------- boxes as text and from detectors


def test_boxes_come_back_from_their_text_and_nothing_is_no_box():
    written = [
        {"subject": 2, "x": 0.25, "y": 0, "width": 0.5, "height": 1},
        {"subject": 1.0, "x": 0, "y": 0, "width": 1, "height": 0.5},
    ]
    assert parse_boxes(json.dumps(written), 2) == (Box(2, 0.25, 0, 0.5, 1), Box(1, 0, 0, 1, 0.5))
    assert parse_boxes("[]") == parse_boxes("  ") == ()


def test_a_box_that_reaches_out_of_the_picture_is_cut_to_it():
    (box,) = parse_boxes('[{"subject": 1, "x": -0.5, "y": 0.75, "width": 1, "height": 1}]')
    assert box == Box(1, 0, 0.75, 0.5, 0.25)


@pytest.mark.parametrize(
    "text, message",
    [
        ("left half", "boxes is not JSON .* or \\[\\] for none"),
        ('{"subject": 1}', "boxes is {'subject': 1}, expected a list of boxes"),
        ("[3]", "box 1 is 3, expected an object like"),
        ('[{"subject": 1, "x": 0, "y": 0}]', "box 1 has no 'width' and no 'height'"),
        (
            '[{"subject": "ann", "x": 0, "y": 0, "width": 1, "height": 1}]',
            "box 1 is for subject 'ann', expected a whole number",
        ),
        (
            '[{"subject": 1.5, "x": 0, "y": 0, "width": 1, "height": 1}]',
            "box 1 is for subject 1.5, expected a whole number",
        ),
        (
            '[{"subject": NaN, "x": 0, "y": 0, "width": 1, "height": 1}]',
            "box 1 is for subject nan, expected a whole number",
        ),
        (
            '[{"subject": 3, "x": 0, "y": 0, "width": 1, "height": 1}]',
            "box 1 is for subject 3, but there are only subjects 1 to 2",
        ),
        (
            '[{"subject": 1, "x": "0", "y": 0, "width": 1, "height": 1}]',
            "box 1 has x '0', expected a number",
        ),
        (
            '[{"subject": 1, "x": NaN, "y": 0, "width": 1, "height": 1}]',
            "box 1 has x nan, expected a number",
        ),
        (
            '[{"subject": 1, "x": 0, "y": 0, "width": 0, "height": 1}]',
            "box 1 is 0 wide and 1 high, expected more than 0",
        ),
        (
            '[{"subject": 1, "x": 64, "y": 0, "width": 32, "height": 32}]',
            "box 1 lies outside the image .*fractions of the image, 0 to 1",
        ),
    ],
)
def test_wrong_boxes_are_told_by_number(text, message):
    with pytest.raises(ValueError, match=message):
        parse_boxes(text, 2)


@pytest.mark.parametrize(
    "found, subjects",
    [
        (A, [1]),
        ([A, B], [1, 2]),
        ([[A, B]], [1, 2]),
        ([[A, B], [C]], [1, 1, 2]),
        ([[A], [B]], [1, 2]),
        ([[], [B]], [2]),
    ],
)
def test_found_boxes_are_the_subjects_in_order(found, subjects):
    boxes = boxes_of_pixels(found, 200, 100, 2)
    assert [box.subject for box in boxes] == subjects
    assert all(box.width == 0.25 and box.height == 1 for box in boxes)


@pytest.mark.parametrize(
    "found, message",
    [
        ([], "found_boxes contains no box"),
        ([[]], "found_boxes contains no box"),
        ([A, B, C], "boxes for 3 subjects, but there are 2"),
        (
            [A, {"x": 900, "y": 0, "width": 9, "height": 9}],
            "the found box of subject 2 lies outside .*set width and height to the size",
        ),
        ([[1, 2, 3, 4]], "found_boxes has 1, expected boxes of x, y, width and height"),
        ([{"x": 0}], "expected x, y, width and height in pixels"),
    ],
)
def test_found_boxes_that_do_not_fit_are_told(found, message):
    with pytest.raises(ValueError, match=message):
        boxes_of_pixels(found, 200, 100, 2)


# ---------------------------------------------------------------- shapes


def test_a_box_covers_its_share_of_every_pixel():
    mask = box_mask(Box(1, 0.25, 0, 0.5, 0.5), 8, 8)
    assert torch.equal(mask, torch.tensor([[0.0, 0, 1, 1, 1, 1, 0, 0]] * 4 + [[0.0] * 8] * 4))
    assert box_mask(Box(1, 0, 0, 0.3, 1), 4, 5)[0].tolist() == pytest.approx([1, 0.5, 0, 0, 0])
    assert box_mask(Box(1, 0.1, 0.2, 0.33, 0.47), 7, 9).sum() == pytest.approx(
        0.33 * 0.47 * 63, rel=1e-5
    )


@pytest.mark.parametrize("pixels", [1, 2, 3, 5, 40])
def test_grow_is_a_square_brush_and_shrink_its_opposite(pixels):
    mask = (torch.rand(20, 31, generator=torch.Generator().manual_seed(pixels)) > 0.95).float()
    brushed = (
        torch.nn.functional.max_pool2d(mask[None, None], 2 * pixels + 1, 1, pixels)[0, 0]
        if pixels < 20
        else torch.full_like(mask, mask.max())
    )
    assert torch.equal(grow(mask, pixels), brushed)
    assert torch.equal(grow(1 - mask, -pixels), 1 - brushed) and torch.equal(grow(mask, 0), mask)


def test_shrinking_does_not_eat_from_the_pictures_edge():
    left = box_mask(LEFT, *CANVAS)
    assert torch.equal(grow(left, -3), box_mask(Box(1, 0, 0, 13 / 32, 1), *CANVAS))


def test_feather_opens_nothing_outside_the_mask():
    left, right = box_mask(LEFT, *CANVAS), box_mask(RIGHT, *CANVAS)
    soft = feather_inwards(left, 6)
    assert soft[right.bool()].max() == 0
    assert 0 < soft[:, 15].max() < 0.5 and soft[:, :8].min() > 0.9


def test_a_subjects_mask_and_boxes_are_united():
    top = torch.zeros(64, 64)
    top[:32] = 1
    found, other = regions([LEFT, Box(1, 0.75, 0.75, 0.25, 0.25)], {1: top})
    assert (
        other is None
        and found[:16].all()
        and found[:, :16].all()
        and found[24:, 24:].all()
        and found[16:24, 16:].sum() == 0
    )


def test_a_mask_alone_stays_as_it_is():
    mask = torch.rand(20, 30)
    sources = Sources(masks={1: mask, 2: torch.ones(4, 4)})
    assert sources.canvas(64, 64) == (20, 30) and Sources().canvas(48, 64) == (48, 64)
    assert torch.equal(shape_regions(NAMES[:2], sources, (20, 30), Shaping())[0], mask)


def test_strength_leaves_the_subject_its_share_outside_and_all_inside():
    found, _ = regions([LEFT], strength=0.75)
    assert (found[:, :16] == 1).all() and (found[:, 16:] == 0.25).all()
    assert (regions([LEFT], strength=0.0)[0] == 1).all()


def test_exclusive_leaves_an_overlap_to_the_earlier_subject_whatever_was_drawn_first():
    wide = Box(2, 0.25, 0, 0.75, 1)
    for boxes in ([LEFT, wide], [wide, LEFT]):
        first, second = regions(boxes, exclusive=True)
        assert torch.equal(first, box_mask(LEFT, *CANVAS)) and torch.equal(
            second, box_mask(RIGHT, *CANVAS)
        )
    shared = torch.stack(regions([LEFT, wide])).amin(0)
    assert shared.any() and not torch.stack(regions([LEFT, wide], exclusive=True)).amin(0).any()


def test_who_would_be_left_with_nothing_is_named():
    with pytest.raises(ValueError, match=r"exclusive leaves subject 2 \(bob\) without a region"):
        regions([LEFT, Box(2, 0.1, 0.1, 0.2, 0.2)], exclusive=True)
    with pytest.raises(
        ValueError, match=r"grow -10 leaves nothing of the region of subject 2 \(bob\)"
    ):
        regions([Box(2, 0.4, 0.4, 0.2, 0.2)], grow=-10)
    with pytest.raises(
        ValueError,
        match=r"subject 3 \(eve\) has no region, and the others' regions cover the whole image",
    ):
        regions([LEFT, RIGHT], names=NAMES, free=BACKGROUND)


def test_free_subjects_are_everywhere_or_in_what_the_others_leave():
    assert regions([LEFT])[1] is None
    own, rest = regions([LEFT], feather=4, free=BACKGROUND)
    assert torch.allclose(own + rest, torch.ones(CANVAS)), "no seam where the feathered region ends"
    assert regions([], free=BACKGROUND) == [None, None]
    assert torch.equal(regions([LEFT], names=NAMES, free=BACKGROUND)[2], box_mask(RIGHT, *CANVAS))


def test_an_earlier_nodes_region_stays_as_it_is_and_the_others_keep_out_of_it():
    before = box_mask(LEFT, 8, 8)
    first, second = regions(
        [Box(2, 0.25, 0, 0.75, 1)], kept={1: before}, exclusive=True, feather=0, grow=0
    )
    assert first is before and torch.equal(second, box_mask(RIGHT, *CANVAS))
    assert torch.equal(regions(kept={1: before}, free=BACKGROUND)[1], box_mask(RIGHT, *CANVAS))
    assert torch.equal(
        regions([RIGHT, Box(1, 0.5, 0, 0.5, 1)], kept={1: before})[0], box_mask(RIGHT, *CANVAS)
    )
