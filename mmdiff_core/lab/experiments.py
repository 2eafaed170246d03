"""The experiments of `evaluation.experiments` in the small world: questions, images, scores."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from ..evaluation.experiments import (
    COSTS,
    EACH,
    FRAME_COLUMNS,
    FRAMES,
    Cell,
    Experiment,
    differences,
)
from ..evaluation.extractors import file_hash
from ..evaluation.intervals import SEED as BOOTSTRAP_SEED
from ..evaluation.kept import read_costs
from ..evaluation.manifest import read_manifest
from ..evaluation.results import Bound, Column, ImageResult, Results, Row
from ..host import small_world
from ..small_world.trials import Question, Trial, make_trial, true_image
from . import frames
from .answers import SEED, draw_floor
from .drawers import Drawers, Drawn
from .finetune import trials_of
from .protocol import COLUMNS, Rulers, Say, load_image

LOOKED_AT = 32  # images of an experiment's floor and oracle
KINDS = {"any": "any", "different": "different", "same": "same", "alike": "same"}
PLACES = {"any": (), "plain": ("desert", "snow", "meadow"), "busy": ("city", "forest")}
SCORES = tuple(column for column in COLUMNS if column.name != "seen")
ONCE = Column("once", "CPU seconds a subject, once", "cost", "lower")


def question_of(cell: Cell) -> Question:
    """The small world's question behind a cell."""
    return Question(
        cell.name,
        cell.subjects,
        KINDS[cell.who],
        cell.who == "alike",
        cell.references,
        held=cell.held,
        shown=cell.shown,
        places=PLACES[cell.place],
    )


def columns_of(experiment: Experiment) -> tuple[Column, ...]:
    """Its scores, what it is about, and what it costs."""
    if experiment.of_frames:
        scores = tuple(column for column in SCORES if column.name in ("likeness", "exact"))
        return (*scores, *FRAME_COLUMNS, *COSTS)
    return (*SCORES, *COSTS, *((ONCE,) if experiment.by_subject else ()))


def asked_of(experiment: Experiment, cell: Cell, count: int, out: Path) -> tuple[Drawn, ...]:
    """A cell's images that are to be there: of `count` individuals or, where an experiment has
    several images of each, of so many fewer."""
    question, folder = question_of(cell), out / cell.folder
    if experiment.of_frames:
        trials = [make_trial(question, SEED, i) for i in range(count // FRAMES)]
        numbered = [(unit, n) for unit in range(len(trials)) for n in range(FRAMES)]
        return tuple(Drawn(trials[unit], folder, unit, n) for unit, n in numbered)
    if experiment.by_subject:
        made = []
        for subject in range(count // EACH):
            of_one = enumerate(_of_subject(question, subject))
            made += [Drawn(trial, folder, subject, n) for n, trial in of_one]
        return tuple(made)
    return tuple(Drawn(make_trial(question, SEED, i), folder, i, 0) for i in range(count))


def _of_subject(question: Question, subject: int) -> list[Trial]:
    """The scenes that fine-tuning is asked for, with the subject's references for the adapter."""
    (given,) = make_trial(question, SEED, subject).example.subjects
    made = []
    for trial in trials_of(subject, EACH, question.references):
        (span,) = trial.scene.spans()
        example = replace(trial.example, subjects=(replace(given, span=span),))
        made.append(replace(trial, example=example))
    return made


def run_experiment(
    experiment: Experiment, out: Path, count: int, adapter: Path | None, command: str, say: Say
) -> Results:
    """Draw and score `count` images of each cell; images that are there are not drawn again.

    adapter  of the small world; None = the one in the pack
    ValueError where `out` was drawn with other settings.
    """
    torch.set_num_threads(1)
    path = adapter or small_world.find(small_world.WEIGHTS, "adapter")[0]
    asked = {cell: asked_of(experiment, cell, count, out) for cell in experiment.cells}
    with closing(Drawers(path, experiment.cells, say)) as drawers:
        for cell, images in asked.items():
            drawers.draw(cell, images)
    rulers = Rulers.load(second=False)
    rows = []
    for cell, images in asked.items():
        rows.append(_row(experiment, cell, images, rulers))
        say(f"{experiment.name}, {cell.name}: {len(images)} images scored")
    base = [f for name in small_world.FILES for f in small_world.find(small_world.WEIGHTS, name)]
    columns = columns_of(experiment)
    return Results(
        f"experiment-{experiment.name}",
        f"{experiment.title} (small world)",
        columns,
        tuple(rows),
        _bounds(asked, rulers, columns),
        models={file.name: file_hash(file) for file in base},
        weights={path.name: file_hash(path)},
        command=command,
        seed=BOOTSTRAP_SEED,
        notes=_notes(experiment, rows),
    )


def _row(experiment: Experiment, cell: Cell, asked: Sequence[Drawn], rulers: Rulers) -> Row:
    costs = read_costs(asked[0].folder)
    between = _between(asked, rulers) if cell.frames else {}
    names, made = {column.name for column in columns_of(experiment)}, []
    for each in asked:
        values, failures = rulers.values(each.trial, load_image(each.file))
        values = {**values, **costs[each.place], **between.get(each.place, {})}
        kept = {name: value for name, value in values.items() if name in names}
        group, files = each.trial.wanted[0][0], tuple(map(str, each.references()))
        failures = tuple(f for f in failures if not (cell.frames and f == "another background"))
        caption = each.trial.scene.caption
        told = (group, str(each.unit), each.number, caption, files, kept, failures)
        made.append(ImageResult(str(each.file), *told))
    told = {"settings": read_manifest(asked[0].folder)["settings"]}
    return Row(cell.name, tuple(made), len(made), told)


def _between(asked: Sequence[Drawn], rulers: Rulers) -> dict[str, dict[str, float]]:
    """Place -> the likeness of a frame and the next, and, at the first, the worst of its batch."""
    by_unit: dict[int, list[Drawn]] = {}
    for each in asked:
        by_unit.setdefault(each.unit, []).append(each)
    found: dict[str, dict[str, float]] = {}
    for batch in by_unit.values():
        images = [load_image(each.file) for each in batch]
        steps = frames.likeness_between(batch[0].trial, images, rulers.embed)
        for each, value in zip(batch, steps, strict=False):
            found[each.place] = {"next": value}
        found[batch[0].place]["worst"] = min(steps)
    return found


def _bounds(asked: dict, rulers: Rulers, columns: Sequence[Column]) -> dict[str, Bound]:
    """Of perfect renderings of individuals that nobody asked for, and of those asked for; some
    trials of each cell, other ones than of the cell before."""
    each = max(LOOKED_AT // len(asked), 1)
    rows: list[list[ImageResult]] = [[], []]
    for number, images in enumerate(asked.values()):
        distinct = list({drawn.trial: drawn for drawn in images}.values())  # frames share theirs
        for step in range(each):
            drawn = distinct[(number * each + step) % len(distinct)]
            rendered = (draw_floor([drawn.trial])[0], true_image(drawn.trial.scene))
            for row, image in zip(rows, rendered, strict=True):
                values, _ = rulers.values(drawn.trial, image)
                unit = repr(drawn.trial.wanted)  # the same individuals may come in several cells
                row.append(ImageResult("", "", unit, drawn.number, "", (), values))
    floor, oracle = (Row("", tuple(made), len(made)) for made in rows)
    scores = {column.name for column in SCORES}
    known = [column.name for column in columns if column.name in scores]
    return {name: Bound(floor.summary(name), oracle.summary(name)) for name in known}


def _notes(experiment: Experiment, rows: Sequence[Row]) -> tuple[str, ...]:
    units = len({image.unit for image in rows[0].images})
    return (
        f"{len(rows[0].images)} images in each row, of {units} individuals or sets of them that no "
        "training image shows; all rows start from the same noise.",
        "Likeness is the cosine of the encoder that the adapter reads too, with the clean "
        "reference whatever reference was given; right is said by the exact ruler "
        "(mmdiff_core/small_world/README.md).",
        "Floor and oracle: perfect renderings of individuals nobody asked for, and of those asked "
        "for.",
        *_about_frames(experiment),
        *differences(experiment, rows, _compared(experiment)),
        "Seconds and memory: one process and one thread, the models of all rows in it; memory is "
        "the process's resident set.",
        "Intervals are 95 %, by bootstrap over the individuals of each row (10,000 resamples, "
        f"seed {BOOTSTRAP_SEED}).",
    )


def _compared(experiment: Experiment) -> Column:
    """What its rows are compared by: frame to frame, or the subjects that are right."""
    if experiment.of_frames:
        return FRAME_COLUMNS[0]
    return next(column for column in SCORES if column.name == "exact")


def _about_frames(experiment: Experiment) -> tuple[str, ...]:
    if not experiment.of_frames:
        return ()
    return (
        f"{FRAMES} frames a batch. Own noise: unrelated noise in every frame. Noise walk: a "
        "quarter of a great circle from one noise to another. Prompt walk: one noise, and the text "
        "mixed from one place to another. ComfyUI: the nodes' way, whose references are resized; "
        f"windows: the same in the host's context windows of {frames.WINDOW} frames, "
        f"{frames.OVERLAP} of them shared. Drawn with euler, which adds no noise between the "
        "steps.",
        "Frame to frame: cosine, by the same encoder, of what stands in the class's silhouette in "
        "a frame and in the next.",
    )
