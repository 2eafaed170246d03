"""Neighbours that change texts or weights, or write into K and V: the image is the same bit by bit
as where every step projects the text.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import comfy.conds
import comfy.hooks
import comfy.ldm.modules.attention
import comfy.model_management
import comfy.ops
import comfy.patcher_extension
import nodes as host_nodes
import pytest
import torch

from mmdiff_core.host import kept_text
from mmdiff_core.host.apply import apply
from mmdiff_core.host.kept_text import KeptText, RunText, Tracked

from support import make
from support.kept_text import (
    EVERY_STEP,
    LAYERS,
    ONCE,
    STEPS,
    compare,
    counted,
    drawn,
    itself,
    projections,
)
from support.neighbours import narrow_controlnet
from support.scene import BOTH

LIKE = "sd15"  # fewer layers than SDXL, so more graphs
Wrappers = comfy.patcher_extension.WrappersMP
pytestmark = pytest.mark.usefixtures("as_the_host_executes")


# ---------------------------------------------------------------- what changes the text


def patch_makes_another(model):
    model.set_model_attn2_patch(lambda n, c, v, options: (n, c * 1.1, v * 0.9))
    return model


def patch_changes_v(model):
    model.set_model_attn2_patch(lambda n, c, v, options: (n, c, v * 0.9))
    return model


def patch_writes(model):
    def write(n, c, v, options):
        c.mul_(0.99)
        return n, c, c

    model.set_model_attn2_patch(write)
    return model


def wrapped(kind: str, key: str, change: Callable) -> Callable:
    """A model with a wrapper that gives every step another text."""

    def make_model(model):
        position = {Wrappers.APPLY_MODEL: 3, Wrappers.DIFFUSION_MODEL: 2}[kind]

        def wrapper(executor, *args, **kwargs):
            args = list(args)
            args[position] = change(args[position], float(args[1][0]))
            return executor(*args, **kwargs)

        model.add_wrapper_with_key(kind, key, wrapper)
        return model

    return make_model


def scaled(text: torch.Tensor, time: float) -> torch.Tensor:
    return text * (1 + time / 100)


def written(text: torch.Tensor, time: float) -> torch.Tensor:
    return text.mul_(1 + time / 100)


def function_wrapper(model):
    def wrapper(apply_model, call):
        c = dict(call["c"])
        c["c_crossattn"] = c["c_crossattn"] * float(call["timestep"][0])
        return apply_model(call["input"], call["timestep"], **c)

    model.set_model_unet_function_wrapper(wrapper)
    return model


def with_conds_changed(change: Callable) -> Callable:
    """Somebody changes the text of the processed conds before every step."""

    def make_model(model):
        def wrapper(executor, base, conds, *args):
            for cond in (cond for side in conds if side is not None for cond in side):
                change(cond["model_conds"])
            return executor(base, conds, *args)

        model.add_wrapper_with_key(Wrappers.CALC_COND_BATCH, "travel", wrapper)
        return model

    return make_model


def write_cond(model_conds):
    model_conds["c_crossattn"].cond.mul_(0.9)


def assign_cond(model_conds):
    model_conds["c_crossattn"].cond = model_conds["c_crossattn"].cond * 0.9


def replace_cond(model_conds):
    text = model_conds["c_crossattn"].cond
    model_conds["c_crossattn"] = comfy.conds.CONDCrossAttn(text * 0.9)


def make_by_class(model_conds):
    text = model_conds["c_crossattn"]
    model_conds["c_crossattn"] = type(text)(text.cond * 0.9)


def deepcopy_cond(model_conds):
    model_conds["c_crossattn"] = copy.deepcopy(model_conds["c_crossattn"])
    write_cond(model_conds)


CHANGED = {
    "attn2_patch": patch_makes_another,
    "attn2_patch in place": patch_writes,
    "APPLY_MODEL": wrapped(Wrappers.APPLY_MODEL, "a", scaled),
    "APPLY_MODEL in place": wrapped(Wrappers.APPLY_MODEL, "a", written),
    "DIFFUSION_MODEL": wrapped(Wrappers.DIFFUSION_MODEL, "a", scaled),
    "DIFFUSION_MODEL in place": wrapped(Wrappers.DIFFUSION_MODEL, "a", written),
    "function wrapper": function_wrapper,
    "cond in place": with_conds_changed(write_cond),
    "cond assigned": with_conds_changed(assign_cond),
    "cond replaced": with_conds_changed(replace_cond),
    "cond made by its class": with_conds_changed(make_by_class),
    "cond copied deeply": with_conds_changed(deepcopy_cond),
}


@pytest.mark.parametrize("who", CHANGED)
def test_a_text_that_a_neighbour_changes_is_projected_at_every_step(scene, who):
    plain, kept = compare(scene, CHANGED[who], scene.bound())
    assert plain == kept == EVERY_STEP


def test_where_a_neighbour_changes_what_v_is_made_of_k_alone_is_kept(scene):
    assert compare(scene, patch_changes_v, scene.bound())[1] == LAYERS * (STEPS + 1)


# ---------------------------------------------------------------- what reads K and V


def holder_that_writes(scene):
    """What held the slots before ours writes into the K and V that it is given."""

    def holder(q, k, v, extra_options):
        attention = comfy.ldm.modules.attention.optimized_attention
        return attention(q, k.mul_(0.9), v.add_(0.1), extra_options["n_heads"])

    model = make.narrow_model(LIKE)
    for block in scene.adapter.config.base.blocks:
        model.set_model_attn2_replace(holder, *block.slot)
    return model


def test_a_slot_that_writes_into_k_and_v_gets_fresh_ones(scene):
    found = []
    for keep in (False, True):
        ours = apply(holder_that_writes(scene), scene.adapter, BOTH, keep_text=keep)
        found.append(scene.sample(ours, scene.bound()))
    assert torch.equal(*found)


# ---------------------------------------------------------------- what changes the weights


def lora(model, seed: int = 6) -> dict[str, tuple]:
    """A user's LoRA on the text's projections, as patches of weights."""
    generator = torch.Generator().manual_seed(seed)
    weights = model.model.state_dict()
    keys = [key for key in weights if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
    return {
        key: ("diff", (0.05 * torch.randn(weights[key].shape, generator=generator),))
        for key in keys
    }


def test_a_users_lora_on_k_and_v_is_in_what_is_kept(scene):
    def patched(model):
        model.add_patches(lora(model), 0.7)
        return model

    assert compare(scene, patched, scene.bound()) == (EVERY_STEP, ONCE)
    assert not torch.equal(
        drawn(scene, patched, True, scene.bound())[0], drawn(scene, itself, True, scene.bound())[0]
    )


@pytest.mark.parametrize("strengths", [(1.0,), (0.0, 0.5, 1.0)])
def test_where_a_hook_changes_the_weights_every_step_projects(scene, strengths):
    hook = comfy.hooks.WeightHook(1.0, 1.0)
    hook.weights, hook.need_weight_init = lora(scene.model), False
    keyframes = comfy.hooks.HookKeyframeGroup()
    for i, strength in enumerate(strengths):
        keyframes.add(comfy.hooks.HookKeyframe(strength, start_percent=i / len(strengths)))
    hooks = comfy.hooks.HookGroup()
    hooks.add(hook)
    hooks.set_keyframes_on_hooks(keyframes)
    positive = comfy.hooks.set_hooks_for_conditioning(scene.bound(), hooks)
    plain, kept = compare(scene, itself, positive)
    assert plain == kept == 2 * EVERY_STEP


def test_a_weight_that_is_exchanged_between_steps_is_used(scene):
    def exchanging(model):
        def wrapper(executor, x, timestep, *args):
            layer = projections(model)[0]
            weight = layer.weight * (1 + float(timestep[0]) / 10)
            layer.weight = torch.nn.Parameter(weight, requires_grad=False)
            return executor(x, timestep, *args)

        model.add_wrapper_with_key(Wrappers.PREDICT_NOISE, "exchange", wrapper)
        return model

    assert compare(scene, exchanging, scene.bound())[1] == ONCE - 1 + STEPS


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_a_partly_loaded_model_draws_the_same(scene, share):
    found = []
    for keep in (False, True):
        model = make.narrow_model(LIKE, operations=comfy.ops.manual_cast)
        ours = apply(model, scene.adapter, BOTH, keep_text=keep)
        ours.load(torch.device("cpu"), lowvram_model_memory=max(1, int(share * ours.model_size())))
        with counted(ours) as rows:
            found.append((scene.sample(ours, scene.bound()), len(rows)))
        comfy.model_management.unload_all_models()
    assert torch.equal(found[0][0], found[1][0])
    assert [count for _, count in found] == [EVERY_STEP, ONCE]


@pytest.mark.parametrize("stored, computed", [
    (torch.float8_e4m3fn, torch.float32), (torch.float16, None), (torch.bfloat16, None),
])  # fmt: skip
def test_other_types_of_weights_and_numbers_draw_the_same(scene, stored, computed):
    found = []
    for keep in (False, True):
        dtype = torch.float32 if computed else stored
        model = make.narrow_model(LIKE, dtype, operations=comfy.ops.manual_cast)
        model.model.manual_cast_dtype = computed
        for layer in projections(model):
            layer.weight = torch.nn.Parameter(layer.weight.to(stored), requires_grad=False)
        ours = apply(model, scene.adapter, BOTH, keep_text=keep)
        with counted(ours) as rows:
            found.append((scene.sample(ours, scene.bound()), len(rows)))
    assert torch.equal(found[0][0], found[1][0]) and torch.isfinite(found[0][0]).all()
    assert [count for _, count in found] == [EVERY_STEP, ONCE]


# ---------------------------------------------------------------- whoever else is there


def test_a_controlnet_reads_the_same_text(scene):
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(5))
    positive, negative = host_nodes.ControlNetApplyAdvanced().apply_controlnet(
        scene.bound(), scene.negative, narrow_controlnet(), hint, 1.0, 0.0, 1.0
    )
    assert compare(scene, itself, positive, negative) == (EVERY_STEP, ONCE)


def test_two_adapters_on_one_model_keep_the_text_once(scene):
    second = make.random_mmdiff(make.narrow_config(LIKE), seed=7).adapter

    def both(model):
        return apply(model, second, BOTH)

    assert compare(scene, both, scene.bound())[1] == ONCE


def test_a_layer_that_is_compiled_or_somebodys_own_is_left_alone(scene):
    def compiled(model):
        model.model.diffusion_model.middle_block[1]._compiled_call_impl = lambda *args: None
        return kept_text.projections(model.model.diffusion_model, scene.adapter.config.base.blocks)

    assert compiled(make.narrow_model(LIKE)) == []

    def taken(model):
        layer = projections(model)[3]
        own = type(layer).forward
        layer.forward = lambda x: own(layer, x) * 1.5
        return model

    plain, kept = compare(scene, taken, scene.bound())
    assert plain == kept


def test_nothing_is_kept_where_gradients_are_wanted():
    source, kept = Tracked.of(torch.rand(1, 5, 4)), KeptText(1 << 20)
    with torch.inference_mode(False), torch.enable_grad():
        layer = torch.nn.Linear(4, 3)
        joined = RunText(source.tensor, source, kept).process_cond(2).concat([])
        assert joined.shape == (2, 5, 4)
        with kept.on([layer]):
            assert layer(joined) is not layer(joined)
            assert layer(joined).requires_grad
            with torch.no_grad():
                layer(joined)
                assert layer(joined) is layer(joined)
