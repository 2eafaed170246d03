"""Texts that are mixed and batches in the host's windows, with the small world's own weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmdiff_core.evaluation.experiments import NOISE_WALK, WINDOWS, Cell
from mmdiff_core.host import small_world
from mmdiff_core.host.frozen_base.build import load_task
from mmdiff_core.host.sampling import Toward, sample_latents
from mmdiff_core.lab import frames
from mmdiff_core.lab.answers import noise_for
from mmdiff_core.small_world.scenes import OPENING
from mmdiff_core.small_world.trials import Question, make_trial

STEPS = 2
CLOSE = 1e-3


@pytest.fixture(scope="module")
def adapter() -> Path:
    return small_world.find(small_world.WEIGHTS, "adapter")[0]


@pytest.fixture(scope="module")
def trial():
    return make_trial(Question("one"), 99, 3)


@pytest.fixture(scope="module")
def task(adapter):
    loaded = load_task(adapter)
    yield loaded
    loaded.bridge.close()


def test_a_mixed_text_is_the_own_one_at_0_the_other_at_1_and_neither_between(task, trial):
    example, there = trial.example, frames.another_place(trial)
    noise = noise_for([example])

    def drawn(count: int, caption: str = example.caption, toward: Toward | None = None):
        examples = [replace(example, caption=caption)] * count
        return sample_latents(
            task, examples, noise.expand(count, -1, -1, -1), STEPS, 3.0, toward=toward
        )

    mixed = drawn(3, toward=Toward([there] * 3, [0.0, 0.5, 1.0]))
    own, other = drawn(1)[0], drawn(1, there)[0]
    assert torch.allclose(mixed[0], own, atol=CLOSE)
    assert torch.allclose(mixed[2], other, atol=CLOSE)
    assert min((mixed[1] - own).abs().max(), (mixed[1] - other).abs().max()) > 0.05


def test_a_caption_whose_nouns_stand_at_other_tokens_is_refused(task):
    every = (make_trial(Question("one"), 99, number).example for number in range(60))
    example = next(each for each in every if each.caption.startswith(OPENING))
    longer = example.caption.replace(OPENING, "a a a a a of ")  # as many characters
    with pytest.raises(ValueError, match="same places"):
        sample_latents(
            task, [example], noise_for([example]), 1, 1.0, toward=Toward([longer], [0.5])
        )


def test_the_hosts_windows_draw_the_frames_of_the_whole_batch_a_few_at_a_time(
    adapter, trial, monkeypatch
):
    monkeypatch.setattr(frames, "SAMPLING", {**frames.SAMPLING, "steps": STEPS})
    world, sizes = frames.load_host(adapter), []
    unet = world.model.model.diffusion_model
    handle = unet.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    whole = frames.draw_by_host(world, Cell("", frames=NOISE_WALK), trial, 8)
    most = max(sizes)
    sizes.clear()
    cell = Cell("", frames=NOISE_WALK, host=WINDOWS)
    windowed = frames.draw_by_host(world, cell, trial, 8)
    handle.remove()
    assert max(sizes) <= most / 2 and len(sizes) > STEPS
    assert torch.allclose(whole, windowed, atol=CLOSE)
    assert (whole[0] - whole[-1]).abs().max() > 0.05
