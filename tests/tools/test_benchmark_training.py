"""What the training benchmark counts and prints."""

from __future__ import annotations

import re

import pytest
import torch
from benchmark_training import measure, read_arguments
from cost.setting import Scale
from cost.share import plain_flop
from cost.training import UNET, VAE, encode_flop, flop_markdown, step_flop


def test_flop_of_an_encoder_are_those_of_its_convolutions_and_its_attention():
    sizes = VAE | {"ch": 32, "ch_mult": [1], "num_res_blocks": 1}
    side, ch = 16, 32
    place = side * side
    first, last = 9 * 3 * ch, 9 * ch * 8  # in and out, the latter of mean and variance
    blocks = 3 * 2 * 9 * ch * ch  # one on the way, two in the middle
    attention = 4 * ch * ch + 2 * place * ch  # q, k, v, out; and both products
    assert encode_flop(sizes, side) == 2 * place * (first + last + blocks + attention)


def test_a_step_has_at_least_twice_the_flop_of_a_call_of_the_unet():
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        step = step_flop(UNET, 64)
    scale = Scale(UNET["model_channels"], UNET["context_dim"], UNET["num_head_channels"], 4)
    call = plain_flop(scale, 64) / 2  # of one row; its vector is wider, which is little
    assert 1.9 < step / call < 2.6


def test_the_gain_is_measured_and_told(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    arguments = ["--size", "64", "--steps", "1", "--batch", "1", "--repeats", "1"]
    told = measure(read_arguments(arguments), tmp_path)
    rates = re.findall(r"\| (in the step|before) \| ([0-9.]+) \|", told)
    assert [name for name, _ in rates] == ["in the step", "before"]
    gain = float(re.search(r"([0-9.]+) times the images a second", told)[1])
    assert gain == pytest.approx(float(rates[1][1]) / float(rates[0][1]), rel=0.02)


def test_flop_are_told_for_sdxl_and_for_a_fifth_of_its_width():
    with torch.inference_mode(False), torch.enable_grad():
        lines = flop_markdown((64,)).splitlines()
    shares = [float(line.split("|")[-2].strip(" %")) for line in lines[2:]]
    assert len(lines) == 4 and "| SDXL, 64 px |" in lines[2]
    assert abs(shares[0] - shares[1]) < 10  # the run that is timed is like the one it stands for
