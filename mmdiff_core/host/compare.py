"""Ways to compare the subjects of generated images with their references: by faces, by what stands
in their regions, by the whole image, and in the small world by every position.

Shapes   B images · S subjects · F faces or things found in an image · H W pixels · Q width of an
         identity
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import comfy.model_management as mm
import comfy.utils
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..evaluation.regions import largest_part, owner_of, region_box
from ..evaluation.verdicts import Box, Found, ImageLikeness, Scale, judge, whole_image
from ..method.subjects import PromptSubject
from ..references.pixels import object_pixels
from ..small_world.scenes import SIDE
from ..small_world.windows import Windows, find_individuals, read_positions
from ..untrusted import quoted
from .dino import dino_cls
from .models import LoadedMMDiff
from .portraits import check_for_faces
from .vision import check_encoder, cls_of_pixels, is_clip, plain_cls

FACES = Scale(
    "cosine of ArcFace embeddings, at least 0",
    "unrelated people mostly score below 0.2 with buffalo_l",
    least=0.25,
)
THINGS = Scale(
    "cosine of embeddings by the adapter's image encoder",
    "unrelated things of one class score high too: compare with the subjects among one another",
    "thing",
    "things",
    apart=0.02,
)
DINO = Scale(
    "cosine of DINOv2 embeddings (CLS)",
    "what unrelated things score is not known for this model: compare with the subjects among one "
    "another; papers take a reference for lost below 0.4, 0.5 or 0.6 (DINOv2)",
    "thing",
    "things",
    apart=0.02,
)
SPRITES = Scale(
    "cosine of whitened embeddings by the small world's image encoder",
    "unrelated individuals mostly score below 0.74, right ones above 0.94",
    "individual",
    "individuals",
    least=0.85,
)
WHAT_TO_WIRE = (
    "its identity is not known (it was encoded with clip_only, or saved without it): connect one "
    "image of each subject to references, or encode the subject again"
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What is compared.

    images      uint8 [B 3 H W]
    regions     where each subject is on each image [B S h w] (bool), or None
    references  uint8 [3 h w] of each subject, for those without an identity, or None
    """

    mmdiff: LoadedMMDiff
    images: Tensor
    subjects: tuple[PromptSubject, ...]
    regions: Tensor | None = None
    references: Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(subject.name for subject in self.subjects)

    @property
    def size(self) -> tuple[int, int]:
        return tuple(self.images.shape[-2:])

    def owners(self, image: int, boxes: Sequence[Box]) -> tuple[int | None, ...]:
        if self.regions is None:
            return (None,) * len(boxes)
        return tuple(owner_of(box, self.regions[image], *self.size) for box in boxes)

    def identities(self, read: Callable[[Tensor, str], Tensor]) -> Tensor:
        """The subjects' identities [S Q], of unit length; `read` makes one from an image uint8 [3 h
        w]. ValueError for a subject that has none, where there are no references."""
        found = []
        for number, used in enumerate(self.subjects):
            identity = used.subject.identity
            if self.references is not None:
                identity = read(self.references[number], f"{used.name}, references {number + 1}")
            if identity is None:
                raise ValueError(f"{quoted(used.name)}: {WHAT_TO_WIRE}")
            found.append(F.normalize(identity.float().cpu(), dim=0))
        return torch.stack(found)


@dataclass(frozen=True, eq=False)
class Compared:
    """What a comparison found: its scale, each image's likeness, the subjects' references among one
    another [S S], what was compared in words, and the device that did it."""

    scale: Scale
    images: tuple[ImageLikeness, ...]
    among: Tensor
    how: str
    device: str


def compare_people(comparison: Comparison, analyser, scale: Scale = FACES) -> Compared:
    """Every face in every image with the subjects' reference faces. ValueError without a face
    analyser."""
    if analyser is None:
        raise ValueError(
            "faces is not connected: connect Load Face Analysis, which finds and compares the "
            "people of a portrait checkpoint"
        )
    identities = comparison.identities(lambda image, label: _face_of(analyser, image, label))
    progress, judged = comfy.utils.ProgressBar(len(comparison.images)), []
    for number, pixels in enumerate(comparison.images):
        mm.throw_exception_if_processing_interrupted()
        label = f"image {number + 1} of {len(comparison.images)}"
        faces = analyser.detect(_checked_array(pixels, label), label)
        boxes = tuple(face.box for face in faces)
        found = [torch.from_numpy(face.embedding).float() for face in faces]
        seen = torch.stack(found) if found else torch.zeros(0, identities.shape[1])
        table = (identities @ seen.T).clamp_min(0)
        owners = comparison.owners(number, boxes)
        judged.append(judge(Found(table, boxes, owners), comparison.names, scale))
        progress.update(1)
    among = identities @ identities.T
    how = "faces found in each image"
    return Compared(scale, tuple(judged), among, how, ", ".join(analyser.providers[:1]))


def _face_of(analyser, image: Tensor, label: str) -> Tensor:
    return torch.from_numpy(analyser.pick(_checked_array(image, label), 0, label).embedding)


def _checked_array(pixels: Tensor, label: str):
    image = pixels.movedim(0, -1).contiguous().numpy()
    check_for_faces(image, label)
    return image


def compare_things(comparison: Comparison, clip_vision, scale: Scale = THINGS) -> Compared:
    """What stands in each subject's region, or the whole images, with the subjects' references; all
    crops of the batch at once. ValueError for another image encoder."""
    mmdiff = comparison.mmdiff
    if not is_clip(clip_vision):
        raise ValueError(
            "clip_vision has no CLIP projection and is not DINOv2 (SigLIP and DINOv3, for example, "
            "are neither): connect the image encoder that the subjects were encoded with, or "
            "DINOv2 (large or giant), from Load CLIP Vision"
        )
    check_encoder(clip_vision, mmdiff.config)

    def embed(crops: Sequence[Tensor]) -> Tensor:
        padded = torch.stack([object_pixels(crop, mmdiff.config.image_size) for crop in crops])
        return F.normalize(cls_of_pixels(clip_vision, mmdiff.adapter, padded), dim=-1)

    return _by_crops(comparison, embed, str(clip_vision.patcher.load_device), scale)


def compare_with_dino(comparison: Comparison, clip_vision, scale: Scale = DINO) -> Compared:
    """The same as DINOv2 sees it. ValueError without references: subjects carry an embedding by the
    adapter's own image encoder only."""
    if comparison.references is None:
        raise ValueError(
            "clip_vision is DINOv2, but the subjects carry embeddings by the adapter's own image "
            "encoder only: connect one image of each subject to references, in the order of the "
            "subjects, or connect that image encoder instead"
        )

    def embed(crops: Sequence[Tensor]) -> Tensor:
        return F.normalize(dino_cls(clip_vision, crops), dim=-1)

    return _by_crops(comparison, embed, str(clip_vision.patcher.load_device), scale)


def _by_crops(
    comparison: Comparison, embed: Callable[[Sequence[Tensor]], Tensor], device: str, scale: Scale
) -> Compared:
    """`embed`: crops uint8 [3 h w] -> unit embeddings [n Q]."""
    images = comparison.images
    identities = comparison.identities(lambda image, _: embed([image])[0])
    among = identities @ identities.T
    if comparison.regions is None:
        whole = (embed(list(images)) @ identities.T).tolist()
        judged = tuple(whole_image(scores) for scores in whole)
        how = (
            "whole images, so that other subjects and the background count too; connect maps of "
            "MM-Diff Watch Attention to compare what stands where each subject was read"
        )
        return Compared(scale, judged, among, how, device)
    boxes, crops, judged = [], [], []
    for image, regions in zip(images, comparison.regions, strict=True):
        around = [region_box(largest_part(region), *comparison.size) for region in regions]
        boxes.append(tuple(around))
        crops += [crop(image, box) for box in around]
    seen = embed(crops).unflatten(0, (len(images), len(identities)))
    for parts, each in zip(seen, boxes, strict=True):
        found = Found(identities @ parts.T, each, tuple(range(len(each))))
        judged.append(judge(found, comparison.names, scale))
    how = "what stands in the region of each subject"
    return Compared(scale, tuple(judged), among, how, device)


def crop(image: Tensor, box: Box) -> Tensor:
    """The part [3 h w] of an image inside a box, at least one pixel large."""
    left, top = (int(side) for side in box[:2])
    right, bottom = max(left + 1, round(box[2])), max(top + 1, round(box[3]))
    return image[:, top:bottom, left:right]


def compare_sprites(comparison: Comparison, clip_vision, scale: Scale = SPRITES) -> Compared:
    """Every position of the images of the small world with the subjects' references, as its frozen
    image encoder sees them. ValueError for another image encoder, for images of another size, and
    for a subject without thumbnails where there are no references."""
    check_encoder(clip_vision, comparison.mmdiff.config)
    images = dots_of(comparison.images)
    references = [_shown(comparison, number) for number in range(len(comparison.subjects))]

    def embed(pixels: Tensor) -> Tensor:
        return plain_cls(clip_vision, pixels)

    windows = comparison.mmdiff.encodings.remember(
        (clip_vision,), (), ("windows",), lambda: Windows.learn(embed)
    )
    table, among = read_positions(images, references, embed, windows)
    judged = []
    for number, scores in enumerate(table):
        found, dots = find_individuals(scores, scale.least)
        boxes = tuple(map(tuple, (np.array(dots) * (comparison.size[0] / SIDE)).tolist()))
        owners = comparison.owners(number, boxes)
        judged.append(judge(Found(found, boxes, owners), comparison.names, scale))
    how = "every position of the small world's images"
    return Compared(scale, tuple(judged), among, how, str(clip_vision.patcher.load_device))


def dots_of(images: Tensor) -> Tensor:
    """Images uint8 [B 3 H W] of the small world -> its dots [B 3 K K] in 0..1. ValueError for
    another size."""
    height, width = images.shape[-2:]
    if height != width or height % SIDE:
        raise ValueError(
            f"image is {width} x {height} pixels; the small world's images are {4 * SIDE} x "
            f"{4 * SIDE}, or enlarged from that by a whole number"
        )
    middle = height // SIDE // 2
    return images[..., middle :: height // SIDE, middle :: height // SIDE].float() / 255


def _shown(comparison: Comparison, number: int) -> Tensor:
    """A subject's references in dots [R 3 K K]."""
    used = comparison.subjects[number]
    if comparison.references is not None:
        return object_pixels(comparison.references[number], SIDE)[None]
    if used.subject.thumbnails is None:
        raise ValueError(f"{quoted(used.name)}: {WHAT_TO_WIRE}")
    small = used.subject.thumbnails.movedim(-1, 1).float() / 255
    return F.interpolate(small, size=(SIDE, SIDE), mode="nearest")
