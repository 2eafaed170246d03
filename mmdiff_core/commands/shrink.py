"""Keep a trained adapter at a lower rank of the UNet's LoRA, so that the file is smaller.

    python -m mmdiff_core shrink ADAPTER.safetensors SMALLER.safetensors --rank 24

It prints how much of the pairs' energy is kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("source", type=Path, help="an adapter in one .safetensors")
    parser.add_argument("target", type=Path, help="where the smaller one is written")
    parser.add_argument("--rank", type=int, required=True)


def run(args: argparse.Namespace) -> int:
    """Write the smaller adapter, and print what was written."""
    from ..training.shrink import shrink

    sys.stdout.write(shrink(args.source, args.target, args.rank) + "\n")
    return 0
