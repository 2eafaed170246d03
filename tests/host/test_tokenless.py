"""A subject without tokens (clip_only) is legal wherever subjects are.

Mixed, weighed, found, held, sampled.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmdiff_core.host.apply import apply
from mmdiff_core.host.conditioning import BoundPrompt, carry
from mmdiff_core.method.subjects import FindRegions, PromptSubject
from mmdiff_core.references.mix import METHODS, mix
from mmdiff_core.regions.attention_maps import find_regions

from support import make
from support.scene import IMAGE_ONLY, half_masks

LIKE = "sd15"
NOUNS = ((3,), (7,))
STEPS = torch.tensor([4.0, 1.0, 0.0])


def tokenless(used: PromptSubject) -> PromptSubject:
    return replace(used, subject=replace(used.subject, tokens=torch.zeros(0, make.CONTEXT)))


def draw(scene, model, *subjects: PromptSubject) -> torch.Tensor:
    prompt = BoundPrompt(subjects, scene.adapter.fingerprint, NOUNS[: len(subjects)])
    return scene.sample(model, carry(scene.plain, prompt), sigmas=STEPS)


@pytest.mark.parametrize("method", METHODS)
def test_a_mixture_with_one_draws_an_image_and_not_a_black_one(scene, model, method):
    first, second = scene.subjects[0], tokenless(scene.subjects[1])
    mixed = mix([first.subject, second.subject], [1, 1], method, "mix")
    assert torch.isfinite(draw(scene, model, PromptSubject(mixed))).all()
    nobody = mix([tokenless(first).subject, second.subject], [1, 1], method, "mix")
    assert torch.equal(draw(scene, model, PromptSubject(nobody)), draw(scene, model))


def test_factors_per_image_of_one_change_nothing(scene, model):
    weighed = replace(tokenless(scene.subjects[0]), per_image=(1.0, 0.5))
    assert torch.equal(draw(scene, model, weighed), draw(scene, model))


@pytest.mark.parametrize("held", ["hold_nouns", "bound_self_attention"])
def test_its_region_holds_the_base_even_when_nobody_has_tokens(scene, held):
    model = apply(scene.model, scene.adapter, IMAGE_ONLY)
    left, right = half_masks(8)
    masked = [tokenless(s).masked(m) for s, m in zip(scene.subjects, (left, right), strict=True)]
    limited = [s.within(**{held: True}) for s in masked]
    assert torch.equal(draw(scene, model, *masked), draw(scene, model))
    assert not torch.allclose(draw(scene, model, *limited), draw(scene, model), atol=1e-3)


def test_regions_are_found_for_it_beside_one_with_tokens(scene, model):
    finding = [s.within(find=FindRegions(settle=0.5, sharpness=500.0)) for s in scene.subjects]
    found = draw(scene, model, tokenless(finding[0]), finding[1])
    assert torch.isfinite(found).all()


def test_its_region_follows_its_noun_alone():
    """It has no image map; that must not take every position from it."""
    text = torch.zeros(1, 2, 8, 8)
    text[0, 0, :, :4], text[0, 1, :, 4:] = 1, 1
    image = torch.zeros(1, 2, 8, 8)
    image[0, 1] = 1  # all image attention goes to the subject that has tokens
    found = find_regions(text, image, sharpness=8.0)
    assert found[0, 0, :, 0].min() == 1 and found[0, 1, :, -1].min() == 1
    assert found[0, 1, :, 0].max() < 0.1 and found[0, 0, :, -1].max() < 0.1
