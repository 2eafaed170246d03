"""The preview of regions."""

from __future__ import annotations

import json
import re

import torch
from PIL import ImageColor

from mmdiff_core.regions.boxes import MOST, Box, box_mask
from mmdiff_core.regions.preview import COLOURS, middle, preview

from support.server import PACK
from support.subjects import CANVAS, LEFT, NAMES, RIGHT, regions


def test_the_preview_shows_each_region_in_its_subjects_colour_and_is_small():
    shown = preview(NAMES[:2], regions([LEFT, RIGHT]), 2048, 1024)
    assert shown.shape == (1, 256, 512, 3) and preview(NAMES, [None] * 3, 128, 96).shape == (
        1,
        96,
        128,
        3,
    )
    for x, colour in ((20, COLOURS[0]), (490, COLOURS[1])):
        wanted = torch.tensor(ImageColor.getrgb(colour)) / 255
        assert torch.allclose(
            shown[0, 20, x], torch.lerp(torch.full((3,), 0.13), wanted, 0.65), atol=0.01
        )
    assert not torch.equal(shown, preview(("ann", "zoe"), regions([LEFT, RIGHT]), 2048, 1024))


def test_any_name_and_number_of_subjects_can_be_shown():
    names = ["", "安娜", "x" * 300, "é\n", "b", "c", "d", "e"]
    assert preview(names, [torch.zeros(CANVAS), torch.ones(CANVAS), *[None] * 6], 16, 64).shape == (
        1,
        64,
        16,
        3,
    )


def test_a_name_stands_inside_its_region():
    corner = torch.zeros(64, 64)
    corner[:, :10] = corner[54:] = 1  # an L: its centre of mass is outside
    for mask in (corner, box_mask(Box(1, 0.8, 0.1, 0.1, 0.1), 64, 64)):
        x, y = middle(mask)
        assert mask[y, x] > 0


def test_colours_are_six_and_distinct_and_the_page_has_the_same():
    assert len(set(COLOURS)) == MOST == 6
    found = re.search(
        r"export const COLOURS = (\[.*?\]);",
        (PACK / "web/box_maths.js").read_text(encoding="utf-8"),
    )
    assert tuple(json.loads(found[1])) == COLOURS
