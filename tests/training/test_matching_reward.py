"""The last stage with a matching reward: what is drawn, how it counts, and what it trains."""

from __future__ import annotations

import dataclasses
from itertools import permutations

import numpy as np
import pytest
import torch

from mmdiff_core.small_world import scenes
from mmdiff_core.small_world.examples import SmallWorldExamples, enlarge
from mmdiff_core.small_world.score import visibly_different
from mmdiff_core.small_world.trials import true_image

SOURCE = SmallWorldExamples(seed=8, caption_dropout=0, subject_dropout=0, count=2)


def stage(**wanted):
    from mmdiff_core.lab.matching_reward import Stage

    few = {"images": 2, "steps": 4, "first": 2, "last": 3, "guesses": 1, "weight": 0.5}
    return Stage(**few | wanted)


def shipped():
    from mmdiff_core.host import small_world
    from mmdiff_core.host.frozen_base.build import load_task

    return load_task(small_world.WEIGHTS / "adapter.safetensors")


@pytest.fixture(scope="module")
def scorer():
    from mmdiff_core.lab.shown_individuals import ShownIndividuals

    return ShownIndividuals(SOURCE)


@pytest.fixture
def task(scorer):
    from mmdiff_core.lab.matching_reward import RewardedTask

    made = RewardedTask(shipped(), stage(), scorer)
    yield made
    made.bridge.close()


# ---------------------------------------------------------------- how it counts


def test_the_reward_is_of_the_permutation_with_the_largest_sum_whatever_the_order():
    from mmdiff_core.lab.matching_reward import matched_reward

    table = torch.tensor([[0.9, 0.8, 0.1], [0.8, 0.1, 0.0], [0.0, 0.3, 0.5]])
    for order in permutations(range(3)):
        _, own = matched_reward(table[:, list(order)], 0.5, 2.0)
        assert own == pytest.approx((0.8 + 0.8 + 0.5) / 3)


def test_likeness_to_another_subject_costs_and_more_than_enough_earns_nothing():
    from mmdiff_core.lab.matching_reward import matched_reward

    apart = matched_reward(torch.tensor([[0.8, -0.2], [-0.1, 0.8]]), 0.5, 0.9)[0]
    mixed = matched_reward(torch.tensor([[0.8, 0.6], [0.6, 0.8]]), 0.5, 0.9)[0]
    assert (float(apart), float(mixed)) == pytest.approx((0.8, 0.5))
    table = torch.tensor([[0.95, 0.0], [0.0, 0.7]], requires_grad=True)
    matched_reward(table, 0.5, 0.9)[0].backward()
    assert table.grad[0, 0] == 0 and table.grad[1, 1] == 0.5


def test_a_subject_for_whom_nothing_was_found_counts_as_no_likeness():
    from mmdiff_core.lab.matching_reward import matched_reward

    reward, own = matched_reward(torch.tensor([[0.8], [0.2]]), 0.0, 1.0)
    assert (float(reward), float(own)) == pytest.approx((0.4, 0.4))


def test_steps_and_guesses_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"2\.\.4 of 4"):
        stage(last=4)
    with pytest.raises(ValueError, match="3 guesses"):
        stage(guesses=3)


def reward_of(scorer, images: torch.Tensor, numbers: list[int]) -> list[float]:
    """Rewards of images [n 3 S S] in dots as those of the examples with these numbers."""
    from mmdiff_core.lab.matching_reward import matched_reward

    examples = [SOURCE.example(number) for number in numbers]
    tables = scorer(enlarge(images).movedim(1, -1), examples)
    return [float(matched_reward(table, 0.5, 0.9)[0]) for table in tables]


def test_right_images_earn_more_than_swapped_and_mixed_ones_and_strangers(scorer):
    numbers, drawn = [], {"right": [], "swapped": [], "mixed": [], "strangers": []}
    rng = np.random.default_rng(4)
    for number in range(40):
        scene = scenes.scene("train", SOURCE.seed, number, 2)
        first, second = scene.placed
        a, b = first.identity, second.identity
        mixed = scenes.blend(a, b)[:2]
        if first.kind == second.kind or len(numbers) == 6:
            continue  # two of a class that change places are right again
        if not all(map(visibly_different, (first.kind, second.kind), mixed, (a, b))):
            continue
        numbers.append(number)
        others = [scenes.random_identity(rng, "train") for _ in range(2)]
        for name, (one, two) in {
            "right": (a, b),
            "swapped": (b, a),
            "mixed": mixed,
            "strangers": others,
        }.items():
            placed = (
                dataclasses.replace(first, identity=one),
                dataclasses.replace(second, identity=two),
            )
            drawn[name].append(true_image(dataclasses.replace(scene, placed=placed)))
    assert len(numbers) == 6
    rewards = {name: reward_of(scorer, torch.stack(of), numbers) for name, of in drawn.items()}
    assert min(rewards["right"]) > 0.7
    for name in ("swapped", "mixed", "strangers"):
        apart = np.subtract(rewards["right"], rewards[name])
        assert apart.min() > 0.02 and apart.mean() > 0.2, (name, rewards)


# ---------------------------------------------------------------- what it trains


def test_its_gradient_reaches_the_adapter_and_only_the_adapter(task):
    reward, own = task.reward(SOURCE.batch(0, 2))
    assert 0 < own <= 1
    reward.backward()
    for part in (task.adapter.subjects, task.adapter.unet, task.adapter.text, task.adapter.vision):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    frozen = [task.bridge.unet, *task.bridge.texts.values(), task.scorer.encoder]
    assert not [p for part in frozen for p in part.parameters() if p.grad is not None]


def test_without_weight_nothing_is_drawn_and_the_losses_are_the_usual_ones(task, monkeypatch):
    batch = SOURCE.batch(0, 2)
    task.stage = stage(weight=0.0)
    monkeypatch.setattr(task, "guesses", lambda _: pytest.fail("images were drawn"))
    with torch.no_grad():
        terms, usual = task(batch), task.denoise(batch)
    assert terms["loss"] == usual["loss"] and terms["reward"] == 0


def test_the_loss_is_the_usual_one_less_the_weighted_reward(task):
    batch = SOURCE.batch(0, 2)
    with torch.no_grad():
        terms, usual = task(batch), task.denoise(batch)["loss"]
    assert torch.allclose(terms["loss"], usual - 0.5 * terms["reward"])


def test_images_with_the_most_subjects_are_drawn_and_those_with_one_never():
    from mmdiff_core.lab.matching_reward import most_subjects

    batch = SmallWorldExamples(seed=8, caption_dropout=0, subject_dropout=0).batch(0, 24)
    counts = [len(example.subjects) for example in most_subjects(batch, 6)]
    assert counts == sorted(counts, reverse=True) and counts[0] == 3
    assert len(most_subjects(batch, 99)) == sum(len(e.subjects) > 1 for e in batch)


def test_a_few_steps_raise_the_reward_of_a_fixed_batch(task):
    batch = SOURCE.batch(16, 2)
    task.stage = stage(first=2, last=2, enough=2.0)
    trained = [p for p in task.adapter.parameters() if p.requires_grad]
    optimizer, rewards = torch.optim.AdamW(trained, lr=3e-4, weight_decay=0.0), []
    for _ in range(8):
        reward, _ = task.reward(batch)
        rewards.append(float(reward.detach()))
        optimizer.zero_grad()
        (-reward).backward()
        optimizer.step()
    assert rewards[-1] > rewards[0] + 0.02


def test_late_steps_follow_from_the_batch_so_that_a_stage_that_goes_on_draws_the_same():
    chosen = [stage(steps=10, last=8).late_steps(number, seed=1) for number in (0, 16, 32, 48) * 2]
    assert chosen[:4] == chosen[4:] and len({tuple(steps) for steps in chosen}) > 1


def test_a_stage_writes_an_adapter_that_names_it(tmp_path, without_gpu):
    from safetensors.torch import load_file

    from mmdiff_core.checkpoints import checkpoint
    from mmdiff_core.host import small_world
    from mmdiff_core.lab.last_stage import Wanted, train

    init = small_world.WEIGHTS / "adapter.safetensors"
    wanted = Wanted(init, steps=1, batch=2, stage=stage(images=1))
    train(tmp_path, wanted, "a test")
    file = tmp_path / "adapter.safetensors"
    before, after = load_file(init), load_file(file)
    assert set(before) == set(after)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert '"images": 1' in checkpoint.header_of(file)["stage"]


# ---------------------------------------------------------------- what it is worth


def test_pairs_of_trials_say_what_was_lost_and_won():
    from mmdiff_core.lab.last_stage import paired

    before = [True, True, True, False, False, False, False, True]
    after = [True, True, False, True, True, False, False, True]
    lost, won, difference, half = paired(before, after)
    assert (lost, won) == (1, 2) and difference == pytest.approx(1 / 8)
    assert half == pytest.approx(1.96 * ((3 / 8 - 1 / 64) / 8) ** 0.5)


def test_a_comparison_goes_on_and_counts_the_same_trials_for_all(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from mmdiff_core.lab import last_stage

    asked = []

    def load_task(path):
        return SimpleNamespace(name=path.name, bridge=SimpleNamespace(close=lambda: None))

    def right(task, question, start, stop):
        asked.append((task.name, start, stop))
        return [task.name == "b" or number % 2 == 0 for number in range(start, stop)]

    monkeypatch.setattr(last_stage, "load_task", load_task)
    monkeypatch.setattr(last_stage, "right", right)
    paths, out = [tmp_path / "a", tmp_path / "b"], tmp_path / "out.json"
    last_stage.compare(out, paths, ["three"], 32)
    results = last_stage.compare(out, paths, ["three"], 40)
    assert asked == [("a", 0, 32), ("b", 0, 32), ("a", 32, 40), ("b", 32, 40)]
    lines = last_stage.table(results).splitlines()
    assert "50.0 %" in lines[2] and "| 0 | 20 | +50.0" in lines[3]
