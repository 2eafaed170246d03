"""Half precisions, fp8 storage, partial loading, unloading between runs, users' LoRA on the text
encoder: subjects stay what they are.
"""

from __future__ import annotations

import itertools

import comfy.model_management
import comfy.ops
import comfy.patcher_extension
import pytest
import torch

from mmdiff_core.host.apply import apply
from mmdiff_core.host.conditioning import BoundPrompt, Row, carry
from mmdiff_core.host.models import load_mmdiff
from mmdiff_core.host.prompt import encode_prompt

from support import make
from support.cases import CHECKPOINT
from support.scene import BOTH, IMAGE_ONLY, Scene
from tiny_model import build

LIKE = "sd15"  # fewer layers than SDXL, so more graphs

ONE_STEP = torch.tensor([4.0, 0.0])


def draw(scene, model, positive) -> torch.Tensor:
    return scene.sample(model, positive, cfg=1.0, sigmas=ONE_STEP)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


# ---------------------------------------------------------------- how weights are stored


def fp8_model(scene):
    """The scene's model with its linear weights stored as float8_e4m3fn and computed in float32, as
    the host does it.
    """
    model = make.narrow_model("sd15", operations=comfy.ops.manual_cast)
    for module in model.model.diffusion_model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(
                module.weight.to(torch.float8_e4m3fn), requires_grad=False
            )
    model.model.manual_cast_dtype = torch.float32
    return model


def test_weights_stored_in_fp8_show_the_subjects_as_the_same_weights_in_full_do(scene):
    small = fp8_model(scene)
    same = make.narrow_model("sd15")
    for name, module in same.model.diffusion_model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data.copy_(small.model.diffusion_model.get_submodule(name).weight.float())
    for strength in (IMAGE_ONLY, BOTH):
        ours, expected = (
            draw(scene, apply(m, scene.adapter, strength), scene.bound()) for m in (small, same)
        )
        without = draw(scene, apply(small, scene.adapter, strength), carry(scene.plain, None))
        # with LoRA the host rounds the patched weights to fp8 again
        assert difference(ours, expected) < (
            1e-3 if strength is IMAGE_ONLY else 0.5 * difference(ours, without)
        )
        assert difference(ours, without) > 1e-2


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_partly_loaded_model_draws_what_the_whole_one_draws(scene, share):
    """--lowvram: the host keeps weights without their patches and patches them as a layer is
    called; keys and values go that way too.
    """
    bound = scene.bound()
    expected = draw(scene, apply(scene.model, scene.adapter, BOTH), bound)
    comfy.model_management.unload_all_models()
    model = make.narrow_model("sd15", operations=comfy.ops.manual_cast)
    ours = apply(model, scene.adapter, BOTH)
    memory = max(1, int(share * ours.model_size()))
    ours.load(torch.device("cpu"), lowvram_model_memory=memory)
    kept = [
        m
        for m in ours.model.diffusion_model.modules()
        if getattr(m, "weight_function", None) or getattr(m, "weight_lowvram_function", None)
    ]
    assert kept, "nothing was left to be patched on the fly"
    block = scene_blocks(ours, scene)[0]
    application = application_of(ours)
    prompt = BoundPrompt(scene.subjects, scene.adapter.fingerprint)
    kind = torch.float32, torch.device("cpu")
    keys = application.keys_and_values(prompt, ours.model.diffusion_model, *kind)
    comfy.model_management.unload_all_models()
    ours.detach()
    whole = apply(scene.model, scene.adapter, BOTH)
    comfy.model_management.load_model_gpu(whole)
    again = application.keys_and_values(prompt, whole.model.diffusion_model, *kind)
    for slot in keys:
        for a, b in zip(keys[slot], again[slot], strict=True):
            assert torch.allclose(a, b, atol=1e-4), (slot, block)
    assert torch.equal(draw(scene, whole, bound), expected)


def application_of(model):
    """What `apply` left on a patched model, by its wrapper around the model's call."""
    wrappers = model.wrappers[comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL]
    ((wrapper,),) = wrappers.values()
    return wrapper.__self__


def scene_blocks(model, scene):
    from mmdiff_core.host.apply import check_unet

    return check_unet(model, scene.adapter)


def test_unloading_between_runs_changes_nothing(scene):
    ours = apply(scene.model, scene.adapter, BOTH)
    first = draw(scene, ours, scene.bound())
    comfy.model_management.unload_all_models()
    assert torch.equal(draw(scene, ours, scene.bound()), first)


def test_the_adapters_modules_are_counted_and_can_be_unloaded(scene):
    mmdiff = scene.mmdiff
    with mmdiff.loaded():
        assert mmdiff.patcher in [m.model for m in comfy.model_management.current_loaded_models]
    assert mmdiff.patcher.model_size() > 0 and mmdiff.get_models() == [mmdiff.patcher]
    comfy.model_management.unload_all_models()
    assert mmdiff.patcher not in [m.model for m in comfy.model_management.current_loaded_models]
    with mmdiff.loaded() as (modules, device):
        assert next(modules.parameters()).device.type == device.type


@pytest.mark.parametrize("like, prediction", [("sd15", "v"), ("sdxl", "v")])
def test_models_that_predict_v_show_subjects(like, prediction):
    import comfy.model_base
    import comfy.model_sampling

    scene = Scene(like)

    class VSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
        pass

    model = scene.model.clone()
    model.add_object_patch("model_sampling", VSampling(model.model.model_config))
    ours = apply(model, scene.adapter, IMAGE_ONLY)
    shown, plain = draw(scene, ours, scene.bound()), draw(scene, model, scene.plain)
    assert torch.isfinite(shown).all() and difference(shown, plain) > 1e-3
    assert (
        difference(shown, draw(scene, apply(scene.model, scene.adapter, IMAGE_ONLY), scene.bound()))
        > 1e-3
    )


# ---------------------------------------------------------------- users' LoRA on the text encoder


def test_a_users_lora_on_the_text_encoder_acts_with_and_without_subjects():
    clip, mmdiff = build.clip(), load_mmdiff(CHECKPOINT)
    subjects = (make.random_subject(mmdiff, "ann", 1),)
    styled = clip.clone()
    key = next(
        k
        for k in clip.cond_stage_model.state_dict()
        if k.endswith("layers.0.self_attn.q_proj.weight")
    )
    weight = clip.cond_stage_model.state_dict()[key]
    styled.add_patches(
        {
            key: (
                "diff",
                (0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)),),
            )
        }
    )
    found = {
        (name, bool(s)): encode_prompt(
            c, mmdiff, "a man<|subj|> reading" if s else "a man reading", "", s
        ).positive[0][0]
        for name, c in (("plain", clip), ("styled", styled))
        for s in (subjects, ())
    }
    assert difference(found["plain", True], found["styled", True]) > 1e-3
    assert difference(found["plain", False], found["styled", False]) > 1e-3
    assert difference(found["styled", True], found["styled", False]) > 1e-3
    assert torch.equal(
        found["plain", True],
        encode_prompt(clip, mmdiff, "a man<|subj|> reading", "", subjects).positive[0][0],
    )


# ---------------------------------------------------------------- several devices (newer hosts)

OTHER = torch.device("meta")


def devices_of_a_run(scene, positive):
    """What a sampling over the CPU and another device has made when its loop begins.

    (the application, its run). Nothing is sampled.
    """
    key, seen = "test-devices", []

    def two_devices(executor, guider, sigmas, extra_args, *args, **kwargs):
        options = {
            **extra_args["model_options"],
            "multigpu_clones": {torch.device("cpu"): None, OTHER: None},
        }
        return executor(guider, sigmas, {**extra_args, "model_options": options}, *args, **kwargs)

    def look(executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
        seen.append(extra_args["model_options"]["transformer_options"])
        return noise

    model = scene.model.clone()
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, key, two_devices)
    model = apply(model, scene.adapter, IMAGE_ONLY)
    model.add_wrapper_with_key(
        comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, key + "-look", look
    )
    draw(scene, model, positive)
    application = application_of(model)
    return application, seen[0][application.key], seen[0]


def test_every_device_of_a_multi_gpu_sampling_has_its_keys_and_values_before_the_loop(scene):
    application, run, _ = devices_of_a_run(scene, scene.bound())
    (here,), (there,) = run.states.values(), run.copies[OTHER].values()
    assert set(run.copies) == {OTHER} and here.keys.keys() == there.keys.keys()
    assert all(t.device == OTHER for pair in there.keys.values() for t in pair)
    assert all(t.device.type == "cpu" for pair in here.keys.values() for t in pair)


def test_rows_on_another_device_show_the_subjects_from_that_device(scene):
    subjects = tuple(s.masked(torch.ones(8, 8)) for s in scene.subjects)
    application, run, options = devices_of_a_run(scene, scene.bound(subjects))
    prompt = next(iter(run.states.values())).prompt
    options = {**options, "sigmas": torch.tensor([2.0])}
    for device in (torch.device("cpu"), OTHER):
        x = torch.zeros(1, 4, 8, 8, device=device)
        (group,) = application.groups((Row(prompt),), x, options)
        held = [
            *itertools.chain.from_iterable(group.state.keys.values()),
            *group.state.sides["tokens"].masks,
        ]
        assert {tensor.device for tensor in held} == {device}
