"""Command: turn an official checkpoint folder into one .safetensors, or back.

    python -m mmdiff_core.convert SOURCE TARGET [--dtype fp16|bf16|fp32] [--behaviour
    released|corrected]
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .checkpoints.checkpoint import DTYPES, convert
from .config import BEHAVIOURS


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mmdiff_core.convert", description=__doc__)
    parser.add_argument("source", type=Path, help="official folder or .safetensors")
    parser.add_argument("target", type=Path,
                        help="name ending in .safetensors, or a folder for the official layout")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp16")
    parser.add_argument("--behaviour", choices=BEHAVIOURS, default=None)
    args = parser.parse_args(argv)
    try:
        sys.stdout.write(convert(args.source, args.target, args.dtype, args.behaviour) + "\n")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
