"""A subject from its reference images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..checkpoints.subject_file import SIDE
from ..method.subjects import Subject, VisionFeatures, checked_name
from ..references.notes import reference_notes
from ..references.pixels import (
    NO_MORE,
    ReferenceImages,
    cut_out,
    object_pixels,
    read_references,
    thumbnails,
)
from .models import LoadedMMDiff
from .portraits import FaceChoice, FaceSource, find_portraits
from .vision import check_encoder, cls_of_pixels, encoder_fingerprint, patch_embeddings

CLIP_ONLY = (
    "{name}: encoded from CLIP features only. Hair, age and clothes may carry over; "
    "facial identity is not preserved. To preserve it, connect Load Face Analysis, which needs "
    "onnxruntime and models in models/insightface."
)


@dataclass(frozen=True, eq=False)
class EncodedSubject:
    """A subject, and what the person should see of its encoding.

    images  R of uint8 [3 H W], the references as they were given
    seen    IMAGE [R S S 3], what the image encoder read: the aligned faces, or the padded images
    notes   sentences about the references
    faces   for each image of a portrait, which faces there were to choose from
    """

    subject: Subject
    images: tuple[Tensor, ...]
    seen: Tensor
    notes: tuple[str, ...] = ()
    faces: tuple[FaceChoice, ...] = ()


@dataclass(frozen=True, eq=False)
class _Request:
    """What an encoding is made from, as in `encode_subject`."""

    mmdiff: LoadedMMDiff
    clip_vision: object
    references: ReferenceImages
    faces: FaceSource | None
    name: str
    which_face: int
    clip_only: bool

    @property
    def depends_on(self) -> tuple[tuple, tuple, tuple]:
        """Objects, tensors and values by which `Encodings.remember` knows the same encoding; a
        name changes nothing."""
        return (
            (self.clip_vision, self.faces),
            (*self.references.pixels, *self.references.regions),
            (self.which_face, self.clip_only, self.clip_vision.patcher.patches_uuid),
        )


@dataclass(frozen=True, eq=False)
class _Reading:
    """What is remembered of an encoding: the subject under the name it had first, the pixels [R 3 S
    S] that the encoder read, what the query tokens were made from [R Q] (None: no tokens were
    made), and, of a portrait, remarks on the faces and the choices."""

    subject: Subject
    pixels: Tensor
    query: Tensor | None
    remarks: tuple[str, ...] = ()
    faces: tuple[FaceChoice, ...] = ()


def encode_subject(
    mmdiff: LoadedMMDiff,
    clip_vision,
    images: Tensor,
    faces: FaceSource | None,
    name: str,
    which_face: int = 0,
    region: Tensor | None = None,
    boxes: object = None,
    clip_only: bool = False,
    more: Mapping[str, object] = NO_MORE,
) -> EncodedSubject:
    """All reference images (IMAGE [R H W 1|3|4]) of one subject -> the subject.

    Portrait adapters need `faces`; general ones read the whole images. Only the first reference
    affects the prompt embedding. What was encoded last with this adapter is remembered: another
    name, or a change earlier in a chain of subjects, encodes nothing again.

    region      where the subject is, MASK [1|R h w]: it is cut out, and of several faces the one in
                there counts
    boxes       the same as BOUNDING_BOX
    clip_only   a portrait adapter without faces: the subject gets no tokens, facial identity is not
                preserved
    more        further images after the first ones, each of a size of its own, by the names that
                errors call them

    Raises ValueError for a name that no prompt can use, images or regions that cannot be used,
    without faces where they are needed, for another image encoder.
    """
    name = checked_name(name)
    check_encoder(clip_vision, mmdiff.config)
    references = read_references(images, region, boxes, more)
    request = _Request(mmdiff, clip_vision, references, faces, name, which_face, clip_only)
    read = mmdiff.encodings.remember(*request.depends_on, lambda: _encode(request))
    notes = _notes(name, read, mmdiff)
    subject, seen = replace(read.subject, name=name), read.pixels.movedim(1, -1)
    return EncodedSubject(subject, references.pixels, seen, notes, read.faces)


def _notes(name: str, read: _Reading, mmdiff: LoadedMMDiff) -> tuple[str, ...]:
    notes = [CLIP_ONLY.format(name=name)]
    if read.query is not None:
        notes = reference_notes(name, read.pixels, read.query, mmdiff.config)
    return (*notes, *(f"{name}, {remark}" for remark in read.remarks))


def _encode(request: _Request) -> _Reading:
    config, references = request.mmdiff.config, request.references
    cut = [
        image if region is None else cut_out(image, region)
        for image, region in zip(references.pixels, references.regions, strict=True)
    ]
    padded = torch.stack([object_pixels(image, config.image_size) for image in cut])
    cls = cls_of_pixels(request.clip_vision, request.mmdiff.adapter, padded)
    if not config.variant.reads_faces:
        return _Reading(_make_subject(request, cls, padded, cls), padded, cls)
    if request.clip_only:
        return _Reading(_words_only(request, cls, padded), padded, None)
    found = find_portraits(references, request.faces, request.name, request.which_face)
    subject = _make_subject(request, cls, found.crops, found.query)
    return _Reading(subject, found.crops, found.query, found.remarks, found.faces)


def _make_subject(request: _Request, cls: Tensor, pixels: Tensor, query: Tensor) -> Subject:
    """The subject from its CLS embeddings [R C], the pixels [R 3 S S] whose patches are read, and
    what asks them [R Q]."""
    clip_vision, mmdiff = request.clip_vision, request.mmdiff
    patches = patch_embeddings(clip_vision, pixels)
    with mmdiff.loaded() as (_, device):
        features = VisionFeatures(cls.to(device), patches.to(device), query.to(device))
        subject = mmdiff.adapter.make_subject(features, request.name)
    return replace(
        subject,
        encoder=encoder_fingerprint(clip_vision),
        thumbnails=thumbnails(pixels, SIDE),
    )


def _words_only(request: _Request, cls: Tensor, pixels: Tensor) -> Subject:
    """A subject without tokens: the text half of the method alone."""
    mmdiff = request.mmdiff
    with mmdiff.loaded() as (modules, device):
        words = {k: v[0].cpu() for k, v in modules.subject_words(cls[:1].to(device)).items()}
    return Subject(
        request.name,
        torch.zeros(0, mmdiff.config.context_width),
        words,
        len(cls),
        mmdiff.adapter.fingerprint,
        encoder=encoder_fingerprint(request.clip_vision),
        thumbnails=thumbnails(pixels, SIDE),
    )
