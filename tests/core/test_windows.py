"""Cut-outs of the small world as references show individuals, and where individuals are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmdiff_core.references.pixels import object_pixels
from mmdiff_core.small_world import references, scenes, windows
from mmdiff_core.small_world.examples import enlarge

TRIALS = [scenes.scene("test", 3, number, 1).placed[0] for number in range(24)]


def given(placed: scenes.Placed) -> torch.Tensor:
    """A plain reference as the encoder is shown it [3 K K]."""
    dots = torch.from_numpy(scenes.reference(placed.kind, placed.identity).copy()).movedim(-1, 0)
    large = (enlarge(dots[None])[0] * 255).round().byte()
    return object_pixels(large, scenes.SIDE)


@pytest.mark.parametrize("placed", TRIALS, ids=lambda placed: placed.kind)
def test_the_silhouette_of_a_reference_is_that_of_the_individual(placed):
    own = torch.from_numpy(scenes.sprite(placed.kind, placed.identity)[1].copy())
    found = windows.silhouette_of(given(placed))
    assert int((found != own).sum()) <= 3


def test_cut_outs_are_softened_as_resizing_softens_references():
    plain = scenes.reference(TRIALS[0].kind, TRIALS[0].identity)
    dots = torch.from_numpy(plain.copy()).movedim(-1, 0)
    soft = windows.softened(dots[None])[0].movedim(0, -1).numpy()
    assert np.abs(soft - references.soften(plain)).max() < 1e-6
    assert np.abs(given(TRIALS[0]).movedim(0, -1).numpy() - soft).max() < 0.01


def test_the_cut_out_at_an_individuals_position_is_its_reference():
    placed = TRIALS[1]
    scene = scenes.Scene((placed,), "night", 2)
    image = torch.from_numpy(scenes.draw(scene)[0].copy()).movedim(-1, 0)
    shown = given(placed)
    cut = windows.cut_outs(image[None], windows.silhouette_of(shown))[0]
    apart = (cut - shown).abs().mean((1, 2, 3))
    assert windows.POSITIONS[int(apart.argmin())] == (placed.x, placed.y)
    assert float(apart.min()) < 0.01


def test_as_many_positions_are_found_as_there_are_subjects_and_more_only_if_alike():
    table = torch.full((2, len(windows.POSITIONS)), 0.1)
    first, second, third = (windows.POSITIONS.index(at) for at in ((0, 16), (10, 16), (22, 16)))
    table[0, first], table[1, second], table[0, third] = 0.95, 0.9, 0.85
    scores, boxes = windows.find_individuals(table, 0.8)
    assert [box[0] for box in boxes] == [0, 10, 22]
    assert scores[:, :2].tolist() == [pytest.approx([0.95, 0.1]), pytest.approx([0.1, 0.9])]
    assert len(windows.find_individuals(table, 0.87)[1]) == 2
    assert len(windows.find_individuals(torch.full_like(table, 0.1), 0.8)[1]) == 2
