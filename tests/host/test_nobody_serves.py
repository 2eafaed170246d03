"""A prompt with subjects that nothing would show is a sentence, never an image without them."""

from __future__ import annotations

import itertools

import pytest
import torch

from mmdiff_core.host.application import Strength
from mmdiff_core.host.apply import apply
from mmdiff_core.host.conditioning import BoundPrompt, carry

from support import make
from support.scene import IMAGE_ONLY, ONE_STEP
from support.splitters import noise_of, sample

LIKE = "sd15"  # fewer layers than SDXL, so more graphs


@pytest.fixture(scope="module")
def adapters(scene):
    other = make.random_mmdiff(make.narrow_config(LIKE), seed=7)
    return {"a": scene.mmdiff, "b": other}


def prompt_of(scene, mmdiff, name="ann") -> list:
    subject = make.random_subject(mmdiff, name)
    return carry(scene.plain, BoundPrompt((subject,), mmdiff.adapter.fingerprint))


def run(scene, model, positive, negative=None, cfg=1.0):
    noise = noise_of(1, (8, 8), 0)
    return sample(model, noise, positive, negative or scene.negative, ONE_STEP, cfg)


APPLIED = ("", "a", "b", "ab", "ba")


@pytest.mark.parametrize("applied, prompts", itertools.product(APPLIED, ("a", "b", "ab", "-a")))
@pytest.mark.parametrize("fuse_scale", [0.8, 0.0])
def test_a_prompt_is_drawn_where_its_adapter_is_applied_and_else_refused(
    scene, adapters, applied, prompts, fuse_scale
):
    """`prompts`: combined ones; after a dash, the negative side's."""
    model = scene.model
    for name in applied:
        model = apply(model, adapters[name].adapter, Strength(fuse_scale, lora=0.0))
    sides: tuple[list, list] = ([], [])
    for side, letters in zip(sides, prompts.split("-")):
        for name in letters:
            side += prompt_of(scene, adapters[name], f"{name}nn")
    names = set(prompts) - {"-"} - set(applied)
    positive, negative = sides[0] or scene.plain, sides[1]
    if not names:
        assert torch.isfinite(run(scene, model, positive, negative, 2.0)).all()
        return
    with pytest.raises(RuntimeError, match="Apply MM-Diff Attention") as error:
        run(scene, model, positive, negative, 2.0)
    assert any(f"'{name}nn'" in str(error.value) for name in names)


def test_the_sentence_says_which_checkpoint_is_applied_and_cuts_long_names(scene, adapters):
    model = apply(scene.model, scene.adapter, IMAGE_ONLY)
    with pytest.raises(RuntimeError, match=repr(scene.adapter.source)) as error:
        run(scene, model, prompt_of(scene, adapters["b"], "n" * 5000 + "\x1b[31m"))
    assert len(str(error.value)) < 600 and "\x1b" not in str(error.value)


def test_a_prompt_without_subjects_needs_nobody(scene):
    assert torch.isfinite(run(scene, scene.model, carry(scene.plain, None))).all()
    nobody = prompt_of(scene, scene.mmdiff)
    zeroed = [[torch.zeros_like(text), options] for text, options in nobody]
    model = apply(scene.model, scene.adapter, IMAGE_ONLY)
    assert torch.isfinite(run(scene, model, scene.plain, zeroed, 2.0)).all()


def test_after_a_refusal_the_same_model_draws_as_before(scene, adapters):
    model = apply(scene.model, scene.adapter, IMAGE_ONLY)
    mine = prompt_of(scene, scene.mmdiff)
    before = run(scene, model, mine)
    for refused in (model, scene.model):
        with pytest.raises(RuntimeError, match="MM-Diff"):
            run(scene, refused, prompt_of(scene, adapters["b"]))
    assert torch.equal(run(scene, model, mine), before)
    assert torch.isfinite(run(scene, scene.model, scene.plain)).all()
