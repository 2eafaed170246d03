"""Regions found while sampling, and nouns held to regions."""

from __future__ import annotations

import pytest
import torch

from mmdiff_core.host.apply import apply
from mmdiff_core.host.finder import Finder
from mmdiff_core.method.subjects import FindRegions

from support.scene import BOTH, half_masks
from support.watching import NOUNS, prompt

LIKE = "sd15"  # fewer layers than SDXL, so more graphs

# ---------------------------------------------------------------- found regions


def finding(scene, plan=FindRegions(settle=0.5, sharpness=8.0), **options):  # noqa: B008
    return tuple(s.within(find=plan, **options) for s in scene.subjects)


def test_before_they_settle_subjects_are_free(scene, model):
    late = finding(scene, FindRegions(settle=1.0))
    assert torch.equal(scene.sample(model, prompt(scene, late)), scene.sample(model, prompt(scene)))


def test_found_regions_change_the_picture_once_they_are_settled(scene, model):
    # random weights read everywhere nearly alike
    sharp = finding(scene, FindRegions(settle=0.5, sharpness=500.0))
    assert not torch.allclose(
        scene.sample(model, prompt(scene, sharp)), scene.sample(model, prompt(scene)), atol=1e-3
    )


def test_without_sharpness_found_regions_change_nothing(scene, model):
    blunt = finding(scene, FindRegions(settle=0.3, sharpness=0.0))
    assert torch.allclose(
        scene.sample(model, prompt(scene, blunt)), scene.sample(model, prompt(scene)), atol=1e-4
    )


def regions_of(scene, model, subjects, monkeypatch, **options) -> list[torch.Tensor]:
    """What the finder held, at each sigma where it was asked first."""
    held, found = [], Finder.regions

    def noted(self, sigmas):
        out = found(self, sigmas)
        if out is not None and (not held or out is not held[-1]):
            held.append(out)
        return out

    monkeypatch.setattr(Finder, "regions", noted)
    scene.sample(model, prompt(scene, subjects), **options)
    return held


def test_frozen_regions_are_made_once_and_updated_ones_at_every_step(scene, model, monkeypatch):
    assert len(regions_of(scene, model, finding(scene), monkeypatch)) == 1
    assert (
        len(
            regions_of(
                scene, model, finding(scene, FindRegions(settle=0.5, update=True)), monkeypatch
            )
        )
        > 1
    )


def test_regions_are_found_for_every_picture_of_a_batch(scene, model, monkeypatch):
    (shares,) = regions_of(scene, model, finding(scene), monkeypatch, batch=2)
    assert shares.shape == (2, 3, 8, 8)  # both, and how far a position is inside any
    assert torch.allclose(shares[:, :2].amax(1), torch.ones(2, 8, 8))


def test_one_subject_has_nobody_to_be_kept_apart_from(scene, model):
    alone = finding(scene)[:1]
    assert torch.equal(
        scene.sample(model, prompt(scene, alone, NOUNS[:1])),
        scene.sample(model, prompt(scene, scene.subjects[:1], NOUNS[:1])),
    )


def test_the_unconditional_row_is_never_touched_by_found_regions(scene, model):
    bound, negative = prompt(scene, finding(scene, hold_nouns=True)), scene.negative
    free = scene.sample(model, negative, negative=negative, cfg=1.0)
    assert torch.equal(scene.sample(model, negative, negative=bound, cfg=1.0), free)


# ---------------------------------------------------------------- nouns held to their regions


def test_a_noun_held_to_a_region_changes_the_picture_and_one_held_to_everywhere_does_not(
    scene, model
):
    left, right = half_masks(64)
    free = tuple(s.masked(m) for s, m in zip(scene.subjects, (left, right)))
    held = tuple(s.within(hold_nouns=True) for s in free)
    assert not torch.allclose(
        scene.sample(model, prompt(scene, held)),
        scene.sample(model, prompt(scene, free)),
        atol=1e-3,
    )
    everywhere = tuple(s.within(mask=torch.ones(64, 64), hold_nouns=True) for s in scene.subjects)
    assert torch.allclose(
        scene.sample(model, prompt(scene, everywhere)),
        scene.sample(model, prompt(scene)),
        atol=1e-4,
    )


def test_tokens_can_be_left_free_while_the_nouns_are_held(scene, model):
    left, right = half_masks(64)
    neither = tuple(
        s.within(mask=m, hold_tokens=False) for s, m in zip(scene.subjects, (left, right))
    )
    assert torch.equal(
        scene.sample(model, prompt(scene, neither)), scene.sample(model, prompt(scene))
    )


def test_nouns_cannot_be_held_where_another_pack_draws_the_text_and_that_is_said(scene):
    other = scene.model.clone()
    other.set_model_attn2_replace(lambda q, k, v, extra_options: q, "middle", 0)
    left, right = half_masks(64)
    held = tuple(s.within(mask=m, hold_nouns=True) for s, m in zip(scene.subjects, (left, right)))
    with pytest.raises(RuntimeError, match="another node replaced the text attention in 1 layers"):
        scene.sample(apply(other, scene.adapter, BOTH), prompt(scene, held))
