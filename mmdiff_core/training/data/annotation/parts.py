"""One file of annotations by several processes: each writes a part, and one process joins them.

Beside OUT.jsonl while they work: OUT_part-N.jsonl and OUT_part-N_rejected.jsonl of process N.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from .folder import AnnotationFile, image_of, rejects_of, repaired_images


class Line(NamedTuple):
    """Where an image's line lies in a part."""

    image: PurePosixPath
    part: Path
    start: int
    size: int


def open_part(whole: AnnotationFile, number: int) -> AnnotationFile:
    """The part of a process, with its previews among all the others."""
    path = whole.out.with_name(f"{whole.out.stem}_part-{number}.jsonl")
    return AnnotationFile(path, whole.previews, f"{number}-")


def join_parts(out: Path) -> None:
    """Append what the parts beside OUT hold, in the order of the images' names, and remove them.

    It may be stopped at any point and called again: no image is written twice, none is lost.
    """
    pattern = re.compile(rf"{re.escape(out.stem)}_part-\d+(_rejected)?\.jsonl")
    found: dict[Path, list[Path]] = {out: [], rejects_of(out): []}
    for path in out.parent.iterdir() if out.parent.is_dir() else ():
        if match := pattern.fullmatch(path.name):
            found[rejects_of(out) if match[1] else out].append(path)
    for target, parts in found.items():
        if parts:
            _append_lines(target, parts)
        for part in parts:
            part.unlink()


def _append_lines(target: Path, parts: list[Path]) -> None:
    done = set(map(PurePosixPath, repaired_images(target)))
    lines = {line.image: line for part in sorted(parts) for line in _lines(part)}
    with target.open("ab") as file:
        for image in sorted(set(lines) - done):
            _, part, start, size = lines[image]
            with part.open("rb") as source:
                source.seek(start)
                file.write(source.read(size))
        file.flush()
        os.fsync(file.fileno())


def _lines(part: Path) -> Iterator[Line]:
    """The whole lines of a part."""
    repaired_images(part)
    start = 0
    with part.open("rb") as file:
        for line in file:
            image = image_of(line)
            if image is not None:
                yield Line(PurePosixPath(image), part, start, len(line))
            start += len(line)
