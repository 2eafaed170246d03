"""The experiments with real images: which subjects together, in which prompts, with which
references, and what is done to these."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from .experiments import (
    FINE_TUNED,
    FRAMES,
    NOISE_WALK,
    PROMPT_WALK,
    WHOLE,
    WINDOWS,
    Cell,
    Experiment,
)
from .extractors import file_hash
from .scores import cosines
from .sets import Case, Subject
from .store import open_rgb

SIDE = 768  # pixels of a reference as it is given, padded to a square
COVER = (127, 127, 127)
DARK = 0.35  # of every pixel
BLUR = 1 / 40  # standard deviation, as a share of the longer side
TOGETHER = ("same", "alike")  # cells whose subjects have one noun
PLACES: Mapping[str, tuple[str, ...]] = {
    "any": ("on the beach", "in the snow", "in a kitchen", "on a city street"),
    "plain": ("in front of a plain white wall", "in front of a plain grey backdrop"),
    "busy": ("in a crowded street market", "in front of shelves full of colourful things"),
}


@dataclass(frozen=True)
class Asked:
    """An image that is to be there, or the frames of a batch.

    files   references of each subject, as they are given
    toward  the marked prompt that the text is mixed with; "" = none
    seed    of the first noise
    unit    number of the graph: its images are `images/<unit>/<n>.png`
    """

    case: Case
    files: tuple[tuple[Path, ...], ...]
    toward: str
    seed: int
    unit: int


def with_real_weights(experiment: Experiment) -> Experiment:
    """What of it is drawn in ComfyUI: nothing is fine-tuned there, and all is drawn by the host."""
    cells = [c for c in experiment.cells if c.drawn_by != FINE_TUNED and c.host != WHOLE]
    compared = list(experiment.compared)
    if experiment.of_frames:
        compared.append((f"{NOISE_WALK}, {WINDOWS}", NOISE_WALK))
    return replace(experiment, cells=tuple(cells), compared=tuple(compared))


# ---------------------------------------------------------------- subjects


def lacking(experiment: Experiment, subjects: Sequence[Subject]) -> tuple[str, ...]:
    """What the set of subjects has not, in words; empty where it has all."""
    most = max(cell.subjects for cell in experiment.cells)
    told = []
    if len(subjects) < most:
        told.append(f"{most} subjects, the set has {len(subjects)}")
    if any(cell.who in TOGETHER for cell in experiment.cells) and not _by_noun(subjects, 2):
        told.append("two subjects with the same noun")
    photos = max(_photos(cell) for cell in experiment.cells)
    for subject in subjects:
        if len(subject.references) < photos:
            count = len(subject.references)
            told.append(f"{photos} images of {subject.name!r}, there are {count}")
    return tuple(told)


def _photos(cell: Cell) -> int:
    return max(cell.references, 2 if cell.shown == "other pose" else 1)


def _by_noun(subjects: Sequence[Subject], least: int) -> list[list[Subject]]:
    found: dict[str, list[Subject]] = {}
    for subject in subjects:
        found.setdefault(subject.noun.lower(), []).append(subject)
    return [own for own in found.values() if len(own) >= least]


def groups_of(
    cell: Cell, subjects: Sequence[Subject], embed: Callable[[Subject], np.ndarray]
) -> list[tuple[Subject, ...]]:
    """The subjects of each image in turn.

    Any: each with those that follow in the set. Same: the same within a noun. Alike: each with the
    one of its noun whose first reference is most like its own, by the embedding of `embed`.
    """
    if cell.who not in TOGETHER:
        return _rotated(subjects, cell.subjects)
    found = []
    for own in _by_noun(subjects, cell.subjects):
        found += _nearest(own, embed) if cell.who == "alike" else _rotated(own, cell.subjects)
    return found


def _rotated(subjects: Sequence[Subject], count: int) -> list[tuple[Subject, ...]]:
    total, made = len(subjects), {}
    for start in range(total):
        group = tuple(subjects[(start + step) % total] for step in range(count))
        made.setdefault(frozenset(each.name for each in group), group)
    return list(made.values())


def _nearest(
    subjects: Sequence[Subject], embed: Callable[[Subject], np.ndarray]
) -> list[tuple[Subject, ...]]:
    features = np.stack([embed(subject) for subject in subjects])
    table, made = cosines(features, features), {}
    np.fill_diagonal(table, -np.inf)
    for number, other in enumerate(table.argmax(1)):
        pair = (subjects[number], subjects[int(other)])
        made.setdefault(frozenset(each.name for each in pair), pair)
    return list(made.values())


# ---------------------------------------------------------------- prompts and images


def asked_of(
    cell: Cell, groups: Sequence[tuple[Subject, ...]], count: int, seed: int, given: Path
) -> list[Asked]:
    """The graphs of a cell that give `count` images. The n-th one has the same seed and, with as
    many subjects, the same subjects in every cell of an experiment.

    given  folder for the references as they are given
    """
    places, made = PLACES[cell.place], []
    for unit in range(math.ceil(count / FRAMES) if cell.frames else count):
        group, turn = groups[unit % len(groups)], unit // len(groups)
        place, after = places[turn % len(places)], places[(turn + 1) % len(places)]
        names = tuple(subject.name for subject in group)
        first = tuple(subject.references[0] for subject in group)
        case = Case(names, turn, prompt_of(group, place), first)
        files = tuple(references_of(cell, subject, given) for subject in group)
        toward = prompt_of(group, after) if cell.frames == PROMPT_WALK else ""
        made.append(Asked(case, files, toward, seed + unit, unit))
    return made


def prompt_of(subjects: Sequence[Subject], place: str) -> str:
    """A prompt with `<|s1|>` ... behind the nouns."""
    told = []
    for number, subject in enumerate(subjects, 1):
        article = "an" if subject.noun[:1].lower() in "aeiou" else "a"
        told.append(f"{article} {subject.noun}<|s{number}|>")
    return f"a photo of {' and '.join(told)} {place}"


def references_of(cell: Cell, subject: Subject, given: Path) -> tuple[Path, ...]:
    """The references of a subject as a cell gives them, written where they are not yet."""
    photos, shown = subject.references[: cell.references], cell.shown
    if shown == "other pose":
        photos, shown = subject.references[1 : 1 + cell.references], "clean"
    files = []
    for photo in photos:
        path = given / f"{file_hash(photo)[:16]}-{shown.replace(' ', '_')}.png"
        if not path.is_file():
            given.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".part")
            prepared(open_rgb(photo), shown).save(temporary, "PNG")
            temporary.replace(path)
        files.append(path)
    return tuple(files)


def prepared(image: Image.Image, shown: str = "clean") -> Image.Image:
    """A reference, covered from the middle down, blurred, darkened or mirrored, on a white square;
    several references of a subject have one size."""
    image = ImageOps.contain(image, (SIDE, SIDE))
    if shown == "half covered":
        image.paste(COVER, (0, image.height // 2, image.width, image.height))
    elif shown == "blurred":
        image = image.filter(ImageFilter.GaussianBlur(BLUR * max(image.size)))
    elif shown == "dark":
        image = image.point(lambda value: round(DARK * value))
    elif shown == "mirrored":
        image = ImageOps.mirror(image)
    elif shown != "clean":
        raise ValueError(f"there is no way to show a reference {shown!r}")
    return ImageOps.pad(image, (SIDE, SIDE), color="white")
