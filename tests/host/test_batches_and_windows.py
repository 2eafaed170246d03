"""Batches, guidance and windows in time."""

from __future__ import annotations

import torch

from mmdiff_core.host.application import Strength
from mmdiff_core.host.apply import apply
from mmdiff_core.host.conditioning import BoundPrompt
from mmdiff_core.host.progress import Window

from support.scene import BOTH, IMAGE_ONLY, SIGMAS

# ---------------------------------------------------------------- batching and guidance


def test_one_latent_and_a_batch_of_four_agree(scene):
    model = apply(scene.model, scene.adapter, BOTH)
    one, four = scene.sample(model, scene.bound()), scene.sample(model, scene.bound(), batch=4)
    assert torch.allclose(four, one.expand(4, -1, -1, -1), atol=1e-4)


def test_conds_run_separately_agree_with_conds_run_together(scene, monkeypatch):
    model = apply(scene.model, scene.adapter, BOTH)
    together = scene.sample(model, scene.bound())
    sizes = []
    handle = model.model.diffusion_model.register_forward_pre_hook(
        lambda m, args: sizes.append(len(args[0]))
    )
    monkeypatch.setattr(
        type(model.model), "memory_required", lambda self, shape, **kw: 0 if shape[0] == 1 else 1e18
    )
    apart = scene.sample(model, scene.bound())
    handle.remove()
    assert set(sizes) == {1} and len(sizes) == 2 * (len(SIGMAS) - 1)
    assert torch.allclose(together, apart, atol=1e-4)


def test_guidance_of_one_runs_only_the_conditional_row(scene):
    model = apply(scene.model, scene.adapter, BOTH)
    assert torch.isfinite(scene.sample(model, scene.bound(), cfg=1.0)).all()
    assert not torch.allclose(
        scene.sample(model, scene.bound(), cfg=1.0),
        scene.sample(model, scene.plain, cfg=1.0),
        atol=1e-3,
    )


def test_a_zeroed_out_prompt_shows_no_subject(scene):
    model = apply(scene.model, scene.adapter, IMAGE_ONLY)
    zeroed = [[torch.zeros_like(c), o] for c, o in scene.bound()]
    stock = [[torch.zeros_like(c), o] for c, o in scene.plain]
    assert torch.equal(
        scene.sample(model, scene.bound(), zeroed), scene.sample(model, scene.bound(), stock)
    )


# ---------------------------------------------------------------- time


def test_outside_its_window_the_image_branch_does_not_act(scene):
    sampling = scene.model.get_model_object("model_sampling")
    never = apply(scene.model, scene.adapter, Strength(start=0.0, end=0.05, lora=0.0))
    assert float(sampling.percent_to_sigma(0.05)) > SIGMAS[0]
    assert torch.equal(scene.sample(never, scene.bound()), scene.sample(scene.model, scene.plain))


def test_a_window_acts_from_its_start_to_its_end(scene):
    window = Window(2.0, 1.0)
    assert [window.factor(torch.tensor([s])) for s in (2.5, 2.0, 1.5, 1.0, 0.5)] == [
        0.0,
        1.0,
        1.0,
        0.0,
        0.0,
    ]


def test_delayed_prompts_run_exactly_one_half_at_every_step(scene):
    from mmdiff_core.host.conditioning import delayed

    sampling = scene.model.get_model_object("model_sampling")
    start = 0.6
    tie = float(sampling.percent_to_sigma(start))
    sigmas = torch.tensor([4.0, tie, tie / 2, 0.0])
    prompt = BoundPrompt(scene.subjects, scene.adapter.fingerprint)
    model = apply(scene.model, scene.adapter, BOTH)
    sizes = []
    handle = model.model.diffusion_model.register_forward_pre_hook(
        lambda m, args: sizes.append(len(args[0]))
    )
    out = scene.sample(model, delayed(scene.plain, scene.plain, prompt, start), sigmas=sigmas)
    handle.remove()
    assert sizes == [2, 2, 2] and torch.isfinite(out).all()
    assert not torch.equal(out, scene.sample(model, scene.bound(), sigmas=sigmas))
