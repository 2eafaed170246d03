"""Where a subject may act, at any size and precision."""
from __future__ import annotations

import pytest
import torch

from mmdiff_core.attention import see_subjects
from mmdiff_core.host.unet import apply
from mmdiff_core.masks import on_grid, regions

from support import make
from support.scene import BOTH, Scene, half_masks

# ---------------------------------------------------------------- masks

def test_a_subject_cannot_be_seen_from_outside_its_region():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 64, 32, generator=generator)
    k, v, other = (torch.randn(1, 8, 32, generator=generator) for _ in range(3))
    bias, gate = regions(half_masks(), [4, 4], (8, 8), (8, 8), None, torch.float32, q.device)
    before = see_subjects(q, k, v, 2, bias, gate)
    changed_k, changed_v = k.clone(), v.clone()
    changed_k[:, :4], changed_v[:, :4] = other[:, :4] * 9, other[:, 4:] * 9
    after = see_subjects(q, changed_k, changed_v, 2, bias, gate)
    right = half_masks()[1].flatten().bool()
    assert torch.equal(before[:, right], after[:, right])
    assert not torch.equal(before[:, ~right], after[:, ~right])


def test_where_no_subject_may_act_the_plain_model_is_left_alone():
    left, _ = half_masks()
    q, k = torch.randn(1, 64, 32), torch.randn(1, 4, 32)
    bias, gate = regions([left], [4], (8, 8), (8, 8), None, torch.float32, q.device)
    seen = see_subjects(q, k, k, 2, bias, gate)
    assert seen[:, ~left.flatten().bool()].abs().max() == 0 and torch.isfinite(seen).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masks_hide_exactly_in_half_precision(dtype):
    q, k = torch.randn(1, 64, 32).to(dtype), torch.randn(1, 8, 32).to(dtype)
    bias, gate = regions(half_masks(), [4, 4], (8, 8), (8, 8), None, dtype, q.device)
    seen = see_subjects(q, k, k, 2, bias, gate)
    only = see_subjects(q, k[:, :4], k[:, :4], 2, None, None)
    left = half_masks()[0].flatten().bool()
    assert torch.isfinite(seen).all() and torch.allclose(seen[:, left].float(), only[:, left].float(), atol=2e-2)


def test_masks_of_all_white_are_the_same_as_no_masks(scene):
    model = apply(scene.model, scene.adapter, BOTH)
    white = tuple(s.masked(torch.ones(16, 16)) for s in scene.subjects)
    assert torch.allclose(scene.sample(model, scene.bound(white)), scene.sample(model, scene.bound()), atol=1e-4)


def test_a_mask_is_cropped_to_the_area_a_cond_covers_not_squeezed():
    left, _ = half_masks(16)
    cropped = on_grid(left, (8, 4), (8, 8), (8, 4, 0, 4))
    assert cropped.max() < 0.1        # the right half of the picture: the mask is not there
    assert on_grid(left, (8, 4), (8, 8), (8, 4, 0, 0)).min() > 0.9


@pytest.mark.parametrize("size", [(7, 9), (8, 12), (13, 5)])
def test_masks_fit_latents_of_any_size(scene, size):
    model = apply(scene.model, scene.adapter, BOTH)
    left, right = half_masks(20)
    subjects = (scene.subjects[0].masked(left), scene.subjects[1].masked(right))
    assert torch.isfinite(scene.sample(model, scene.bound(subjects), size=size)).all()


# ---------------------------------------------------------------- precision

@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_show_subjects(dtype):
    mmdiff = make.random_mmdiff(make.narrow_config("sd15"))
    scene = Scene("sd15")
    scene.model = make.narrow_model("sd15", dtype)
    out = scene.sample(apply(scene.model, mmdiff.adapter, BOTH), scene.bound())
    assert torch.isfinite(out).all()


# ---------------------------------------------------------------- errors

def test_rows_seen_by_head_are_the_rows_themselves_however_they_lie_in_memory():
    from mmdiff_core.attention import by_head, rows_by_head
    whole = torch.randn(4, 6, 24)
    for x in (whole, whole.transpose(0, 1).contiguous().transpose(0, 1), torch.randn(5, 6, 48)[1:, :, ::2], torch.randn(4, 24, 6).transpose(1, 2)):
        for start, stop in ((0, 4), (1, 3), (3, 4)):
            seen = rows_by_head(x, start, stop, 3)
            assert torch.equal(seen, by_head(x[start:stop], 3))
            seen.zero_()
            assert not x[start:stop].any()
            x[start:stop] = 1.0
