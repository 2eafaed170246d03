"""ArcFace, InsightFace's face recognition model, read from its ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .alignment import align
from .onnx_file import first_node_names
from .runtime import run_session

# a file that scales its input itself says so in its first nodes (those converted from MXNet)
FIRST_NODES = 8
SUBTRACTION, MULTIPLICATION = ("Sub", "_minus"), ("Mul", "_mul")
MEAN = np.float32(127.5)
FACTOR = np.float32(1 / 127.5)


class Recogniser:
    """A loaded ArcFace model."""

    def __init__(self, session: Any, path: Path):
        self.file = path.name
        self._session = session
        self._size = session.get_inputs()[0].shape[2]
        outputs = len(session.get_outputs())
        if outputs != 1:
            raise RuntimeError(f"{self.file} has {outputs} outputs; a recognition model has 1")
        if self._size % 112 and self._size % 128:
            raise RuntimeError(
                f"{self.file} takes crops of {self._size} pixels; expected a multiple of 112 or 128"
            )
        self._scales_itself = _scales_its_input(path)

    def embed(self, image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """The embedding of one face, float32 [n] of any length.

        image      uint8 RGB [H W 3]
        landmarks  [5 2] in pixels of the image

        ValueError for landmarks that are in one position; RuntimeError if the file fails.
        """
        pixels = align(image, landmarks, self._size).astype(np.float32)
        if not self._scales_itself:
            pixels = (pixels - MEAN) * FACTOR
        (embedding,) = run_session(self._session, pixels.transpose(2, 0, 1)[None], self.file)
        return np.asarray(embedding, np.float32).reshape(-1)


def _scales_its_input(path: Path) -> bool:
    names = first_node_names(path, FIRST_NODES)
    subtracts = any(name.startswith(SUBTRACTION) for name in names)
    return subtracts and any(name.startswith(MULTIPLICATION) for name in names)
