"""Prompts encoded under a schedule of CLIP hooks: every part has the vectors of its own weights."""

from __future__ import annotations

import comfy.hooks
import pytest
import torch
from comfy_extras.nodes_hooks import SetClipHooks

from mmdiff_core.host.models import load_mmdiff
from mmdiff_core.host.prompt import encode_prompt

from support.cases import CHECKPOINT
from support.make import random_subject
from tiny_model import build

PROMPT = "a b c d e f g man<|subj|>"
STRENGTHS = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def clip():
    return build.clip()


def style_weights(clip, seed: int = 0) -> dict[str, torch.Tensor]:
    """Differences to the second encoder's and the first one's attention layers."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: 0.3 * torch.randn(value.shape, generator=generator)
        for key, value in clip.cond_stage_model.state_dict().items()
        if key.endswith(("q_proj.weight", "v_proj.weight"))
    }


def with_scheduled_style(clip, strengths=STRENGTHS):
    """The CLIP with a hook whose strength changes over the denoising, as Set CLIP Hooks sets it."""
    styled = clip.clone()
    patches = {key: ("diff", (value,)) for key, value in style_weights(clip).items()}
    hook = comfy.hooks.WeightHook(1.0, 1.0)
    hook.weights_clip, hook.need_weight_init = patches, False
    keyframes = comfy.hooks.HookKeyframeGroup()
    for i, strength in enumerate(strengths):
        keyframes.add(comfy.hooks.HookKeyframe(strength, start_percent=i / len(strengths)))
    hooks = comfy.hooks.HookGroup()
    hooks.add(hook)
    hooks.set_keyframes_on_hooks(keyframes)
    return SetClipHooks().apply_hooks(styled, True, False, hooks)[0]


def with_style(clip, strength: float):
    styled = clip.clone()
    weights = style_weights(clip)
    styled.add_patches({key: ("diff", (value,)) for key, value in weights.items()}, strength)
    return styled


@pytest.mark.parametrize("behaviour", ["released", "corrected"])
@pytest.mark.parametrize("negative", ["", "low quality", "a b c d e f g h i j k l m n o p"])
def test_every_part_of_a_schedule_has_the_text_and_pooled_vector_of_its_own_weights(
    clip, behaviour, negative
):
    """The released behaviour fuses the negative at the positive's positions, behind its end too."""
    mmdiff = load_mmdiff(CHECKPOINT)
    subjects = (random_subject(mmdiff, "ann", 1),)

    def encode(which):
        return encode_prompt(which, mmdiff, PROMPT, negative, subjects, behaviour=behaviour)

    scheduled = encode(with_scheduled_style(clip))
    assert len(scheduled.negative) == len(scheduled.positive) == len(STRENGTHS)
    seen = []
    for i, strength in enumerate(STRENGTHS):
        expected = encode(with_style(clip, strength))
        for side in ("positive", "negative"):
            text, options = getattr(scheduled, side)[i]
            text_alone, alone = getattr(expected, side)[0]
            assert torch.allclose(text, text_alone, atol=1e-4), (side, strength)
            assert torch.allclose(options["pooled_output"], alone["pooled_output"], atol=1e-4)
        seen.append(scheduled.negative[i][1]["pooled_output"])
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)
    assert not torch.allclose(seen[1], seen[2], atol=1e-3)


def test_the_host_keeps_its_own_encoders_after_a_fused_negative(clip):
    mmdiff = load_mmdiff(CHECKPOINT)
    model = clip.cond_stage_model
    encode_prompt(
        clip, mmdiff, PROMPT, "", (random_subject(mmdiff, "ann", 1),), behaviour="released"
    )
    assert clip.cond_stage_model is model and "encode_token_weights" not in vars(model)
