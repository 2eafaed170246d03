"""The benchmark's counts are right.

Held to what is computed by hand, and to what one sampling really holds.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from benchmark import read_arguments
from benchmark_host import BenchmarkError
from cost.arms import make_world
from cost.counting import OperationCounter
from cost.peer import PEERS, find_peers
from cost.report import make_line, state_bytes, text_bytes
from cost.setting import SCALES, TEXT_TOKENS, Scale
from cost.share import plain_flop, text_flop
from cost.timing import Kept, Meter, Timing, count_arm, sample
from cost.tuning import RUN, Tuned, fine_tune
from cost.whole import Peak, Whole, WholeArm, measure_whole, whole_markdown

from mmdiff_core.bases import SDXL

SMALL = Scale(channels=32, context=256, head=16, rank=2)
SIZE, CFG = 64, 5.0


@pytest.fixture(scope="module")
def counted():
    """World, meter and counts of plain, one subject, two masked subjects, and one subject as the
    pack draws it, with the text kept.

    One thread, for the layers are tiny.
    """
    meter, threads = Meter("cpu"), torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        world = make_world(SMALL, SIZE, torch.float32, meter)
        arms = [
            world.plain(),
            world.ours(1, False, keep_text=False),
            world.ours(2, True, lora=0.0, keep_text=False),
            world.ours(1, False),
        ]
        yield world, arms, meter, [count_arm(arm, meter, SIZE, CFG) for arm in arms]
    torch.set_num_threads(threads)


def paired_calls(meter: Meter, arm) -> list[tuple[bool, int]]:
    """The model calls of two paired steps: whether each was the bare run, and its operations."""
    meter.begin(paired=True)
    calls, call = [], meter.call

    def counting(spans, executor, *args):
        with OperationCounter() as counter:
            out = call(spans, executor, *args)
        calls.append((spans is meter.bare, counter.operations.total()))
        return out

    meter.call = counting
    try:
        sample(arm, SIZE, 2, CFG)
    finally:
        del meter.call
    return calls


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
    _, _, _, (plain, one, two, _) = counted
    assert one.flop - plain.flop == branch_flop(4)
    assert two.flop - plain.flop == branch_flop(8)


def test_with_kept_text_a_step_has_the_flop_of_the_plain_one_less_those_of_k_and_v(counted):
    _, _, _, (plain, one, _, kept) = counted
    assert one.flop - kept.flop == text_flop(SMALL) > 0
    assert plain.flop == plain_flop(SMALL, SIZE)
    assert kept.total < plain.total < one.total
    assert kept.operations["aten::mm"] == plain.operations["aten::mm"] - 2 * 70
    assert kept.waits == plain.waits and sum(kept.first_waits.values()) == sum(
        plain.first_waits.values()
    )


def test_the_bare_run_beside_kept_text_projects_the_text_as_the_plain_model(counted):
    _, arms, meter, (plain, *_, kept) = counted
    totals = paired_calls(meter, arms[3])
    assert totals[2:4] == [(False, kept.total), (True, plain.total)]


def test_what_is_kept_of_subjects_and_text_is_reported(counted):
    _, arms, meter, _ = counted
    widths = sum(block.width for block in SMALL.config.base.blocks)
    texts = 2 * 2 * 4 * TEXT_TOKENS * SMALL.context  # each one, and both in one tensor
    for arm, text in ((arms[1], 0), (arms[3], texts + 2 * 2 * 4 * TEXT_TOKENS * widths)):
        meter.begin()
        sample(arm, SIZE, 2, CFG)
        assert meter.kept == Kept(state_bytes(1, 4, SMALL.config.base), text)
    assert text_bytes() == 2 * 77 * 2 * (10 * 640 + 60 * 1280)


def test_every_layer_shows_the_subjects_once_and_nothing_waits(counted):
    _, _, _, (plain, one, two, _) = counted
    fused = "aten::_scaled_dot_product_flash_attention_for_cpu"
    for found in (one, two):
        assert found.operations.get(fused, 0) - plain.operations.get(fused, 0) == 70
        assert found.waits == plain.waits
        assert plain.total < found.total < 1.5 * plain.total


def test_looking_at_attention_and_holding_nouns_wait_for_nothing(counted):
    world, _, meter, (plain, *_, one) = counted
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
    _, arms, meter, (plain, one, *_) = counted
    calls = paired_calls(meter, arms[1])
    assert calls[2:4] == [(False, one.total), (True, plain.total)]
    assert [bare for bare, _ in calls] == [True, False, False, True]


def test_a_line_compares_each_step_with_its_own_bare_run(counted):
    _, arms, _, (plain, one, *_) = counted
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


# ---------------------------------------------------------------- whole images, and the others


def asked(*more: str):
    return read_arguments(["--size", str(SIZE), "--threads", "1", *more])


def test_whole_images_of_every_length_are_drawn_and_told(counted):
    _, arms, meter, _ = counted
    args = asked("--whole", "--images", "3,2")
    with torch.inference_mode():
        whole = measure_whole([arms[0], arms[3]], SIZE, meter, args)
    assert [sorted(arm.seconds) for arm in whole.arms] == [[2, 3], [2, 3]]
    assert whole.arms[0].kept == Kept() and whole.arms[1].kept.text > 0
    table = whole_markdown(whole).splitlines()
    assert "| 2 steps, s | 3 steps, s |" in table[0] and len(table) == 4
    assert len({line.count("|") for line in table}) == 1


def test_the_peak_is_that_of_what_is_done_and_of_nothing_before():
    peak, size = Peak("cpu"), 64 * 2**20

    def hold(count: int) -> None:
        torch.ones(count * size // 4)

    pieces = [torch.ones(2**14) for _ in range(6 * size // 2**16)]
    last = pieces.pop()  # holds the heap's end, so that the freed pieces stay with the process
    del pieces
    large, small = peak.of(lambda: hold(4)), peak.of(lambda: hold(1))
    if large is None:
        assert small is None  # the system does not tell
    else:
        assert 3 * size < large < 5 * size and small < 2 * size
    assert last.sum() == 2**14


def test_fine_tuning_trains_the_unet_and_tells_how_long_a_subject_takes(counted):
    _, arms, _, _ = counted
    found = fine_tune(SMALL, asked("--tuning-steps", "7"))
    assert found.step > 0 and found.steps == 7 and found.dtype == "float32" and RUN > 2
    whole = Whole([WholeArm(arms[0].name, {8: 1.0, 20: 3.0}, None, Kept())])
    told = Tuned(2.0, 300, 5_000_000, "float32").told(whole)
    assert "603 s to the first image (computed)" in told and "5 MB" in told


def write_peer(folder, peer, module: str) -> None:
    """A checkout with an attention of the pack's name that adds the number of its tokens."""
    (folder / peer.folder).mkdir()
    (folder / peer.folder / f"{peer.module}.py").write_text(module, encoding="utf-8")


STAND_IN = """
from facexlib.parsing import init_parsing_model
from comfy.ldm.modules.attention import optimized_attention

class Attn2Replace:
    def __init__(self, callback, **kwargs):
        self.calls = [(callback, kwargs)]
    def add(self, callback, **kwargs):
        self.calls.append((callback, kwargs))
    def __call__(self, q, k, v, extra_options):
        out = optimized_attention(q, k, v, extra_options["n_heads"])
        for callback, kwargs in self.calls:
            out = out + callback(out, q, k, v, extra_options, **kwargs)
        return out

def NAME(out, q, k, v, extra_options, KEYWORD, cond, uncond, weight, mask, module_key, **rest):
    layer = KEYWORD.ip_layers.to_kvs[module_key + "_to_k_ip"]
    return weight * layer(cond).mean() * out
"""


def test_packs_that_are_there_are_measured_and_the_others_are_told(counted, tmp_path):
    world, _, meter, (plain, *_) = counted
    for peer in PEERS[1:]:
        module = STAND_IN.replace("NAME", peer.attention).replace("KEYWORD", peer.adapter)
        write_peer(tmp_path, peer, module)
    found, absent = find_peers(tmp_path, None)
    assert [loaded.peer.name for loaded in found] == ["InstantID", "PuLID"]
    assert len(absent) == 1 and absent[0].startswith("ComfyUI_IPAdapter_plus is not measured")
    assert len(find_peers(None, None)[1]) == 3
    with torch.inference_mode():
        for loaded in found:
            counts = count_arm(world.peer(loaded, 2, True), meter, SIZE, CFG)
            tokens = loaded.peer.tokens
            widths = sum(block.width for block in SMALL.config.base.blocks)
            # the host never asks for the ten layers that they put into middle block 1
            widths -= sum(b.width for b in SMALL.config.base.blocks if b.block == "middle")
            assert counts.flop - plain.flop == 2 * 2 * tokens * SMALL.context * widths


def test_a_folder_that_is_another_pack_is_told(tmp_path):
    (tmp_path / PEERS[0].folder).mkdir()
    with pytest.raises(BenchmarkError, match=r"has no CrossAttentionPatch\.py; is it"):
        find_peers(tmp_path, None)


def test_the_arguments_of_the_cuda_command_are_read_and_refused_without_a_gpu(monkeypatch):
    """The command of the README; what it runs is tested on the CPU above."""
    import benchmark

    line = "--device cuda --scale full --masks --looks --whole --packs FOLDER"
    args = read_arguments(line.split())
    assert (args.size, args.images, args.tuning_steps) == (1024, [8, 20, 30], 300)
    if not torch.cuda.is_available():
        monkeypatch.setattr("sys.argv", ["benchmark.py", *line.split()])
        monkeypatch.setenv("COMFYUI_PATH", str(benchmark_host_folder()))
        with pytest.raises(SystemExit, match="torch finds no GPU"):
            benchmark.main()


def benchmark_host_folder() -> Path:
    import comfy

    return Path(next(iter(comfy.__path__))).parent
