"""A whole measurement: count every arm, time every arm, print and write."""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from pathlib import Path

import torch

from .arms import make_arms, make_world
from .counting import Counts
from .peer import read_peer
from .report import Line, machine, make_line, markdown, state_bytes
from .setting import SCALES, Scale
from .timing import Meter, count_arm, say, time_all


def run(args: argparse.Namespace, scale: Scale) -> tuple[list[Line], float, Counts]:
    """Count, then time, every arm."""
    dtype = torch.float16 if args.device == "cuda" else torch.float32
    peer = read_peer(args.pack) if args.pack else None
    meter = Meter(args.device)
    world = make_world(scale, args.size, dtype, meter)
    plain, arms = world.plain(), make_arms(world, args.subjects, args.masks, peer, args.looks)
    counts = []
    for arm in (plain, *arms):
        say(f"counting: {arm.name}")
        counts.append(count_arm(arm, meter, args.size, args.cfg))
    plains, timings = time_all(plain, arms, meter, args)
    lines = [
        make_line(arm, timings[i], plains, counts[i + 1], counts[0]) for i, arm in enumerate(arms)
    ]
    return lines, 1000 * statistics.median(step for t in plains for step in t.steps[1:]), counts[0]


def measure(args: argparse.Namespace) -> None:
    """Measure, print the table, write the file."""
    scale = SCALES[args.scale]
    torch.set_num_threads(args.threads or torch.get_num_threads())
    with torch.inference_mode():
        lines, plain_ms, plain = run(args, scale)
    sizes = {n: state_bytes(n) for n in args.subjects}
    print(markdown(lines, plain_ms, plain))
    print(f"\nK and V at SDXL's widths in fp16: {describe_sizes(sizes)}")
    ran = f"{args.repeats} samplings of {args.steps} steps"
    print(f"{machine(args.device)}, {args.scale}, {args.size} px, CFG {args.cfg:g}, {ran}")
    if args.json:
        arguments = {k: v for k, v in vars(args).items() if not isinstance(v, Path)}
        report = {
            "machine": machine(args.device),
            "arguments": arguments,
            "plain": {"step_ms": plain_ms, **dataclasses.asdict(plain)},
            "arms": [dataclasses.asdict(line) for line in lines],
            "state_bytes_sdxl_fp16": sizes,
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def describe_sizes(sizes: dict[int, int]) -> str:
    return ", ".join(f"{n} subject{'s' * (n > 1)} {size / 1e6:.2f} MB" for n, size in sizes.items())
