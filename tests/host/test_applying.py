"""What can be applied to which model, and beside what."""

from __future__ import annotations

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch

from mmdiff_core.host.application import Application
from mmdiff_core.host.apply import apply, check_unet
from mmdiff_core.host.conditioning import BoundPrompt, carry

from support import make
from support.scene import BOTH, IMAGE_ONLY, SIGMAS


def test_another_kind_of_model_is_refused_with_a_sentence(scene, scene15):
    with pytest.raises(ValueError, match="70 cross-attention layers; this model has 16"):
        apply(scene15.model, scene.adapter, BOTH)

    class Other:
        diffusion_model = torch.nn.Linear(1, 1)

    class Holder:
        model = Other()

    with pytest.raises(ValueError, match="works on Stable Diffusion UNets"):
        apply(Holder(), scene.adapter, BOTH)


def test_the_same_adapter_twice_is_refused(scene):
    with pytest.raises(ValueError, match="already applied"):
        apply(apply(scene.model, scene.adapter, BOTH), scene.adapter, BOTH)


def test_two_adapters_on_one_model_each_show_their_own_subjects(scene):
    other = make.random_mmdiff(make.narrow_config("sdxl"), seed=7)
    both = apply(apply(scene.model, scene.adapter, IMAGE_ONLY), other.adapter, IMAGE_ONLY)
    one = apply(scene.model, scene.adapter, IMAGE_ONLY)
    assert torch.equal(scene.sample(both, scene.bound()), scene.sample(one, scene.bound()))
    theirs = carry(
        scene.plain, BoundPrompt((make.random_subject(other),), other.adapter.fingerprint)
    )
    assert not torch.allclose(
        scene.sample(both, theirs), scene.sample(scene.model, scene.plain), atol=1e-3
    )


def test_a_patch_that_held_the_slot_is_kept_as_the_base(scene):
    seen = []

    def foreign(q, k, v, extra_options):
        seen.append(1)
        return torch.zeros_like(q)

    held = scene.model.clone()
    held.set_model_attn2_replace(foreign, "middle", 0, 3)
    model = apply(held, scene.adapter, BOTH)
    scene.sample(model, scene.bound())
    assert len(seen) == len(SIGMAS) - 1


def test_user_lora_on_keys_acts_on_both_branches(scene):
    """K_i is the layer as it stands in the model, less our text LoRA.

    What a user's own LoRA adds to to_k stays in.
    """
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    styled = scene.model.clone()
    delta = torch.randn(128, make.CONTEXT) * 0.5
    styled.add_patches({key: ("diff", (delta,))})
    model = apply(styled, scene.adapter, BOTH)
    comfy.model_management.load_model_gpu(model)
    application = Application(scene.adapter, BOTH, check_unet(model, scene.adapter))
    prompt = BoundPrompt(scene.subjects, scene.adapter.fingerprint)
    keys = application.keys_and_values(
        prompt, model.model.diffusion_model, torch.float32, torch.device("cpu")
    )
    k, _ = keys["middle", 0, 0]
    tokens = torch.cat([s.subject.tokens for s in scene.subjects])
    base = scene.model.model.state_dict()[key] if not model.backup else model.backup[key].weight
    image = scene.adapter.unet["middle_block.1.transformer_blocks.0.attn2.to_k_image"]
    assert torch.allclose(
        k[0].transpose(0, 1).flatten(1), tokens @ (base + delta).T + image(tokens), atol=1e-4
    )
