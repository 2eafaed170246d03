"""A folder of images to annotations in one .jsonl file; a stopped run is continued.

Beside OUT.jsonl: OUT_rejected.jsonl, a line with the reason for each image that was left out
(delete it to try them again), and OUT_previews/, images with their annotations drawn on them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..images import IMAGE_ENDINGS, BrokenRecord, Stored, read_image
from ..masks import decode_rle
from ..records import field, parse_json
from .pipeline import Models, Rejected, Rules, annotate, preview

log = logging.getLogger(__name__)

HALTING = 5  # so many model failures in a row are the models' fault, not the images'


class AnnotationFile:
    """OUT.jsonl and the rejected images beside it.

    Each line is on the disk before the next image begins. `done` holds the images of both files.

    previews  folder of the previews; None = OUT_previews
    label     what a preview's name begins with
    """

    def __init__(self, out: Path, previews: Path | None = None, label: str = "") -> None:
        self.out, self.rejects, self.label = out, rejects_of(out), label
        self.previews = previews or out.with_name(f"{out.stem}_previews")
        out.parent.mkdir(parents=True, exist_ok=True)
        annotated, rejected = repaired_images(self.out), repaired_images(self.rejects)
        self.done, self.annotated = {*annotated, *rejected}, len(annotated)

    def add(self, facts: Mapping[str, Any]) -> None:
        """Write an annotation."""
        _append(self.out, facts)
        self.annotated += 1

    def reject(self, image: str, error: Rejected) -> None:
        """Write why an image is left out."""
        log.info("%s is left out: %s", image, error)
        _append(self.rejects, {"image": image, "reason": error.reason, "detail": str(error)})

    def preview(self, image: Image.Image, facts: Mapping[str, Any]) -> None:
        """Draw the newest annotation."""
        masks = [decode_rle(segment["mask"]) for segment in facts["segments"]]
        self.previews.mkdir(exist_ok=True)
        preview(image, facts, masks).save(self.previews / f"{self.label}{self.annotated:08d}.jpg")


def rejects_of(out: Path) -> Path:
    """The file of the images that were left out of OUT."""
    return out.with_name(f"{out.stem}_rejected.jsonl")


def repaired_images(path: Path) -> list[str]:
    """The "image" of every line.

    A last line that was cut short is removed from the file, so that the next one starts on its own.
    """
    if not path.exists():
        return []
    images, whole, line = [], 0, b"\n"
    with path.open("r+b") as file:
        for line in file:
            image = image_of(line)
            if image is not None:
                images.append(image)
            elif not line.endswith(b"\n"):
                break
            else:
                log.warning(
                    "%s: %r is not an annotation; its image is done again", path.name, line[:60]
                )
            whole += len(line)
        if not line.endswith(b"\n") and file.tell() == whole:
            file.write(b"\n")
        elif not line.endswith(b"\n"):
            log.warning(
                "%s ended within a line, which is removed: %r; its image is done again",
                path.name,
                line[:60],
            )
            file.truncate(whole)
    return images


def image_of(line: bytes) -> str | None:
    """The "image" of a line; None for what is no annotation."""
    try:
        return field(parse_json(line), "image", str)
    except BrokenRecord:
        return None


def _append(path: Path, facts: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(facts, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


@dataclass
class AnnotationProgress:
    """Counts of one call of the command.

    write  gets a line of text every `every` seconds: rate, rejected images, time left
    """

    total: int
    write: Callable[[str], Any]
    every: float = 5.0
    done: int = 0
    reasons: Counter = dataclasses.field(default_factory=Counter)
    started: float = dataclasses.field(default_factory=time.monotonic)
    written: float = 0.0

    def step(self, reason: str | None = None) -> None:
        """One image is done; `reason` when it was rejected."""
        self.done += 1
        if reason:
            self.reasons[reason] += 1
        now = time.monotonic()
        if now - self.written < self.every and self.done < self.total:
            return
        self.written, rate = now, self.done / max(now - self.started, 1e-6)
        left = (self.total - self.done) / rate / 60
        self.write(
            f"{self.done}/{self.total} · {rate:.2f} images/s · {sum(self.reasons.values())} "
            f"rejected · {left:.0f} min left\n"
        )


def find_images(folder: Path, out: AnnotationFile) -> dict[str, Path]:
    """Images below the folder by their path relative to OUT, sorted.

    Previews are left out, and images that OUT has already. ValueError when there are no images.
    """
    paths = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_ENDINGS and path.is_file():
            paths += [] if out.previews in path.parents else [path]
    if not paths:
        raise ValueError(
            f"{folder} holds no images; expected files ending in {', '.join(IMAGE_ENDINGS)}"
        )
    named = {Path(os.path.relpath(path, out.out.parent)).as_posix(): path for path in paths}
    return {name: path for name, path in named.items() if name not in out.done}


def annotate_folder(
    images: Mapping[str, Path],
    out: AnnotationFile,
    models: Models,
    classes: Sequence[str],
    rules: Rules,
    progress: AnnotationProgress,
    previews: int = 50,
) -> None:
    """Annotate images {name for the file: path} into `out`.

    previews  a preview of the first image, and then of every `previews`-th; 0 = none

    ValueError when a model fails on HALTING images in a row; these are not recorded as rejected.
    """
    failed: list[tuple[str, Rejected]] = []
    for name, path in images.items():
        reason = None
        try:
            image, caption = _opened(path)
            facts = annotate(image, caption, models, classes, rules)
        except Rejected as error:
            reason = error.reason
            failed = [*failed, (name, error)]
        except (RuntimeError, ValueError) as error:
            # one odd image must not end a night's work
            failed.append((name, Rejected("a model failed", f"{type(error).__name__}: {error}")))
            if len(failed) == HALTING:
                raise ValueError(
                    f"the models failed on {HALTING} images in a row, the last: {name}: {error}"
                ) from error
            progress.step("a model failed")
            continue
        else:
            out.add({"image": name, "width": image.width, "height": image.height, **facts})
            if previews and out.annotated % previews == 1 % previews:
                out.preview(image, facts)
        failed = _record(failed, out)
        progress.step(reason)
    _record(failed, out)


def _opened(path: Path) -> tuple[Image.Image, str | None]:
    """An image and its own caption. Raises Rejected for files that cannot be read."""
    try:
        return read_image(Stored(str(path))), own_caption(path)
    except (BrokenRecord, OSError, UnicodeDecodeError) as error:
        raise Rejected("unreadable", str(error)) from error


def _record(failed: list[tuple[str, Rejected]], out: AnnotationFile) -> list:
    """Write the images that were left out; an empty list to go on with."""
    for name, error in failed:
        out.reject(name, error)
    return []


def own_caption(image: Path) -> str | None:
    """The text of NAME.txt beside NAME.jpg, or None."""
    text = image.with_suffix(".txt")
    return text.read_text(encoding="utf-8") if text.is_file() else None
