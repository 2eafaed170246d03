"""Command: the pictures behind the evaluation's numbers, the first trials of one question for every
adapter, from the same noise.

    python -m mmdiff_core.host.gallery OUT.png ADAPTER.safetensors [more ...]
        [--question "two of a class"] [--no-adapter] [--count 8]

Rows: the references asked for, then what each adapter draws.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..small_world.trials import make_trial
from .start import use_comfyui

SIDE = 128


def make(args: argparse.Namespace) -> None:
    """Draw and save. ValueError for a question or an adapter that is not there."""
    from .evaluate import BASE, SEED, asked, draw, load_task, named
    from .frozen_base import contact

    question = asked([args.question], False)[0]
    trials = [make_trial(question, SEED, i) for i in range(args.count)]
    shown = [
        np.concatenate(
            [contact.to_bytes(s.references[0].movedim(0, -1)) for s in t.example.subjects], 1
        )
        for t in trials
    ]
    rows, names = [[squared(picture) for picture in shown]], ["references"]
    for name, path in (({BASE: None} if args.no_adapter else {}) | named(args.adapters)).items():
        task = load_task(path)
        examples = [t.example if path else replace(t.example, subjects=()) for t in trials]
        rows.append(
            [contact.to_bytes(p.movedim(0, -1)) for p in draw(task, examples, question.held)]
        )
        names.append(name)
        task.bridge.close()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    contact.tile(rows, SIDE, names=names).save(args.out)
    for trial in trials:
        sys.stdout.write(f"{trial.scene.caption}\n")


def squared(picture: np.ndarray) -> np.ndarray:
    """[h w 3] in the middle of a white square of its longer side."""
    side = max(picture.shape[:2])
    out = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - picture.shape[0]) // 2, (side - picture.shape[1]) // 2
    out[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mmdiff_core.host.gallery",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("adapters", type=Path, nargs="*")
    parser.add_argument(
        "--question", default="two of a class", help="by its name in the evaluation's table"
    )
    parser.add_argument("--no-adapter", action="store_true", help="also the base alone")
    parser.add_argument("--count", type=int, default=8, help="trials, the first ones")
    args = parser.parse_args(argv)
    try:
        use_comfyui(cpu=True)
        make(args)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
