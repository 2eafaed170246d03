"""Measure in the small world how often MM-Diff Pick Best picks an image that is truly right.

    python -m mmdiff_core picking OUT.json [--sets 64] [--questions "two different" three]

For each trial (individuals nobody trained on) eight images are drawn. MM-Diff Likeness scores them;
the exact ruler says which are right. The table has the share of right ones among all images, among
the picked of 4 and of 8, and how many sets have a right one at all. The images are kept beside
OUT.json; a run that was stopped is continued.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..host.start import use_comfyui
from .lab import needs_lab


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    add = parser.add_argument
    add("out", type=Path)
    add("--sets", type=int, default=64, help="of eight images, for each question")
    add("--questions", nargs="+", default=["two different", "three"], metavar="QUESTION")
    add("--adapter", type=Path, help="instead of the shipped one")


def run(args: argparse.Namespace) -> int:
    """Draw, score, and print the table."""
    needs_lab()
    use_comfyui(cpu=True)
    from ..lab import picking

    wanted = picking.Wanted(args.sets, tuple(args.questions), args.adapter)
    sys.stdout.write(picking.table(picking.run(args.out, wanted)))
    return 0
