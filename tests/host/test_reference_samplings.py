"""Whole samplings end in the latents that the official code ended in."""

from __future__ import annotations

import comfy.sample
import comfy.samplers
import pytest
import torch

from mmdiff_core.host.application import Strength
from mmdiff_core.host.apply import apply
from mmdiff_core.host.prompt import encode_prompt

from support.recorded import (
    LATENTS,
    NOISE,
    VARIANTS,
    close,
    mixed_prompt,
    plain_prompt,
    recorded_prompt,
    sample,
    sized,
)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fuse_negative", [True, False], ids=["negative_fused", "negative_pure"])
def test_whole_samplings_end_in_the_recorded_latents(case, world, subjects, variant, fuse_negative):
    model = apply(
        world["model"], world["mmdiff"].adapter, Strength(fuse_scale=case.call["fuse_scale"])
    )
    positive, negative = mixed_prompt(
        case, world, subjects, variant, fuse_negative, case.start(model)
    )
    name = "latents_final" if fuse_negative else "latents_final_neg_pure"
    close(
        sample(case, model, positive, negative),
        case[f"{variant}/run/{name}"],
        LATENTS,
        f"{variant} {name}",
    )


def test_sampling_without_guidance_ends_in_the_recorded_latents(case, world, subjects):
    if not case.has("official/run/latents_final_guidance_1"):
        return
    model = apply(
        world["model"], world["mmdiff"].adapter, Strength(fuse_scale=case.call["fuse_scale"])
    )
    positive, negative = mixed_prompt(case, world, subjects, "official", True, case.start(model))
    close(
        sample(case, model, positive, negative, 1.0),
        case["official/run/latents_final_guidance_1"],
        LATENTS,
        "guidance 1",
    )


def zeroed(conditioning: list) -> list:
    """As ConditioningZeroOut leaves it."""
    return [
        [torch.zeros_like(c), {**o, "pooled_output": torch.zeros_like(o["pooled_output"])}]
        for c, o in conditioning
    ]


@pytest.mark.parametrize("negative", ["empty", "none"])
def test_without_words_in_the_negative_samplings_end_in_the_recorded_latents(
    case, world, subjects, negative
):
    """An empty negative prompt is fused like any other. Without one the official code takes zeros,
    which is what ConditioningZeroOut makes of the personalised prompt.
    """
    key = f"official/run/latents_final_negative_{negative}"
    if not case.has(key):
        return
    model = apply(
        world["model"], world["mmdiff"].adapter, Strength(fuse_scale=case.call["fuse_scale"])
    )
    encoded = encode_prompt(
        world["clip"],
        world["mmdiff"],
        recorded_prompt(case),
        "",
        subjects,
        case.start(model),
        "released",
    )
    against = encoded.negative if negative == "empty" else zeroed(encoded.positive)
    close(sample(case, model, encoded.positive, against), case[key], LATENTS, negative)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fuse_negative", [True, False], ids=["negative_fused", "negative_pure"])
@pytest.mark.parametrize("plain_steps", [1, 2, 3])
def test_delayed_conditioning_is_plain_steps_followed_by_personalised_steps(
    case, world, subjects, variant, fuse_negative, plain_steps
):
    """One run with a delayed start equals the official loop spelled out.

    First the plain prompt and no image branch, with the LoRA on, then the personalised prompt.
    """
    model = apply(
        world["model"], world["mmdiff"].adapter, Strength(fuse_scale=case.call["fuse_scale"])
    )
    times, sigmas = case.meta["timesteps"], case["official/run/sigmas"]
    start = 1.0 - (times[plain_steps - 1] + times[plain_steps]) / 2 / 999.0
    whole = sample(case, model, *mixed_prompt(case, world, subjects, variant, fuse_negative, start))
    fused = mixed_prompt(case, world, subjects, variant, fuse_negative)
    first = case["input/latents"] * (sigmas[0].item() ** 2 + 1) ** 0.5 / sigmas[0].item()

    def steps(prompt, part, noise, latent):
        positive, negative = (sized(case, side) for side in prompt)
        return comfy.sample.sample_custom(
            model,
            noise,
            case.call["guidance_scale"],
            comfy.samplers.sampler_object("euler"),
            part,
            positive,
            negative,
            latent,
            disable_pbar=True,
            seed=0,
        )

    nothing = torch.zeros_like(first)
    halfway = steps(plain_prompt(case, world, variant), sigmas[: plain_steps + 1], first, nothing)
    out = steps(fused, sigmas[plain_steps:], nothing, halfway)
    close(whole, out * 0.13025, LATENTS, f"delayed by {plain_steps} steps")


def test_a_wrong_variant_is_told_apart(case, world, subjects):
    """The tests can fail: without the UNet LoRA the same input gives numbers far from the recorded
    ones.
    """
    key = "wrong/noise_pred_delayed_without_unet_lora/t501"
    if not case.has(key):
        return
    assert (case[key] - case["official/noise_pred/delayed/t501"]).abs().max() > 100 * NOISE
