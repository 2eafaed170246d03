"""Faces of an image: looked for in several ways, chosen, embedded and cropped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from .alignment import align
from .detector import THRESHOLD
from .face import Face, check_image

# black borders to look again with, as parts of the longer side
BORDERS = (0.25, 0.5, 1.0)


class DetectsFaces(Protocol):
    """A detector: `detector.Detector`, or the package's."""

    providers: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]

    def detect(self, image: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Boxes with scores [n 5] and landmarks [n 5 2] of a uint8 RGB image."""


class EmbedsFaces(Protocol):
    """A recogniser: `recogniser.Recogniser`, or the package's."""

    def embed(self, image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """The embedding of the face with these landmarks, of any length."""


class FaceAnalyser:
    """A loaded model pack of InsightFace.

    folder   where its files are
    backend  which code runs them: "built-in" or "insightface"
    """

    def __init__(
        self,
        detector: DetectsFaces,
        recogniser: EmbedsFaces,
        name: str,
        folder: Path,
        backend: str,
    ):
        self.name, self.folder, self.backend = name, folder, backend
        self.providers = detector.providers
        self._detector = detector
        self._recogniser = recogniser

    def __repr__(self) -> str:
        return f"FaceAnalyser({self.name}, {self.backend}, {', '.join(self.providers)})"

    def detect(self, image: np.ndarray, label: str = "image") -> tuple[Face, ...]:
        """All faces of a uint8 RGB image [H W 3] from left to right; empty when every attempt
        found none."""
        check_image(image, label)
        for boxes, landmarks in self._attempts(image):
            if len(boxes):
                found = zip(boxes, landmarks, strict=True)
                faces = [self._face(image, box, points) for box, points in found]
                return tuple(sorted(faces, key=lambda face: face.box[0] + face.box[2]))
        return ()

    def pick(
        self,
        image: np.ndarray,
        which: int = 0,
        label: str = "image",
        region: np.ndarray | None = None,
    ) -> Face:
        """One face: the largest for 0, the n-th from the left for n >= 1; of those with their
        middle in `region` [H W] if there is one."""
        if which < 0:
            raise ValueError(
                f"{label}: face {which} was requested; 0 is the largest face, 1 the leftmost."
            )
        faces = self.detect(image, label)
        if not faces:
            raise ValueError(self._no_face(image, label))
        if region is not None:
            inside = tuple(face for face in faces if face.is_inside(region))
            if not inside:
                raise ValueError(
                    f"{label}: none of the faces in the image ({len(faces)}) has its centre in the "
                    "region. Make the region cover the face, or choose the face by its number."
                )
            faces = inside
        if which > len(faces):
            raise ValueError(
                f"{label}: face {which} from the left was requested, but there "
                f"{_count(len(faces))}. Choose 1 to {len(faces)}, or 0 for the largest."
            )
        picked = faces[which - 1] if which else max(faces, key=lambda face: face.area)
        return replace(picked, among=tuple(face.box for face in faces))

    def portrait(
        self,
        image: np.ndarray,
        which: int = 0,
        label: str = "image",
        region: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, Face]:
        """The picked face's embedding [512], its aligned crop, uint8 RGB [224 224 3], and the
        face."""
        face = self.pick(image, which, label, region)
        return face.embedding, align(image, face.landmarks), face

    def _attempts(self, image: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Boxes with scores [n 5] and landmarks [n 5 2] of each attempt, in coordinates of the
        image itself."""
        for border in (0.0, *BORDERS):
            pixels = round(border * max(image.shape[:2]))
            padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))
            for size in self._detector.sizes:
                boxes, landmarks = self._detector.detect(padded, size)
                offset = np.array([pixels] * 4 + [0], dtype=np.float32)
                yield boxes - offset, landmarks - pixels

    def _face(self, image: np.ndarray, box: np.ndarray, landmarks: np.ndarray) -> Face:
        reinstall = f"The file may be damaged: reinstall the files under {self.folder}."
        try:
            embedding = np.asarray(self._recogniser.embed(image, landmarks), dtype=np.float32)
        except ValueError as error:
            raise RuntimeError(f"The detector of {self.name}: {error}. {reinstall}") from error
        length = float(np.linalg.norm(embedding))
        if not np.isfinite(length) or length == 0:
            raise RuntimeError(
                f"The recognition model of {self.name} returned an embedding of length {length}. "
                f"{reinstall}"
            )
        x1, y1, x2, y2, score = (float(v) for v in box)
        return Face((x1, y1, x2, y2), score, np.asarray(landmarks, np.float32), embedding / length)

    def _no_face(self, image: np.ndarray, label: str) -> str:
        height, width = image.shape[:2]
        sizes = ", ".join(str(w) if w == h else f"{w} x {h}" for w, h in self._detector.sizes)
        borders = ", ".join(f"{border:.0%}" for border in BORDERS)
        return (
            f"{label}: no face found in this image of {width} x {height} pixels. Tried {self.name} "
            f"at detector sizes {sizes}, on the image itself and with black borders of {borders} "
            f"of its longer side; lowest confidence {THRESHOLD}. Use an upright image in which "
            "eyes, nose and mouth are visible and the face is at least about 30 pixels wide."
        )


def _count(faces: int) -> str:
    return "is 1 face" if faces == 1 else f"are {faces} faces"
