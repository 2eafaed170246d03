"""What MM-Diff leaves as it was: rows without subjects, the input model, clones."""

from __future__ import annotations

import copy

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch

from mmdiff_core.host.application import Strength
from mmdiff_core.host.apply import apply
from mmdiff_core.host.slot import SubjectAttention

from support.recorded import probe
from support.scene import BOTH, IMAGE_ONLY, LORA_ONLY


def rows(scene, model, positive):
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    return probe(model, positive, scene.negative, x, 500)


def test_unconditional_rows_are_bit_identical_to_the_plain_model(scene):
    plain = rows(scene, scene.model, scene.plain)
    ours = rows(scene, apply(scene.model, scene.adapter, IMAGE_ONLY), scene.bound())
    assert torch.equal(plain[0], ours[0])
    assert not torch.allclose(plain[1], ours[1], atol=1e-3)


def test_unconditional_rows_see_the_lora_and_nothing_else(scene):
    lora = rows(scene, apply(scene.model, scene.adapter, LORA_ONLY), scene.bound())
    both = rows(scene, apply(scene.model, scene.adapter, BOTH), scene.bound())
    assert torch.equal(lora[0], both[0])
    assert not torch.allclose(lora[1], both[1], atol=1e-3)


def test_scale_zero_without_lora_is_bit_identical_to_never_applying(scene):
    off = apply(scene.model, scene.adapter, Strength(fuse_scale=0.0, lora=0.0))
    assert torch.equal(scene.sample(scene.model, scene.plain), scene.sample(off, scene.bound()))


def test_a_prompt_without_subjects_is_bit_identical_to_the_lora_alone(scene):
    lora, both = (apply(scene.model, scene.adapter, s) for s in (LORA_ONLY, BOTH))
    assert torch.equal(scene.sample(lora, scene.plain), scene.sample(both, scene.plain))


def test_a_weight_of_zero_for_all_subjects_shows_none_of_them(scene):
    from dataclasses import replace

    muted = tuple(replace(s, weight=0.0) for s in scene.subjects)
    lora, both = (apply(scene.model, scene.adapter, s) for s in (LORA_ONLY, BOTH))
    assert torch.equal(scene.sample(lora, scene.plain), scene.sample(both, scene.bound(muted)))


def state_of(model) -> dict:
    comfy.model_management.unload_all_models()
    return {k: v.clone() for k, v in model.model.state_dict().items()}


def assert_untouched(model, before: dict, options: dict) -> None:
    comfy.model_management.unload_all_models()
    after = model.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert not model.patches and not any(w for w in model.wrappers.values())
    assert model.model_options == options


def test_the_input_model_is_unchanged_after_a_run(scene):
    before, options = state_of(scene.model), copy.deepcopy(scene.model.model_options)
    scene.sample(apply(scene.model, scene.adapter, BOTH), scene.bound())
    assert_untouched(scene.model, before, options)


@pytest.mark.parametrize(
    "error", [RuntimeError("boom"), comfy.model_management.InterruptProcessingException()]
)
def test_the_input_model_is_unchanged_after_an_exception_or_interrupt(scene, error, monkeypatch):
    before, options = state_of(scene.model), copy.deepcopy(scene.model.model_options)
    calls = []

    def failing(self, q, k, v, extra_options):
        calls.append(1)
        if len(calls) > 80:
            raise error
        return original(self, q, k, v, extra_options)

    original = SubjectAttention.__call__
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(SubjectAttention, "__call__", failing)
        scene.sample(apply(scene.model, scene.adapter, BOTH), scene.bound())
    assert_untouched(scene.model, before, options)
    plain = scene.sample(scene.model, scene.plain)
    assert torch.isfinite(plain).all()


def test_a_clone_shares_every_tensor_and_has_slots_of_its_own(scene):
    model = apply(scene.model, scene.adapter, BOTH)
    clone = model.clone()
    for key, patch in model.model_options["transformer_options"]["patches_replace"][
        "attn2"
    ].items():
        own = clone.model_options["transformer_options"]["patches_replace"]["attn2"][key]
        assert own is not patch and own.key == patch.key and own.slot == patch.slot
    for key, patches in model.patches.items():
        assert clone.patches[key][0][1] is patches[0][1]
    conditioning = scene.bound()
    copied = copy.deepcopy(conditioning)
    assert (
        copied[0][1]["model_conds"]["mmdiff_rows"]
        is conditioning[0][1]["model_conds"]["mmdiff_rows"]
    )


def test_nothing_of_a_run_stays_on_the_model(scene):
    model = apply(scene.model, scene.adapter, BOTH)
    scene.sample(model, scene.bound())
    held = model.model_options["transformer_options"]
    assert set(held) <= {"patches_replace", "wrappers", "callbacks"}
    patch = next(iter(held["patches_replace"]["attn2"].values()))
    assert not any(torch.is_tensor(v) for v in vars(patch).values())
