"""How references vary."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmdiff_core.training.data import augment, cutouts
from mmdiff_core.training.data.augment import Augmentation, Variation

from support.photos import picture


def test_augmentation_zero_leaves_the_crop_unchanged(square):
    generator = torch.Generator().manual_seed(0)
    variation = augment.random_variation(Augmentation.identity(), generator)
    assert torch.equal(cutouts.vary(square, variation), square)
    pixels, masks = np.zeros((3, 50, 60), np.float32), np.zeros((50, 60), np.float32)
    pixels[:, 10:30, 20:40], masks[10:30, 20:40] = 0.5, 1
    crop = cutouts.cut_out(torch.from_numpy(pixels), torch.from_numpy(masks))
    shown = cutouts.reference(crop, crop.shape[-1], variation)
    assert torch.equal(shown, crop[:3])


def test_a_crop_is_square_holds_the_whole_subject_and_nothing_else():
    image, masks = picture(3, (96, 64))
    pixels = torch.from_numpy(np.array(image)).movedim(-1, 0) / 255
    crop = cutouts.cut_out(pixels, torch.from_numpy(masks[0]).float())
    # 30 high, 5 % border on both sides, rounded
    assert crop.shape == (4, 34, 34)
    assert crop[3].sum() == masks[0].sum() and torch.equal(
        crop[:3, crop[3] == 0], torch.zeros(3, int((crop[3] == 0).sum()))
    )
    assert torch.allclose(crop[0, crop[3] == 1], torch.tensor(200 / 255))
    white = cutouts.on_background(crop, (1.0, 1.0, 1.0))
    assert (white[:, crop[3] == 0] == 1).all() and torch.equal(
        white[:, crop[3] == 1], crop[:3, crop[3] == 1]
    )
    with pytest.raises(ValueError, match="empty"):
        cutouts.cut_out(pixels, torch.zeros(64, 96))


@pytest.mark.parametrize("rectangle", [True, False])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_occlusion_covers_the_stated_share(square, rectangle, share):
    for at in (0.1, 0.45, 0.8):
        left = cutouts.vary(square, Variation(covered=share, cover=(rectangle, at, at)))
        assert 1 - left[3].sum() / square[3].sum() == pytest.approx(share, abs=0.02)
        assert not left[:3, left[3] == 0].any()


def test_flip_shift_and_scale_do_what_they_say(square):
    def centre(cutout, axis):
        return float((cutout[3].sum(axis) * torch.arange(40)).sum() / cutout[3].sum())

    square[:, :, :20] = 0  # the right half of the disc
    assert centre(cutouts.vary(square, Variation(flipped=True)), 0) == pytest.approx(
        39 - centre(square, 0), abs=1e-3
    )
    assert centre(cutouts.vary(square, Variation(shift=(-0.1, 0))), 0) == pytest.approx(
        centre(square, 0) - 4, abs=0.01
    )
    assert centre(cutouts.vary(square, Variation(rotation=90)), 1) == pytest.approx(
        centre(square, 0), abs=0.5
    )
    assert cutouts.vary(square, Variation(scale=0.5))[3].sum() == pytest.approx(
        float(square[3].sum()) / 4, rel=0.05
    )


def test_colour_jitter_changes_the_subject_and_leaves_the_background_blank(square):
    for look in (
        Variation(brightness=0.7),
        Variation(contrast=0.5, brightness=1.1),
        Variation(saturation=0.3),
        Variation(hue=0.1),
    ):
        out = cutouts.vary(square, look)
        assert (
            torch.equal(out[3], square[3])
            and not out[:3, square[3] == 0].any()
            and not torch.allclose(out, square)
        )
    assert torch.allclose(cutouts.vary(square, Variation(brightness=0.5))[:3], square[:3] * 0.5)


def test_looks_stay_within_their_ranges_and_follow_from_the_generator():
    wanted, generator = Augmentation(clean=0), torch.Generator().manual_seed(1)
    looks = [augment.random_variation(wanted, generator) for _ in range(400)]
    assert all(
        0.6 <= x.scale <= 1.1
        and abs(x.rotation) <= 15
        and max(map(abs, x.shift)) <= 0.1
        and abs(x.hue) <= 0.02
        for x in looks
    )
    assert all(0.8 <= v <= 1.2 for x in looks for v in (x.brightness, x.contrast, x.saturation))
    covered = [look.covered for look in looks if look.covered > 0]
    assert len(covered) / 400 == pytest.approx(0.3, abs=0.08)
    assert min(covered) >= 0.1 and max(covered) <= 0.4
    assert looks[0] == augment.random_variation(wanted, torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="augmentation.hue is 0.9, expected within 0 to 0.5"):
        Augmentation(hue=0.9)
