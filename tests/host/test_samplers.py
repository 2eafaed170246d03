"""Guiders, samplers and second passes.

The subjects show, and the model is called as often as without us.
"""

from __future__ import annotations

from dataclasses import replace

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_extras import nodes_custom_sampler, nodes_model_advanced, nodes_perpneg

from mmdiff_core.host.apply import apply
from mmdiff_core.host.conditioning import carry

from support import make
from support.scene import BOTH, IMAGE_ONLY, STEPS, close, count_calls, half_masks, predict

LIKE = "sd15"  # fewer layers than SDXL, so more graphs


def make_guider(kind: str, model, first, second, negative):
    """One of the host's guiders; `second` is the other prompt of those that have two."""
    if kind == "basic":
        made = nodes_custom_sampler.BasicGuider.execute(model, first)
    elif kind == "cfg":
        made = nodes_custom_sampler.CFGGuider.execute(model, first, negative, 4.0)
    elif kind == "perpneg":
        empty = make.random_conditioning(pooled=None, seed=12)
        made = nodes_perpneg.PerpNegGuider.execute(model, first, negative, empty, 4.0, 0.7)
    else:
        style = "nested" if "nested" in kind else "regular"
        made = nodes_custom_sampler.DualCFGGuider.execute(
            model, first, second, negative, 4.0, 2.0, style
        )
    return made.args[0]


@pytest.mark.parametrize("kind", ["basic", "cfg", "dual", "dual nested", "perpneg"])
def test_guiders_show_subjects_in_the_rows_that_carry_them_alone_with_as_many_calls(
    scene, ann, bob, kind
):
    """The image branch alone acts (no LoRA), so taking the subjects out of the conditioning must
    give the plain model's picture.
    """
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def run(which, first, second):
        with count_calls(which) as calls:
            out = make_guider(kind, which, first, second, scene.negative).sample(
                noise,
                torch.zeros_like(noise),
                comfy.samplers.sampler_object("euler"),
                STEPS,
                disable_pbar=True,
                seed=0,
            )
        return out, calls

    ours = apply(scene.model, scene.adapter, IMAGE_ONLY)
    plain_first, plain_second = scene.plain, [[bob[0][0], {}]]
    expected, plain_calls = run(scene.model, plain_first, plain_second)
    without, _ = run(ours, carry(plain_first, None), plain_second)
    assert torch.equal(without, expected)
    shown, calls = run(ours, ann, bob)
    assert calls == plain_calls and not close(shown, expected)
    if "dual" in kind:  # the second prompt's subject acts through the second row alone
        second_only, _ = run(ours, plain_first, bob)
        assert not close(second_only, expected) and not close(second_only, shown)


@pytest.mark.parametrize(
    "sampler",
    [
        "euler_ancestral",
        "heun",
        "dpmpp_2m",
        "dpmpp_sde",
        "uni_pc",
        "lcm",
        "euler_cfg_pp",
        "res_multistep",
    ],
)
def test_samplers_call_the_model_as_often_as_without_us_and_show_the_subjects(
    scene, model, ann, sampler
):
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def run(which, positive):
        with count_calls(which) as calls:
            out = comfy.sample.sample(
                which,
                noise,
                4,
                3.0,
                sampler,
                "karras",
                positive,
                scene.negative,
                torch.zeros_like(noise),
                disable_pbar=True,
                seed=0,
            )
        return out, calls

    shown, calls = run(model, ann)
    plain, plain_calls = run(scene.model, scene.plain)
    assert calls == plain_calls and torch.isfinite(shown).all() and not close(shown, plain)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(
    "sampling, zsnr, sampler",
    [("lcm", False, "lcm"), ("eps", False, "euler"), ("v_prediction", True, "euler")],
)
def test_distilled_models_show_the_subjects_in_few_steps_wherever_their_sampling_node_stands(
    scene, ann, sampling, zsnr, sampler, steps
):
    """Turbo, LCM and Lightning: CFG 1, one to four steps, ModelSamplingDiscrete before or behind
    Apply; a window follows the schedule.
    """
    node = nodes_model_advanced.ModelSamplingDiscrete()
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    how, nothing = (steps, 1.0, sampler, "sgm_uniform"), torch.zeros_like(noise)

    def draw(model, positive):
        sides = positive, scene.negative
        with count_calls(model) as calls:
            out = comfy.sample.sample(
                model, noise, *how, *sides, nothing, disable_pbar=True, seed=0
            )
        return out, calls

    plain, plain_calls = draw(node.patch(scene.model, sampling, zsnr)[0], scene.plain)
    for strength in (BOTH, replace(BOTH, start=0.3)):
        before, calls = draw(
            apply(node.patch(scene.model, sampling, zsnr)[0], scene.adapter, strength), ann
        )
        behind, _ = draw(
            node.patch(apply(scene.model, scene.adapter, strength), sampling, zsnr)[0], ann
        )
        assert calls == plain_calls == [1] * steps
        assert (
            torch.equal(before, behind)
            and torch.isfinite(before).all()
            and not close(before, plain)
        )


def test_only_the_masked_part_is_painted_when_inpainting(scene, model, ann):
    picture, noise = (
        torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(s)) for s in (1, 2)
    )
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    out = comfy.sample.sample(
        model,
        noise,
        4,
        3.0,
        "euler",
        "normal",
        ann,
        scene.negative,
        picture,
        noise_mask=mask,
        seed=0,
        disable_pbar=True,
    )
    assert (
        torch.allclose(out[..., :4], picture[..., :4], atol=1e-4)
        and (out[..., 4:] - picture[..., 4:]).abs().max() > 0.1
    )


def test_a_second_pass_at_another_size_shows_the_subjects_at_its_own_grid(scene, model):
    masks = half_masks(8)
    held = scene.bound(tuple(s.masked(m) for s, m in zip(scene.subjects, masks, strict=True)))
    small = scene.sample(model, held, sigmas=STEPS)
    large = torch.nn.functional.interpolate(small, scale_factor=2)
    noise = torch.randn(large.shape, generator=torch.Generator().manual_seed(3))
    second = comfy.sample.sample(
        model,
        noise,
        4,
        3.0,
        "euler",
        "normal",
        held,
        scene.negative,
        large,
        denoise=0.5,
        seed=0,
        disable_pbar=True,
    )
    plain = comfy.sample.sample(
        model,
        noise,
        4,
        3.0,
        "euler",
        "normal",
        carry(scene.plain, None),
        scene.negative,
        large,
        denoise=0.5,
        seed=0,
        disable_pbar=True,
    )
    assert second.shape == large.shape and not close(second, plain)


@pytest.mark.parametrize("size", [(5, 9), (3, 31), (17, 4)])
def test_tall_wide_and_odd_latents_show_subjects_where_their_masks_are(scene, model, size):
    height, width = size
    left = torch.zeros(height * 8, width * 8)
    left[:, : width * 4] = 1
    nowhere = scene.bound((scene.subjects[0].masked(torch.zeros(8, 8)),))
    held = scene.bound((scene.subjects[0].masked(left),))
    found = [predict(scene, model, c, size=size) for c in (held, nowhere, carry(scene.plain, None))]
    assert close(found[1], found[2]) and not close(found[0], found[2])
