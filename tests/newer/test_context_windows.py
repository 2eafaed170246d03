"""Context windows of newer hosts, which hold one row or column more than they are for."""

from __future__ import annotations

import random

import pytest

from support.scene import ONE_STEP, close
from support.splitters import noise_of, random_mask, sample, with_windows

LIKE = "sd15"  # fewer layers than SDXL
SIZE = (16, 16)


@pytest.mark.parametrize("dim", [2, 3])
def test_the_row_or_column_before_a_window_takes_its_part_of_the_masks_too(scene, model, dim):
    """Along an image the windows are 0 to 7 and 8 to 15; the second one is drawn from 7 on."""
    subjects = [s.masked(random_mask(SIZE, random.Random(i))) for i, s in enumerate(scene.subjects)]
    noise, windowed = noise_of(1, SIZE, dim), with_windows(model, "batched", 8, dim=dim)
    found = sample(windowed, noise, scene.bound(subjects), scene.negative, ONE_STEP)
    drawn = tuple(slice(7, 16) if axis == dim else slice(None) for axis in range(4))
    part = [s.masked(s.region.mask[drawn[-2:]]) for s in subjects]
    alone = sample(model, noise[drawn], scene.bound(part), scene.negative, ONE_STEP)
    assert close(found.narrow(dim, 8, 8), alone.narrow(dim, 1, 8))
    unmasked = sample(model, noise[drawn], scene.bound(), scene.negative, ONE_STEP)
    assert not close(alone, unmasked)
