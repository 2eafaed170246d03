"""Several subjects become one: averaged, on the sphere between them, or as more references of the
same one.

Shapes   T tokens per reference · D context width
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..method.subjects import Subject

METHODS = ("average", "spherical", "together")
PARALLEL = 1e-4  # below this angle, in radians, the sphere is as good as flat


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """From a to b [... D] along the arc between their directions, lengths straight; t in 0..1."""
    length = torch.lerp(a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True), t)
    u, v = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    angle = (u * v).sum(-1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    arc = (((1 - t) * angle).sin() * u + (t * angle).sin() * v) / sine.clamp_min(PARALLEL)
    return length * F.normalize(torch.where(sine < PARALLEL, torch.lerp(u, v, t), arc), dim=-1)


def blend(vectors: Sequence[Tensor], shares: Sequence[float], method: str) -> Tensor:
    """Vectors of one shape -> their mix. "spherical" goes along arcs, one vector after the other,
    so the order matters a little for three or more."""
    if method != "spherical":
        return sum(share * v for share, v in zip(shares, vectors, strict=True))
    mixed, weight = vectors[0], shares[0]
    for share, v in zip(shares[1:], vectors[1:], strict=True):
        if share > 0:
            weight += share
            mixed = slerp(mixed, v, share / weight)
    return mixed


def mean_reference(subject: Subject, tokens_per_reference: int) -> Tensor:
    """The mean of a subject's references [T D]."""
    return subject.tokens.unflatten(0, (-1, tokens_per_reference)).mean(0)


def mix(
    subjects: Sequence[Subject],
    weights: Sequence[float],
    method: str,
    name: str,
    tokens_per_reference: int = 4,
) -> Subject:
    """One subject from several.

    average     weighted mean of the tokens (of each subject the mean reference) and of the words
    spherical   the same along the arcs between them: keeps the lengths, so faces do not fade toward
                the mean face
    together    all references side by side, each subject's tokens weighted; for more images of ONE
                person or thing

    A subject without tokens (clip_only) adds its words alone. What one prompt did with a subject
    (weights, region) is not part of it.

    Raises ValueError for no subjects, other adapters or sizes, and weights that do not fit.
    """
    check_mix(subjects, weights, method)
    shares = [w / sum(weights) for w in weights]
    thumbnails = [s.thumbnails for s in subjects if s.thumbnails is not None]
    encoders = {s.encoder for s in subjects}
    if method == "together":
        tokens = torch.cat([s.tokens for s in subjects])
        references = sum(s.references for s in subjects)
    else:
        tokens, references = mean_tokens(subjects, shares, method, tokens_per_reference), 1
    return Subject(
        name,
        tokens,
        mean_words(subjects, shares, method),
        references,
        subjects[0].adapter,
        encoder=encoders.pop() if len(encoders) == 1 else "",
        identity=mean_identity(subjects, shares),
        thumbnails=torch.cat(thumbnails) if thumbnails else None,
    )


def mean_words(
    subjects: Sequence[Subject], shares: Sequence[float], method: str
) -> dict[str, Tensor]:
    """Mix of the words by encoder."""
    words = {}
    for encoder in subjects[0].words:
        words[encoder] = blend([s.words[encoder] for s in subjects], shares, method)
    return words


def check_mix(subjects: Sequence[Subject], weights: Sequence[float], method: str) -> None:
    """ValueError for no subjects, other adapters, or weights that do not fit."""
    if method not in METHODS:
        raise ValueError(f"mix method {method!r}, expected one of {METHODS}")
    if not subjects:
        raise ValueError("there is no subject to mix; connect at least one")
    if len(weights) != len(subjects):
        names = ", ".join(s.name for s in subjects)
        raise ValueError(
            f"{len(weights)} weights for {len(subjects)} subjects ({names}); give one weight per "
            "subject"
        )
    if not all(0 <= weight < math.inf for weight in weights) or sum(weights) <= 0:
        raise ValueError(
            f"mix weights {list(weights)}: expected numbers of at least 0, and one above 0"
        )
    if len({s.adapter for s in subjects}) > 1:
        raise ValueError(
            "the subjects were encoded with different MM-Diff adapters; encode them with the same "
            "Load MM-Diff node"
        )
    if len({_sizes(s) for s in subjects}) > 1:
        raise ValueError(
            "the subjects have tokens or words of different widths; encode them again with the "
            "same Load MM-Diff node"
        )


def _sizes(subject: Subject) -> tuple:
    """Widths of a subject's tokens, words and identity."""
    words = sorted((encoder, len(vector)) for encoder, vector in subject.words.items())
    return subject.tokens.shape[-1], *words


def mean_tokens(
    subjects: Sequence[Subject], shares: Sequence[float], method: str, tokens_per_reference: int
) -> Tensor:
    """Mix of the mean references [T D] of those subjects that have tokens, by their shares; [0 D]
    when none of a share above 0 has."""
    told = [
        (s, share) for s, share in zip(subjects, shares, strict=True) if len(s.tokens) and share > 0
    ]
    if not told:
        return subjects[0].tokens[:0]
    total = sum(share for _, share in told)
    means = [mean_reference(s, tokens_per_reference) for s, _ in told]
    return blend(means, [share / total for _, share in told], method)


def mean_identity(subjects: Sequence[Subject], shares: Sequence[float]) -> Tensor | None:
    """Mean unit vector [Q], or None where one is not known, or they cancel out."""
    known = [s.identity for s in subjects if s.identity is not None]
    if len(known) < len(subjects):
        return None
    mean = blend(known, shares, "average")
    return F.normalize(mean, dim=0) if mean.norm() > PARALLEL else None
