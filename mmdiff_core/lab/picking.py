"""How often the picked image of a set is truly right: MM-Diff Pick Best against the exact ruler."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..evaluation.picking import ranked
from ..evaluation.verdicts import ImageLikeness
from ..host import small_world
from ..host.encode import encode_subject
from ..host.frozen_base.build import load_task
from ..host.likeness import measure
from ..host.models import LoadedMMDiff, Readers, load_mmdiff
from ..method.subjects import PromptSubject
from ..small_world.examples import enlarge
from ..small_world.score import binding, interval
from ..small_world.trials import STRANGERS, Question, Trial, make_trial, unrelated
from .answers import draw
from .evaluate import asked

log = logging.getLogger(__name__)
SET = 8  # images of one trial
SEED = 199  # of the trials
NOISE = 1_000_000  # the number that the first set's noise follows from
BETWEEN = 100  # these numbers of two sets


@dataclass(frozen=True)
class Wanted:
    """What is asked: how many sets of which questions, drawn by which adapter (None = shipped)."""

    sets: int = 64
    questions: tuple[str, ...] = ("two different", "three")
    adapter: Path | None = None


@dataclass(frozen=True)
class Row:
    """One question's sets: (hits, total) of all images, and of the picked and the possible ones of
    4 and of 8; and the scores between which 90 % of the subjects of right images lie, and of
    unrelated individuals that are drawn perfectly."""

    every: tuple[int, int]
    picked_of_4: tuple[int, int]
    possible_of_4: tuple[int, int]
    picked_of_8: tuple[int, int]
    possible_of_8: tuple[int, int]
    best_two_of_8: tuple[int, int]
    subjects: tuple[float, float]
    unrelated: tuple[float, float]


COUNTS = (
    "every",
    "picked_of_4",
    "possible_of_4",
    "picked_of_8",
    "possible_of_8",
    "best_two_of_8",
)


def run(out: Path, wanted: Wanted) -> dict[str, Row]:
    """All questions; the images are kept beside `out`, and its numbers are written. ValueError for
    a question that is not there."""
    torch.set_num_threads(1)
    path = wanted.adapter or small_world.WEIGHTS / "adapter.safetensors"
    task, base = load_task(path), small_world.load()
    mmdiff = load_mmdiff(path, Readers(base.clip_vision))
    rows = {}
    for question in asked(wanted.questions, False):
        images = draw_sets(task, question, wanted.sets, out.with_suffix(".npz"))
        rows[question.name] = score_sets(mmdiff, question, images)
        out.write_text(json.dumps({k: asdict(v) for k, v in rows.items()}, indent=1), "utf-8")
    task.bridge.close()
    return rows


def draw_sets(task, question: Question, count: int, kept: Path) -> np.ndarray:
    """Images of the first `count` trials in dots, uint8 [count SET 3 K K]; those that `kept` has
    are not drawn again."""
    name = question.name
    stored = dict(np.load(kept)) if kept.is_file() else {}
    images = list(stored.get(name, ()))
    for number in range(len(images), count):
        trial = make_trial(question, SEED, number)
        first = NOISE + BETWEEN * number
        examples = [replace(trial.example, index=first + k) for k in range(SET)]
        dots = draw(task, examples)
        images.append((dots.clamp(0, 1) * 255).round().byte().numpy())
        if number % 8 == 7 or number + 1 == count:
            np.savez_compressed(kept, **stored | {name: np.stack(images)})
            log.info("%s: %d of %d sets drawn", name, number + 1, count)
    return np.stack(images[:count])


def score_sets(mmdiff: LoadedMMDiff, question: Question, images: np.ndarray) -> Row:
    """What MM-Diff Likeness and the exact ruler say of the sets [n SET 3 K K], counted."""
    right, judged, subjects, others = [], [], [], []
    for number, drawn in enumerate(images):
        trial = make_trial(question, SEED, number)
        dots = torch.from_numpy(drawn).float() / 255
        strangers = unrelated(trial, number)[None]
        *seen, strange = likeness(mmdiff, trial, torch.cat([dots, strangers]))
        known = [is_right(trial, image) for image in dots]
        judged.append(seen)
        right.append(known)
        for image, true in zip(seen, known, strict=True):
            subjects += image.scores if true else ()
        others += strange.scores
    return Row(
        (int(np.sum(right)), np.size(right)),
        picked(right, judged, 4),
        possible(right, 4),
        picked(right, judged, 8),
        possible(right, 8),
        picked(right, judged, 8, keep=2),
        spread(subjects),
        spread(others),
    )


def is_right(trial: Trial, image: Tensor) -> bool:
    """Whether the exact ruler finds every subject as itself."""
    return binding(image, trial.wanted, trial.strangers[:STRANGERS]).complete


def likeness(mmdiff: LoadedMMDiff, trial: Trial, dots: Tensor) -> tuple[ImageLikeness, ...]:
    """What the node makes of images [n 3 K K], given what a person gives it."""
    subjects = []
    for number, subject in enumerate(trial.example.subjects):
        shown = enlarge(subject.references.float()).movedim(1, -1)
        name = f"subject {number + 1}"
        encoded = encode_subject(mmdiff, mmdiff.readers.clip_vision, shown, None, name)
        subjects.append(PromptSubject(encoded.subject))
    return measure(mmdiff, enlarge(dots).movedim(1, -1), subjects).scores.images


def picked(
    right: Sequence[Sequence[bool]],
    judged: Sequence[Sequence[ImageLikeness]],
    of: int,
    keep: int = 1,
) -> tuple[int, int]:
    """Right ones among the best `keep` of every `of` images, and how many those are."""
    hits = total = 0
    for known, seen in zip(right, judged, strict=True):
        for start in range(0, len(known), of):
            best = ranked(seen[start : start + of])[:keep]
            hits += sum(known[start + number] for number in best)
            total += len(best)
    return hits, total


def possible(right: Sequence[Sequence[bool]], of: int) -> tuple[int, int]:
    """Groups of `of` images with a right one among them, and how many groups there are."""
    groups = np.reshape(right, (-1, of)).any(1)
    return int(groups.sum()), len(groups)


def spread(scores: Sequence[float]) -> tuple[float, float]:
    """5 % and 95 % of the scores lie below these."""
    low, high = np.quantile(scores, (0.05, 0.95))
    return float(low), float(high)


def table(rows: dict[str, Row]) -> str:
    """The counts as Markdown: shares in percent with 95 % intervals."""
    head = (
        "| question | all images | picked of 4 | a right one among 4 | picked of 8 | a right one "
        "among 8 | best two of 8 | scores in right images | of unrelated individuals |"
    )
    lines = [head, "|" + " --- |" * 9]
    for name, row in rows.items():
        cells = [_share(*getattr(row, count)) for count in COUNTS]
        cells += [f"{low:.2f} to {high:.2f}" for low, high in (row.subjects, row.unrelated)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _share(hits: int, total: int) -> str:
    share, low, high = (100 * value for value in interval(hits, total))
    return f"{share:.1f} ({low:.1f}-{high:.1f}), n = {total}"
