"""Fine-tune the small world's base on single subjects, for comparison (DreamBooth-like).

    python -m mmdiff_core finetune OUT.json [--subjects 16] [--images 32] [--steps 300]
        [--rate 1e-4] [--first 0]

For every subject the whole UNet is trained on its references, cut out of their blank background and
set in places without a subject, and, as prior preservation, on as many other scenes; then it draws
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
    add("--first", type=int, default=0, help="number of the first subject")
    add("--images", type=int, default=32, help="of every subject")
    add("--steps", type=int, default=300)
    add("--rate", type=float, default=1e-4)
    add("--references", type=int, default=5)


def run(args: argparse.Namespace) -> int:
    """Fine-tune, score, save."""
    needs_lab()
    use_comfyui(cpu=True)
    from ..lab.finetune import compare

    subjects = range(args.first, args.first + args.subjects)
    results = compare(subjects, args.images, args.references, steps=args.steps, rate=args.rate)
    args.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 0
