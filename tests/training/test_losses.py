"""The losses and the weights in them."""

from __future__ import annotations

import pytest
import torch

from mmdiff_core.method import losses
from mmdiff_core.small_world.examples import SmallWorldExamples, enlarge
from mmdiff_core.training.config import ObjectiveConfig
from mmdiff_core.training.trainable import to_flat

from support.small_task import RUN


def test_the_constraint_is_lowest_where_attention_fills_the_mask_and_nothing_else():
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    flat = losses.masks_on_grid(mask, (4, 4))
    present = torch.ones(1, 1, dtype=torch.bool)
    inside = flat.transpose(1, 2)[:, None]
    values = [
        losses.balanced_l1(p, flat, present).item()
        for p in (inside, torch.full_like(inside, 0.3), 1 - inside)
    ]
    assert values == [-1.0, 0.0, 1.0]


def test_an_absent_subject_or_a_vanished_mask_does_not_count():
    mask = torch.zeros(1, 2, 16)
    mask[0, 0, :8] = 1
    probability = torch.rand(1, 2, 16, 2)
    alone = losses.balanced_l1(
        probability[..., :1], mask[:, :1], torch.ones(1, 1, dtype=torch.bool)
    )
    for present in ([True, False], [True, True]):
        assert torch.allclose(losses.balanced_l1(probability, mask, torch.tensor([present])), alone)


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_the_target_and_the_noisy_latents_give_the_latents_back(kind):
    latents, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    alpha = torch.tensor([0.9, 0.3]).sqrt().view(-1, 1, 1, 1)
    sigma = (1 - alpha**2).sqrt()
    noisy, target = (
        alpha * latents + sigma * noise,
        losses.denoising_target(kind, latents, noise, alpha, sigma),
    )
    back = alpha * noisy - sigma * target if kind == "v" else (noisy - sigma * target) / alpha
    assert torch.allclose(back, latents, atol=1e-5)


def test_min_snr_weights_the_same_picture_error_in_both_predictions():
    snr = torch.tensor([0.1, 1.0, 25.0])
    eps, v = (losses.min_snr_weight(kind, snr, 5.0) for kind in ("eps", "v"))
    # error of the picture = error of eps / snr = error of v / (snr + 1)
    assert torch.allclose(eps * snr, v * (snr + 1)) and torch.allclose(
        eps * snr, snr.clamp_max(5.0)
    )


def test_noise_and_timestep_follow_from_the_examples_number(task):
    from mmdiff_core.training.noise import draw_noise

    noise, steps = draw_noise([4, 5, 6], (2, 3), 1000, seed=1)
    other, later = draw_noise([5, 4], (2, 3), 1000, seed=1)
    assert torch.equal(noise[1], other[0]) and steps[0] == later[1]
    assert not torch.equal(noise, draw_noise([4, 5, 6], (2, 3), 1000, seed=2)[0])


def test_timesteps_are_uniform_or_from_the_middle_or_from_the_high_end_as_asked():
    from mmdiff_core.training.noise import draw_noise

    uniform, middle = (
        draw_noise(range(2000), (1,), 1000, 0, share)[1].float() for share in (0.0, 1.0)
    )
    assert uniform.std().item() == pytest.approx(
        288.7, rel=0.05
    ) and middle.std().item() == pytest.approx(166.7, rel=0.05)
    assert uniform.min() >= 0 and uniform.max() <= 999 and abs(middle.mean().item() - 500) < 15
    high = draw_noise(range(2000), (1,), 1000, 0, high=1.0)[1].float()
    mixed = draw_noise(range(2000), (1,), 1000, 0, middle=0.25, high=0.5)[1].float()
    assert (
        abs(high.mean().item() - 750) < 15
        and high.max() <= 999
        and abs(mixed.mean().item() - 625) < 20
    )


def test_a_subjects_pixels_can_count_more_and_the_mean_weight_stays_one():
    masks = torch.zeros(2, 2, 16, 16)
    masks[0, 0, :8] = 1
    where = losses.weigh_subjects(masks, (8, 8), 5.0)
    assert torch.allclose(where.mean((1, 2, 3)), torch.ones(2)) and torch.allclose(
        where[1], torch.ones(1, 8, 8)
    )
    assert (where[0, 0, 0, 0] / where[0, 0, 7, 0]).item() == pytest.approx(5)
    error = torch.zeros(2, 3, 8, 8)
    error[:, :, :4] = 1  # wrong inside the subject only
    plain, weighed = (
        losses.denoising_loss(error, torch.zeros_like(error), torch.ones(2), w)
        for w in (None, where)
    )
    assert weighed[0] > plain[0] and weighed[1].item() == pytest.approx(plain[1].item())


def test_the_subjects_weight_fades_to_one_and_follows_from_the_examples_number():
    index = torch.tensor([0, 50, 100, 1000])
    assert losses.fading_weight(index, 9.0, 100).tolist() == [9.0, 5.0, 1.0, 1.0]
    assert losses.fading_weight(index, 9.0, 0).tolist() == [9.0] * 4
    masks = torch.zeros(4, 1, 16, 16)
    masks[:, 0, :8] = 1
    where = losses.weigh_subjects(masks, (8, 8), losses.fading_weight(index, 9.0, 100))
    assert (where[:, 0, 0, 0] / where[:, 0, 7, 0]).tolist() == pytest.approx([9, 5, 1, 1])


def test_a_lower_rank_keeps_the_nearest_product_and_the_file_can_be_trained_on(task, tmp_path):
    from mmdiff_core.checkpoints import checkpoint
    from mmdiff_core.method.lora import LowRank
    from mmdiff_core.training.shrink import shrink, truncate

    torch.manual_seed(0)
    pair = LowRank(torch.randn(16, 24), torch.randn(40, 16))
    delta = pair.up @ pair.down
    for rank, exact in ((4, False), (16, True), (20, True)):
        smaller, share = truncate(pair, rank)
        assert smaller.down.shape == (rank, 24) and smaller.up.shape == (40, rank)
        error = (smaller.up @ smaller.down - delta).square().sum() / delta.square().sum()
        assert error.item() == pytest.approx(1 - share, abs=1e-5) and (share > 0.999) == exact
        if not exact:  # nothing of this rank is nearer: the singular values that are left out
            assert error.item() == pytest.approx(
                (torch.linalg.svdvals(delta)[4:].square().sum() / delta.square().sum()).item(),
                rel=1e-4,
            )
    whole, small = tmp_path / "whole.safetensors", tmp_path / "small.safetensors"
    checkpoint.save_single(
        whole,
        task.adapter.config,
        to_flat(task.adapter.state_dict()),
        extra={"run": RUN.to_json(), "steps": "7"},
    )
    said = shrink(whole, small, 3)
    assert "rank 3" in said and small.stat().st_size < whole.stat().st_size
    from mmdiff_core.host.frozen_base.build import load_task

    again = load_task(small)
    assert again.run.adapter.rank == 3 and again.adapter.config == task.adapter.config
    again.bridge.close()


def test_shares_of_noise_levels_beyond_the_whole_are_refused():
    with pytest.raises(ValueError, match=r"middle and high are 0\.7 and 0\.6"):
        ObjectiveConfig(middle=0.7, high=0.6)


def test_a_batch_is_the_mean_of_its_halves(task, batch):
    with torch.no_grad():
        whole, halves = task(batch)["loss"], [task(batch[i : i + 3])["loss"] for i in (0, 3)]
    assert whole.item() == pytest.approx(sum(h.item() for h in halves) / 2, abs=2e-6)


def test_masks_of_a_scene_are_the_subjects_dots():
    example = SmallWorldExamples(caption_dropout=0, subject_dropout=0).example(1)
    assert example.pixels.shape == (3, 128, 128) and all(
        s.mask.shape == (128, 128) for s in example.subjects
    )
    assert torch.equal(enlarge(example.subjects[0].mask[::4, ::4]), example.subjects[0].mask)
    assert [example.caption[slice(*s.span)] for s in example.subjects] == ["ghost", "tree"]


def test_dice_is_0_on_the_mask_itself_1_on_its_opposite_and_counts_like_the_other_form():
    flat = torch.zeros(1, 1, 16)
    flat[..., :6] = 1
    present = torch.ones(1, 1, dtype=torch.bool)
    inside = flat.transpose(1, 2)[:, None]
    values = [losses.dice(p, flat, present).item() for p in (inside, 1 - inside)]
    assert values == [0.0, 1.0]
    heads = torch.cat([2 * inside, 0 * inside], 1)  # the mean of the heads is what is compared
    assert losses.dice(heads, flat, present).item() == 0.0
    probability, mask = torch.rand(1, 2, 16, 2), torch.cat([flat, torch.zeros_like(flat)], 1)
    alone = losses.dice(probability[..., :1], mask[:, :1], present)
    for there in ([True, False], [True, True]):  # absent, or vanished on this grid
        assert torch.allclose(losses.dice(probability, mask, torch.tensor([there])), alone)


def test_leaked_counts_differences_inside_the_mask_only():
    together, apart = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., :4, :] = 1  # the upper half
    together[0, :, :2] = 0.5  # inside
    together[1, :, 2:] = 9.0  # outside
    assert losses.leaked(together, apart, mask).tolist() == [0.25, 0.0]
    assert losses.leaked(together, apart, 0 * mask).tolist() == [0.0, 0.0]
