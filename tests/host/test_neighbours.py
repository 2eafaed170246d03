"""Other packs on the same model, before and after ours.

Nothing crashes, both act, nobody is poisoned.
"""

from __future__ import annotations

import inspect

import comfy.cldm.cldm
import comfy.controlnet
import comfy.ldm.modules.attention
import comfy.model_management
import comfy.ops
import comfy.sample
import comfy.samplers
import pytest
import torch

from mmdiff_core.host.apply import apply
from mmdiff_core.host.slot import Added, SubjectAttention

from support import make
from support.neighbours import draw
from support.scene import IMAGE_ONLY, STEPS, close

LIKE = "sd15"  # fewer layers than SDXL, so more graphs

# ---------------------------------------------------------------- packs that add to a slot
# (IPAdapter_plus, InstantID, PuLID)


class TheirSlot:
    """A stand-in for what those packs put into a slot.

    A list of callbacks that each add to plain attention, and an `add` that they call on whatever
    they find there (host.md 3.6).
    """

    def __init__(self, callback, **kwargs):
        self.callbacks = [(callback, kwargs)]

    def add(self, callback, **kwargs):
        self.callbacks.append((callback, kwargs))

    def __call__(self, q, k, v, extra_options):
        out = comfy.ldm.modules.attention.optimized_attention(q, k, v, extra_options["n_heads"])
        sigma = extra_options["sigmas"][0].item()
        for callback, kwargs in self.callbacks:
            if kwargs["sigma_end"] <= sigma <= kwargs["sigma_start"]:
                out = out + callback(out, q, k, v, extra_options, **kwargs)
        return out


def their_apply(model, amount: float, sigma_start: float = 999999999.9, sigma_end: float = 0.0):
    """How they patch a clone: found slots are added to, in place; empty ones filled."""

    def theirs(out, q, k, v, extra_options, amount, **kwargs):
        return amount * 20 * torch.sin(q)

    patched = model.clone()
    options = patched.model_options["transformer_options"] = patched.model_options[
        "transformer_options"
    ].copy()
    replace = options["patches_replace"] = options.get("patches_replace", {}).copy()
    slots = replace["attn2"] = replace.get("attn2", {}).copy()
    kwargs = {"amount": amount, "sigma_start": sigma_start, "sigma_end": sigma_end}
    for key in [("middle", 0), ("input", 4), ("output", 3)]:
        for slot in (key, (*key, 0)):
            if slot in slots:
                slots[slot].add(theirs, **kwargs)
                break
        else:
            slots[key] = TheirSlot(theirs, **kwargs)
    return patched


def test_a_pack_that_adds_to_slots_acts_beside_ours_in_either_order(scene):
    bound = scene.bound()
    before = apply(their_apply(scene.model, 0.5), scene.adapter, IMAGE_ONLY)
    after = their_apply(apply(scene.model, scene.adapter, IMAGE_ONLY), 0.5)
    first, second = draw(scene, before, bound), draw(scene, after, bound)
    assert close(first, second)
    assert not close(first, draw(scene, their_apply(scene.model, 0.5), scene.plain))
    assert not close(first, draw(scene, apply(scene.model, scene.adapter, IMAGE_ONLY), bound))


def test_such_a_pack_twice_around_ours_acts_twice(scene):
    around = their_apply(apply(their_apply(scene.model, 0.3), scene.adapter, IMAGE_ONLY), 0.2)
    once = apply(their_apply(scene.model, 0.5), scene.adapter, IMAGE_ONLY)
    assert close(draw(scene, around, scene.bound()), draw(scene, once, scene.bound()))


def test_what_is_added_to_a_clone_is_not_in_the_model_it_was_cloned_from(scene):
    ours = apply(scene.model, scene.adapter, IMAGE_ONLY)
    expected = draw(scene, ours, scene.bound())
    once = their_apply(ours, 0.5)
    added = draw(scene, once, scene.bound())
    their_apply(once, 0.5)
    two_adapters = apply(
        once, make.random_mmdiff(make.narrow_config("sd15"), seed=7).adapter, IMAGE_ONLY
    )
    their_apply(two_adapters, 0.5)
    assert torch.equal(draw(scene, ours, scene.bound()), expected) and torch.equal(
        draw(scene, once, scene.bound()), added
    )
    assert torch.equal(draw(scene, two_adapters, scene.bound()), added)


def test_what_others_add_keeps_to_its_own_sigmas(scene):
    ours = apply(scene.model, scene.adapter, IMAGE_ONLY)
    plain = draw(scene, ours, scene.bound())
    assert torch.equal(draw(scene, their_apply(ours, 0.5, sigma_start=3.0), scene.bound()), plain)
    assert torch.equal(draw(scene, their_apply(ours, 0.5, sigma_end=5.0), scene.bound()), plain)
    assert not close(
        draw(scene, their_apply(ours, 0.5, sigma_start=4.0, sigma_end=4.0), scene.bound()), plain
    )


def test_on_an_accelerator_what_others_add_waits_for_nothing():
    """Their window is decided on the device; here the meta device, which cannot be read at all."""
    added = Added(
        lambda out, q, k, v, extra_options, **kwargs: torch.ones_like(q),
        {"sigma_start": 3.0, "sigma_end": 1.0},
    )
    q = torch.empty(2, 4, 8, device="meta")
    assert added(q, q, q, q, {"sigmas": torch.empty(1, device="meta")}).shape == q.shape


# ---------------------------------------------------------------- packs that replace a slot


def test_a_function_that_took_our_slots_is_an_error_that_names_it_and_says_what_to_do(scene):
    def someone_elses_attention(q, k, v, extra_options):
        return torch.zeros_like(q)

    ours = apply(scene.model, scene.adapter, IMAGE_ONLY)
    ours.set_model_attn2_replace(someone_elses_attention, "middle", 0, 0)
    with pytest.raises(
        RuntimeError,
        match=r"1 of 16 cross-attention layers.*someone_elses_attention.*"
        "before Apply MM-Diff Attention",
    ):
        draw(scene, ours, scene.bound())
    # without subjects there is nothing to lose
    assert torch.isfinite(draw(scene, ours, scene.plain)).all()


def test_a_function_that_keeps_our_slot_as_its_base_is_none_of_our_business(scene):
    ours = apply(scene.model, scene.adapter, IMAGE_ONLY)
    expected = draw(scene, ours, scene.bound())
    held = ours.model_options["transformer_options"]["patches_replace"]["attn2"]["middle", 0]

    class Holder:
        def __init__(self, base):
            self.rest = {"base": [base]}

        def __call__(self, q, k, v, extra_options):
            return self.rest["base"][0](q, k, v, extra_options)

    for keeper in (lambda q, k, v, extra_options: held(q, k, v, extra_options), Holder(held)):
        clone = ours.clone()
        clone.set_model_attn2_replace(keeper, "middle", 0, 0)
        assert torch.equal(draw(scene, clone, scene.bound()), expected)


# ---------------------------------------------------------------- attention functions and
# compilation


def test_an_override_of_attention_serves_the_text_and_not_the_subjects(scene):
    """Sage and flash overrides are made for long keys; a subject's few tokens go through SDPA."""
    lengths = []

    def override(func, q, k, v, *args, **kwargs):
        lengths.append(k.shape[1])
        return func(q, k, v, *args, **kwargs)

    ours = apply(scene.model, scene.adapter, IMAGE_ONLY)
    ours.model_options["transformer_options"]["optimized_attention_override"] = override
    expected = draw(scene, apply(scene.model, scene.adapter, IMAGE_ONLY), scene.bound())
    assert torch.equal(draw(scene, ours, scene.bound()), expected)
    tokens = sum(len(s.subject.tokens) for s in scene.subjects)
    assert lengths.count(77) == 16 and tokens not in lengths


def test_compiling_the_unet_makes_one_graph_for_all_steps_as_for_the_plain_model(scene):
    """TorchCompileModel's way, with a backend that only counts graphs.

    The host's attention for CPUs reads the free memory, which no graph can; its pytorch attention,
    which every GPU has, stands in.
    """
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    def graphs_of(model, positive) -> tuple[int, torch.Tensor]:
        torch._dynamo.reset()
        graphs = []

        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward

        compiled = model.clone()
        compiled.model_options["transformer_options"]["optimized_attention_override"] = (
            lambda func, *args, **kwargs: comfy.ldm.modules.attention.attention_pytorch(
                *args, **kwargs
            )
        )
        set_torch_compile_wrapper(compiled, backend=backend)
        out = draw(scene, compiled, positive, sigmas=STEPS)
        torch._dynamo.reset()
        return len(graphs), out

    ours = apply(scene.model, scene.adapter, IMAGE_ONLY)
    plain, _ = graphs_of(scene.model, scene.plain)
    with_subjects, found = graphs_of(ours, scene.bound())
    assert (plain, with_subjects) == (1, 1) and close(
        found, draw(scene, ours, scene.bound(), sigmas=STEPS)
    )


def test_the_patch_holds_nothing_that_the_host_would_call_by_mistake():
    """Core calls `.to`, `.models` and `.cleanup` on patch objects that have them."""
    names = {name for name, _ in inspect.getmembers(SubjectAttention)}
    assert not names & {"to", "models", "cleanup", "get_models"}


def test_a_function_that_calls_our_slot_in_some_steps_only_is_none_of_our_business(scene):
    ours = apply(scene.model, scene.adapter, IMAGE_ONLY)
    held = ours.model_options["transformer_options"]["patches_replace"]["attn2"]["middle", 0]

    def late(q, k, v, extra_options):
        return (
            held(q, k, v, extra_options)
            if float(extra_options["sigmas"][0]) < 1.0
            else torch.zeros_like(q)
        )

    ours.set_model_attn2_replace(late, "middle", 0, 0)
    assert torch.isfinite(
        draw(scene, ours, scene.bound(), sigmas=torch.tensor([4.0, 0.5, 0.0]))
    ).all()


def test_a_function_that_holds_our_slot_but_never_calls_it_is_an_error_too(scene):
    """What an object refers to says nothing: what counts is that our slot was called."""
    ours = apply(scene.model, scene.adapter, IMAGE_ONLY)
    held = ours.model_options["transformer_options"]["patches_replace"]["attn2"]["middle", 0]

    def keeper(q, k, v, extra_options):
        return torch.zeros_like(q) if extra_options is not None else held(q, k, v, extra_options)

    ours.set_model_attn2_replace(keeper, "middle", 0, 0)
    with pytest.raises(RuntimeError, match=r"1 of 16 cross-attention layers.*keeper"):
        draw(scene, ours, scene.bound())
