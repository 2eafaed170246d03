"""The likeness of a batch of generated images, and its best images.

Shapes   B images · S subjects · H W pixels
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..bases import SMALL_WORLD
from ..evaluation.marked import mark, with_words
from ..evaluation.picking import BatchLikeness, PromptFidelity, ranked
from ..evaluation.regions import mask_regions, read_regions
from ..evaluation.verdicts import Scale
from ..method.subjects import PromptSubject
from ..references.pixels import checked_images, to_uint8
from ..untrusted import quoted
from .compare import (
    DINO,
    FACES,
    SPRITES,
    THINGS,
    Compared,
    Comparison,
    compare_people,
    compare_sprites,
    compare_things,
    compare_with_dino,
)
from .dino import is_dino
from .models import LoadedMMDiff


@dataclass(frozen=True, eq=False)
class Measured:
    """The scores, the images with boxes and words (IMAGE), and a table in words."""

    scores: BatchLikeness
    marked: Tensor
    table: str


def measure(
    mmdiff: LoadedMMDiff,
    images: Tensor,
    subjects: Sequence[PromptSubject],
    clip_vision: object | None = None,
    faces: object | None = None,
    maps: object | None = None,
    references: Tensor | None = None,
    least: float = 0.0,
) -> Measured:
    """The score of every subject in every image (IMAGE [B H W 3]).

    Portrait adapters compare faces; others what stands where each subject was read (`maps`, or the
    subjects' masks), else the whole image; in the small world every position is looked at.

    maps        a recorder of the run that drew the images
    references  IMAGE [S H W 3], one for each subject, instead of what the subjects carry
    least       score from which something counts as a subject; 0 = the scale's own

    ValueError for images, subjects or maps that do not go together, or where a model is missing.
    """
    comparison = _comparison(mmdiff, images, subjects, maps, references)
    began = time.perf_counter()
    compared = _compare(comparison, clip_vision, faces, least)
    seconds = time.perf_counter() - began
    scores = BatchLikeness(comparison.names, compared.scale, compared.images)
    return Measured(scores, _marked(comparison, scores), _table(scores, compared, seconds))


def _comparison(
    mmdiff: LoadedMMDiff,
    images: Tensor,
    subjects: Sequence[PromptSubject],
    maps: object | None,
    references: Tensor | None,
) -> Comparison:
    pixels = to_uint8(checked_images(images).cpu()).movedim(-1, 1)
    for used in subjects:
        if used.subject.adapter != mmdiff.adapter.fingerprint:
            raise ValueError(
                f"{quoted(used.name)} was encoded with another MM-Diff adapter than the connected "
                "mmdiff; connect the one that encoded the subjects"
            )
    regions = mask_regions(subjects, *pixels.shape[-2:])
    if regions is not None:
        regions = regions[None].expand(len(pixels), -1, -1, -1)
    if maps is not None:
        regions = read_regions(maps.maps, [used.name for used in subjects], len(pixels))
    if references is not None:
        references = to_uint8(checked_images(references, "references").cpu()).movedim(-1, 1)
        if len(references) != len(subjects):
            raise ValueError(
                f"references has {len(references)} images for {len(subjects)} subjects; connect "
                "one image of each subject, in the order of the subjects"
            )
    return Comparison(mmdiff, pixels, tuple(subjects), regions, references)


def _compare(
    comparison: Comparison, clip_vision: object | None, faces: object | None, least: float
) -> Compared:
    mmdiff = comparison.mmdiff

    def scale(usual: Scale) -> Scale:
        return replace(usual, least=least) if least else usual

    if mmdiff.config.variant.reads_faces:
        analyser = mmdiff.readers.faces if faces is None else faces
        return compare_people(comparison, analyser, scale(FACES))
    encoder = mmdiff.readers_of(clip_vision, None).clip_vision
    if mmdiff.config.base.name == SMALL_WORLD.name:
        return compare_sprites(comparison, encoder, scale(SPRITES))
    if is_dino(encoder):
        return compare_with_dino(comparison, encoder, scale(DINO))
    return compare_things(comparison, encoder, scale(THINGS))


def _marked(comparison: Comparison, scores: BatchLikeness) -> Tensor:
    marked = []
    for number, (image, likeness) in enumerate(
        zip(comparison.images, scores.images, strict=True), 1
    ):
        words = _line(number, likeness, scores.names)
        marked.append(mark(image.movedim(0, -1).contiguous(), likeness, scores.names, words))
    return torch.stack(marked).float() / 255


def _line(number: int, likeness, names: Sequence[str]) -> str:
    """One image in words: every score, the worst, and what is wrong."""
    each = ", ".join(
        f"{name} {score:.2f}" for name, score in zip(names, likeness.scores, strict=True)
    )
    wrong = "; ".join(likeness.verdicts)
    return f"image {number}: {each}" + (f". {wrong[0].upper()}{wrong[1:]}" if wrong else "")


def _table(scores: BatchLikeness, compared: Compared, seconds: float) -> str:
    scale, count = scores.scale, len(scores.images)
    lines = [f"Scale: {scale.name}; {scale.unrelated}."]
    if len(scores.names) > 1:
        pairs = compared.among[tuple(torch.triu_indices(*compared.among.shape, 1))]
        lines.append(
            f"These subjects' references among one another: {float(pairs.min()):.2f} to "
            f"{float(pairs.max()):.2f}."
        )
    lines += [f"Compared: {compared.how}.", ""]
    lines += [_line(i, each, scores.names) for i, each in enumerate(scores.images, 1)]
    lines += [
        "",
        f"{seconds / count:.2f} s per image ({count} image{'s' * (count != 1)}, "
        f"{compared.device}).",
    ]
    return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Picked:
    """The best of a batch: numbers of the kept images (from 0) and of the others, best first."""

    kept: tuple[int, ...]
    others: tuple[int, ...]
    ranked: Tensor
    table: str


def pick(
    images: Tensor, scores: BatchLikeness, keep: int, fidelity: PromptFidelity | None = None
) -> Picked:
    """The best `keep` images (all where there are fewer) of IMAGE [B H W 3], in the order of
    `ranked`. ValueError where the scores are of another batch."""
    pixels = to_uint8(checked_images(images, "images").cpu())
    if len(pixels) != len(scores.images):
        raise ValueError(
            f"images is a batch of {len(pixels)}, the scores are of {len(scores.images)}; connect "
            "the images that MM-Diff Likeness scored"
        )
    order = ranked(scores.images, fidelity)
    shown, lines = [], []
    for rank, number in enumerate(order, 1):
        likeness = scores.images[number]
        what = "kept" if rank <= keep else "others"
        words = f"{rank}. {what}, worst {likeness.worst:.2f}"
        words += "\n" if fidelity is None else f", prompt {fidelity.scores[number]:.3f}\n"
        words += _line(number + 1, likeness, scores.names)
        shown.append(with_words(pixels[number], words))
        lines.append(words.replace("\n", ": "))
    if fidelity is not None:
        lines += ["", _decided(fidelity)]
    return Picked(order[:keep], order[keep:], torch.stack(shown).float() / 255, "\n".join(lines))


def _decided(fidelity: PromptFidelity) -> str:
    """What the prompt's scores are, what they decide, and their cost."""
    return (
        "Prompt: cosine of CLIP embeddings of image and prompt; it orders images whose worst is "
        f"within {fidelity.within:g} of the best that is left. {fidelity.seconds:.2f} s per image."
    )


def picked_latents(latents: Mapping, numbers: Sequence[int], images: int) -> dict:
    """A LATENT with these entries of the batch. ValueError where it is of another batch."""
    samples = latents.get("samples") if isinstance(latents, Mapping) else None
    if not torch.is_tensor(samples) or samples.ndim < 3:
        raise ValueError(f"latents is {quoted(latents)}, expected a LATENT")
    if len(samples) != images:
        raise ValueError(
            f"latents is a batch of {len(samples)}, images of {images}; connect the latents that "
            "the images were decoded from"
        )
    chosen = list(numbers)
    found = {**latents, "samples": samples[chosen]}
    if torch.is_tensor(mask := latents.get("noise_mask")) and len(mask) == images:
        found["noise_mask"] = mask[chosen]
    index = latents.get("batch_index")
    first = index if isinstance(index, (list, tuple)) and len(index) == images else range(images)
    found["batch_index"] = [first[number] for number in chosen]
    return found
