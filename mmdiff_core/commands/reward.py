"""Train a last stage of the small world's adapter with a matching reward, and compare adapters.

    python -m mmdiff_core reward FOLDER --steps 300                 from the shipped adapter
    python -m mmdiff_core reward FOLDER --steps 300 --weight 0      the same without the reward
    python -m mmdiff_core reward OUT.json --compare BEFORE.safetensors AFTER.safetensors ...

In the stage, images are drawn from noise; who is found in them is matched one to one with who was
given, and the similarity of the pairs is the reward, by its gradient through one step of the UNet.
The frozen image encoder scores the training, the exact ruler compares adapters, trial by trial.
Both go on where they were stopped.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from ..host.start import use_comfyui
from .lab import needs_lab


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add = parser.add_argument
    add("out", type=Path, help="folder of the training, or file of the comparison")
    add("--init", type=Path, help="adapter to start from, instead of the shipped one")
    add("--steps", type=int, default=300)
    add("--batch", type=int, default=16, help="examples of a step")
    add("--drawn", type=int, default=8, help="images drawn of each batch")
    add("--rate", type=float, default=2e-4, help="learning rate")
    add("--weight", type=float, default=0.1, help="of the reward; 0 = the usual losses alone")
    add("--compare", type=Path, nargs="+", metavar="ADAPTER", help="compare these to the first")
    add("--images", type=int, default=256, help="of each question, to compare")
    add("--questions", nargs="+", default=["two different", "three"], metavar="QUESTION")


def run(args: argparse.Namespace) -> int:
    """Train, or compare."""
    needs_lab()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_comfyui(cpu=True)
    import torch

    from ..host import small_world
    from ..lab import last_stage
    from ..lab.matching_reward import Stage

    torch.set_num_threads(1)
    if args.compare:
        results = last_stage.compare(args.out, args.compare, args.questions, args.images)
        sys.stdout.write(last_stage.table(results))
        return 0
    init = args.init or small_world.WEIGHTS / "adapter.safetensors"
    stage = Stage(weight=args.weight, images=args.drawn)
    wanted = last_stage.Wanted(init, args.steps, args.batch, args.rate, stage)
    command = f"python -m mmdiff_core reward FOLDER --steps {args.steps} --batch {args.batch} "
    command += f"--drawn {args.drawn} --rate {args.rate} --weight {args.weight}"
    sys.stdout.write(f"{last_stage.train(args.out, wanted, command)}\n")
    return 0
