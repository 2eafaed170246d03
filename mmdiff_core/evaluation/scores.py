"""Scores as pure functions of embeddings, each as its source defines it.

Embeddings need no unit length: every function takes cosines. Ranges are those of the result.

Shapes   n m images · d width of an embedding · F faces found in an image · R references (subjects)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .matching import greedy, hungarian, matched_scores

Array = np.ndarray
SAME_PERSON = 0.3  # cosine of ArcFace (buffalo_l) from which two faces are taken for one person
COLLAPSE = (0.4, 0.5, 0.6)  # cosines of DINOv2 below which a reference counts as lost


def cosines(a: Array, b: Array) -> Array:
    """Cosine [n m] of every row of a [n d] with every row of b [m d], -1..1.

    ValueError for other shapes, and for a row that has no direction.
    """
    a, b = unit(a), unit(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"embeddings of {a.shape[1]} and {b.shape[1]} numbers have no cosine")
    return a @ b.T


def unit(rows: Array) -> Array:
    """Rows [n d] scaled to length 1, float64. ValueError for one of length 0 or not finite."""
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2:
        raise ValueError(f"embeddings have the shape {list(rows.shape)}, expected [n d]")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError("an embedding is 0 or not finite, so it has no direction")
    return rows / lengths


# ---------------------------------------------------------------- whole images


def all_pairs(generated: Array, real: Array) -> float:
    """CLIP-I and DINO of DreamBench: mean cosine over all generated [n d] x all real [m d] images
    of a subject, whole images, -1..1. Source: DreamBooth, arXiv 2208.12242, section 4.1."""
    return float(cosines(generated, real).mean())


def pairs_among(real: Array) -> float | None:
    """The oracle of `all_pairs`: mean cosine over all pairs of different real images [m d] of one
    subject, -1..1. None for a single image."""
    count = len(real)
    if count < 2:
        return None
    table = cosines(real, real)
    return float((table.sum() - np.trace(table)) / (count * (count - 1)))


def paired(texts: Array, images: Array) -> float:
    """CLIP-T: mean cosine of each image [n d] with its own prompt [n d], -1..1.
    Source: CLIPScore without its factor 2.5 and without cutting at 0, as DreamBooth uses it."""
    texts, images = unit(texts), unit(images)
    if texts.shape != images.shape:
        raise ValueError(f"{len(texts)} prompts and {len(images)} images are no pairs")
    return float((texts * images).sum(1).mean())


def dreambench_plus(references: Array, images: Array) -> float:
    """CLIP-I, CLIP-T and DINO of DreamBench++: 100 x mean cosine of each image [n d] with its one
    reference (or prompt) [n d], -100..100. Source: dreambench_plus/metrics of that project."""
    return 100 * paired(references, images)


# ---------------------------------------------------------------- faces


def fastcomposer_identity(faces: Array, reference: Array) -> float:
    """One person: cosine of the first face of the image, faces [F d], with the reference's first
    face [d], cut at 0; no face = 0. 0..1. First = the largest, as MTCNN lists them.
    Source: FastComposer, evaluation/single_object/single_object_evaluation.py."""
    if not len(faces):
        return 0.0
    return max(float(cosines(faces[:1], reference[None])[0, 0]), 0.0)


def greedy_min(table: Array) -> float:
    """Several people as FastComposer's code has it: the best pair of the table [R F], then the best
    of the rest; the worst of these, 0 where a reference has no face. Below `hungarian_min` in a
    third of random tables of 3 x 3."""
    return min(matched_scores(table, greedy(table)), default=0.0)


def hungarian_min(table: Array) -> float:
    """Several people: the worst of the one-to-one matching with the largest sum in a table [R F], 0
    where a reference has no face. Source: FastComposer, arXiv 2305.10431."""
    return min(matched_scores(table, hungarian(table)), default=0.0)


def best_faces(table: Array) -> tuple[float, ...]:
    """ID-Sim: each reference's best face in a table [R F], 0 without faces; -1..1. The same face
    may serve two references. Source: XVerse, eval/tools/idip_face_score.py."""
    return tuple(float(row.max()) if len(row) else 0.0 for row in np.asarray(table))


def identity_confidence(table: Array) -> tuple[float, ...] | None:
    """ID-Conf: for each reference 1 - s2 / s1 of its best and second best face, within 0..1, and 0
    where s1 <= 0. None for fewer than two faces: such images are left out. Source: UMO."""
    table = np.asarray(table)
    if table.shape[1] < 2:
        return None
    second, first = np.sort(table, axis=1)[:, -2:].T
    shares = np.where(first > 0, 1 - second / np.where(first > 0, first, 1.0), 0.0)
    return tuple(float(share) for share in np.clip(shares, 0, 1))


def copy_paste(generated: Array, truth: Array, reference: Array) -> float | None:
    """Copy-paste: (angle(generated, truth) - angle(generated, reference)) / angle(truth,
    reference), of three embeddings [d] of one person; -1..1. 1 repeats the reference, -1 is the
    other photo. None where truth and reference are one. Source: WithAnyone."""
    to_truth, to_reference = _angle(generated, truth), _angle(generated, reference)
    between = _angle(truth, reference)
    return (to_truth - to_reference) / between if between > 1e-6 else None


def _angle(a: Array, b: Array) -> float:
    return float(np.arccos(np.clip(cosines(a[None], b[None])[0, 0], -1, 1)))


def multi_id(table: Array) -> float:
    """Multi-ID: sum of the Hungarian matching in a table [R F] / number of references, so that a
    missing person counts 0; -1..1. Source: MultiHuman-Testbench."""
    return sum(matched_scores(table, hungarian(table))) / len(table)


def duplicates(table: Array, same: float = SAME_PERSON) -> int:
    """How many references [R F] are drawn twice: at least two faces are nearest to them, with a
    cosine from `same`. A convention of this pack."""
    table = np.asarray(table)
    if not table.size:
        return 0
    nearest, close = table.argmax(0), table.max(0) >= same
    counts = np.bincount(nearest[close], minlength=len(table))
    return int((counts > 1).sum())


# ---------------------------------------------------------------- counts and collapse


def share(hits: Sequence[bool]) -> float:
    """Share of true values, 0..1; not a number without any."""
    return float(np.mean(hits)) if len(hits) else float("nan")


def collapse_rate(best: Sequence[float], tau: float) -> float:
    """SCR@tau: share of references whose best cosine in the image (DINOv2) is below tau, 0..1."""
    return share([value < tau for value in best])
