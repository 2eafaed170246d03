"""Annotate a folder of images for training: captions, class nouns, boxes and masks.

    python -m mmdiff_core annotate FOLDER OUT.jsonl --captioner DIR --grounder DIR --segmenter DIR

An image's own caption, NAME.txt beside it, is used before the captioner. Models are local folders
as `save_pretrained` writes them: BLIP or BLIP-2, Grounding DINO, SAM or SAM 2. Start again with the
same OUT to go on. Start it with torchrun or accelerate launch to share the images among processes
and GPUs; the records are the same. Beside OUT: OUT_rejected.jsonl, a line with the reason for each
image that was left out (delete it to try them again), and OUT_previews/, images with their
annotations.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..processes import Processes
    from ..training.data.annotation.folder import AnnotationFile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""

    def add(name: str, text: str, **options) -> None:
        parser.add_argument(name, help=text, **options)

    add("folder", "images, also in folders below", type=Path)
    add("out", "name ending in .jsonl; continued if it is there", type=Path)
    add(
        "--captioner",
        "folder of a BLIP or BLIP-2 model; not needed where all images have a .txt",
        type=Path,
    )
    add("--grounder", "folder of a Grounding DINO model", type=Path, required=True)
    add("--segmenter", "folder of a SAM or SAM 2 model", type=Path, required=True)
    add(
        "--classes",
        "file of class nouns, one a line; the default is a list of common ones",
        type=Path,
    )
    add(
        "--threshold", "smallest score of a detection, 0..1 (default: 0.3)", type=float, default=0.3
    )
    add("--most", "most subjects of an image, from 1 (default: 4)", type=int, default=4)
    add("--previews", "images between two previews; 0 = none (default: 50)", type=int, default=50)
    add("--device", "of torch, as cuda:1; the default is the first GPU, else the CPU")


def run(args: argparse.Namespace) -> int:
    """Annotate; progress goes to stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        _annotate(args)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; start again with the same OUT to go on\n")
        return 130
    return 0


def _annotate(args: argparse.Namespace) -> None:
    from ..processes import Processes
    from ..training.lock import Lock

    if args.out.suffix != ".jsonl":
        raise ValueError(f"OUT is {args.out}; its name must end in .jsonl")
    if not args.folder.is_dir():
        raise ValueError(f"{args.folder} is not a folder; expected one with images")
    lock = Lock(args.out.with_name(f"{args.out.name}.lock"), str(args.out))
    with Processes(args.device) as processes, lock:
        if processes.main:
            lock.acquire()
        _annotate_rest(args, processes)


def _annotate_rest(args: argparse.Namespace, processes: Processes) -> None:
    """Annotate what is not yet in OUT, which is these processes' alone."""
    from ..training.data.annotation.folder import AnnotationFile, find_images
    from ..training.data.annotation.parts import join_parts, open_part

    if processes.main:
        join_parts(args.out)  # of a run that was stopped
    processes.wait()
    out = AnnotationFile(args.out)
    images = find_images(args.folder, out)
    if processes.main:
        sys.stderr.write(f"{len(images)} images to do, {len(out.done)} are done\n")
    own = dict(processes.share(list(images.items())))
    if own:
        file = out if processes.world == 1 else open_part(out, processes.rank)
        _annotate_images(args, own, file, processes)
    processes.wait()
    if processes.main:
        join_parts(args.out)


def _annotate_images(
    args: argparse.Namespace, images: Mapping[str, Path], out: AnnotationFile, processes: Processes
) -> None:
    """Annotate this process's images into its file."""
    from ..training.data.annotation.folder import AnnotationProgress, annotate_folder
    from ..training.data.annotation.models import load_models
    from ..training.data.annotation.nouns import read_classes
    from ..training.data.annotation.pipeline import Rules

    def say(text: str) -> None:
        sys.stderr.write(processes.prefix + text)

    classes, rules = read_classes(args.classes), Rules(most=args.most)
    bare = [name for name, path in images.items() if not path.with_suffix(".txt").is_file()]
    if bare and args.captioner is None:
        raise ValueError(
            f"{len(bare)} images have no caption in a .txt beside them, the first is {bare[0]}: "
            "give --captioner DIR"
        )
    folders = (args.captioner, args.grounder, args.segmenter)
    models = load_models(*folders, processes.device, args.threshold)
    progress = AnnotationProgress(len(images), say)
    try:
        annotate_folder(images, out, models, classes, rules, progress, args.previews)
    finally:
        for reason, count in progress.reasons.most_common():
            say(f"rejected {count}: {reason}\n")
