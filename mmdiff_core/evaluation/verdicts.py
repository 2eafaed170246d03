"""What an image shows of its subjects, in numbers and in words.

Shapes   S subjects · F faces or things that were found in one image
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .matching import hungarian, matched_scores

Box = tuple[float, float, float, float]  # x1 y1 x2 y2 in pixels
MISSING = 0.0  # the score of a subject that was matched with nothing


@dataclass(frozen=True)
class Scale:
    """What scores mean.

    name       of the number, for example "cosine of ArcFace embeddings"
    unrelated  what unrelated individuals score, and how that is known
    one, many  what is found: "person" and "people"
    least      score from which what was found counts as a subject; None = the number alone does not
               tell, so that nothing is missing, doubled or one too many
    apart      by how much another matching must be better before things count as swapped
    """

    name: str
    unrelated: str
    one: str = "person"
    many: str = "people"
    least: float | None = None
    apart: float = 0.0


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in one image.

    scores  [S F] of every subject with everything that was found
    boxes   of everything that was found
    owners  for each of them the number of the subject in whose region it is, or None
    """

    scores: Tensor
    boxes: tuple[Box, ...]
    owners: tuple[int | None, ...]


@dataclass(frozen=True)
class ImageLikeness:
    """One image: the subjects' scores and boxes (None = not found), boxes of what is no subject,
    and what is wrong in words; no words = nothing is."""

    scores: tuple[float, ...]
    boxes: tuple[Box | None, ...]
    others: tuple[Box, ...] = ()
    verdicts: tuple[str, ...] = ()

    @property
    def worst(self) -> float:
        """Score of the worst-served subject."""
        return min(self.scores)

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)


def whole_image(scores: Sequence[float]) -> ImageLikeness:
    """Subjects that were compared with the image as a whole: nothing is told of who is where."""
    return ImageLikeness(tuple(scores), (None,) * len(scores))


def judge(found: Found, names: Sequence[str], scale: Scale) -> ImageLikeness:
    """Match the subjects with what was found, and say what is wrong."""
    matched = _matched(found, scale)
    scores = matched_scores(found.scores, matched, MISSING) if names else ()
    there = [
        column if column is not None and _counts(score, scale) else None
        for column, score in zip(matched, scores, strict=True)
    ]
    others = [f for f in range(len(found.boxes)) if f not in there]
    words = [*_misplaced(there, found, names), *_absent(there, found, others, names, scale)]
    boxes = tuple(None if f is None else found.boxes[f] for f in there)
    return ImageLikeness(scores, boxes, tuple(found.boxes[f] for f in others), tuple(words))


def _matched(found: Found, scale: Scale) -> tuple[int | None, ...]:
    """The best matching; where each subject has a region of its own, another one only if it is
    better by more than `apart`."""
    best = hungarian(found.scores)
    if not scale.apart or found.owners != tuple(range(len(found.scores))):
        return best
    own = tuple(range(len(found.scores)))
    gain = sum(matched_scores(found.scores, best)) - sum(matched_scores(found.scores, own))
    return best if gain > scale.apart else own


def _counts(score: float, scale: Scale) -> bool:
    return scale.least is None or score >= scale.least


def _misplaced(there: Sequence[int | None], found: Found, names: Sequence[str]) -> list[str]:
    """Who is in one another's regions."""
    stands = [None if f is None else found.owners[f] for f in there]
    words = []
    for subject, owner in enumerate(stands):
        if owner is None or owner == subject:
            continue
        if stands[owner] != subject:
            words.append(f"{names[subject]} is in the region of {names[owner]}")
        elif subject < owner:
            words.append(f"{names[subject]} and {names[owner]} are swapped")
    return words


def _absent(
    there: Sequence[int | None],
    found: Found,
    others: Sequence[int],
    names: Sequence[str],
    scale: Scale,
) -> list[str]:
    """Who is missing, who is there again, and how many there are that nobody asked for."""
    words = [f"{name} is missing" for name, f in zip(names, there, strict=True) if f is None]
    missing, strangers, again = len(words), 0, Counter()
    for f in others:
        alike = int(found.scores[:, f].argmax())
        if scale.least is not None and float(found.scores[alike, f]) >= scale.least:
            again[alike] += 1
        else:
            strangers += 1
    for subject, count in again.items():
        times = "twice" if count == 1 else f"{count + 1} times"
        words.append(f"{names[subject]} is drawn {times}")
    if (extra := strangers - missing) > 0:
        words.append(f"an extra {scale.one}" if extra == 1 else f"{extra} extra {scale.many}")
    return words
