"""A whole measurement: count every arm, time every arm, print and write."""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

from .arms import World, make_arms, make_world, whole_arms
from .counting import Counts
from .peer import LoadedPeer, find_peers
from .report import Line, machine, make_line, markdown, state_bytes, text_bytes
from .setting import SCALES, TEXT_TOKENS, Scale
from .share import share_told
from .timing import Meter, count_arm, say, time_all
from .tuning import fine_tune
from .whole import encoding_told, measure_whole, whole_markdown


@dataclass(frozen=True, eq=False)
class Setting:
    """What is measured, and by what."""

    args: argparse.Namespace
    scale: Scale
    meter: Meter
    world: World
    peers: list[LoadedPeer]


@dataclass(frozen=True)
class Measured:
    """What the steps of all arms took."""

    lines: list[Line]
    plain_ms: float
    plain: Counts


def set_up(args: argparse.Namespace) -> Setting:
    """The model and the packs, and a sentence for each pack that is not there."""
    scale, meter = SCALES[args.scale], Meter(args.device)
    peers, absent = find_peers(args.packs, args.pack)
    for sentence in absent:
        say(sentence)
    dtype = torch.float16 if args.device == "cuda" else torch.float32
    return Setting(args, scale, meter, make_world(scale, args.size, dtype, meter), peers)


def run(setting: Setting) -> Measured:
    """Count, then time, every arm."""
    args, world, meter = setting.args, setting.world, setting.meter
    plain = world.plain()
    arms = make_arms(world, args.subjects, args.masks, setting.peers, args.looks)
    counts = []
    for arm in (plain, *arms):
        say(f"counting: {arm.name}")
        counts.append(count_arm(arm, meter, args.size, args.cfg))
    plains, timings = time_all(plain, arms, meter, args)
    lines = [
        make_line(arm, timings[i], plains, counts[i + 1], counts[0]) for i, arm in enumerate(arms)
    ]
    plain_ms = 1000 * statistics.median(step for t in plains for step in t.steps[1:])
    return Measured(lines, plain_ms, counts[0])


def measure(args: argparse.Namespace) -> None:
    """Measure, print the tables, write the file."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    with torch.inference_mode():
        setting = set_up(args)
        found = run(setting)
        print_steps(found, args)
        arms = whole_arms(setting.world, args.subjects[0], setting.peers) if args.whole else []
        whole = measure_whole(arms, args.size, setting.meter, args)
    tuned = None
    if args.whole:
        print(f"\n{whole_markdown(whole)}", flush=True)
        tuned = fine_tune(setting.scale, args)
        print(f"\n{tuned.told(whole)}\n{encoding_told(args)}", flush=True)
        print(share_told(SCALES["full"]))
    if args.json:
        report = {
            "machine": machine(args.device),
            "arguments": {k: v for k, v in vars(args).items() if not isinstance(v, Path)},
            "plain": {"step_ms": found.plain_ms, **dataclasses.asdict(found.plain)},
            "arms": list(map(dataclasses.asdict, found.lines)),
            "whole": list(map(dataclasses.asdict, whole.arms)),
            "tuning": tuned and dataclasses.asdict(tuned),
            "state_bytes_sdxl_fp16": dict(zip(args.subjects, map(state_bytes, args.subjects))),
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def print_steps(found: Measured, args: argparse.Namespace) -> None:
    """The table of the steps, and on what they ran."""
    print(markdown(found.lines, found.plain_ms, found.plain))
    sizes = {n: state_bytes(n) for n in args.subjects}
    print(f"\nK and V at SDXL's widths in fp16: {describe_sizes(sizes)}", end="; ")
    print(f"of the text, {TEXT_TOKENS} tokens, a row {text_bytes() / 1e6:.1f} MB")
    ran = f"{args.repeats} samplings of {args.steps} steps"
    print(
        f"{machine(args.device)}, {args.scale}, {args.size} px, CFG {args.cfg:g}, {ran}",
        flush=True,
    )


def describe_sizes(sizes: dict[int, int]) -> str:
    return ", ".join(f"{n} subject{'s' * (n > 1)} {size / 1e6:.2f} MB" for n, size in sizes.items())
