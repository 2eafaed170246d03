"""A whole measurement: count every arm, time every arm, print and write."""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

from .arms import make_arms, make_world, whole_arms
from .counting import Counts
from .peer import find_peers
from .report import Line, machine, make_line, markdown, state_bytes, text_bytes
from .setting import SCALES, TEXT_TOKENS, Scale
from .share import share_told
from .timing import Meter, count_arm, say, time_all
from .tuning import fine_tune
from .whole import Whole, encoding_told, measure_whole, whole_markdown


@dataclass(frozen=True)
class Measured:
    """All that one run of the benchmark found."""

    lines: list[Line]
    plain_ms: float
    plain: Counts
    whole: Whole | None


def run(args: argparse.Namespace, scale: Scale) -> Measured:
    """Count, then time, every arm; then whole images."""
    dtype = torch.float16 if args.device == "cuda" else torch.float32
    peers, absent = find_peers(args.packs, args.pack)
    for sentence in absent:
        say(sentence)
    meter = Meter(args.device)
    world = make_world(scale, args.size, dtype, meter)
    plain, arms = world.plain(), make_arms(world, args.subjects, args.masks, peers, args.looks)
    counts = []
    for arm in (plain, *arms):
        say(f"counting: {arm.name}")
        counts.append(count_arm(arm, meter, args.size, args.cfg))
    plains, timings = time_all(plain, arms, meter, args)
    lines = [
        make_line(arm, timings[i], plains, counts[i + 1], counts[0]) for i, arm in enumerate(arms)
    ]
    whole = None
    if args.whole:
        whole = measure_whole(whole_arms(world, args.subjects[0], peers), world.size, meter, args)
    plain_ms = 1000 * statistics.median(step for t in plains for step in t.steps[1:])
    return Measured(lines, plain_ms, counts[0], whole)


def measure(args: argparse.Namespace) -> None:
    """Measure, print the table, write the file."""
    scale = SCALES[args.scale]
    torch.set_num_threads(args.threads or torch.get_num_threads())
    with torch.inference_mode():
        found = run(args, scale)
    sizes = {n: state_bytes(n) for n in args.subjects}
    print(markdown(found.lines, found.plain_ms, found.plain))
    print(f"\nK and V at SDXL's widths in fp16: {describe_sizes(sizes)}", end="; ")
    print(f"of the text, {TEXT_TOKENS} tokens, a row {text_bytes() / 1e6:.1f} MB")
    if found.whole is not None:
        print(f"\n{whole_markdown(found.whole)}")
        tuned = fine_tune(scale, args)
        print(f"\n{tuned.told(found.whole)}\n{encoding_told(args)}\n{share_told(SCALES['full'])}")
    ran = f"{args.repeats} samplings of {args.steps} steps"
    print(f"{machine(args.device)}, {args.scale}, {args.size} px, CFG {args.cfg:g}, {ran}")
    if args.json:
        arguments = {k: v for k, v in vars(args).items() if not isinstance(v, Path)}
        report = {
            "machine": machine(args.device),
            "arguments": arguments,
            "plain": {"step_ms": found.plain_ms, **dataclasses.asdict(found.plain)},
            "arms": [dataclasses.asdict(line) for line in found.lines],
            "whole": None if found.whole is None else dataclasses.asdict(found.whole),
            "state_bytes_sdxl_fp16": sizes,
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def describe_sizes(sizes: dict[int, int]) -> str:
    return ", ".join(f"{n} subject{'s' * (n > 1)} {size / 1e6:.2f} MB" for n, size in sizes.items())
