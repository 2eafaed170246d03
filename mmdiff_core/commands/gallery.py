"""Draw the images behind the evaluation's numbers: the first trials of a question.

    python -m mmdiff_core gallery OUT.png ADAPTER.safetensors ... [--question "two of a class"]

Every adapter draws the same trials from the same noise. The first row has the references, and under
each image stands what the exact ruler says of it.
"""
from __future__ import annotations

import argparse
from pathlib import Path

from ..host.start import use_comfyui
from .lab import needs_lab


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add = parser.add_argument
    add("out", type=Path)
    add("adapters", type=Path, nargs="*")
    add("--question", default="two of a class", help="by its name in the evaluation's table")
    add("--no-adapter", action="store_true", help="also the base alone")
    add("--count", type=int, default=8, help="number of trials, from the first one on")


def run(args: argparse.Namespace) -> int:
    """Draw and save the gallery."""
    needs_lab()
    use_comfyui(cpu=True)
    from ..lab.gallery import draw_gallery

    draw_gallery(args.out, args.adapters, args.question, args.count, args.no_adapter)
    return 0
