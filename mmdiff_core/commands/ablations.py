"""Train and score the ablations of the small world.

    python -m mmdiff_core ablations FOLDER --minutes 9                  a GPU, 16 cores
    python -m mmdiff_core ablations FOLDER --steps 1650 --batch 32 --at-once 1 --cpu
    python -m mmdiff_core ablations FOLDER --score                      the table, on any machine

Every arm is trained on the same images, from the same noise; mmdiff_core/lab/arms.py has the arms.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

from ..host.start import PACK, use_comfyui
from .lab import needs_lab


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add = parser.add_argument
    add("folder", type=Path)
    add("--only", nargs="+", metavar="ARM", help="arms; without it all of them")
    add("--seeds", nargs="+", type=int, default=[0, 1])
    add("--batch", type=int, default=160, help="images of a step")
    add("--steps", type=int, help="of every run")
    add("--minutes", type=float, help="instead of --steps: as many as fit; all arms at once")
    add("--at-once", type=int, help="arms that run side by side; without it all of them")
    add("--images", type=int, default=512, help="drawn for each question with two subjects")
    add("--packs", type=int, default=512, help="batches of images that are made")
    add("--processes", type=int, default=os.cpu_count() or 1, help="that make them")
    add("--cpu", action="store_true", help="train on the CPU in any case")
    add("--score", action="store_true", help="score what was drawn, and print the table")
    add("--arm", help=argparse.SUPPRESS)
    add("--until", type=float, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Train and draw, or score."""
    needs_lab()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_comfyui(cpu=True if args.cpu or args.score else None)
    from ..lab import ablation_table, ablations
    from ..lab.arms import BY_NAME

    names = tuple(args.only or BY_NAME)
    if unknown := sorted(set(names) - set(BY_NAME)):
        raise ValueError(f"there is no arm {unknown[0]!r}; there are: {', '.join(BY_NAME)}")
    plan = _plan(args, names)
    if args.score:
        results = ablations.score_all(plan.folder, plan.cells())
        sys.stdout.write(ablation_table.table(results))
        return 0
    if args.arm:
        ablations.Runs(plan, args.arm).all()
        return 0
    return _train_all(args, plan)


def _plan(args: argparse.Namespace, names: tuple[str, ...]):
    import torch

    from ..lab.ablations import Plan

    torch.set_float32_matmul_precision("high")  # TF32 on a GPU that has it
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() and not (args.cpu or args.score) else "cpu"
    until = args.until or (time.time() + 60 * args.minutes if args.minutes else None)
    seeds = tuple(args.seeds)
    return Plan(
        args.folder.resolve(), names, seeds, args.batch, args.steps, until, args.images, device
    )


def _train_all(args: argparse.Namespace, plan) -> int:
    """Make the images, then one process for each arm. 1 where one of them failed."""
    from ..lab.packs import make_packs

    if (plan.steps is None) == (plan.until is None):
        raise ValueError("give either --steps or --minutes")
    at_once = args.at_once or len(plan.arms)
    if plan.until is not None and at_once < len(plan.arms):
        raise ValueError("--minutes needs all arms at once: their steps are found together")
    make_packs(plan.packs, args.packs, plan.batch, args.processes)
    waiting, running, failed = list(plan.arms), [], 0
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(_start(args, plan, waiting.pop(0)))
        time.sleep(0.2)
        failed += sum(process.poll() not in (None, 0) for process in running)
        running = [process for process in running if process.poll() is None]
    return int(failed > 0)


def _start(args: argparse.Namespace, plan, arm: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "mmdiff_core"]
    command += ["ablations", str(plan.folder), "--arm", arm, "--only", *plan.arms]
    command += ["--seeds", *map(str, plan.seeds), "--batch", str(plan.batch)]
    command += ["--images", str(plan.images)]
    command += ["--steps", str(plan.steps)] if plan.steps else ["--until", str(plan.until)]
    command += ["--cpu"] if args.cpu else []
    plan.folder.mkdir(parents=True, exist_ok=True)
    with (plan.folder / f"{arm}.log").open("w", encoding="utf-8") as out:
        return subprocess.Popen(command, cwd=PACK, stdout=out, stderr=subprocess.STDOUT)
