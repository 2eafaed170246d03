"""SCRFD, InsightFace's face detector, read from its ONNX file."""

from __future__ import annotations

from typing import Any

import numpy as np

from .resampling import resize
from .runtime import run_session

SIZES = (640, 512, 384, 320, 256, 192, 128)  # tried in turn until a face is found
THRESHOLD = 0.5  # lowest detector confidence that counts
OVERLAP = 0.4  # of two boxes that share more of their area the better one is kept
MEAN, DEVIATION = np.float32(127.5), np.float32(128)
# outputs of the file -> strides of its levels, and boxes for each cell. There are as many outputs
# for confidences as levels, then as many for boxes, then as many for landmarks
LEVELS = {9: ((8, 16, 32), 2), 15: ((8, 16, 32, 64, 128), 1)}
WITHOUT_LANDMARKS = (6, 10)


class Detector:
    """A loaded SCRFD detector."""

    def __init__(self, session: Any, file: str):
        count = len(session.get_outputs())
        if count in WITHOUT_LANDMARKS:
            raise RuntimeError(f"{file} finds no landmarks, which alignment needs")
        if count not in LEVELS:
            raise RuntimeError(
                f"{file} has {count} outputs; an SCRFD detector with landmarks has 9 or 15"
            )
        self.file = file
        self.providers: tuple[str, ...] = tuple(session.get_providers())
        self._session = session
        self._strides, self._boxes_per_cell = LEVELS[count]
        self.sizes = input_sizes(session)

    def detect(self, image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Boxes with scores [n 5] and landmarks [n 5 2], float32 in pixels of the image, best
        first.

        image  uint8 RGB [H W 3]
        size   (width, height) that the image is scaled to fit into, from the top left; one of
               `sizes`

        RuntimeError if the file does not answer as a detector does.
        """
        fitted, scale = _fit(image, size)
        pixels = (fitted.astype(np.float32) - MEAN) / DEVIATION
        answers = run_session(self._session, pixels.transpose(2, 0, 1)[None], self.file)
        levels = len(self._strides)
        found = [
            self._level(answers[level::levels], stride, size)
            for level, stride in enumerate(self._strides)
        ]
        scores, boxes, landmarks = (np.concatenate(part) for part in zip(*found, strict=True))
        boxes, landmarks = boxes / scale, landmarks / scale
        if not all(np.isfinite(part).all() for part in (scores, boxes, landmarks)):
            raise RuntimeError(f"{self.file} answers with numbers that are not finite")
        best = np.argsort(-scores, kind="stable")
        boxes = np.column_stack([boxes, scores]).astype(np.float32)[best]
        kept = _without_overlaps(boxes)
        return boxes[kept], landmarks[best][kept].reshape(-1, 5, 2)

    def _level(
        self, answers: list[np.ndarray], stride: int, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores [n], boxes [n 4] and landmarks [n 10] of one level's cells that see a face."""
        corners = self._cell_corners(stride, size)
        # some files have a dimension more, of one batch
        answers = [answer[0] if answer.ndim == 3 else answer for answer in answers]
        expected = [(len(corners), width) for width in (1, 4, 10)]
        shapes = [answer.shape for answer in answers]
        if shapes != expected:
            raise RuntimeError(
                f"{self.file} answers with {shapes} at stride {stride}, expected {expected}"
            )
        scores, sides, points = answers
        seen = np.flatnonzero(~(scores[:, 0] < THRESHOLD))  # what is no number too
        corners, sides, points = corners[seen], sides[seen] * stride, points[seen] * stride
        boxes = np.concatenate([corners - sides[:, :2], corners + sides[:, 2:]], axis=1)
        return scores[seen, 0], boxes, np.tile(corners, 5) + points

    def _cell_corners(self, stride: int, size: tuple[int, int]) -> np.ndarray:
        """Top left corners (x, y) of the cells, row by row, each as often as it has boxes."""
        rows, columns = np.mgrid[: size[1] // stride, : size[0] // stride]
        corners = np.stack([columns, rows], axis=-1).reshape(-1, 2) * stride
        return np.repeat(corners, self._boxes_per_cell, axis=0).astype(np.float32)


def input_sizes(session: Any) -> tuple[tuple[int, int], ...]:
    """(width, height) of every attempt; a detector made for one size has only that one."""
    height, width = session.get_inputs()[0].shape[2:4]
    if isinstance(height, int) and isinstance(width, int):
        return ((width, height),)
    return tuple((size, size) for size in SIZES)


def _fit(image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, float]:
    """The image scaled to fit into (width, height), on black, and the scale."""
    width, height = size
    tallness = image.shape[0] / image.shape[1]
    if tallness > height / width:
        new_width, new_height = max(int(height / tallness), 1), height
    else:
        new_width, new_height = width, max(int(width * tallness), 1)
    fitted = np.zeros((height, width, 3), np.uint8)
    fitted[:new_height, :new_width] = resize(image, new_width, new_height)
    return fitted, new_height / image.shape[0]


def _without_overlaps(boxes: np.ndarray) -> np.ndarray:
    """Indices of the boxes [n 5], best first, that are left when each takes away those it covers.

    Widths and heights count whole pixels, from the first to the last one.
    """
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    kept, left = [], np.arange(len(boxes))
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        start = np.maximum(boxes[best, :2], boxes[left, :2])
        end = np.minimum(boxes[best, 2:4], boxes[left, 2:4])
        shared = np.maximum(end - start + 1, 0).prod(axis=1)
        left = left[shared / (areas[best] + areas[left] - shared) <= OVERLAP]
    return np.array(kept, np.int64)
