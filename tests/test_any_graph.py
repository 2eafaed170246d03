"""Conditioning as people combine it: every row of a model call shows the subjects that its own conditioning carries, with the host's own
nodes, guiders and samplers."""
from __future__ import annotations

from dataclasses import replace

import comfy.sample
import comfy.samplers
import node_helpers
import pytest
import torch
from comfy_extras import nodes_custom_sampler, nodes_model_advanced, nodes_perpneg
from test_promises import BOTH, IMAGE_ONLY, Scene, half_masks

import nodes as host_nodes
from mmdiff_core.bases import SD15, SDXL
from mmdiff_core.host.apply import Strength, apply
from mmdiff_core.host.conditioning import BoundPrompt, carry
from mmdiff_core.regions.layer_weights import layer_factors, parse_layer_weights

import make

ONE_STEP = torch.tensor([4.0, 0.0])
STEPS = torch.tensor([4.0, 2.0, 1.0, 0.0])


@pytest.fixture(scope="module")
def scene() -> Scene:
    """SD1.5's layout: fewer layers, so more graphs."""
    return Scene("sd15")


@pytest.fixture(scope="module")
def model(scene):
    return apply(scene.model, scene.adapter, BOTH)


@pytest.fixture(scope="module")
def ann(scene) -> list:
    return scene.bound(scene.subjects[:1])


@pytest.fixture(scope="module")
def bob(scene) -> list:
    """Another text and another subject."""
    return carry(make.random_conditioning(pooled=None, seed=9), BoundPrompt(scene.subjects[1:], scene.adapter.fingerprint))


def predict(scene, model, positive, **options) -> torch.Tensor:
    """The denoised latents of the conditional side alone, one step, one call."""
    return scene.sample(model, positive, cfg=1.0, sigmas=ONE_STEP, **options)


def count_calls(model):
    """A context: batch size of every UNet call."""
    class Calls(list):
        def __enter__(self):
            self.handle = model.model.diffusion_model.register_forward_pre_hook(lambda m, args: self.append(len(args[0])))
            return self

        def __exit__(self, *error):
            self.handle.remove()

    return Calls()


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=2e-4)


# ---------------------------------------------------------------- nodes that combine conditioning

def test_two_personalised_prompts_combined_each_show_their_own_subject(scene, model, ann, bob):
    combined, = host_nodes.ConditioningCombine().combine(ann, bob)
    with count_calls(model) as calls:
        both = predict(scene, model, combined)
    assert calls == [2] and close(both, (predict(scene, model, ann) + predict(scene, model, bob)) / 2)
    assert not close(predict(scene, model, ann), predict(scene, model, bob))


def test_concat_shows_the_subjects_of_the_prompt_it_lengthens(scene, model, ann, bob):
    longer, = host_nodes.ConditioningConcat().concat(ann, bob)
    expected = carry([[torch.cat([ann[0][0], bob[0][0]], 1), {}]], BoundPrompt(scene.subjects[:1], scene.adapter.fingerprint))
    assert torch.equal(predict(scene, model, longer), predict(scene, model, expected))


def test_average_shows_the_subjects_of_the_prompt_it_is_made_from(scene, model, ann, bob):
    mixed, = host_nodes.ConditioningAverage().addWeighted(ann, bob, 0.6)
    expected = carry([[0.6 * ann[0][0] + 0.4 * bob[0][0], {}]], BoundPrompt(scene.subjects[:1], scene.adapter.fingerprint))
    assert close(predict(scene, model, mixed), predict(scene, model, expected))


def test_two_prompts_in_two_areas_show_their_subjects_in_one_call(scene, model, ann, bob):
    left, = host_nodes.ConditioningSetArea().append(ann, 64, 64, 0, 0, 1.0)
    right, = host_nodes.ConditioningSetArea().append(bob, 64, 64, 64, 0, 1.0)
    size = (8, 16)
    with count_calls(model) as calls:
        both = scene.sample(model, left + right, cfg=1.0, sigmas=ONE_STEP, size=size)
    assert calls == [2]
    noise = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(0))
    for part, prompt in ((slice(0, 8), ann), (slice(8, 16), bob)):
        crop = comfy.sample.sample_custom(
            model, noise[..., part], 1.0, comfy.samplers.sampler_object("euler"), ONE_STEP, prompt, scene.negative,
            torch.zeros(1, 4, 8, 8), disable_pbar=True, seed=0,
        )
        assert close(both[..., part], crop)


def test_a_subjects_mask_is_cropped_to_the_area_of_its_prompt(scene, model, ann, bob):
    left, _ = half_masks(16)
    hidden = carry(scene.plain, BoundPrompt((scene.subjects[0].masked(left),), scene.adapter.fingerprint))
    area = host_nodes.ConditioningSetArea()
    size = (16, 16)

    def right_half(prompt):
        positive, = area.append(prompt, 64, 128, 64, 0, 1.0)
        return scene.sample(model, positive, cfg=1.0, sigmas=ONE_STEP, size=size)

    plain = carry(scene.plain, None)
    assert close(right_half(hidden), right_half(plain)) and not close(right_half(scene.bound()), right_half(plain))


@pytest.mark.parametrize("bounds", ["default", "mask bounds"])
def test_prompts_held_by_masks_show_their_subjects(scene, model, ann, bob, bounds):
    left, right = (m[None] for m in half_masks(8))
    masked = [host_nodes.ConditioningSetMask().append(c, m, bounds, 1.0)[0] for c, m in ((ann, left), (bob, right))]
    both = predict(scene, model, masked[0] + masked[1])
    if bounds == "default":
        ours, theirs = predict(scene, model, ann), predict(scene, model, bob)
        assert close(both[..., :4], ours[..., :4]) and close(both[..., 4:], theirs[..., 4:])
    alone = predict(scene, model, host_nodes.ConditioningSetMask().append(carry(scene.plain, None), left, bounds, 1.0)[0] + masked[1])
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
        model, torch.zeros_like(begun), 1.0, comfy.samplers.sampler_object("euler"), sigmas[1:], bob, scene.negative,
        begun, disable_pbar=True, seed=0,
    )
    assert close(found, expected)


def test_options_that_other_nodes_write_into_the_conditioning_keep_the_subjects(scene, model, ann):
    changed = node_helpers.conditioning_set_values(ann, {"strength": 1.0, "guidance": 3.5, "someones_key": object()})
    assert torch.equal(predict(scene, model, changed), predict(scene, model, ann))


# ---------------------------------------------------------------- guiders, samplers, calls

@pytest.mark.parametrize("kind", ["basic", "cfg", "dual", "dual nested", "perpneg"])
def test_guiders_show_subjects_only_in_the_rows_that_carry_them_and_call_the_model_as_often_as_the_plain_graph(scene, ann, bob, kind):
    """The image branch alone acts (no LoRA), so taking the subjects out of the conditioning must give the plain model's picture."""
    empty = make.random_conditioning(pooled=None, seed=12)

    def guider(which, first, second):
        if kind == "basic":
            return nodes_custom_sampler.BasicGuider.execute(which, first).args[0]
        if kind == "cfg":
            return nodes_custom_sampler.CFGGuider.execute(which, first, scene.negative, 4.0).args[0]
        if kind == "perpneg":
            return nodes_perpneg.PerpNegGuider.execute(which, first, scene.negative, empty, 4.0, 0.7).args[0]
        style = "nested" if "nested" in kind else "regular"
        return nodes_custom_sampler.DualCFGGuider.execute(which, first, second, scene.negative, 4.0, 2.0, style).args[0]

    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def run(which, first, second):
        with count_calls(which) as calls:
            out = guider(which, first, second).sample(
                noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), STEPS, disable_pbar=True, seed=0
            )
        return out, calls

    ours = apply(scene.model, scene.adapter, IMAGE_ONLY)
    plain_first, plain_second = scene.plain, [[bob[0][0], {}]]
    expected, plain_calls = run(scene.model, plain_first, plain_second)
    without, _ = run(ours, carry(plain_first, None), plain_second)
    assert torch.equal(without, expected)
    shown, calls = run(ours, ann, bob)
    assert calls == plain_calls and not close(shown, expected)
    if "dual" in kind:          # the second prompt's subject acts through the second row alone
        second_only, _ = run(ours, plain_first, bob)
        assert not close(second_only, expected) and not close(second_only, shown)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "heun", "dpmpp_2m", "dpmpp_sde", "uni_pc", "lcm", "euler_cfg_pp", "res_multistep"])
def test_samplers_call_the_model_as_often_as_without_us_and_show_the_subjects(scene, model, ann, sampler):
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def run(which, positive):
        with count_calls(which) as calls:
            out = comfy.sample.sample(which, noise, 4, 3.0, sampler, "karras", positive, scene.negative, torch.zeros_like(noise),
                                      disable_pbar=True, seed=0)
        return out, calls

    shown, calls = run(model, ann)
    plain, plain_calls = run(scene.model, scene.plain)
    assert calls == plain_calls and torch.isfinite(shown).all() and not close(shown, plain)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("sampling, zsnr, sampler", [("lcm", False, "lcm"), ("eps", False, "euler"), ("v_prediction", True, "euler")])
def test_distilled_models_show_the_subjects_in_few_steps_wherever_their_sampling_node_stands(scene, ann, sampling, zsnr, sampler, steps):
    """Turbo, LCM and Lightning: CFG 1, one to four steps, ModelSamplingDiscrete before or behind Apply; a window follows the schedule."""
    node, noise = nodes_model_advanced.ModelSamplingDiscrete(), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def draw(model, positive):
        with count_calls(model) as calls:
            out = comfy.sample.sample(model, noise, steps, 1.0, sampler, "sgm_uniform", positive, scene.negative, torch.zeros_like(noise),
                                      disable_pbar=True, seed=0)
        return out, calls

    plain, plain_calls = draw(node.patch(scene.model, sampling, zsnr)[0], scene.plain)
    for strength in (BOTH, replace(BOTH, start=0.3)):
        before, calls = draw(apply(node.patch(scene.model, sampling, zsnr)[0], scene.adapter, strength), ann)
        behind, _ = draw(node.patch(apply(scene.model, scene.adapter, strength), sampling, zsnr)[0], ann)
        assert calls == plain_calls == [1] * steps
        assert torch.equal(before, behind) and torch.isfinite(before).all() and not close(before, plain)


def test_only_the_masked_part_is_painted_when_inpainting(scene, model, ann):
    picture, noise = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    out = comfy.sample.sample(model, noise, 4, 3.0, "euler", "normal", ann, scene.negative, picture, noise_mask=mask, seed=0,
                              disable_pbar=True)
    assert torch.allclose(out[..., :4], picture[..., :4], atol=1e-4) and (out[..., 4:] - picture[..., 4:]).abs().max() > 0.1


def test_a_second_pass_at_another_size_shows_the_subjects_at_its_own_grid(scene, model):
    masks = half_masks(8)
    held = scene.bound(tuple(s.masked(m) for s, m in zip(scene.subjects, masks, strict=True)))
    small = scene.sample(model, held, sigmas=STEPS)
    large = torch.nn.functional.interpolate(small, scale_factor=2)
    noise = torch.randn(large.shape, generator=torch.Generator().manual_seed(3))
    second = comfy.sample.sample(model, noise, 4, 3.0, "euler", "normal", held, scene.negative, large, denoise=0.5, seed=0, disable_pbar=True)
    plain = comfy.sample.sample(model, noise, 4, 3.0, "euler", "normal", carry(scene.plain, None), scene.negative, large, denoise=0.5, seed=0,
                                disable_pbar=True)
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


# ---------------------------------------------------------------- weights per picture and per layer

def test_each_picture_of_a_batch_can_have_its_own_subject(scene, model):
    ann_, bob_ = scene.subjects
    own = scene.bound((replace(ann_, per_image=(1.0, 0.0)), replace(bob_, per_image=(0.0, 1.0))))
    with count_calls(model) as calls:
        both = predict(scene, model, own, batch=3)
    assert calls == [3]
    single = [predict(scene, model, scene.bound((replace(ann_, weight=a), replace(bob_, weight=b)))) for a, b in ((1, 0), (0, 1))]
    assert close(both[:1], single[0]) and close(both[1:2], single[1])
    assert close(both[2:], single[1])           # the last weight stays
    assert not close(single[0], single[1])


def test_weights_per_picture_also_hold_with_guidance_and_in_split_calls(scene, model, monkeypatch):
    own = scene.bound((replace(scene.subjects[0], per_image=(1.0, 0.3)),))
    together = scene.sample(model, own, batch=2, sigmas=STEPS)
    monkeypatch.setattr(type(model.model), "memory_required", lambda self, shape, **kw: 0 if shape[0] == 2 else 1e18)
    assert close(together, scene.sample(model, own, batch=2, sigmas=STEPS))
    assert close(together[1:], scene.sample(model, scene.bound((replace(scene.subjects[0], weight=0.3),)), sigmas=STEPS))


def test_layer_weights_name_parts_blocks_and_single_layers():
    blocks = SDXL.blocks
    factors = layer_factors("input 0.5, middle: 0, output.3=1.2\noutput.3.1 0.1", blocks)
    assert factors["input", 4, 0] == 0.5 and factors["middle", 0, 9] == 0 and factors["output", 0, 0] == 1
    assert factors["output", 3, 0] == 1.2 and factors["output", 3, 1] == 0.1
    assert set(layer_factors("all 0.2", blocks).values()) == {0.2} and set(layer_factors("", blocks).values()) == {1.0}


@pytest.mark.parametrize("text, message", [
    ("input", "not understood"), ("input -1", "from 0 to 10"), ("input 1, input 2", "given twice"), ("inptu 1", "no such layer"),
    ("output.99 1", "no such layer"), ("middle 11", "from 0 to 10"),
])
def test_layer_weights_that_make_no_sense_are_told(text, message):
    with pytest.raises(ValueError, match=message):
        layer_factors(text, SD15.blocks)
    assert parse_layer_weights("") == {}


def test_a_layer_weight_acts_on_its_layers_alone_and_zero_leaves_them_out(scene, ann):
    def with_layers(text):
        return apply(scene.model, scene.adapter, Strength(lora=0.0, layers=text))

    plain = predict(scene, scene.model, scene.plain)
    assert torch.equal(predict(scene, with_layers("all 0"), ann), plain)
    full = predict(scene, with_layers(""), ann)
    assert torch.equal(full, predict(scene, apply(scene.model, scene.adapter, IMAGE_ONLY), ann))
    half = predict(scene, with_layers("all 0.5"), ann)
    assert close(half, predict(scene, apply(scene.model, scene.adapter, Strength(fuse_scale=0.4, lora=0.0)), ann))
    only = with_layers("all 0, middle 1")
    slots = only.model_options["transformer_options"]["patches_replace"]["attn2"]
    assert set(slots) == {("middle", 0)}
    assert not close(predict(scene, only, ann), plain) and not close(predict(scene, only, ann), full)
