"""The experiments with real weights: drawn by a running ComfyUI, scored as the protocols are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from .comfy_api import ComfyServer, GraphFailed
from .drawing import Drawing, Template, keep_image, upload_once
from .experiment_graphs import graph_of, with_defaults
from .experiment_sets import Asked, asked_of, groups_of
from .experiments import (
    BASE,
    FRAME_COLUMNS,
    FRAMES,
    OVERLAP,
    WINDOW,
    Cell,
    Experiment,
    differences,
)
from .extractors import EXTRACTORS
from .intervals import SEED
from .kept import begin, read_costs, write_costs
from .manifest import read_manifest
from .measures import Measure, Shown, jobs_of
from .results import Column, ImageResult, Results, Row
from .run import bounds_of, failures_of
from .scores import cosines
from .sets import Subject, TestSet
from .store import Store, embed_all

COSTS = (
    Column("seconds", "seconds an image", "cost", "lower"),
    Column("memory", "memory in use, GiB", "cost", "lower"),
)
AT_ONCE = 3  # graphs in a row that fail before a run gives up
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run is made of.

    experiment  as `with_real_weights` leaves it
    subjects    in the set's order
    count       images of each row
    """

    experiment: Experiment
    subjects: Mapping[str, Subject]
    measures: tuple[Measure, ...]
    template: Template
    count: int
    seed: int
    out: Path

    @property
    def test_set(self) -> TestSet:
        """The subjects; each image brings its own prompt."""
        return TestSet(self.subjects, ())

    @property
    def lead(self) -> Measure:
        """The first measure of likeness: what tells subjects apart, and frames."""
        return next(m for m in self.measures if m.kind == "likeness")

    def asked(self, cell: Cell, store: Store) -> list[Asked]:
        """The graphs of a cell."""

        def embed(subject: Subject) -> np.ndarray:
            found = _embedding(store, self.lead.extractor, subject.references[0])
            if found is None:
                raise ValueError(f"no face was found in the reference {subject.references[0]}")
            return found

        groups = groups_of(cell, list(self.subjects.values()), embed)
        return asked_of(cell, groups, self.count, self.seed, self.out / "given")


def _embedding(store: Store, extractor: str, path: Path) -> np.ndarray | None:
    """Of a whole image, or of its largest face; None where it has none."""
    if EXTRACTORS[extractor].kind != "face":
        return store.image(extractor, path)
    faces = store.faces(extractor, path)
    return faces[0] if len(faces) else None


# ---------------------------------------------------------------- drawing


def draw_cell(
    server: ComfyServer, plan: Plan, cell: Cell, asked: Sequence[Asked], say: Say
) -> tuple[str, ...]:
    """Draw what is not there; sentences about graphs that failed. GraphFailed where several fail
    one after another, or all; ValueError where other settings drew what is there."""
    folder = plan.out / cell.folder
    begin(folder, _manifest(server, plan, cell))
    costs, uploaded, failed, row = dict(read_costs(folder)), {}, [], 0
    size, node = FRAMES if cell.frames else 1, cache(server.node)
    left = [each for each in asked if not _is_there(folder, each, size)]
    for number, each in enumerate(left, 1):
        names = []
        for own in each.files:
            names.append([upload_once(server, path, uploaded) for path in own])
        graph = with_defaults(graph_of(plan.template, cell, each, names), node)
        try:
            ran = server.run_all(graph, plan.template.save, watched=True)
        except GraphFailed as error:
            failed.append(f"{cell.name}, image {each.unit}: {error}")
            row += 1
            if row in (AT_ONCE, len(left)):
                raise
            continue
        row = 0
        for path, content in zip(_files(folder, each, size), ran.images, strict=True):
            keep_image(content, path)
        # the first graph also loads the models
        seconds = None if number == 1 or ran.seconds is None else ran.seconds / size
        costs[str(each.unit)] = {"seconds": seconds, "memory": ran.memory}
        write_costs(folder, costs)
        say(f"{cell.name}: {number} of {len(left)} graphs drawn")
    return tuple(failed)


def _is_there(folder: Path, asked: Asked, size: int) -> bool:
    return all(path.is_file() for path in _files(folder, asked, size))


def _files(folder: Path, asked: Asked, size: int) -> list[Path]:
    return [folder / "images" / str(asked.unit) / f"{n}.png" for n in range(size)]


def _manifest(server: ComfyServer, plan: Plan, cell: Cell):
    name = f"experiment {plan.experiment.name}"
    plain = cell.drawn_by == BASE
    made = Drawing(plan.template, 1, plan.seed, plain, name).manifest(server)
    told = {"references": cell.references, "shown": cell.shown, "who": cell.who}
    told |= {"held": " ".join(cell.held), "place": cell.place, "frames": cell.frames}
    return replace(made, settings={**made.settings, **told, "host": cell.host})


# ---------------------------------------------------------------- scores


def run_real(
    server: ComfyServer,
    plan: Plan,
    store: Store,
    weights: Mapping[str, str],
    command: str,
    say: Say,
) -> Results:
    """Draw and score all rows; images that are there are not drawn again."""
    asked = {cell: plan.asked(cell, store) for cell in plan.experiment.cells}
    notes: list[str] = []
    for cell, own in asked.items():
        notes += draw_cell(server, plan, cell, own, say)
    rows = []
    for cell, own in asked.items():
        rows.append(score_cell(plan, cell, own, store, say))
        if len(rows[-1].images) < rows[-1].expected:
            there = f"{len(rows[-1].images)} of {rows[-1].expected}"
            notes.append(f"{cell.name}: {there} images were drawn; the others' graphs failed.")
    used = {measure.extractor for measure in plan.measures}
    models = {EXTRACTORS[n].label: e.digest for n, e in store.extractors.items() if n in used}
    return Results(
        f"experiment-{plan.experiment.name}",
        plan.experiment.title,
        columns_of(plan),
        tuple(rows),
        bounds_of(plan.measures, plan.test_set, store),
        models=models,
        weights=weights,
        command=command,
        seed=SEED,
        notes=(*_notes(plan, rows), *notes),
    )


def columns_of(plan: Plan) -> tuple[Column, ...]:
    """Its scores, what it is about, and what it costs."""
    scores = tuple(Column(m.name, m.label, m.kind, m.better) for m in plan.measures)
    return (*scores, *(FRAME_COLUMNS if plan.experiment.of_frames else ()), *COSTS)


def score_cell(plan: Plan, cell: Cell, asked: Sequence[Asked], store: Store, say: Say) -> Row:
    """The values of the images of a cell that are there."""
    folder, size = plan.out / cell.folder, FRAMES if cell.frames else 1
    shown: dict[int, list[Shown]] = {}
    for each in asked:
        there = [p for p in _files(folder, each, size) if p.is_file()]
        shown[each.unit] = [Shown(path, each.case, n) for n, path in enumerate(there)]
    every = [one for own in shown.values() for one in own]
    embed_all(jobs_of(plan.measures, plan.test_set, every), store, 0, 1, say)
    costs, images = read_costs(folder), []
    for each in asked:
        between = _between(plan, shown[each.unit], store) if cell.frames else {}
        given = tuple(str(path) for own in each.files for path in own)
        for one in shown[each.unit]:
            values = {m.name: m.compute(store, plan.test_set, one) for m in plan.measures}
            values |= {**costs.get(str(each.unit), {}), **between.get(one.number, {})}
            failures = failures_of(one, plan.test_set, plan.measures, store)
            told = (one.case.group, one.case.group, one.number, one.case.prompt, given)
            images.append(ImageResult(str(one.path), *told, values, failures))
    return Row(cell.name, tuple(images), size * len(asked), read_manifest(folder))


def _between(plan: Plan, shown: Sequence[Shown], store: Store) -> dict[int, dict[str, float]]:
    """Number of a frame -> its cosine with the next; 0 where one of them shows no face. The first
    one also has the worst."""
    features = [_embedding(store, plan.lead.extractor, one.path) for one in shown]
    found: dict[int, dict[str, float]] = {}
    for number, (own, after) in enumerate(zip(features, features[1:], strict=False)):
        lost = own is None or after is None
        found[number] = {"next": 0.0 if lost else float(cosines(own[None], after[None])[0, 0])}
    if found:
        found[0]["worst"] = min(value["next"] for value in found.values())
    return found


def _notes(plan: Plan, rows: Sequence[Row]) -> tuple[str, ...]:
    experiment, lead = plan.experiment, plan.lead
    column = FRAME_COLUMNS[0] if experiment.of_frames else Column(lead.name, lead.label, lead.kind)
    frames = (
        f"{FRAMES} frames a batch, drawn with euler; windows of {WINDOW} frames, {OVERLAP} of them "
        f"shared. Frame to frame: {lead.label} of a frame and the next."
    )
    return (
        f"Set: {len(plan.subjects)} subjects; {plan.count} images in each row, seeds from "
        f"{plan.seed} on, the same in all rows. Images are compared with clean references, "
        "whatever reference was given.",
        *((frames,) if experiment.of_frames else ()),
        *differences(experiment, rows, column),
        "Seconds by ComfyUI's clock, without the first graph of a row and start, which loads the "
        "models; memory of its whole device, as often as it was asked.",
        "Means are over subjects; intervals are 95 %, by bootstrap over subjects "
        f"(10,000 resamples, seed {SEED}).",
        "Floor: real images of other subjects. Oracle: other real images of the same subject.",
    )
