"""Convert an official checkpoint folder to one .safetensors, or back.

python -m mmdiff_core convert SOURCE TARGET [--dtype fp16] [--behaviour released]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..config import BEHAVIOURS

DTYPES = ("bf16", "fp16", "fp32")  # of `checkpoint.DTYPES`, which needs torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("source", type=Path, help="official folder or .safetensors")
    parser.add_argument(
        "target",
        type=Path,
        help="name ending in .safetensors, or a folder for the official layout",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="fp16")
    parser.add_argument("--behaviour", choices=BEHAVIOURS, help="the default is the source's own")


def run(args: argparse.Namespace) -> int:
    """Convert, and print what was written."""
    from ..checkpoints import checkpoint

    said = checkpoint.convert(args.source, args.target, args.dtype, args.behaviour)
    sys.stdout.write(f"{said}\n")
    return 0
