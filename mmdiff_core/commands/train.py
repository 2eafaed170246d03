"""Train an adapter on a ComfyUI base: SDXL, SD1.5, or the small world.

    python -m mmdiff_core train RUN.json OUT [--init ADAPTER.safetensors]
    accelerate launch --num_processes 4 -m mmdiff_core train RUN.json OUT

RUN.json is a `training.config.RunConfig`. OUT receives states to go on from, samples, and
adapter.safetensors for Load MM-Diff. Run it again with the same OUT to go on.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from ..host.start import use_comfyui


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("config", metavar="RUN.json", type=Path, help="the run's config")
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="folder for states, samples and the adapter"
    )
    parser.add_argument("--init", type=Path, help="an adapter of the same sizes to start from")
    parser.add_argument("--cpu", action="store_true", help="train on the CPU in any case")


def run(args: argparse.Namespace) -> int:
    """Train, and print the report."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    use_comfyui(cpu=True if args.cpu else None)
    import torch

    from ..host.frozen_base.run import train

    torch.set_float32_matmul_precision("high")  # TF32 on a GPU that has it
    device = "cuda" if torch.cuda.is_available() and not args.cpu else "cpu"
    command = f"python -m mmdiff_core train {args.config.name} OUT"
    if args.init:
        command += f" --init {args.init.name}"
    sys.stdout.write(train(args.config, args.out, args.init, device, command) + "\n")
    return 0
