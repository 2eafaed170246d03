"""The two encodings a person asks for: a subject from its reference pictures, a prompt from text
and subjects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import comfy.model_management
import comfy.utils
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints.subject_file import SIDE
from ..config import MMDiffConfig
from ..method.subjects import PromptSubject, Subject, Subjects, VisionFeatures
from ..references.notes import face_remarks, look_alike_notes, reference_notes
from ..references.pixels import cut_out, object_pixels, to_uint8
from . import text as text_side
from .conditioning import BoundPrompt, carry, delayed
from .models import LoadedMMDiff
from .vision import check_encoder, cls_of_pixels, encoder_fingerprint, patch_embeddings

MAX_WEIGHT = 10.0  # of a subject; far beyond what is useful


@dataclass(frozen=True)
class FaceChoice:
    """The faces of one picture that a face number counts, and which of them was used."""

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
class EncodedSubject:
    """A subject, and what the person should see of its encoding.

    seen    IMAGE [R S S 3], what the image encoder read: the aligned faces, or the padded images
    notes   sentences about the references
    faces   for each image of a portrait, which faces there were to choose from
    """

    subject: Subject
    seen: Tensor
    notes: tuple[str, ...] = ()
    faces: tuple[FaceChoice, ...] = ()


def encode_subject(
    mmdiff: LoadedMMDiff,
    clip_vision,
    images: Tensor,
    faces: FaceSource | None,
    name: str,
    which_face: int = 0,
    regions: Sequence[Tensor | None] = (),
    clip_only: bool = False,
) -> EncodedSubject:
    """All reference images (IMAGE [R H W 3]) of one subject -> the subject.

    Portrait adapters need `faces`; general ones read the whole images. Only the first reference
    affects the prompt embedding. What was encoded last with this adapter is remembered: another
    name, or a change earlier in a chain of subjects, encodes nothing again.

    regions     where the subject is on each image [H W] in 0..1, or None: it is cut out, and of
                several faces the one in there counts
    clip_only   a portrait adapter without faces: the subject gets no tokens, facial identity is not
                preserved

    Raises ValueError without a name, without faces where they are needed, for another image
    encoder.
    """
    name = name.strip()
    if not name:
        raise ValueError(
            "the subject has no name; give it one, for example the person's first name"
        )
    check_encoder(clip_vision, mmdiff.config)
    whole = to_uint8(images[..., :3].cpu()).movedim(-1, 1)
    regions = list(regions) or [None] * len(whole)
    settings = which_face, clip_only, clip_vision.patcher.patches_uuid
    read = mmdiff.encodings.remember(
        (clip_vision, faces),
        (whole, *regions),
        settings,
        lambda: _encode(
            mmdiff, clip_vision, list(whole), faces, name, which_face, regions, clip_only
        ),
    )
    notes = [CLIP_ONLY.format(name=name)]
    if read.query is not None:
        notes = reference_notes(name, read.pixels, read.query, mmdiff.config)
    notes += [f"{name}, {remark}" for remark in read.remarks]
    return EncodedSubject(
        replace(read.subject, name=name), read.pixels.movedim(1, -1), tuple(notes), read.faces
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


@dataclass(frozen=True, eq=False)
class _Portraits:
    """Embeddings [R 512] and crops [R 3 224 224] in 0..1 of the chosen faces."""

    query: Tensor
    crops: Tensor
    remarks: tuple[str, ...]
    faces: tuple[FaceChoice, ...]


def _encode(
    mmdiff: LoadedMMDiff,
    clip_vision,
    whole: Sequence[Tensor],
    faces: FaceSource | None,
    name: str,
    which_face: int,
    regions: Sequence[Tensor | None],
    clip_only: bool,
) -> _Reading:
    cut = [
        image if region is None else cut_out(image, region)
        for image, region in zip(whole, regions, strict=True)
    ]
    padded = torch.stack([object_pixels(image, mmdiff.config.image_size) for image in cut])
    cls = cls_of_pixels(clip_vision, mmdiff.adapter, padded)
    if not mmdiff.config.variant.reads_faces:
        return _Reading(_make_subject(mmdiff, clip_vision, cls, padded, cls, name), padded, cls)
    if clip_only:
        return _Reading(_words_only(mmdiff, clip_vision, cls, padded, name), padded, None)
    found = _portraits(whole, faces, name, which_face, regions)
    subject = _make_subject(mmdiff, clip_vision, cls, found.crops, found.query, name)
    return _Reading(subject, found.crops, found.query, found.remarks, found.faces)


def _make_subject(
    mmdiff: LoadedMMDiff, clip_vision, cls: Tensor, pixels: Tensor, query: Tensor, name: str
) -> Subject:
    """The subject from its CLS embeddings [R C], the pixels [R 3 S S] whose patches are read, and
    what asks them [R Q]."""
    patches = patch_embeddings(clip_vision, pixels)
    with mmdiff.loaded() as (_, device):
        features = VisionFeatures(cls.to(device), patches.to(device), query.to(device))
        subject = mmdiff.adapter.make_subject(features, name)
    return replace(subject, encoder=encoder_fingerprint(clip_vision), thumbnails=thumbnails(pixels))


def thumbnails(pixels: Tensor) -> Tensor:
    """What the image encoder read [R 3 S S] in 0..1 -> [R 64 64 3] uint8, to recognise a saved
    subject by."""
    small = F.interpolate(
        pixels.float().cpu(),
        size=(SIDE, SIDE),
        mode="area" if pixels.shape[-1] >= SIDE else "nearest",
    )
    return (small.clamp(0, 1) * 255).round().byte().movedim(1, -1).contiguous()


def to_look_at(seen: Tensor, side: int = 128) -> Tensor:
    """Pictures [R h w 3] as they are, or, where they are smaller than `side`, enlarged by whole
    dots for the eye."""
    times = max(1, -(-side // min(seen.shape[1:3])))
    return seen.repeat_interleave(times, 1).repeat_interleave(times, 2)


def to_pick_from(pictures: Tensor, side: int = 768) -> Tensor:
    """Pictures [R h w 3] as they are, or, where they are larger than `side`, as small as that: what
    the page draws faces on."""
    scale = side / max(pictures.shape[1:3])
    if scale >= 1:
        return pictures
    size = [max(1, round(length * scale)) for length in pictures.shape[1:3]]
    return F.interpolate(pictures.movedim(-1, 1), size=size, mode="area").movedim(1, -1)


CLIP_ONLY = (
    "{name}: encoded from CLIP features only. Hair, age and clothes may carry over; "
    "facial identity is not preserved. To preserve it, connect Load Face Analysis, which needs "
    "onnxruntime and models in models/insightface."
)


def _words_only(
    mmdiff: LoadedMMDiff, clip_vision, cls: Tensor, pixels: Tensor, name: str
) -> Subject:
    """A subject without tokens: the text half of the method alone."""
    with mmdiff.loaded() as (modules, device):
        words = {k: v[0].cpu() for k, v in modules.subject_words(cls[:1].to(device)).items()}
    return Subject(
        name,
        torch.zeros(0, mmdiff.config.context_width),
        words,
        len(cls),
        mmdiff.adapter.fingerprint,
        encoder=encoder_fingerprint(clip_vision),
        thumbnails=thumbnails(pixels),
    )


def _portraits(
    pictures: Sequence[Tensor],
    faces: FaceSource | None,
    name: str,
    which: int,
    regions: Sequence[Tensor | None],
) -> _Portraits:
    """The chosen face on every image, uint8 [3 H W] each."""
    if faces is None:
        raise ValueError(
            "this is a portrait checkpoint, which requires face analysis: connect Load Face "
            "Analysis. It needs the package onnxruntime (the package insightface is optional) and "
            "the buffalo_l models under models/insightface/models/buffalo_l. To run without them, "
            "turn on clip_only; facial identity is then not preserved"
        )
    progress, found, remarks, choices = comfy.utils.ProgressBar(len(pictures)), [], [], []
    for i, (picture, region) in enumerate(zip(pictures, regions, strict=True), 1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        image = picture.movedim(0, -1).contiguous().numpy()
        label = f"{name}, image {i} of {len(pictures)}"
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
    return _Portraits(query, crops, tuple(remarks), tuple(choices))


def find_faces(images: Tensor, analyser) -> tuple[Tensor, list[list[dict]], str]:
    """IMAGE [R H W 3] -> the same with numbered boxes, each picture's boxes {x, y, width, height}
    from left to right, and a sentence."""
    from ..references.faces import draw

    drawn, boxes, said = [], [], []
    for i, image in enumerate(to_uint8(images[..., :3].cpu()).numpy(), 1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        found = analyser.detect(image, f"image {i} of {len(images)}")
        drawn.append(torch.from_numpy(draw(image, found)).float() / 255)
        boxes.append([_bounding_box(face.box) for face in found])
        count = f"{len(found)} face{'s' * (len(found) != 1)}" if found else "no face"
        said.append(f"image {i}: {count}")
    return torch.stack(drawn), boxes, "\n".join(said)


def _bounding_box(box: Sequence[float]) -> dict[str, int]:
    """ComfyUI's BOUNDING_BOX of left, top, right and bottom."""
    x1, y1, x2, y2 = box
    return {"x": round(x1), "y": round(y1), "width": round(x2 - x1), "height": round(y2 - y1)}


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """Both conditionings of a personalised prompt, and which word was bound to which subject."""

    positive: list
    negative: list
    bindings: tuple[tuple[str, PromptSubject], ...]
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line per binding and per note, for the node."""
        if not self.bindings and not self.notes:
            return "no subject in this prompt"
        bound = [_describe(word, subject) for word, subject in self.bindings]
        return "\n".join([*bound, *(f"note: {note}" for note in self.notes)])


def _describe(word: str, bound: PromptSubject) -> str:
    references = bound.subject.references
    plural = "s" * (references != 1)
    return (
        f"{word} → {bound.name} ({references} reference{plural}, {len(bound.subject.tokens)} "
        f"tokens, weight {bound.weight:g})"
    )


def encode_prompt(
    clip,
    mmdiff: LoadedMMDiff,
    text: str,
    negative: str,
    subjects: Subjects = (),
    start: float = 0.0,
    behaviour: str | None = None,
    lora_strength: float = 1.0,
) -> EncodedPrompt:
    """Texts and subjects -> CONDITIONING for both sides of classifier-free guidance.

    text        with `<|name|>` right after a subject's class noun, or `<|subj|>` for the next
                subject in order; a subject may be mentioned several times, and, where names are
                used, not at all: then it is left out, and a note says so
    negative    plain text; the released behaviour fuses it at the same token positions, as the
                official code does; the corrected one does not
    start       fraction of the denoising drawn from the plain prompt first (delayed conditioning),
                0..1
    behaviour   None = what the checkpoint says
    """
    behaviour = behaviour or mmdiff.config.behaviour
    _check_adapter(mmdiff, subjects)
    adapted = text_side.adapted_clip(clip, mmdiff, behaviour, lora_strength)
    clean, nouns = text_side.find_nouns(adapted.tokenize, text)
    _, stray = text_side.find_nouns(adapted.tokenize, negative)
    if stray:
        raise ValueError(
            f"the negative prompt contains {len(stray)} {text_side.MARKER}; markers belong in the "
            "positive prompt only"
        )
    bound = text_side.bind(nouns, subjects)
    missed = [s for s in subjects if s not in bound]
    subjects = tuple(s for s in subjects if s in bound)

    def encode(words: str, fuse: bool) -> list:
        tokens = adapted.tokenize(words, return_word_ids=True)
        if fuse and subjects:
            tokens = text_side.fuse_tokens(adapted, mmdiff, tokens, nouns, bound)
        return text_side.encode(adapted, tokens)

    first = mmdiff.config.encoders[0]
    length = len(adapted.tokenize(clean)[first][0])
    columns = _noun_columns(nouns, bound, subjects, first, length)
    prompt = BoundPrompt(subjects, mmdiff.adapter.fingerprint, columns) if subjects else None
    late = start > 0 and bool(subjects)
    fused, plain = encode(clean, True), encode(clean, False) if late else []
    if behaviour == "released" and subjects:
        against = delayed(
            encode(negative, False) if late else [], encode(negative, True), None, start
        )
    else:
        against = carry(encode(negative, False), None)
    return EncodedPrompt(
        delayed(plain, fused, prompt, start if late else 0.0),
        against,
        tuple(zip((n.word for n in nouns), bound, strict=True)),
        _prompt_notes(missed, subjects, mmdiff.config),
    )


def _noun_columns(
    nouns: Sequence[text_side.Noun],
    bound: Sequence[PromptSubject],
    subjects: Subjects,
    encoder: str,
    length: int,
) -> tuple[tuple[int, ...], ...]:
    """Columns of the prompt embedding at which each subject's nouns are.

    length  tokens of a chunk of the prompt: 77 for SD's tokenizers, fewer in the small world
    """
    columns: dict[int, list[int]] = {id(subject): [] for subject in subjects}
    for noun, subject in zip(nouns, bound, strict=True):
        chunk, position = noun.places[encoder]
        columns[id(subject)].append(chunk * length + position)
    return tuple(map(tuple, columns.values()))


def _prompt_notes(
    missed: Sequence[PromptSubject], subjects: Subjects, config: MMDiffConfig
) -> tuple[str, ...]:
    notes = [
        f"{s.name} is not in the prompt and will not appear; write <|{s.name}|> after its noun"
        for s in missed
    ]
    return (*notes, *look_alike_notes([s.subject for s in subjects], config))


def _check_adapter(mmdiff: LoadedMMDiff, subjects: Sequence[PromptSubject]) -> None:
    for subject in subjects:
        if subject.subject.adapter != mmdiff.adapter.fingerprint:
            raise ValueError(
                f"subject {subject.name!r} was encoded with another MM-Diff checkpoint than "
                f"{mmdiff.adapter.source}; connect the same Load MM-Diff node to both"
            )
