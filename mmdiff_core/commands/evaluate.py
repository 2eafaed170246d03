"""Score adapters in the small world, or images under a protocol of the field.

    python -m mmdiff_core evaluate OUT.json ADAPTER.safetensors ... [--no-adapter] [--floor]
    python -m mmdiff_core evaluate OUT.json OTHER.json ... --table

Every adapter answers the same trials from the same noise. An adapter's name is its file's, or its
folder's where the file is called adapter.safetensors, as a training run leaves it. `--floor` adds
perfect renderings of unrelated individuals (the floor) and true renderings that went to a noise of
0.3 and back through the base (the ceiling). OUT.json keeps the counts; `--table` prints those of
all files as Markdown. A run that was stopped is continued.

With a protocol's name as first word it measures real images instead:

    python -m mmdiff_core evaluate dreambench --help
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
    add("adapters", type=Path, nargs="*")
    add("--images", type=int, default=512, help="of every cell")
    add("--second", type=int, metavar="N", help="images of every cell for the second ruler")
    add("--more", action="store_true", help="also references, masks and unseen pairs")
    add("--only", nargs="+", default=[], metavar="QUESTION", help="by the names in the table")
    add("--no-adapter", action="store_true", help="also the base alone")
    add("--floor", action="store_true", help="also the floor and the ceiling")
    add("--told", action="store_true", help="also the base alone, told in words how they look")
    add("--exchange", action="store_true", help="also how one changes with the other subject")
    add("--table", action="store_true", help="print the table of all files, and stop")


def run(args: argparse.Namespace) -> int:
    """Evaluate, or print the table."""
    needs_lab()
    use_comfyui(cpu=True)
    from ..lab.evaluate import Wanted, run_all
    from ..lab.tables import merged, table

    if args.table:
        sys.stdout.write(table(merged([args.out, *args.adapters])))
        return 0
    wanted = Wanted(
        args.images,
        tuple(args.only),
        args.more,
        args.no_adapter,
        args.floor,
        args.told,
        args.exchange,
        args.second,
    )
    sys.stdout.write(table(run_all(args.out, args.adapters, wanted)))
    return 0
