"""The first stage of training, in which nouns and tokens learn what descriptions say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmdiff_core.small_world.examples import SmallWorldExamples
from mmdiff_core.training.config import ObjectiveConfig
from mmdiff_core.training.describing import distance, noun_states, told_example
from mmdiff_core.training.example import Example, ExampleSubject

from support.small_task import RUN, build

FIRST = replace(RUN, objective=ObjectiveConfig(described_first=8))


def examples(start: int = 0):
    return SmallWorldExamples(seed=3, caption_dropout=0, subject_dropout=0).batch(start, 4)


def test_the_distance_is_one_for_the_mean_and_zero_for_the_wanted_states():
    wanted = torch.randn(3, 2, 5)
    present = torch.tensor([[True, True], [True, False], [True, True]])
    mean = wanted[present].mean(0).expand_as(wanted)
    assert distance(wanted, wanted, present) == 0
    assert float(distance(mean, wanted, present)) == pytest.approx(1)


def test_subjects_that_are_not_there_do_not_count():
    wanted, told = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    present = torch.tensor([[True, False], [True, True], [False, True]])
    before = distance(told, wanted, present)
    told[~present] = 100.0
    assert torch.equal(before, distance(told, wanted, present))
    assert distance(told, wanted, torch.zeros_like(present)) == 0


def test_what_is_told_stands_before_the_noun_and_the_spans_follow():
    mask, shown = torch.zeros(4, 4), torch.zeros(1, 3, 4, 4)
    cat = ExampleSubject((2, 5), mask, shown, told="small grey")
    dog = ExampleSubject((12, 15), mask, shown)
    told = told_example(Example(torch.zeros(3, 4, 4), "a cat and a dog at night", (cat, dog)))
    assert told.caption == "a small grey cat and a dog at night"
    assert [told.caption[a:b] for a, b in told.spans] == ["cat", "dog"]


def test_the_first_stage_runs_no_unet_and_the_later_examples_run_it():
    task, called = build(FIRST), []
    task.bridge.unet.register_forward_hook(lambda *_: called.append(1))
    first, later = task(examples()), task(examples(8))
    assert len(called) == 1
    assert first["described"] == first["loss"] and later["described"] == 0
    assert first.keys() == later.keys()


def test_the_first_stage_trains_nouns_and_tokens_and_leaves_the_rest():
    task = build(FIRST)
    task(examples())["loss"].backward()
    moved = {n for n, p in task.named_parameters() if p.requires_grad and p.grad.abs().sum() > 0}
    assert any("fuse" in name for name in moved)
    assert any("refiner" in name for name in moved)
    assert not any(name.startswith("adapter.unet") for name in moved)
    assert all(p.grad is not None for p in task.parameters() if p.requires_grad)


def test_what_is_wanted_comes_from_the_description_by_the_base_alone():
    task, batch = build(FIRST), examples()
    wanted, other = task.bridge.described(batch), []
    for example in batch:
        subjects = tuple(replace(subject, told="") for subject in example.subjects)
        other.append(replace(example, subjects=subjects))
    task.bridge.strength = 0.0
    text = task.bridge.conditioning(batch, None)
    plain = noun_states(text.context, text.nouns)
    assert torch.allclose(task.bridge.described(other), plain)
    assert (wanted - plain).abs().max() > 0.1
    assert not wanted.requires_grad


def test_some_steps_of_the_first_stage_bring_the_nouns_closer_to_the_descriptions():
    task, batch = build(FIRST), examples()
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], 2e-3)
    losses = []
    for _ in range(12):
        loss = task(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
