"""One image to its annotation, as pure functions over three models.

Shapes   H W image · n boxes
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision.ops import nms

from ..masks import encode_rle
from .nouns import find_nouns

COLOURS = ((230, 60, 60), (60, 120, 240), (60, 190, 90), (240, 170, 40))

Box = tuple[float, float, float, float]


class Detection(NamedTuple):
    """A noun that was found in an image: box x0, y0, x1, y1 in pixels, score in 0..1."""

    word: str
    box: Box
    score: float


class Captioner(Protocol):
    def __call__(self, image: Image.Image) -> str: ...


class Grounder(Protocol):
    def __call__(self, image: Image.Image, words: Sequence[str]) -> list[Detection]: ...


class Segmenter(Protocol):
    def __call__(self, image: Image.Image, boxes: Sequence[Box]) -> np.ndarray:
        """bool [n H W], one mask per box."""


@dataclass(frozen=True)
class Models:
    """The three models. `caption` may be None where every image has a caption of its own."""

    caption: Captioner | None
    ground: Grounder
    segment: Segmenter


@dataclass(frozen=True)
class Rules:
    """What counts as a subject.

    most               largest number of subjects of an image, from 1; the surest ones are kept
    overlap            boxes that share more than this (intersection over union, 0..1) are one
                       thing; the surer one is kept
    smallest, largest  share of the image that a mask may have, 0..1
    """

    most: int = 4
    overlap: float = 0.5
    smallest: float = 0.01
    largest: float = 0.9

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"most is {self.most}, expected at least 1 subject of an image")


class Rejected(Exception):
    """An image that is left out. `reason` is one of few, to be counted; the text may say more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def annotate(
    image: Image.Image, caption: str | None, models: Models, classes: Sequence[str], rules: Rules
) -> dict[str, Any]:
    """Image -> {"caption", "segments"} as `reading` reads it. Raises Rejected."""
    caption = " ".join((models.caption(image) if caption is None else caption).split())
    spans = find_nouns(caption, classes)
    if not spans:
        raise Rejected("no class noun that occurs once in the caption", caption)
    detections = choose(models.ground(image, list(spans)), spans, image.size, rules)
    if not detections:
        raise Rejected("no noun with one box of its own", f"{', '.join(spans)} in {caption!r}")
    masks = np.asarray(models.segment(image, [d.box for d in detections]), dtype=bool)
    segments = []
    for detection, mask in zip(detections, masks):
        if fits(mask, rules):
            segments.append(_segment(detection, spans[detection.word], mask, caption))
    if not segments:
        sizes = [f"{d.word} {mask.mean():.1%}" for d, mask in zip(detections, masks)]
        raise Rejected("no mask of a fitting size", ", ".join(sizes))
    segments.sort(key=lambda segment: segment["start"])
    numbered = [{"id": i, **segment} for i, segment in enumerate(segments, 1)]
    return {"caption": caption, "segments": numbered}


def choose(
    detections: Sequence[Detection],
    wanted: Mapping[str, Any] | Sequence[str],
    size: tuple[int, int],
    rules: Rules,
) -> list[Detection]:
    """The detections of wanted words that are the only one of their word.

    Overlapping boxes are merged first. Boxes come out in whole pixels, within an image of `size`
    (width, height).
    """
    clipped = []
    for word, box, score in detections:
        x0, y0, x1, y1 = _clip(box, size)
        if word in wanted and x0 < x1 and y0 < y1:
            clipped.append(Detection(word, (x0, y0, x1, y1), score))
    if not clipped:
        return []
    boxes = torch.tensor([d.box for d in clipped]).float()
    scores = torch.tensor([d.score for d in clipped]).float()
    kept = [clipped[i] for i in nms(boxes, scores, rules.overlap).tolist()]
    count = Counter(d.word for d in kept)
    return [d for d in kept if count[d.word] == 1][: rules.most]


def _clip(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    width, height = size
    x0, y0, x1, y1 = box
    return max(0, round(x0)), max(0, round(y0)), min(width, round(x1)), min(height, round(y1))


def fits(mask: np.ndarray, rules: Rules) -> bool:
    """Whether a mask, bool [H W], is neither a speck nor the whole image."""
    return bool(mask.any()) and rules.smallest <= mask.mean() <= rules.largest


def _segment(
    detection: Detection, span: tuple[int, int], mask: np.ndarray, caption: str
) -> dict[str, Any]:
    start, end = span
    return {
        "word": caption[start:end],
        "start": start,
        "end": end,
        "box": list(detection.box),
        "score": round(detection.score, 4),
        "mask": encode_rle(mask),
    }


def preview(
    image: Image.Image, annotation: Mapping[str, Any], masks: Sequence[np.ndarray]
) -> Image.Image:
    """The image with tinted masks, boxes and words, and the caption below."""
    pixels = np.array(image, dtype=np.float32)
    for i, mask in enumerate(masks):
        pixels[mask] = 0.5 * pixels[mask] + 0.5 * np.array(COLOURS[i % len(COLOURS)])
    out = Image.new("RGB", (image.width, image.height + 16), "white")
    out.paste(Image.fromarray(pixels.astype(np.uint8)))
    draw = ImageDraw.Draw(out)
    for i, segment in enumerate(annotation["segments"]):
        x0, y0, x1, y1 = segment["box"]
        colour = COLOURS[i % len(COLOURS)]
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=2)
        draw.text(
            (x0 + 3, y0 + 2), segment["word"], fill="white", stroke_width=1, stroke_fill="black"
        )
    # the built-in font has no other letters
    caption = annotation["caption"].encode("latin-1", "replace").decode("latin-1")
    draw.text((2, image.height + 2), caption, fill="black")
    return out
