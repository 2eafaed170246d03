"""Fine-tune the small world's base on single subjects, for comparison (DreamBooth-like).

    python -m mmdiff_core finetune OUT.json [--subjects 16] [--images 32] [--steps 300]

For every subject the whole UNet is trained on its references (at the scenes' size, on their blank
background, at random positions) and, as prior preservation, on as many other scenes; then it draws
the same trials as the adapter. OUT.json: the counts, and the cost of a subject.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..host.start import use_comfyui
from .lab import needs_lab


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add = parser.add_argument
    add("out", type=Path)
    add("--subjects", type=int, default=16)
    add("--images", type=int, default=32, help="of every subject")
    add("--steps", type=int, default=300)
    add("--references", type=int, default=5)


def run(args: argparse.Namespace) -> int:
    """Fine-tune, score, save."""
    needs_lab()
    use_comfyui(cpu=True)
    from ..lab.finetune import compare

    results = compare(args.subjects, args.images, args.steps, args.references)
    args.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 0
