"""Train what the small world's adapter stands on.

    python -m mmdiff_core pretrain unet   OUT     UNet and text encoder, from captions alone
    python -m mmdiff_core pretrain text   OUT     text encoder alone: words bound to nouns; --init
    python -m mmdiff_core pretrain vision OUT     the image encoder
    python -m mmdiff_core pretrain reader OUT     the network that reads images for the scores

The base and the image encoder are frozen afterwards, as SDXL and CLIP are for the paper's adapter.
Every number of a run follows from its seed; run it again with the same OUT to continue it. OUT
receives the weights as float16 with the run in the header; `--init` starts from such files.
"""
from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from ..host.start import use_comfyui
from .lab import needs_lab

# what -> (steps, batch, peak rate, optimizer)
DEFAULTS = {
    "unet": (1600, 32, 2e-3, "muon"),
    "text": (1500, 32, 2e-3, "muon"),
    "vision": (700, 96, 6e-4, "adamw"),
    "reader": (1100, 64, 1e-3, "adamw"),
}

DRAWN_HERE = ("vision", "reader")  # these draw their images within the step, on the CPU


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add = parser.add_argument
    add("what", choices=sorted(DEFAULTS))
    add("out", type=Path)
    add("--steps", type=int)
    add("--batch", type=int, help="examples of one process in one step")
    add("--rate", type=float, help="highest learning rate")
    add("--optimizer", choices=("adamw", "muon"))
    add("--muon-rate", type=float, default=3.0, help="of matrices and kernels, times --rate")
    add("--schedule", choices=("cosine", "constant"), default="cosine")
    add("--precision", choices=("bf16", "no"), default="no", help="bf16 only where it is fast")
    add("--layout", type=float, default=0.25, help="weight of the layout heads' loss")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    add("--processes", type=int, default=0, help="others that draw scenes, for a GPU (unet, text)")
    add("--save-every", type=int, default=250, help="steps between two states on disk")
    add("--cpu", action="store_true", help="train on the CPU in any case")
    add("--init", type=Path, help="folder with the files of an earlier run to start from")


def run(args: argparse.Namespace) -> int:
    """Train, and write the files."""
    needs_lab()
    if args.what == "text" and args.init is None:
        raise SystemExit("pretrain text goes on from a base: give its folder with --init")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    steps, batch, rate, optimizer = DEFAULTS[args.what]
    args.steps, args.batch = args.steps or steps, args.batch or batch
    args.rate, args.optimizer = args.rate or rate, args.optimizer or optimizer
    if args.cpu or args.what in DRAWN_HERE:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    use_comfyui(cpu=True if args.cpu or args.what in DRAWN_HERE else None)
    from ..lab.train_base import train

    sys.stdout.write(f"{train(args)}\n")
    return 0
