"""Other packs and core nodes on the same model, before and after ours: nothing crashes, both act, nobody is poisoned."""
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
from comfy_extras import (
    nodes_apg,
    nodes_cfg,
    nodes_freelunch,
    nodes_hypertile,
    nodes_model_downscale,
    nodes_model_merging,
    nodes_pag,
    nodes_sag,
    nodes_tcfg,
    nodes_tomesd,
)
from test_promises import BOTH, IMAGE_ONLY, Scene

from mmdiff_core.host.apply import apply
from mmdiff_core.host.conditioning import carry
from mmdiff_core.host.slot import Added, SubjectAttention

import make

ONE_STEP = torch.tensor([4.0, 0.0])
STEPS = torch.tensor([4.0, 2.0, 1.0, 0.0])


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene("sd15")


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=2e-4)


def draw(scene, model, positive, cfg=1.0, sigmas=ONE_STEP, size=(8, 8), negative=None) -> torch.Tensor:
    return scene.sample(model, positive, negative, cfg=cfg, sigmas=sigmas, size=size)


# ---------------------------------------------------------------- packs that add to a slot (IPAdapter_plus, InstantID, PuLID)

class TheirSlot:
    """A stand-in for what those packs put into a slot: a list of callbacks that each add to plain attention, and an `add` that they call
    on whatever they find there (host.md 3.6)."""

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
    options = patched.model_options["transformer_options"] = patched.model_options["transformer_options"].copy()
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
    two_adapters = apply(once, make.random_mmdiff(make.narrow_config("sd15"), seed=7).adapter, IMAGE_ONLY)
    their_apply(two_adapters, 0.5)
    assert torch.equal(draw(scene, ours, scene.bound()), expected) and torch.equal(draw(scene, once, scene.bound()), added)
    assert torch.equal(draw(scene, two_adapters, scene.bound()), added)


def test_what_others_add_keeps_to_its_own_sigmas(scene):
    ours = apply(scene.model, scene.adapter, IMAGE_ONLY)
    plain = draw(scene, ours, scene.bound())
    assert torch.equal(draw(scene, their_apply(ours, 0.5, sigma_start=3.0), scene.bound()), plain)
    assert torch.equal(draw(scene, their_apply(ours, 0.5, sigma_end=5.0), scene.bound()), plain)
    assert not close(draw(scene, their_apply(ours, 0.5, sigma_start=4.0, sigma_end=4.0), scene.bound()), plain)


def test_on_an_accelerator_what_others_add_waits_for_nothing():
    """Their window is decided on the device; here the meta device, which cannot be read at all."""
    added = Added(lambda out, q, k, v, extra_options, **kwargs: torch.ones_like(q), {"sigma_start": 3.0, "sigma_end": 1.0})
    q = torch.empty(2, 4, 8, device="meta")
    assert added(q, q, q, q, {"sigmas": torch.empty(1, device="meta")}).shape == q.shape


# ---------------------------------------------------------------- packs that replace a slot

def test_a_function_that_took_our_slots_is_an_error_that_names_it_and_says_what_to_do(scene):
    def someone_elses_attention(q, k, v, extra_options):
        return torch.zeros_like(q)

    ours = apply(scene.model, scene.adapter, IMAGE_ONLY)
    ours.set_model_attn2_replace(someone_elses_attention, "middle", 0, 0)
    with pytest.raises(RuntimeError, match=r"1 of 16 cross-attention layers.*someone_elses_attention.*before Apply MM-Diff Attention"):
        draw(scene, ours, scene.bound())
    assert torch.isfinite(draw(scene, ours, scene.plain)).all()         # without subjects there is nothing to lose


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


# ---------------------------------------------------------------- core nodes on the model

def downscale(model):
    return nodes_model_downscale.PatchModelAddDownscale.execute(model, 3, 2.0, 0.0, 1.0, True, "bicubic", "bicubic").args[0]


def style_lora(model):
    patched = model.clone()
    weights = {k: v for k, v in model.model.state_dict().items() if k.endswith(("to_k.weight", "to_v.weight", "to_q.weight"))}
    generator = torch.Generator().manual_seed(3)
    patched.add_patches({k: ("diff", (0.1 * torch.randn(v.shape, generator=generator),)) for k, v in weights.items()})
    return patched


def rescale_cfg(model):
    from comfy_extras.nodes_model_advanced import RescaleCFG
    return RescaleCFG().patch(model, 0.7)[0]


def mixed_self_attention(model):
    """A patch on the self-attention's output that looks at both rows, as NAGuidance of newer hosts sets it."""
    def away_from_uncond(out, extra_options):
        kinds = extra_options["cond_or_uncond"]
        if sorted(kinds) == [0, 1]:
            rows = list(out.chunk(2))
            rows[kinds.index(0)] = 1.5 * rows[kinds.index(0)] - 0.5 * rows[kinds.index(1)]
            out = torch.cat(rows)
        return out

    patched = model.clone()
    patched.set_model_attn1_output_patch(away_from_uncond)
    return patched


CORE_NODES = {
    "APG": lambda m: _first(nodes_apg.APG.execute(m, 1.0, 5.0, 0.5)),
    "TCFG": lambda m: _first(nodes_tcfg.TCFG.execute(m)),
    "CFGZeroStar": lambda m: _first(nodes_cfg.CFGZeroStar.execute(m)),
    "as NAGuidance": mixed_self_attention,
    "FreeU_V2": lambda m: nodes_freelunch.FreeU_V2().patch(m, 1.3, 1.4, 0.9, 0.2)[0],
    "HyperTile": lambda m: _first(nodes_hypertile.HyperTile.execute(m, 32, 2, 0, False)),
    "PatchModelAddDownscale": downscale,
    "TomePatchModel": lambda m: _first(nodes_tomesd.TomePatchModel.execute(m, 0.5)),
    "PerturbedAttentionGuidance": lambda m: _first(nodes_pag.PerturbedAttentionGuidance.execute(m, 3.0)),
    "SelfAttentionGuidance": lambda m: _first(nodes_sag.SelfAttentionGuidance.execute(m, 0.8, 2.0)),
    "RescaleCFG": rescale_cfg,
    "a style LoRA": style_lora,
}


def _first(result):
    return result.args[0] if hasattr(result, "args") else result[0]


@pytest.mark.parametrize("node", CORE_NODES)
def test_core_nodes_before_and_after_ours_act_and_leave_the_subjects(scene, node):
    check_beside_ours(scene, CORE_NODES[node])


def check_beside_ours(scene, theirs):
    """`theirs` (MODEL -> MODEL) acts before and after ours alike, the subjects show, and the model is called as often as without us."""
    bound = scene.bound()

    def sample(model, positive):
        torch.manual_seed(0)        # ToMe draws its tokens from the global generator
        calls = []
        handle = model.model.diffusion_model.register_forward_pre_hook(lambda m, args: calls.append(len(args[0])))
        out = draw(scene, model, positive, cfg=3.0, sigmas=STEPS, size=(16, 16))
        handle.remove()
        return out, calls

    before, calls = sample(apply(theirs(scene.model), scene.adapter, IMAGE_ONLY), bound)
    after, _ = sample(theirs(apply(scene.model, scene.adapter, IMAGE_ONLY)), bound)
    alone, plain_calls = sample(theirs(scene.model), scene.plain)
    without, _ = sample(apply(scene.model, scene.adapter, IMAGE_ONLY), bound)
    assert torch.isfinite(before).all() and calls == plain_calls
    shows, acts = ((before - other).abs().max() for other in (alone, without))
    assert (before - after).abs().max() <= 0.02 * min(shows, acts), "the order matters"
    assert shows > 1e-3 and acts > 1e-5, (shows, acts)      # the narrow model's guidance is weak


@pytest.mark.parametrize("ours_first", [True, False])
def test_merging_models_keeps_the_subjects(scene, ours_first):
    """ModelMergeSimple takes the first model's options and clones it; its weights blend with the second's."""
    other = style_lora(scene.model)
    ours = apply(scene.model, scene.adapter, BOTH)
    merged = nodes_model_merging.ModelMergeSimple().merge(ours, other, 0.5)[0] if ours_first else apply(
        nodes_model_merging.ModelMergeSimple().merge(scene.model, other, 0.5)[0], scene.adapter, BOTH)
    found = draw(scene, merged, scene.bound())
    assert torch.isfinite(found).all() and not close(found, draw(scene, merged, carry(scene.plain, None)))


def test_a_users_lora_before_or_after_ours_makes_the_same_picture(scene):
    before, after = apply(style_lora(scene.model), scene.adapter, BOTH), style_lora(apply(scene.model, scene.adapter, BOTH))
    assert close(draw(scene, before, scene.bound()), draw(scene, after, scene.bound()))
    assert not close(draw(scene, before, scene.bound()), draw(scene, apply(scene.model, scene.adapter, BOTH), scene.bound()))


def test_a_lora_hook_acts_on_its_prompts_text_and_the_subjects_show(scene):
    """Create Hook LoRA: the subjects' keys and values are made once a run, from the weights without hooks."""
    import comfy.hooks
    generator, lora = torch.Generator().manual_seed(6), {}
    for key, weight in scene.model.model.state_dict().items():
        if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight", "attn1.to_q.weight")):
            name = "lora_unet_" + key.removeprefix("diffusion_model.").removesuffix(".weight").replace(".", "_")
            lora[f"{name}.lora_up.weight"] = torch.randn(weight.shape[0], 4, generator=generator)
            lora[f"{name}.lora_down.weight"] = 0.1 * torch.randn(4, weight.shape[1], generator=generator)
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)

    def hooked(positive):
        return comfy.hooks.set_hooks_for_conditioning(positive, hooks)

    ours = apply(scene.model, scene.adapter, BOTH)
    pictures = [draw(scene, ours, p, cfg=3.0) for p in (scene.bound(), hooked(scene.bound()), hooked(carry(scene.plain, None)))]
    assert all(torch.isfinite(p).all() for p in pictures)
    assert not any(close(a, b) for a, b in ((pictures[0], pictures[1]), (pictures[1], pictures[2])))


def narrow_controlnet():
    config = {
        "image_size": 32, "in_channels": 4, "model_channels": 32, "hint_channels": 3, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1] * 6 + [0, 0], "transformer_depth_middle": 1, "num_head_channels": 16, "use_spatial_transformer": True,
        "context_dim": make.CONTEXT, "legacy": False, "use_linear_in_transformer": False, "operations": comfy.ops.manual_cast,
    }
    with torch.random.fork_rng():
        torch.manual_seed(4)
        control = comfy.cldm.cldm.ControlNet(**config)
        for parameter in control.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    control.eval().requires_grad_(False)
    return comfy.controlnet.ControlNet(control, load_device=comfy.model_management.get_torch_device(), manual_cast_dtype=torch.float32)


def test_a_controlnet_steers_while_the_subjects_show(scene):
    import nodes as host_nodes
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(5))
    control = narrow_controlnet()
    ours = apply(scene.model, scene.adapter, IMAGE_ONLY)

    def steered(positive):
        found = host_nodes.ControlNetApplyAdvanced().apply_controlnet(positive, scene.negative, control, hint, 1.0, 0.0, 1.0)
        return draw(scene, ours, found[0], cfg=3.0, sigmas=STEPS, negative=found[1])

    both, control_alone = steered(scene.bound()), steered(scene.plain)
    assert torch.isfinite(both).all() and not close(both, control_alone)
    assert not close(both, draw(scene, ours, scene.bound(), cfg=3.0, sigmas=STEPS))


def test_patches_in_the_transformer_as_gligen_sets_them_run_beside_ours(scene):
    seen = []

    def middle(x, extra_options):
        seen.append(extra_options["block"])
        return x + 0.3 * torch.sin(x)

    patched = apply(scene.model, scene.adapter, IMAGE_ONLY).clone()
    patched.set_model_patch(middle, "middle_patch")
    found = draw(scene, patched, scene.bound())
    assert len(seen) == 16 and not close(found, draw(scene, apply(scene.model, scene.adapter, IMAGE_ONLY), scene.bound()))


# ---------------------------------------------------------------- attention functions and compilation

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
    """TorchCompileModel's way, with a backend that only counts graphs. The host's attention for CPUs reads the free memory, which no graph
    can; its pytorch attention, which every GPU has, stands in."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    def graphs_of(model, positive) -> tuple[int, torch.Tensor]:
        torch._dynamo.reset()
        graphs = []

        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward

        compiled = model.clone()
        compiled.model_options["transformer_options"]["optimized_attention_override"] = (
            lambda func, *args, **kwargs: comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)
        )
        set_torch_compile_wrapper(compiled, backend=backend)
        out = draw(scene, compiled, positive, sigmas=STEPS)
        torch._dynamo.reset()
        return len(graphs), out

    ours = apply(scene.model, scene.adapter, IMAGE_ONLY)
    plain, _ = graphs_of(scene.model, scene.plain)
    with_subjects, found = graphs_of(ours, scene.bound())
    assert (plain, with_subjects) == (1, 1) and close(found, draw(scene, ours, scene.bound(), sigmas=STEPS))


def test_the_patch_holds_nothing_that_the_host_would_call_by_mistake():
    """Core calls `.to`, `.models` and `.cleanup` on patch objects that have them."""
    names = {name for name, _ in inspect.getmembers(SubjectAttention)}
    assert not names & {"to", "models", "cleanup", "get_models"}


def test_a_function_that_holds_our_slot_but_never_calls_it_is_an_error_too(scene):
    """What an object refers to says nothing: what counts is that our slot was called."""
    ours = apply(scene.model, scene.adapter, IMAGE_ONLY)
    held = ours.model_options["transformer_options"]["patches_replace"]["attn2"]["middle", 0]

    def keeper(q, k, v, extra_options):
        return torch.zeros_like(q) if extra_options is not None else held(q, k, v, extra_options)

    ours.set_model_attn2_replace(keeper, "middle", 0, 0)
    with pytest.raises(RuntimeError, match=r"1 of 16 cross-attention layers.*keeper"):
        draw(scene, ours, scene.bound())


def test_a_function_that_calls_our_slot_in_some_steps_only_is_none_of_our_business(scene):
    ours = apply(scene.model, scene.adapter, IMAGE_ONLY)
    held = ours.model_options["transformer_options"]["patches_replace"]["attn2"]["middle", 0]

    def late(q, k, v, extra_options):
        return held(q, k, v, extra_options) if float(extra_options["sigmas"][0]) < 1.0 else torch.zeros_like(q)

    ours.set_model_attn2_replace(late, "middle", 0, 0)
    assert torch.isfinite(draw(scene, ours, scene.bound(), sigmas=torch.tensor([4.0, 0.5, 0.0]))).all()
