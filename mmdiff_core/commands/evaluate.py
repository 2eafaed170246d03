"""Score adapters in the small world, and print the table of what each part contributes.

    python -m mmdiff_core evaluate OUT.json ADAPTER.safetensors ... [--help]

All arguments go to `mmdiff_core.host.evaluate`.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything is passed on."""
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    parser.prefix_chars = "\0"  # also what begins with a dash


def run(args: argparse.Namespace) -> int:
    """Evaluate."""
    from ..host.evaluate import main

    return main(args.arguments)
