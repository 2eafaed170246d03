"""What the pack costs a sampling: time, dispatched operations, FLOP, waits for the device, memory.

Random weights.

    python tests/tools/benchmark.py
        SDXL's 70 layers at a fifth of the width, on the CPU
    python tests/tools/benchmark.py --device cuda --scale full --masks
        true SDXL in fp16
    python tests/tools/benchmark.py --looks
        also regions found, nouns held, and maps watched
    python tests/tools/benchmark.py --packs FOLDER
        also ComfyUI_IPAdapter_plus, ComfyUI_InstantID and PuLID_ComfyUI, those of them whose
        checkouts are in FOLDER
    python tests/tools/benchmark.py --whole
        also whole images, fine-tuning the UNet on a subject instead, and encoding a reference

COMFYUI_PATH is a ComfyUI folder. All arms share one UNet in one process. Every timed step of an arm
runs twice on the same input, with what the pack added to the model call and without it, in turns
one or the other first, so that the ratio of the two does not depend on how fast the machine is at
that minute. Times are those of the guider's model call, one per step of Euler. Where other programs
keep the machine busy, look at the ratio of the CPU time (all cores) too. Operations and FLOP are
counted in samplings of their own; what a pack does before the loop is timed beside the plain
model's samplings.

What is counted as a wait: an operation that makes the host wait for a GPU (reading a number, sizes
that depend on data, a blocking copy between devices). On the CPU the copies cannot be seen, the
others can.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmark_host import BenchmarkError, use_host


def read_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--scale", choices=("reduced", "full"), default="reduced", help="width of the UNet's layers"
    )
    parser.add_argument(
        "--size", type=int, help="side of the picture in pixels (full: 1024, reduced: 512)"
    )
    parser.add_argument(
        "--subjects",
        default="1,2,4",
        help="numbers of subjects, each with one reference (4 tokens)",
    )
    parser.add_argument("--masks", action="store_true", help="also with a mask for every subject")
    parser.add_argument(
        "--looks",
        action="store_true",
        help="also what looks at attention or holds nouns, for two subjects",
    )
    parser.add_argument(
        "--cfg", type=float, default=5.0, help="1 runs the positive prompt alone, in one row"
    )
    parser.add_argument(
        "--steps", type=int, default=5, help="steps of one sampling; ratios leave out the first"
    )
    parser.add_argument("--repeats", type=int, default=5, help="samplings of each arm")
    parser.add_argument(
        "--threads",
        type=int,
        help="threads of torch; 1 is steadier where others use the machine too",
    )
    add_comparisons(parser)
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    args = parser.parse_args(argv)
    check_arguments(parser, args)
    return args


def add_comparisons(parser: argparse.ArgumentParser) -> None:
    """What is measured beside the steps, and beside ours."""
    parser.add_argument(
        "--pack", type=Path, help="a checkout of ComfyUI_IPAdapter_plus to measure beside ours"
    )
    parser.add_argument(
        "--packs",
        type=Path,
        help="a folder with checkouts of ComfyUI_IPAdapter_plus, ComfyUI_InstantID, PuLID_ComfyUI",
    )
    parser.add_argument(
        "--whole", action="store_true", help="also whole images, fine-tuning, and encoding"
    )
    parser.add_argument(
        "--images", default="8,20,30", help="with --whole: numbers of steps of the whole images"
    )
    parser.add_argument(
        "--tuning-steps",
        type=int,
        default=300,
        help="with --whole: steps of fine-tuning on one subject; a few of them are run",
    )


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fill in what follows from other arguments, and refuse what cannot be measured."""
    args.size = args.size or {"full": 1024, "reduced": 512}[args.scale]
    try:
        args.subjects = [int(number) for number in args.subjects.split(",")]
        args.images = [int(number) for number in args.images.split(",")]
    except ValueError:
        parser.error(
            f"--subjects is {args.subjects!r} and --images {args.images!r}, expected numbers "
            "such as 1,2,4"
        )
    if min(args.images) < 2 or args.tuning_steps < 1:
        parser.error("--images must be at least 2 steps, and --tuning-steps at least 1")
    if min(args.subjects) < 1 or args.steps < 2 or args.repeats < 1:
        parser.error("there must be at least 1 subject, 2 steps and 1 repeat")
    if args.size < 64 or args.size % 64:
        parser.error(f"--size is {args.size}, expected a multiple of 64")


def main() -> None:
    """Measure with the ComfyUI that COMFYUI_PATH names.

    Nothing of it can be imported before it is found.
    """
    args = read_arguments()
    try:
        use_host(args.device)
        from cost.measure import measure

        measure(args)
    except BenchmarkError as error:
        sys.exit(f"benchmark: {error}")


if __name__ == "__main__":
    main()
