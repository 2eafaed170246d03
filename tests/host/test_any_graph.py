"""Conditioning as people combine it.

Every row of a model call shows the subjects that its own conditioning carries, with the host's own
nodes, guiders and samplers.
"""

from __future__ import annotations

import comfy.sample
import comfy.samplers
import node_helpers
import nodes as host_nodes
import pytest
import torch

from mmdiff_core.host.conditioning import BoundPrompt, carry

from support.scene import count_calls, half_masks, predict

LIKE = "sd15"  # fewer layers than SDXL, so more graphs

ONE_STEP = torch.tensor([4.0, 0.0])

STEPS = torch.tensor([4.0, 2.0, 1.0, 0.0])


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=2e-4)


def test_two_personalised_prompts_combined_each_show_their_own_subject(scene, model, ann, bob):
    (combined,) = host_nodes.ConditioningCombine().combine(ann, bob)
    with count_calls(model) as calls:
        both = predict(scene, model, combined)
    assert calls == [2] and close(
        both, (predict(scene, model, ann) + predict(scene, model, bob)) / 2
    )
    assert not close(predict(scene, model, ann), predict(scene, model, bob))


def test_concat_shows_the_subjects_of_the_prompt_it_lengthens(scene, model, ann, bob):
    (longer,) = host_nodes.ConditioningConcat().concat(ann, bob)
    expected = carry(
        [[torch.cat([ann[0][0], bob[0][0]], 1), {}]],
        BoundPrompt(scene.subjects[:1], scene.adapter.fingerprint),
    )
    assert torch.equal(predict(scene, model, longer), predict(scene, model, expected))


def test_average_shows_the_subjects_of_the_prompt_it_is_made_from(scene, model, ann, bob):
    (mixed,) = host_nodes.ConditioningAverage().addWeighted(ann, bob, 0.6)
    expected = carry(
        [[0.6 * ann[0][0] + 0.4 * bob[0][0], {}]],
        BoundPrompt(scene.subjects[:1], scene.adapter.fingerprint),
    )
    assert close(predict(scene, model, mixed), predict(scene, model, expected))


def test_two_prompts_in_two_areas_show_their_subjects_in_one_call(scene, model, ann, bob):
    (left,) = host_nodes.ConditioningSetArea().append(ann, 64, 64, 0, 0, 1.0)
    (right,) = host_nodes.ConditioningSetArea().append(bob, 64, 64, 64, 0, 1.0)
    size = (8, 16)
    with count_calls(model) as calls:
        both = scene.sample(model, left + right, cfg=1.0, sigmas=ONE_STEP, size=size)
    assert calls == [2]
    noise = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(0))
    for part, prompt in ((slice(0, 8), ann), (slice(8, 16), bob)):
        crop = comfy.sample.sample_custom(
            model,
            noise[..., part],
            1.0,
            comfy.samplers.sampler_object("euler"),
            ONE_STEP,
            prompt,
            scene.negative,
            torch.zeros(1, 4, 8, 8),
            disable_pbar=True,
            seed=0,
        )
        assert close(both[..., part], crop)


def test_a_subjects_mask_is_cropped_to_the_area_of_its_prompt(scene, model, ann, bob):
    left, _ = half_masks(16)
    hidden = carry(
        scene.plain, BoundPrompt((scene.subjects[0].masked(left),), scene.adapter.fingerprint)
    )
    area = host_nodes.ConditioningSetArea()
    size = (16, 16)

    def right_half(prompt):
        (positive,) = area.append(prompt, 64, 128, 64, 0, 1.0)
        return scene.sample(model, positive, cfg=1.0, sigmas=ONE_STEP, size=size)

    plain = carry(scene.plain, None)
    assert close(right_half(hidden), right_half(plain)) and not close(
        right_half(scene.bound()), right_half(plain)
    )


@pytest.mark.parametrize("bounds", ["default", "mask bounds"])
def test_prompts_held_by_masks_show_their_subjects(scene, model, ann, bob, bounds):
    left, right = (m[None] for m in half_masks(8))
    masked = [
        host_nodes.ConditioningSetMask().append(c, m, bounds, 1.0)[0]
        for c, m in ((ann, left), (bob, right))
    ]
    both = predict(scene, model, masked[0] + masked[1])
    if bounds == "default":
        ours, theirs = predict(scene, model, ann), predict(scene, model, bob)
        assert close(both[..., :4], ours[..., :4]) and close(both[..., 4:], theirs[..., 4:])
    alone = predict(
        scene,
        model,
        host_nodes.ConditioningSetMask().append(carry(scene.plain, None), left, bounds, 1.0)[0]
        + masked[1],
    )
    assert close(both[..., 4:], alone[..., 4:]) and not close(both[..., :4], alone[..., :4])


def test_prompts_with_timestep_ranges_show_their_subjects_in_turn(scene, model, ann, bob):
    sampling = scene.model.get_model_object("model_sampling")
    middle = 0.5
    tie = float(sampling.percent_to_sigma(middle))
    ranged = host_nodes.ConditioningSetTimestepRange()
    first, second = ranged.set_range(ann, 0.0, middle)[0], ranged.set_range(bob, middle, 1.0)[0]
    sigmas = torch.tensor([4.0, tie * 0.9, 0.0])
    with count_calls(model) as calls:
        found = scene.sample(model, first + second, cfg=1.0, sigmas=sigmas)
    assert calls == [1, 1]
    begun = scene.sample(model, ann, cfg=1.0, sigmas=sigmas[:2])
    expected = comfy.sample.sample_custom(
        model,
        torch.zeros_like(begun),
        1.0,
        comfy.samplers.sampler_object("euler"),
        sigmas[1:],
        bob,
        scene.negative,
        begun,
        disable_pbar=True,
        seed=0,
    )
    assert close(found, expected)


def test_options_that_other_nodes_write_into_the_conditioning_keep_the_subjects(scene, model, ann):
    changed = node_helpers.conditioning_set_values(
        ann, {"strength": 1.0, "guidance": 3.5, "someones_key": object()}
    )
    assert torch.equal(predict(scene, model, changed), predict(scene, model, ann))
