"""The experiments of the paper's card and of its users' questions as data: what is asked, of whom.

A cell is one row of a table. The same cells are drawn in the small world (`lab.experiments`) and
with real weights through a running ComfyUI (`experiment_sets`, `experiment_graphs`). All cells of
an experiment start from the same noise and, as far as their number of subjects allows, ask for the
same individuals, so that they are compared in pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..method.subjects import NOUNS, SELF, TOKENS
from .intervals import SEED, Interval, bootstrap
from .results import Column, Row

ADAPTER, BASE, FINE_TUNED = "MM-Diff", "plain base", "fine-tuned"
REGIONS = (TOKENS, NOUNS)
WHOLE, WINDOWS = "ComfyUI", "windows"
OWN_NOISE, NOISE_WALK, PROMPT_WALK = "own noise", "noise walk", "prompt walk"
FRAMES = 8  # of a walk
EACH = 8  # images of an individual, where it is fine-tuned
WINDOW, OVERLAP = 4, 2  # frames of a context window, and those that two of them share


@dataclass(frozen=True)
class Cell:
    """One row of an experiment.

    subjects    1 to 3
    references  of each subject, 1 to 5
    shown       what was done to them: "clean", "half covered", "blurred", "dark", "mirrored" or
                "other pose"
    who         of several subjects: "any", "different" classes, "same" class, or "alike": of one
                class and hard to tell apart
    held        what boxes keep in place: TOKENS, NOUNS, SELF (self-attention)
    place       "any" background, "plain" or "busy"
    drawn_by    ADAPTER, BASE, or the base FINE_TUNED on each subject
    frames      none, or how the frames of a batch differ: OWN_NOISE, NOISE_WALK, PROMPT_WALK
    host        "" = by the lab's sampler; else by ComfyUI's own, the batch WHOLE or in its context
                WINDOWS
    """

    name: str
    subjects: int = 1
    references: int = 1
    shown: str = "clean"
    who: str = "any"
    held: tuple[str, ...] = ()
    place: str = "any"
    drawn_by: str = ADAPTER
    frames: str = ""
    host: str = ""

    @property
    def folder(self) -> str:
        """Its folder of images."""
        return self.name.replace(",", "").replace(" ", "_")


@dataclass(frozen=True)
class Experiment:
    """A table.

    compared  pairs of rows: the first one's difference from the second is told, image by image
    by_subject  several images of each individual rather than one
    """

    name: str
    title: str
    cells: tuple[Cell, ...]
    compared: tuple[tuple[str, str], ...] = ()
    by_subject: bool = False

    @property
    def of_frames(self) -> bool:
        """Whether its images are the frames of batches."""
        return any(cell.frames for cell in self.cells)


def _against(first: str, others: Sequence[Cell]) -> tuple[tuple[str, str], ...]:
    return tuple((cell.name, first) for cell in others)


ONE = Cell("1 reference")
MORE = tuple(Cell(f"{n} references", references=n) for n in range(2, 6))
COVERED = tuple(Cell(f"{n} half covered", references=n, shown="half covered") for n in (1, 3, 5))
REFERENCES = Experiment(
    "references",
    "1 to 5 references of one subject, clean and half covered",
    (ONE, *MORE, *COVERED),
    (*_against(ONE.name, MORE), *_against(COVERED[0].name, COVERED[1:])),
)
CLEAN = Cell("clean")
WORSE = tuple(
    Cell(shown, shown=shown)
    for shown in ("half covered", "blurred", "dark", "mirrored", "other pose")
)
CONDITIONS = Experiment(
    "conditions",
    "One reference: clean, covered, blurred, dark, mirrored, in another pose",
    (CLEAN, *WORSE, Cell(BASE, drawn_by=BASE)),
    _against(CLEAN.name, WORSE),
)


def _several() -> tuple[Cell, ...]:
    """Two and three subjects."""
    return Cell("two", 2, who="different"), Cell("three", 3)


def _layouts() -> tuple[Cell, ...]:
    cells = []
    for several in _several():
        for place in ("plain", "busy"):
            free = replace(several, name=f"{several.name}, free, {place}", place=place)
            held = replace(free, name=f"{several.name}, regions, {place}", held=REGIONS)
            cells += [free, held]
        cells.append(replace(several, name=f"{several.name}, {BASE}", drawn_by=BASE))
    return tuple(cells)


SUBJECTS = Experiment(
    "subjects",
    "Two and three subjects, free and in regions, on plain and busy backgrounds",
    _layouts(),
    tuple(
        (f"{word}, regions, {place}", f"{word}, free, {place}")
        for word in ("two", "three")
        for place in ("plain", "busy")
    ),
)
OF_A_CLASS = Cell("two of a class", 2, who="same")
ALIKE = Cell("two alike", 2, who="alike")
ALIKE_HELD = Cell("two alike, regions", 2, who="alike", held=REGIONS)
LOOK_ALIKES = Experiment(
    "alike",
    "Two subjects that are hard to tell apart",
    (OF_A_CLASS, ALIKE, ALIKE_HELD, Cell(f"two alike, {BASE}", 2, who="alike", drawn_by=BASE)),
    ((ALIKE.name, OF_A_CLASS.name), (ALIKE_HELD.name, ALIKE.name)),
)


HOLDING = {
    "off": (),
    "tokens": (TOKENS,),
    "tokens and nouns": REGIONS,
    "tokens, nouns, self-attention": (*REGIONS, SELF),
}


def _constraints() -> tuple[Cell, ...]:
    return tuple(
        replace(several, name=f"{several.name}, {name}", held=kept)
        for several in _several()
        for name, kept in HOLDING.items()
    )


CONSTRAINTS = Experiment(
    "constraints",
    "Constraint masks: off, on the subject tokens, on the nouns and on self-attention as well",
    _constraints(),
    tuple(
        (f"{word}, {held}", f"{word}, off")
        for word in ("two", "three")
        for held in list(HOLDING)[1:]
    ),
)
TUNING = Experiment(
    "tuning",
    "Against fine-tuning for each subject, and the plain base",
    (
        Cell("MM-Diff, 1 reference"),
        Cell("MM-Diff, 5 references", references=5),
        Cell("fine-tuned, 1 reference", drawn_by=FINE_TUNED),
        Cell("fine-tuned, 5 references", references=5, drawn_by=FINE_TUNED),
        Cell(BASE, drawn_by=BASE),
    ),
    tuple((f"MM-Diff, {n}", f"fine-tuned, {n}") for n in ("1 reference", "5 references")),
    by_subject=True,
)


def _walks() -> tuple[Cell, ...]:
    cells = []
    for frames in (OWN_NOISE, NOISE_WALK, PROMPT_WALK):
        ours = Cell(frames, frames=frames)
        cells += [ours, replace(ours, name=f"{frames}, {BASE}", drawn_by=BASE)]
    for host in (WHOLE, WINDOWS):
        cells.append(Cell(f"{NOISE_WALK}, {host}", frames=NOISE_WALK, host=host))
    return tuple(cells)


TEMPORAL = Experiment(
    "temporal",
    f"One subject over {FRAMES} frames",
    _walks(),
    (
        *((frames, f"{frames}, {BASE}") for frames in (OWN_NOISE, NOISE_WALK, PROMPT_WALK)),
        (f"{NOISE_WALK}, {WINDOWS}", f"{NOISE_WALK}, {WHOLE}"),
    ),
)
EXPERIMENTS: Mapping[str, Experiment] = {
    each.name: each
    for each in (REFERENCES, CONDITIONS, SUBJECTS, LOOK_ALIKES, CONSTRAINTS, TEMPORAL, TUNING)
}
COSTS = (
    Column("seconds", "CPU seconds an image", "cost", "lower"),
    Column("memory", "peak memory, GiB", "cost", "lower"),
)
FRAME_COLUMNS = (
    Column("next", "frame to frame, mean", "frames"),
    Column("worst", "frame to frame, worst of a batch", "frames"),
)


# ---------------------------------------------------------------- what the tables cannot say


def differences(experiment: Experiment, rows: Sequence[Row], column: Column) -> tuple[str, ...]:
    """Sentences: by how much the compared rows differ in a column, in pairs of the same unit."""
    by_name, told = {row.name: row for row in rows}, []
    for name, other in experiment.compared:
        if name in by_name and other in by_name:
            found = paired(by_name[name], by_name[other], column.name)
            if found is not None:
                told.append(f"{name} less {other}: {_signed(found)}")
    if not told:
        return ()
    return (f"{column.label}, differences in pairs with 95 % intervals: {'; '.join(told)}.",)


def paired(row: Row, other: Row, column: str) -> Interval | None:
    """Mean over the units that both rows have of the difference of their means."""
    own, theirs = _means(row, column), _means(other, column)
    shared = [unit for unit in own if unit in theirs]
    return bootstrap([own[unit] - theirs[unit] for unit in shared], SEED)


def _means(row: Row, column: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for image in row.images:
        value = image.values.get(column)
        if value is not None:
            found.setdefault(image.unit, []).append(value)
    return {unit: sum(values) / len(values) for unit, values in found.items()}


def _signed(found: Interval) -> str:
    if found.low is None:
        return f"{found.mean:+.3f}"
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
