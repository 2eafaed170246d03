"""Annotate a folder of images for training: captions, class nouns, boxes and masks.

    python -m mmdiff_core annotate FOLDER OUT.jsonl --captioner DIR --grounder DIR --segmenter DIR

An image's own caption, NAME.txt beside it, is used before the captioner. Models are local folders
as `save_pretrained` writes them: BLIP or BLIP-2, Grounding DINO, SAM or SAM 2. Start again with the
same OUT to go on. Beside OUT: OUT_rejected.jsonl, a line with the reason for each image that was
left out (delete it to try them again), and OUT_previews/, images with their annotations.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path


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
    from ..training.lock import Lock

    if args.out.suffix != ".jsonl":
        raise ValueError(f"OUT is {args.out}; its name must end in .jsonl")
    if not args.folder.is_dir():
        raise ValueError(f"{args.folder} is not a folder; expected one with images")
    with Lock(args.out.with_name(f"{args.out.name}.lock"), str(args.out)) as lock:
        lock.acquire()
        _annotate_rest(args)


def _annotate_rest(args: argparse.Namespace) -> None:
    """Annotate what is not yet in OUT, which is ours alone."""
    import torch

    from ..training.data.annotation.folder import (
        AnnotationFile,
        AnnotationProgress,
        annotate_folder,
        find_images,
    )
    from ..training.data.annotation.models import load_models
    from ..training.data.annotation.nouns import read_classes
    from ..training.data.annotation.pipeline import Rules

    out, classes = AnnotationFile(args.out), read_classes(args.classes)
    images = find_images(args.folder, out)
    sys.stderr.write(f"{len(images)} images to do, {len(out.done)} are done\n")
    if not images:
        return
    bare = [name for name, path in images.items() if not path.with_suffix(".txt").is_file()]
    if bare and args.captioner is None:
        raise ValueError(
            f"{len(bare)} images have no caption in a .txt beside them, the first is {bare[0]}: "
            "give --captioner DIR"
        )
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    models = load_models(args.captioner, args.grounder, args.segmenter, device, args.threshold)
    progress, rules = AnnotationProgress(len(images), sys.stderr.write), Rules(most=args.most)
    try:
        annotate_folder(images, out, models, classes, rules, progress, args.previews)
    finally:
        for reason, count in progress.reasons.most_common():
            sys.stderr.write(f"rejected {count}: {reason}\n")
