"""The two encodings a person asks for: a subject from its reference pictures, a prompt from text and subjects."""
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

from ..notes import look_alike_notes, reference_notes
from ..subject_file import SIDE
from ..subjects import Subject, Subjects, VisionFeatures
from ..vision import object_pixels, to_uint8
from . import text as text_side
from .conditioning import BoundPrompt, carry, delayed
from .models import LoadedMMDiff
from .vision import check_encoder, cls_embeddings, encoder_fingerprint, patch_embeddings

MAX_WEIGHT = 10.0      # of a subject; far beyond what is useful


class FaceSource(Protocol):
    """Whoever finds faces: `faces.FaceAnalyser`, or a stand-in."""

    def portrait(self, image: np.ndarray, which: int, label: str) -> tuple[np.ndarray, np.ndarray]:
        """uint8 RGB [H W 3] -> unit embedding [512] and aligned crop uint8 RGB [224 224 3]."""


def encode_subject(mmdiff: LoadedMMDiff, clip_vision, images: Tensor, faces: FaceSource | None, name: str,
                   weight: float = 1.0, which_face: int = 0) -> tuple[Subject, Tensor, list[str]]:
    """All reference pictures (IMAGE [R H W 3]) of one subject -> the subject, what the encoder looked at (IMAGE), and what a person
    should know about the pictures.

    Portrait adapters need `faces`; general ones read the whole pictures. The first reference speaks in the text.
    """
    if not name.strip():
        raise ValueError("the subject has no name; give it one, for example the person's first name")
    check_encoder(clip_vision, mmdiff.config)
    cls = cls_embeddings(clip_vision, mmdiff.adapter, images)
    if mmdiff.config.variant == "portrait":
        query, looked_at = _portraits(images, faces, name, which_face)
    else:
        query, looked_at = cls, torch.stack([object_pixels(i, mmdiff.config.image_size) for i in to_uint8(images[..., :3]).movedim(-1, 1)])
    patches = patch_embeddings(clip_vision, looked_at)
    with mmdiff.loaded() as (_, device):
        features = VisionFeatures(cls.to(device), patches.to(device), query.to(device))
        subject = mmdiff.adapter.make_subject(features, name.strip(), weight)
    subject = replace(subject, encoder=encoder_fingerprint(clip_vision), pictures_seen=small_pictures(looked_at))
    return subject, looked_at.movedim(1, -1), reference_notes(subject.name, looked_at, query, mmdiff.config)


def small_pictures(seen: Tensor) -> Tensor:
    """What the encoder looked at [R 3 S S] in 0..1 -> [R 64 64 3] uint8, to recognise a saved subject by."""
    small = F.interpolate(seen.float().cpu(), size=(SIDE, SIDE), mode="area" if seen.shape[-1] >= SIDE else "nearest")
    return (small.clamp(0, 1) * 255).round().byte().movedim(1, -1).contiguous()


def to_look_at(seen: Tensor, side: int = 128) -> Tensor:
    """Pictures [R h w 3] as they are, or, where they are smaller than `side`, enlarged by whole dots for the eye."""
    times = max(1, -(-side // min(seen.shape[1:3])))
    return seen.repeat_interleave(times, 1).repeat_interleave(times, 2)


def _portraits(images: Tensor, faces: FaceSource | None, name: str, which: int) -> tuple[Tensor, Tensor]:
    """Embeddings [R 512] and crops [R 3 224 224] in 0..1 of the chosen face on every picture."""
    if faces is None:
        raise ValueError(
            "this MM-Diff checkpoint is a portrait one and reads faces: connect Load Face Analysis. It needs the packages insightface "
            "and onnxruntime, and the buffalo_l models under models/insightface/models/buffalo_l"
        )
    progress, found = comfy.utils.ProgressBar(len(images)), []
    for i, image in enumerate(to_uint8(images[..., :3].cpu()), 1):
        comfy.model_management.throw_exception_if_processing_interrupted()
        found.append(faces.portrait(image.numpy(), which, f"{name}, picture {i} of {len(images)}"))
        progress.update(1)
    query = torch.from_numpy(np.stack([embedding for embedding, _ in found])).float()
    crops = torch.from_numpy(np.stack([crop for _, crop in found])).movedim(-1, 1).float() / 255
    return query, crops


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """Both conditionings of a personalised prompt, and which word was bound to which subject."""

    positive: list
    negative: list
    bindings: tuple[tuple[str, Subject], ...]
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line per binding and per note, for the node."""
        if not self.bindings:
            return "no subject in this prompt"
        return "\n".join([
            *(f"{word} → {s.name} ({s.references} reference{'s' * (s.references != 1)}, {len(s.tokens)} tokens, weight {s.weight:g})"
              for word, s in self.bindings),
            *(f"note: {note}" for note in self.notes),
        ])


def encode_prompt(clip, mmdiff: LoadedMMDiff, text: str, negative: str, subjects: Subjects = (), start: float = 0.0,
                  behaviour: str | None = None, lora_strength: float = 1.0) -> EncodedPrompt:
    """Texts and subjects -> CONDITIONING for both sides of classifier-free guidance.

    text        with one `<|subj|>` right after each subject's class noun, in the subjects' order
    negative    plain text; the released behaviour fuses it at the same places (quirk 2), the corrected one does not
    start       fraction of the denoising drawn from the plain prompt first (delayed conditioning), 0..1
    behaviour   None = what the checkpoint says
    """
    behaviour = behaviour or mmdiff.config.behaviour
    _check_adapter(mmdiff, subjects)
    adapted = text_side.adapted_clip(clip, mmdiff, behaviour, lora_strength)
    clean, nouns = text_side.find_nouns(adapted.tokenize, text)
    _, stray = text_side.find_nouns(adapted.tokenize, negative)
    if stray:
        raise ValueError(f"the negative prompt has {len(stray)} {text_side.MARKER}; subjects belong in the positive prompt only")
    text_side.check_counts(nouns, subjects)

    def encode(words: str, fuse: bool) -> list:
        tokens = adapted.tokenize(words, return_word_ids=True)
        if fuse and subjects:
            tokens = text_side.fuse_tokens(adapted, mmdiff, tokens, nouns, subjects)
        return text_side.encode(adapted, tokens)

    prompt = BoundPrompt(subjects, mmdiff.adapter.fingerprint) if subjects else None
    late = start > 0 and bool(subjects)
    fused, plain = encode(clean, True), encode(clean, False) if late else []
    if behaviour == "released" and subjects:
        against = delayed(encode(negative, False) if late else [], encode(negative, True), None, start)
    else:
        against = carry(encode(negative, False), None)
    return EncodedPrompt(
        delayed(plain, fused, prompt, start if late else 0.0), against, tuple(zip((n.word for n in nouns), subjects, strict=True)),
        tuple(look_alike_notes(subjects, mmdiff.config)),
    )


def _check_adapter(mmdiff: LoadedMMDiff, subjects: Sequence[Subject]) -> None:
    for subject in subjects:
        if subject.adapter != mmdiff.adapter.fingerprint:
            raise ValueError(
                f"subject {subject.name!r} was encoded with another MM-Diff checkpoint than {mmdiff.adapter.source}; connect the same "
                "Load MM-Diff node to both"
            )
