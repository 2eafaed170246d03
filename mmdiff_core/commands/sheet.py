"""Draw a contact sheet of the small world: references, several seeds, and the subjects' maps.

    python -m mmdiff_core sheet REF1.png REF2.png --out sheet.png \\
        --prompt "a ghost<|subj|> and a cat<|subj|> at night"
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..host.start import use_comfyui


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("references", type=Path, nargs="+", help="an image per marker")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=8)


def run(args: argparse.Namespace) -> int:
    """Draw and save the sheet."""
    use_comfyui()
    from ..host.frozen_base.sheet import draw_sheet

    draw_sheet(args.references, args.prompt, args.out, args.seeds)
    return 0
