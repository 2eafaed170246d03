"""The benchmark's counts are right.

Held to what is computed by hand, and to what one sampling really holds.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from benchmark import read_arguments
from cost.arms import make_world
from cost.counting import OperationCounter
from cost.report import make_line, state_bytes
from cost.setting import SCALES, Scale
from cost.timing import Meter, Timing, count_arm, sample

from mmdiff_core.bases import SDXL

SMALL = Scale(channels=32, context=256, head=16, rank=2)
SIZE, CFG = 64, 5.0


@pytest.fixture(scope="module")
def counted():
    """World, meter and counts of plain, one subject, and two masked subjects.

    One thread, for the layers are tiny.
    """
    meter, threads = Meter("cpu"), torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        world = make_world(SMALL, SIZE, torch.float32, meter)
        arms = [world.plain(), world.ours(1, False), world.ours(2, True, lora=0.0)]
        yield world, arms, meter, [count_arm(arm, meter, SIZE, CFG) for arm in arms]
    torch.set_num_threads(threads)


def branch_flop(tokens: int) -> int:
    """Q K' and the product with V, two operations a term, for one row at every layer.

    SDXL's layers of width 640 see a quarter of the latent's positions, those of width 1280 a
    sixteenth.
    """
    latent = (SIZE // 8) ** 2
    blocks = SDXL.blocks
    return sum(
        4 * tokens * (b.width * SMALL.channels // 320) * latent // (4 if b.width == 640 else 16)
        for b in blocks
    )


def test_flop_are_those_of_the_image_branch(counted):
    _, _, _, (plain, one, two) = counted
    assert one.flop - plain.flop == branch_flop(4)
    assert two.flop - plain.flop == branch_flop(8)


def test_every_layer_shows_the_subjects_once_and_nothing_waits(counted):
    _, _, _, (plain, one, two) = counted
    fused = "aten::_scaled_dot_product_flash_attention_for_cpu"
    for found in (one, two):
        assert found.operations.get(fused, 0) - plain.operations.get(fused, 0) == 70
        assert found.waits == plain.waits
        assert plain.total < found.total < 1.5 * plain.total


def test_looking_at_attention_and_holding_nouns_wait_for_nothing(counted):
    world, _, meter, (plain, one, _) = counted
    looking = {arm.name: count_arm(arm, meter, SIZE, CFG) for arm in world.looking()}
    assert all(found.waits == plain.waits for found in looking.values())
    assert all(
        sum(found.first_waits.values()) == sum(plain.first_waits.values())
        for found in looking.values()
    )
    assert (
        looking["2 subjects, regions found at every step"].total
        > looking["2 subjects, regions found in the first step"].total
        > one.total
    )


def test_state_is_as_large_as_the_keys_and_values_of_a_run(counted):
    _, arms, meter, _ = counted
    held = []

    def look(executor, x, timestep, model_options, seed):
        run = next(v for v in model_options["transformer_options"].values() if hasattr(v, "states"))
        held.append(
            sum(
                t.nbytes
                for state in run.states.values()
                for pair in state.keys.values()
                for t in pair
            )
        )
        return executor(x, timestep, model_options, seed)

    watched = arms[1].model.clone()
    watched.add_wrapper_with_key("predict_noise", "look", look)
    meter.begin()
    sample(dataclasses.replace(arms[1], model=watched), SIZE, 2, CFG)
    assert set(held) == {state_bytes(1, 4, SMALL.config.base)}
    assert state_bytes(1) == 2 * 4 * 2 * (10 * 640 + 60 * 1280)


def test_operations_views_and_waits_are_told_apart():
    x = torch.arange(6.0).reshape(2, 3)
    with OperationCounter() as counter, torch.inference_mode():
        torch.nn.functional.linear(x, x).t().sum().item()
        x[x > 1]
        x.repeat_interleave(torch.tensor([1, 2]), dim=0)
    assert counter.operations["aten::mm"] == 1 and "aten::linear" not in counter.operations
    assert counter.operations["aten::t"] == 2 and counter.kernels["aten::t"] == 0
    assert dict(+counter.waits) == {
        "aten::_local_scalar_dense": 1,
        "aten::index": 1,
        "aten::repeat_interleave": 1,
    }


def test_a_paired_step_runs_once_more_as_the_plain_model_runs_it(counted):
    _, arms, meter, (plain, one, _) = counted
    meter.begin(paired=True)
    calls = []
    call = meter.call

    def counting(spans, executor, *args):
        with OperationCounter() as counter:
            out = call(spans, executor, *args)
        calls.append((spans is meter.bare, counter.operations.total()))
        return out

    meter.call = counting
    try:
        sample(arms[1], SIZE, 2, CFG)
    finally:
        del meter.call
    assert calls[2:4] == [(False, one.total), (True, plain.total)]
    assert [bare for bare, _ in calls] == [True, False, False, True]


def test_a_line_compares_each_step_with_its_own_bare_run(counted):
    _, arms, _, (plain, one, _) = counted
    timings = [Timing(0.5, [9, 4, 6], [1, 2, 3], [9, 4, 6], [1, 4, 6], 0)]
    line = make_line(arms[1], timings, [Timing(0.25, [1, 2, 3], [], [1, 2, 3], [], 0)], one, plain)
    assert (line.ratio, line.ratio_quartiles, line.cpu_ratio, line.pairs) == (
        2.0,
        (2.0, 2.0),
        1.0,
        2,
    )
    assert (line.before_loop_extra_ms, line.first_step_extra_ms) == (250, 5500)
    assert line.extra_waits == 0 and line.peak_extra_mb is None
    assert line.operations_ratio == one.total / plain.total
    assert sum(line.extra_operations.values()) == one.total - plain.total


def test_the_reduced_base_is_a_fifth_as_wide_and_arguments_are_checked(capsys):
    widths = [b.width for b in SCALES["reduced"].config.base.blocks]
    assert widths == [b.width // 5 for b in SDXL.blocks]
    assert read_arguments(["--subjects", "1,3"]).subjects == [1, 3]
    with pytest.raises(SystemExit):
        read_arguments(["--size", "100"])
    assert "multiple of 64" in capsys.readouterr().err
