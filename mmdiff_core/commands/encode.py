"""Encode a run's images before it: latents, cutouts of the references, and faces.

    python -m mmdiff_core encode RUN.json
    accelerate launch --num_processes 4 -m mmdiff_core encode RUN.json

RUN.json is the config of `train`; its data.encoded names the folder that is written. The run then
reads from there what does not change from step to step. Start it again to go on. Processes of
accelerate launch or torchrun share the images; what they write is the same.
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
        "--shard", type=int, default=128, help="most images of a file, 1 to 10000 (default: 128)"
    )
    parser.add_argument("--cpu", action="store_true", help="encode on the CPU in any case")


def run(args: argparse.Namespace) -> int:
    """Encode; progress goes to stderr."""
    if not 1 <= args.shard <= 10_000:
        raise ValueError(f"--shard is {args.shard}, expected 1 to 10000")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    use_comfyui(cpu=True if args.cpu else None)
    import torch

    from ..host.frozen_base.encoding import encode_data
    from ..processes import Processes

    torch.set_float32_matmul_precision("high")  # as in `train`
    with Processes("cpu" if args.cpu else None) as processes:

        def say(text: str) -> None:
            sys.stderr.write(processes.prefix + text)

        try:
            made = encode_data(args.config, processes, args.shard, say)
        except KeyboardInterrupt:
            sys.stderr.write("stopped; start again to go on\n")
            return 130
        sys.stderr.write(f"{processes.prefix}done: {made} images encoded here\n")
    return 0
