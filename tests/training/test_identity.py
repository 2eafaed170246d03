"""The auxiliary objective that positions tell which subject they show, and the noise levels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmdiff_core.small_world.examples import SmallWorldExamples
from mmdiff_core.training.config import ObjectiveConfig
from mmdiff_core.training.identity import contrast, grid_of
from mmdiff_core.training.noise import LogNormal, draw_noise

from support.small_task import RUN, build

PRESENT = torch.tensor([[True, True], [True, False]])


def halves() -> torch.Tensor:
    """Masks [2 2 4]: the first subject has the first two positions, the second the last two."""
    masks = torch.zeros(2, 2, 4)
    masks[:, 0, :2] = masks[:, 1, 2:] = 1
    return masks


def test_telling_the_right_subject_everywhere_is_better_than_telling_the_other_one():
    cls = torch.eye(6)[:4].reshape(2, 2, 6)
    right = cls.repeat_interleave(2, 1)
    swapped = cls.flip(1).repeat_interleave(2, 1)
    best = contrast(right, halves(), cls, PRESENT)
    assert best.max() < 0.01 and (contrast(swapped, halves(), cls, PRESENT)[0] > 5)


def test_positions_outside_all_masks_and_absent_subjects_do_not_count():
    cls, told = torch.randn(2, 2, 6), torch.randn(2, 4, 6)
    masks = halves()
    masks[1, 1] = 0
    before = contrast(told, masks, cls, PRESENT)
    told[1, 2:] = torch.randn(2, 6)
    assert torch.equal(before, contrast(told, masks, cls, PRESENT))
    nobody = contrast(told, masks, cls, torch.zeros_like(PRESENT))
    assert torch.equal(nobody, torch.zeros(2))


def test_the_objective_trains_the_adapter_and_its_heads_and_only_the_adapter_is_exported(tmp_path):
    from mmdiff_core.checkpoints import checkpoint
    from mmdiff_core.host.frozen_base.run import export_with

    run = replace(RUN, objective=ObjectiveConfig(identity_weight=0.5))
    task = build(run)
    terms = task(SmallWorldExamples(seed=3, caption_dropout=0).batch(0, 4))
    plain = build(RUN)(SmallWorldExamples(seed=3, caption_dropout=0).batch(0, 4))
    assert terms["loss"].item() == pytest.approx(
        plain["loss"].item() + 0.5 * terms["identity"].item(), rel=1e-4
    )
    terms["loss"].backward()
    assert all(p.grad is not None for p in task.identity.parameters())
    export = export_with(run, task, "a test")
    export(dict(task.named_parameters()), tmp_path / "adapter.safetensors", {})
    kept = checkpoint.read(tmp_path / "adapter.safetensors")[1]
    assert kept and not [key for key in kept if "heads" in key]
    task.bridge.close()


def test_a_layer_whose_positions_fit_no_grid_is_an_error():
    assert grid_of(64, (16, 16)) == (8, 8) and grid_of(15, (10, 6)) == (5, 3)
    with pytest.raises(ValueError, match="65 positions, which fits no grid of a 16 x 16"):
        grid_of(65, (16, 16))


def test_a_log_normal_share_has_its_median_and_leaves_the_other_timesteps_alone():
    sigmas = torch.logspace(-2, 1.2, 1000)
    numbers = range(4000)
    _, uniform = draw_noise(numbers, (1,), 1000, 0)
    none = LogNormal(2.2, 0.9, 0.0).replace_steps(uniform, numbers, sigmas, 0)
    assert torch.equal(none, uniform)
    every = LogNormal(2.2, 0.9, 1.0).replace_steps(uniform, numbers, sigmas, 0)
    assert sigmas[every].median().item() == pytest.approx(2.2, rel=0.06)
    assert sigmas[every].log().std().item() == pytest.approx(0.9, rel=0.06)
    again = LogNormal(2.2, 0.9, 1.0).replace_steps(uniform[5:7], [5, 6], sigmas, 0)
    assert torch.equal(again, every[5:7])


WRONG = [{"noise_share": 1.5}, {"noise_median": 0.0}, {"noise_spread": -1.0}]


@pytest.mark.parametrize("wrong", WRONG)
def test_noise_levels_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match="noise levels"):
        ObjectiveConfig(**wrong)
    with pytest.raises(ValueError, match="identity_weight"):
        ObjectiveConfig(identity_weight=-0.1)
