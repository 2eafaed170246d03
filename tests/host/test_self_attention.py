"""Self-attention kept inside the subjects' regions, in the host's own model and sampler."""

from __future__ import annotations

import comfy.ldm.modules.attention as host_attention
import nodes as host_nodes
import pytest
import torch
from comfy_extras import nodes_hypertile, nodes_sag, nodes_tomesd

from mmdiff_core.host import self_attention
from mmdiff_core.host.application import Application, Strength
from mmdiff_core.host.apply import apply
from mmdiff_core.host.finder import Finder
from mmdiff_core.method.subjects import FindRegions

from support import make
from support.scene import BOTH, IMAGE_ONLY, LORA_ONLY, ONE_STEP, close, half_masks
from support.watching import NOUNS, prompt

LIKE = "sd15"  # fewer layers than SDXL, so more graphs


def inside(scene, masks=None, **region) -> tuple:
    """The scene's subjects in two halves, or in `masks`; tokens and nouns left free."""
    masks = half_masks(8) if masks is None else masks
    return tuple(
        s.within(mask=mask, hold_tokens=False, bound_self_attention=True, **region)
        for s, mask in zip(scene.subjects, masks, strict=True)
    )


def slots_of(model, monkeypatch, scene, positive) -> set:
    """The self-attention slots of a run's model calls."""
    seen, on_call = set(), Application.on_call

    def noted(self, executor, x, timesteps, context, y, control, options, **kwargs):
        seen.update(options.get("patches_replace", {}).get("attn1", {}))
        return on_call(self, executor, x, timesteps, context, y, control, options, **kwargs)

    monkeypatch.setattr(Application, "on_call", noted)
    patched = apply(model, scene.adapter, BOTH)
    scene.sample(patched, positive)
    return seen


def test_a_prompt_that_does_not_ask_for_it_has_no_slot_in_self_attention(scene, monkeypatch):
    free = tuple(s.within(bound_self_attention=False) for s in inside(scene))
    assert slots_of(scene.model, monkeypatch, scene, prompt(scene, free)) == set()


def test_one_that_asks_has_all_of_them_for_the_run_alone(scene, monkeypatch):
    blocks = {block.slot for block in scene.adapter.config.base.blocks}
    assert slots_of(scene.model, monkeypatch, scene, prompt(scene, inside(scene))) == blocks
    options = scene.model.model_options["transformer_options"]
    assert "attn1" not in options.get("patches_replace", {})


def test_it_is_the_same_as_a_self_attention_that_cannot_see_the_other_half(scene, model):
    """Written out: on the conditional row alone, one call."""

    def halves(q, k, v, extra_options):
        left = torch.arange(extra_options["activations_shape"][-1])
        left = left < len(left) / 2 if len(left) > 1 else left >= 0
        side = left.expand(extra_options["activations_shape"][-2:]).flatten()
        hidden = torch.where(side[:, None] == side, 0.0, -torch.inf).to(q)
        return host_attention.attention_basic(q, k, v, extra_options["n_heads"], mask=hidden)

    written_out = model.clone()
    for block in scene.adapter.config.base.blocks:
        written_out.set_model_attn1_replace(halves, *block.slot)
    options = {"cfg": 1.0, "sigmas": ONE_STEP}
    expected = scene.sample(written_out, prompt(scene), **options)
    found = scene.sample(model, prompt(scene, inside(scene)), **options)
    assert close(found, expected)
    assert not close(found, scene.sample(model, prompt(scene), **options))


def test_regions_that_are_everywhere_keep_nothing_apart(scene, model):
    everywhere = inside(scene, (torch.ones(8, 8), torch.ones(8, 8)))
    assert close(scene.sample(model, prompt(scene, everywhere)), scene.sample(model, prompt(scene)))


def test_a_subject_without_a_region_takes_no_part(scene, model):
    (first, second), left = scene.subjects, half_masks(8)[0]
    alone = first.within(mask=left, hold_tokens=False, bound_self_attention=True)
    free = second.within(bound_self_attention=True)
    assert torch.equal(
        scene.sample(model, prompt(scene, (alone, free))), scene.sample(model, prompt(scene))
    )


def test_the_unconditional_row_is_never_touched(scene, model):
    bound, plain = prompt(scene, inside(scene)), scene.negative
    rows = {}

    def uncond(args):
        rows[len(rows)] = args["uncond_denoised"].clone()
        return args["denoised"]

    watched = model.clone()
    watched.set_model_sampler_post_cfg_function(uncond)
    scene.sample(watched, bound, negative=plain, sigmas=ONE_STEP)
    scene.sample(watched, prompt(scene), negative=plain, sigmas=ONE_STEP)
    assert close(rows[0], rows[1])


def test_in_an_area_with_one_subjects_region_alone_nothing_is_kept_apart(scene, model):
    def drawn(subjects):
        (left,) = host_nodes.ConditioningSetArea().append(
            prompt(scene, subjects), 64, 64, 0, 0, 1.0
        )
        return scene.sample(model, left, cfg=1.0, sigmas=ONE_STEP, size=(8, 16))[..., :8]

    halves = inside(scene, half_masks(16))
    assert close(drawn(halves), drawn(scene.subjects))
    quarters = torch.zeros(2, 16, 16)
    quarters[0, :, :4] = quarters[1, :, 4:8] = 1
    assert not close(drawn(inside(scene, quarters)), drawn(scene.subjects))


def finding(scene, **plan) -> tuple:
    # random weights read everywhere nearly alike
    find = FindRegions(settle=0.5, sharpness=1e5, **plan)
    return tuple(
        s.within(find=find, hold_tokens=False, bound_self_attention=True) for s in scene.subjects
    )


@pytest.mark.parametrize("update", [False, True])
def test_found_regions_keep_subjects_apart_in_every_image_of_a_batch(scene, model, update):
    found = prompt(scene, finding(scene, update=update))
    drawn = scene.sample(model, found, batch=2)
    assert not close(drawn, scene.sample(model, prompt(scene), batch=2))
    assert close(drawn[:1], scene.sample(model, found))


def test_on_the_ground_found_regions_keep_nothing_apart(scene, model, monkeypatch):
    def ground(self):
        images = self.canvas.looks.shape[0]
        whole = torch.zeros(images, 3, *self.canvas.grid)
        whole[:, 0, :, :4] = whole[:, 1, :, 4:] = 1  # and inside nobody
        return whole

    monkeypatch.setattr(Finder, "_find", ground)
    found = scene.sample(model, prompt(scene, finding(scene)))
    assert close(found, scene.sample(model, prompt(scene)))


def test_it_begins_and_ends_with_apply(scene):
    patched = apply(scene.model, scene.adapter, Strength(start=1.0))
    assert close(
        scene.sample(patched, prompt(scene, inside(scene)), sigmas=ONE_STEP),
        scene.sample(patched, prompt(scene), sigmas=ONE_STEP),
    )


@pytest.mark.parametrize("strength", [LORA_ONLY, Strength(layers="input=0, middle=0, output=0")])
def test_where_the_image_branch_is_off_nothing_is_kept_apart(scene, strength):
    patched = apply(scene.model, scene.adapter, strength)
    free = scene.sample(patched, prompt(scene), sigmas=ONE_STEP)
    assert torch.equal(scene.sample(patched, prompt(scene, inside(scene)), sigmas=ONE_STEP), free)


def test_two_adapters_on_one_model_keep_each_prompts_subjects_apart(scene, model):
    other = make.random_mmdiff(make.narrow_config(LIKE), seed=5).adapter
    both = apply(model, other, IMAGE_ONLY)
    bound = prompt(scene, inside(scene))
    options = {"cfg": 1.0, "sigmas": ONE_STEP}
    assert close(scene.sample(both, bound, **options), scene.sample(model, bound, **options))


# ---------------------------------------------------------------- other packs


def test_another_packs_self_attention_is_an_error_that_names_it(scene):
    guided = nodes_sag.SelfAttentionGuidance.execute(scene.model, 0.8, 2.0)[0]
    patched = apply(guided, scene.adapter, BOTH)
    with pytest.raises(RuntimeError, match="replaced the self-attention in 1 layers .*attn_and"):
        scene.sample(patched, prompt(scene, inside(scene)), size=(16, 16))
    scene.sample(patched, prompt(scene), size=(16, 16))


@pytest.mark.parametrize("name", ["HyperTile", "Token Merging"])
def test_positions_that_another_node_cuts_or_joins_are_an_error_that_says_so(scene, name):
    if name == "HyperTile":
        changed = nodes_hypertile.HyperTile.execute(scene.model, 32, 2, 0, False)[0]
    else:
        changed = nodes_tomesd.TomePatchModel.execute(scene.model, 0.5)[0]
    patched = apply(changed, scene.adapter, BOTH)
    with pytest.raises(RuntimeError, match="turn bound_self_attention off, or remove that node"):
        scene.sample(patched, prompt(scene, inside(scene)), size=(16, 16))


def test_after_an_exception_no_slot_is_left(scene, model, monkeypatch):
    def broken(*_args):
        raise ZeroDivisionError

    bound = prompt(scene, inside(scene), NOUNS)
    with monkeypatch.context() as patch:
        patch.setattr(self_attention, "attend_apart", broken)
        with pytest.raises(ZeroDivisionError):
            scene.sample(model, bound)
    assert "attn1" not in model.model_options["transformer_options"]["patches_replace"]
    scene.sample(model, bound)
