"""A routed adapter through the nodes' own functions: free, in regions, watched, beside others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmdiff_core.host.apply import apply
from mmdiff_core.host.conditioning import BoundPrompt, carry
from mmdiff_core.host.watch import WatchPlan
from mmdiff_core.method.subjects import FindRegions

from support import make
from support.scene import BOTH, IMAGE_ONLY, Scene, calls_of, half_masks
from support.watching import NOUNS, prompt, record

STEPS = torch.tensor([4.0, 1.0, 0.0])


@pytest.fixture(scope="module")
def scene():
    return Scene("sd15", routed=True)


@pytest.fixture(scope="module")
def model(scene):
    return apply(scene.model, scene.adapter, BOTH)


def without_routers(scene) -> Scene:
    """The same adapter, unrouted, with the same subjects."""
    plain = Scene("sd15")
    assert not any(key.endswith(".router") for key in plain.adapter.unet)
    for key, pair in plain.adapter.unet.items():
        assert torch.equal(pair.up, scene.adapter.unet[key].up)
    plain.model = scene.model
    return plain


def draw(scene, model, positive) -> torch.Tensor:
    return scene.sample(model, positive, sigmas=STEPS)


@pytest.mark.parametrize("masked", [False, True])
def test_one_subject_alone_is_drawn_as_without_routers_bit_for_bit(scene, model, masked):
    other = without_routers(scene)
    mask = half_masks()[0] if masked else None
    images = []
    for of, with_it in ((scene, model), (other, apply(scene.model, other.adapter, BOTH))):
        one = of.bound((of.subjects[0].masked(mask),))
        images.append((draw(of, with_it, one), draw(of, with_it, of.bound())))
    (one, two), (plain_one, plain_two) = images
    assert torch.equal(one, plain_one)
    assert (two - plain_two).abs().max() > 1e-3


@pytest.mark.parametrize("like", ["sdxl", "sd15"])
def test_every_layer_of_a_base_is_routed(like):
    own = Scene(like, routed=True)
    applied = apply(own.model, own.adapter, IMAGE_ONLY)
    before = draw(own, applied, own.bound())
    assert torch.isfinite(before).all()
    key = next(iter(applied.wrappers["sampler_sample"]))
    application = applied.wrappers["sampler_sample"][key][0].__self__
    found = application.routers(
        BoundPrompt(own.subjects, own.adapter.fingerprint), torch.float32, torch.device("cpu")
    )
    assert set(found) == {block.slot for block in own.adapter.config.base.blocks}
    assert {router.tokens for router in found.values()} == {(4, 8)}


def test_a_subject_that_is_shut_out_everywhere_changes_nothing_and_regions_change_the_image(scene):
    model = apply(scene.model, scene.adapter, IMAGE_ONLY)
    first, second = scene.subjects
    alone = draw(scene, model, scene.bound((first,)))
    everywhere, nowhere = torch.ones(8, 8), torch.zeros(8, 8)
    shut = draw(scene, model, scene.bound((first.masked(everywhere), second.masked(nowhere))))
    assert torch.allclose(shut, alone, atol=1e-4)
    left, right = half_masks()
    held = draw(scene, model, scene.bound((first.masked(left), second.masked(right))))
    assert (held - draw(scene, model, scene.bound())).abs().max() > 1e-3


def test_masks_of_all_white_are_the_same_as_no_masks(scene, model):
    white = tuple(s.masked(torch.ones(16, 16)) for s in scene.subjects)
    free = draw(scene, model, scene.bound())
    assert torch.allclose(draw(scene, model, scene.bound(white)), free, atol=1e-4)


def test_token_maps_are_the_routers_shares(scene, model):
    (maps,) = record(scene, model, prompt(scene), WatchPlan(strip=2)).maps
    assert torch.allclose(maps.image.sum(2), torch.ones(2, 1, 8, 8), atol=1e-4)
    kept = dict(scene.adapter.unet)
    for name, one in kept.items():
        if name.endswith(".router"):
            scene.adapter.unet[name] = replace(one, up=0 * one.up)
    try:
        (even,) = record(scene, model, prompt(scene), WatchPlan(strip=2)).maps
    finally:
        scene.adapter.unet.update(kept)
    assert torch.allclose(even.image, torch.full_like(even.image, 0.5), atol=1e-5)
    assert (maps.image - 0.5).abs().max() > 1e-3


def test_regions_are_found_from_its_maps(scene, model):
    plan = FindRegions(settle=0.5, sharpness=500.0)
    finding = tuple(s.within(find=plan) for s in scene.subjects)
    found = draw(scene, model, prompt(scene, finding))
    assert torch.isfinite(found).all()
    assert not torch.equal(found, draw(scene, model, prompt(scene)))


def test_a_subject_without_tokens_has_no_share(scene, model):
    empty = replace(scene.subjects[1].subject, tokens=torch.zeros(0, make.CONTEXT))
    without = replace(scene.subjects[1], subject=empty)
    both = BoundPrompt((without, scene.subjects[0]), scene.adapter.fingerprint, NOUNS)
    one = BoundPrompt(scene.subjects[:1], scene.adapter.fingerprint, NOUNS[:1])
    alone = draw(scene, model, carry(scene.plain, one))
    assert torch.equal(draw(scene, model, carry(scene.plain, both)), alone)
    (maps,) = record(scene, model, carry(scene.plain, both), WatchPlan(strip=1)).maps
    assert not maps.image[:, :, 0].any() and torch.allclose(maps.image[:, :, 1], torch.tensor(1.0))


def test_rows_with_other_subjects_keep_their_own_routers(scene, model, monkeypatch):
    """Positive and negative prompt have subjects of their own; joined or one by one."""

    def drawn() -> torch.Tensor:
        return scene.sample(model, scene.bound(), scene.another_prompt(), sigmas=STEPS)

    joined = drawn()
    assert calls_of(scene, model, scene.bound(), scene.another_prompt()) == [2] * 4
    monkeypatch.setattr(
        type(model.model), "memory_required", lambda self, shape, **kw: 0 if shape[0] == 1 else 1e18
    )
    assert calls_of(scene, model, scene.bound(), scene.another_prompt()) == [1] * 8
    assert torch.allclose(drawn(), joined, atol=2e-4)
    assert (joined - draw(scene, model, scene.bound())).abs().max() > 1e-3


def test_weights_of_each_image_act_on_a_subjects_own_part(scene, model):
    first, second = scene.subjects
    faded = replace(second, per_image=(1.0, 0.0))
    both = scene.sample(model, scene.bound((first, faded)), batch=2, sigmas=STEPS)
    assert torch.allclose(both[:1], draw(scene, model, scene.bound()), atol=2e-4)
    none = draw(scene, model, scene.bound((first, replace(second, weight=0.0))))
    assert torch.allclose(both[1:], none, atol=2e-4)
    assert (both[0] - both[1]).abs().max() > 1e-3


def test_a_copy_for_another_device_has_the_routers(scene, model):
    from mmdiff_core.host.run import PromptState, Side

    bound = BoundPrompt(scene.subjects, scene.adapter.fingerprint)
    key = next(iter(model.wrappers["sampler_sample"]))
    application = model.wrappers["sampler_sample"][key][0].__self__
    device = torch.device("cpu")
    routers = application.routers(bound, torch.float32, device)
    state = PromptState(bound, {}, Side.each(bound.subjects, device), routers=routers)
    meta = state.on(torch.device("meta"))
    assert set(meta.routers) == set(routers)
    assert {router.keys.device.type for router in meta.routers.values()} == {"meta"}
