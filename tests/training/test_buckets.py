"""Which size a photo is trained at, and where it is cut."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from mmdiff_core.training.data.buckets import (
    best_crop,
    bucket_sizes,
    crop_to_bucket,
    nearest_bucket,
)
from mmdiff_core.training.data.order import BucketOrder

from support.photos import picture


def test_buckets_are_multiples_near_the_area_and_pictures_go_to_the_nearest():
    buckets = bucket_sizes(512, 64, 2.0)
    assert (512, 512) in buckets and (448, 576) in buckets and (576, 448) in buckets
    assert all(
        h % 64 == w % 64 == 0 and 0.85 <= h * w / 512**2 <= 1 and max(h, w) <= 2 * min(h, w)
        for h, w in buckets
    )
    assert buckets[nearest_bucket((1000, 1000), buckets)] == (512, 512)
    assert buckets[nearest_bucket((3000, 2300), buckets)] == (576, 448)
    assert all(max(h, w) / min(h, w) <= 2 for h, w in bucket_sizes(1024))
    with pytest.raises(ValueError, match="no buckets for side 32"):
        bucket_sizes(32, 64)


def test_masks_follow_the_crop():
    _, masks = picture(0, (96, 64))
    masks = torch.from_numpy(np.stack(masks)).float()
    pixels = torch.cat([masks, masks[:1]])  # the picture shows its masks
    shown, inside, kept = crop_to_bucket(pixels, masks, (48, 48))
    assert shown.shape == (3, 48, 48) and inside.shape == (2, 48, 48)
    assert torch.equal(shown[:2], inside)
    for mask, share, before in zip(inside, kept, masks):
        assert mask.sum() / before.sum() == pytest.approx(float(share) * (48 / 64) ** 2, rel=0.05)


def test_the_crop_goes_where_the_subjects_are():
    masks = torch.zeros(2, 64, 200)
    masks[0, 10:50, 150:160], masks[1, 20:30, 190:200] = 1, 1
    top, left, height, width = best_crop(masks, (64, 200), (64, 64))
    # both are whole only at the right end
    assert (top, height, width) == (0, 64, 64) and left == 136
    masks[1] = 0
    # too far apart: the worst kept is lost either way
    masks[1, 20:30, 0:10] = 1
    _, left, _, _ = best_crop(masks, (64, 200), (64, 64))
    assert crop_to_bucket(torch.zeros(3, 64, 200), masks, (64, 64)).kept.max() == 1
    # nobody: the middle
    assert best_crop(torch.zeros(0, 64, 200), (64, 200), (64, 64))[1] == 68


def test_every_picture_comes_equally_often_and_groups_share_a_bucket():
    order = BucketOrder((7, 3, 1), seed=3, group=4)
    places = [order.at(i) for i in range(11 * 4 * 3)]
    for start in range(0, len(places), 4):
        assert len({p.bucket for p in places[start : start + 4]}) == 1
    count = Counter((p.bucket, p.position) for p in places)
    assert set(count.values()) == {12} and len(count) == 11
    assert len(set(places)) == len(places)
    assert all(order.at(i) == places[i] for i in (100, 5, 77))
