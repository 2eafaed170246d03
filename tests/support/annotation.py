"""Models that know the photos of `support.photos`, and one call of the annotation on them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from mmdiff_core.training.data.annotation import folder as folders
from mmdiff_core.training.data.annotation import pipeline

from support.photos import CAPTION


class Fakes:
    """A captioner, grounder and segmenter that know `picture`.

    `calls` counts what they were asked; `fail` names an error to raise.
    """

    def __init__(
        self,
        caption: str = CAPTION,
        extra: tuple[pipeline.Detection, ...] = (),
        fail: Exception | None = None,
    ) -> None:
        self.text, self.extra, self.fail, self.calls = caption, extra, fail, Counter()

    def models(self) -> pipeline.Models:
        return pipeline.Models(self.caption, self.ground, self.segment)

    def caption(self, image) -> str:
        self.calls["caption"] += 1
        return self.text

    def ground(self, image, words) -> list[pipeline.Detection]:
        self.calls["ground"] += 1
        if self.fail:
            raise self.fail
        width = image.width
        boxes = {"dog": (5.6, 20.2, 26.0, 50.0), "ball": (width - 24.0, 30, width - 10, 44)}
        return [pipeline.Detection(w, boxes[w], 0.9) for w in words if w in boxes] + list(
            self.extra
        )

    def segment(self, image, boxes) -> np.ndarray:
        masks = np.zeros((len(boxes), image.height, image.width), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes):
            mask[y0:y1, x0:x1] = True
        return masks


def annotated(
    folder: Path,
    out: Path,
    fakes: Fakes,
    classes=("dog", "ball", "cat"),
    previews: int = 0,
    rules=None,
) -> folders.AnnotationProgress:
    file = folders.AnnotationFile(out)
    pictures = folders.find_images(folder, file)
    progress = folders.AnnotationProgress(len(pictures), lambda text: None)
    folders.annotate_folder(
        pictures, file, fakes.models(), classes, rules or pipeline.Rules(), progress, previews
    )
    return progress
