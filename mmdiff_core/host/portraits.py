"""Faces on images: the one that each reference is of, and all of them for a person to see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from torch import Tensor

from ..references.notes import face_remarks
from ..references.pixels import ReferenceImages, checked_images, to_uint8


@dataclass(frozen=True)
class FaceChoice:
    """The faces of one image that a face number counts, and which of them was used."""

    # x1 y1 x2 y2 in pixels, from left to right
    boxes: tuple[tuple[float, float, float, float], ...]
    used: int  # from 1


class FaceSource(Protocol):
    """Whoever finds faces: `faces.FaceAnalyser`, or a stand-in."""

    def portrait(
        self, image: np.ndarray, which: int, label: str, region: np.ndarray | None = None
    ) -> tuple:
        """uint8 RGB [H W 3] -> unit embedding [512], aligned crop uint8 RGB [224 224 3] and, where
        it is known, the `faces.Face`; of the faces with their middle in `region` [H W] where one is
        given."""


@dataclass(frozen=True, eq=False)
class Portraits:
    """Embeddings [R 512] and crops [R 3 224 224] in 0..1 of the chosen faces."""

    query: Tensor
    crops: Tensor
    remarks: tuple[str, ...]
    faces: tuple[FaceChoice, ...]


SMALLEST, NARROWEST = 16, 100  # pixels of the shorter side; longer over shorter side


def check_for_faces(image: np.ndarray, label: str) -> None:
    """ValueError for an image [H W 3] that no detector can be shown."""
    short, long = sorted(image.shape[:2])
    if short < SMALLEST or long > NARROWEST * short:
        raise ValueError(
            f"{label} is {image.shape[1]} x {image.shape[0]} pixels, too small or too narrow to "
            f"find a face in; use an image of at least {SMALLEST} pixels on each side"
        )


def find_portraits(
    references: ReferenceImages, faces: FaceSource | None, name: str, which: int
) -> Portraits:
    """The chosen face on every image."""
    if faces is None:
        raise ValueError(
            "this is a portrait checkpoint, which requires face analysis: connect Load Face "
            "Analysis. It needs the package onnxruntime (the package insightface is optional) and "
            "the buffalo_l models under models/insightface/models/buffalo_l. To run without them, "
            "turn on clip_only; facial identity is then not preserved"
        )
    images = references.pixels
    progress, found, remarks, choices = comfy.utils.ProgressBar(len(images)), [], [], []
    for i, (pixels, region) in enumerate(zip(images, references.regions, strict=True), 1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        image = pixels.movedim(0, -1).contiguous().numpy()
        label = f"{name}, image {i} of {len(images)}"
        check_for_faces(image, label)
        embedding, crop, *face = faces.portrait(
            image, which, label, *([] if region is None else [region.numpy()])
        )
        found.append((embedding, crop))
        for f in face:
            remarks += face_remarks(i, f.box, f.score, torch.from_numpy(f.landmarks))
            choices.append(FaceChoice(f.among, f.among.index(f.box) + 1))
        progress.update(1)
    query = torch.from_numpy(np.stack([embedding for embedding, _ in found])).float()
    crops = torch.from_numpy(np.stack([crop for _, crop in found])).movedim(-1, 1).float() / 255
    return Portraits(query, crops, tuple(remarks), tuple(choices))


def find_faces(images: Tensor, analyser) -> tuple[Tensor, list[list[dict]], str]:
    """IMAGE [R H W 3] -> the same with numbered boxes, each image's boxes {x, y, width, height}
    from left to right, and a sentence."""
    from ..references.faces import draw

    drawn, boxes, said = [], [], []
    for i, image in enumerate(to_uint8(checked_images(images).cpu()).numpy(), 1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        label = f"image {i} of {len(images)}"
        check_for_faces(image, label)
        found = analyser.detect(image, label)
        drawn.append(torch.from_numpy(draw(image, found)).float() / 255)
        boxes.append([_bounding_box(face.box) for face in found])
        count = f"{len(found)} face{'s' * (len(found) != 1)}" if found else "no face"
        said.append(f"image {i}: {count}")
    return torch.stack(drawn), boxes, "\n".join(said)


def _bounding_box(box: Sequence[float]) -> dict[str, int]:
    """ComfyUI's BOUNDING_BOX of left, top, right and bottom."""
    x1, y1, x2, y2 = box
    return {"x": round(x1), "y": round(y1), "width": round(x2 - x1), "height": round(y2 - y1)}
