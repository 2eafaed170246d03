"""Weights of subjects for each picture of a batch, and for layers and blocks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmdiff_core.bases import SD15, SDXL
from mmdiff_core.host.application import Strength
from mmdiff_core.host.apply import apply
from mmdiff_core.regions.layer_weights import layer_factors, parse_layer_weights

from support.scene import IMAGE_ONLY, STEPS, close, count_calls, predict

LIKE = "sd15"  # fewer layers than SDXL, so more graphs


def test_each_picture_of_a_batch_can_have_its_own_subject(scene, model):
    ann_, bob_ = scene.subjects
    own = scene.bound((replace(ann_, per_image=(1.0, 0.0)), replace(bob_, per_image=(0.0, 1.0))))
    with count_calls(model) as calls:
        both = predict(scene, model, own, batch=3)
    assert calls == [3]
    single = [
        predict(scene, model, scene.bound((replace(ann_, weight=a), replace(bob_, weight=b))))
        for a, b in ((1, 0), (0, 1))
    ]
    assert close(both[:1], single[0]) and close(both[1:2], single[1])
    assert close(both[2:], single[1])  # the last weight stays
    assert not close(single[0], single[1])


def test_weights_per_picture_also_hold_with_guidance_and_in_split_calls(scene, model, monkeypatch):
    own = scene.bound((replace(scene.subjects[0], per_image=(1.0, 0.3)),))
    together = scene.sample(model, own, batch=2, sigmas=STEPS)
    monkeypatch.setattr(
        type(model.model), "memory_required", lambda self, shape, **kw: 0 if shape[0] == 2 else 1e18
    )
    assert close(together, scene.sample(model, own, batch=2, sigmas=STEPS))
    assert close(
        together[1:],
        scene.sample(model, scene.bound((replace(scene.subjects[0], weight=0.3),)), sigmas=STEPS),
    )


def test_layer_weights_name_parts_blocks_and_single_layers():
    blocks = SDXL.blocks
    factors = layer_factors("input 0.5, middle: 0, output.3=1.2\noutput.3.1 0.1", blocks)
    assert (
        factors["input", 4, 0] == 0.5
        and factors["middle", 0, 9] == 0
        and factors["output", 0, 0] == 1
    )
    assert factors["output", 3, 0] == 1.2 and factors["output", 3, 1] == 0.1
    assert set(layer_factors("all 0.2", blocks).values()) == {0.2} and set(
        layer_factors("", blocks).values()
    ) == {1.0}


@pytest.mark.parametrize(
    "text, message",
    [
        ("input", "not understood"),
        ("input -1", "from 0 to 10"),
        ("input 1, input 2", "given twice"),
        ("inptu 1", "no such layer"),
        ("output.99 1", "no such layer"),
        ("middle 11", "from 0 to 10"),
    ],
)
def test_layer_weights_that_make_no_sense_are_told(text, message):
    with pytest.raises(ValueError, match=message):
        layer_factors(text, SD15.blocks)
    assert parse_layer_weights("") == {}


def test_a_layer_weight_acts_on_its_layers_alone_and_zero_leaves_them_out(scene, ann):
    def with_layers(text):
        return apply(scene.model, scene.adapter, Strength(lora=0.0, layers=text))

    plain = predict(scene, scene.model, scene.plain)
    assert torch.equal(predict(scene, with_layers("all 0"), ann), plain)
    full = predict(scene, with_layers(""), ann)
    assert torch.equal(full, predict(scene, apply(scene.model, scene.adapter, IMAGE_ONLY), ann))
    half = predict(scene, with_layers("all 0.5"), ann)
    assert close(
        half,
        predict(scene, apply(scene.model, scene.adapter, Strength(fuse_scale=0.4, lora=0.0)), ann),
    )
    only = with_layers("all 0, middle 1")
    slots = only.model_options["transformer_options"]["patches_replace"]["attn2"]
    assert set(slots) == {("middle", 0)}
    assert not close(predict(scene, only, ann), plain) and not close(
        predict(scene, only, ann), full
    )
