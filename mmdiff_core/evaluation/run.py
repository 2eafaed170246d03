"""A run of a protocol: the images of each folder, their embeddings, scores, bounds and failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np

from ..untrusted import quoted
from . import scores
from .extractors import ARCFACE, EXTRACTORS
from .intervals import SEED, bootstrap
from .manifest import read_manifest
from .matching import hungarian, matched_scores
from .measures import MEASURES, Measure, Shown, face_table
from .protocols import Protocol
from .results import Bound, Column, ImageResult, Results, Row
from .sets import IMAGES, Case, TestSet
from .store import Store

MOST_FLOOR = 20  # other subjects that a subject is compared with for the floor


@dataclass(frozen=True)
class Drawn:
    """A folder of images that some tool drew: `images/<subjects>/<prompt number>/<n>.png`.

    name  of its row in the tables
    """

    name: str
    folder: Path

    def file(self, case: Case, number: int) -> Path | None:
        """The image of that number; None where it is not there."""
        place = self.folder / "images" / case.group / str(case.number)
        for ending in IMAGES:
            if (path := place / f"{number}{ending}").is_file():
                return path
        return None

    def shown(self, test_set: TestSet, images: int) -> list[Shown]:
        """The images that are there. ValueError if there is none of the set's."""
        found = []
        for case in test_set.cases:
            for number in range(images):
                if path := self.file(case, number):
                    found.append(Shown(path, case, number))
        if not found:
            case = test_set.cases[0]
            raise ValueError(
                f"{self.folder} has none of the set's images; expected files such as "
                f"images/{case.group}/{case.number}/0.png"
            )
        return found


def score_row(
    drawn: Drawn, test_set: TestSet, protocol: Protocol, measures: Sequence[Measure], store: Store
) -> Row:
    """All values of a folder's images."""
    images = []
    for shown in drawn.shown(test_set, protocol.images):
        values = {m.name: m.compute(store, test_set, shown) for m in measures}
        group = shown.case.group
        references = tuple(map(str, shown.case.given))
        failures = failures_of(shown, test_set, measures, store)
        told = (shown.case.number, shown.case.prompt, references, values, failures)
        images.append(ImageResult(str(shown.path), group, group, *told))
    expected = len(test_set.cases) * protocol.images
    return Row(drawn.name, tuple(images), expected, read_manifest(drawn.folder))


def failures_of(
    shown: Shown, test_set: TestSet, measures: Sequence[Measure], store: Store
) -> tuple[str, ...]:
    """Kinds of failure, in words, as far as the measures' models see them."""
    models, found = {measure.extractor for measure in measures}, []
    table = face_table(store, test_set, shown) if ARCFACE.name in models else None
    if table is not None:
        found += _failures_of_faces(table)
    lost = next((m for m in measures if m.name == "scr-0.5"), None)
    if lost is not None and lost.compute(store, test_set, shown):
        found.append("a subject lost (DINOv2 below 0.5)")
    return tuple(found)


def _failures_of_faces(table: np.ndarray) -> list[str]:
    wanted, seen = table.shape
    found = []
    if seen < wanted:
        found.append("a person missing")
    if seen > wanted:
        found.append("an extra person")
    if scores.duplicates(table):
        found.append("a person drawn twice")
    likest = matched_scores(table, hungarian(table), missing=1.0)
    if any(value < scores.SAME_PERSON for value in likest):
        found.append(f"a face unlike its reference (below {scores.SAME_PERSON})")
    return found


# ---------------------------------------------------------------- floor and oracle


def bounds_of(measures: Sequence[Measure], test_set: TestSet, store: Store) -> dict[str, Bound]:
    """For every measure of likeness what real images of other subjects score (the floor), and real
    images of the same subject (the oracle)."""
    found = {}
    for measure in measures:
        if measure.kind == "likeness":
            real = _real(measure.extractor, test_set, store)
            found[measure.name] = _bound(real, measure.factor, measure.cut)
    return found


def _real(extractor: str, test_set: TestSet, store: Store) -> list[np.ndarray]:
    """Embeddings [m d] of every subject's real images; of faces the first of each image."""
    found = []
    for subject in test_set.subjects.values():
        if EXTRACTORS[extractor].kind != "face":
            rows = [store.image(extractor, path) for path in subject.references]
        elif subject.person:
            faces = [store.faces(extractor, path) for path in subject.references]
            rows = [each[0] for each in faces if len(each)]
        else:
            rows = []
        if rows:
            found.append(np.stack(rows))
    return found


def _bound(real: Sequence[np.ndarray], factor: float, cut: bool) -> Bound:
    """cut  whether negative cosines count as 0, as FastComposer has it."""
    floors, oracles = [], []
    for number, own in enumerate(real):
        others = [real[(number + step) % len(real)] for step in range(1, len(real))][:MOST_FLOOR]
        apart = [_mean_cosine(other, own, cut) for other in others]
        if apart:
            floors.append(factor * float(np.mean(apart)))
        pairs = [_mean_cosine(own[[a]], own[[b]], cut) for a, b in permutations(range(len(own)), 2)]
        if pairs:
            oracles.append(factor * float(np.mean(pairs)))
    return Bound(bootstrap(floors), bootstrap(oracles))


def _mean_cosine(a: np.ndarray, b: np.ndarray, cut: bool) -> float:
    table = scores.cosines(a, b)
    return float(np.clip(table, 0, None).mean() if cut else table.mean())


# ---------------------------------------------------------------- all of it


def evaluate(
    protocol: Protocol,
    test_set: TestSet,
    drawn: Sequence[Drawn],
    measures: Sequence[Measure],
    store: Store,
    weights: Mapping[str, str],
    command: str,
) -> Results:
    """Score every folder; the embeddings come from the store. ValueError for names that come
    twice, and for folders without images of the set."""
    names = [each.name for each in drawn]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two folders of images have the name {quoted(twice)}; rename one")
    rows = tuple(score_row(each, test_set, protocol, measures, store) for each in drawn)
    used = {measure.extractor for measure in measures}
    models = {EXTRACTORS[n].label: e.digest for n, e in store.extractors.items() if n in used}
    return Results(
        protocol.name,
        protocol.title,
        columns_of(protocol, measures),
        rows,
        bounds_of(measures, test_set, store),
        {peer.name: dict(peer.values) for peer in protocol.peers},
        models,
        weights,
        command,
        SEED,
        notes_of(protocol, test_set, rows),
    )


def columns_of(protocol: Protocol, measures: Sequence[Measure]) -> tuple[Column, ...]:
    """Ours first, then what only others published."""
    ours = [Column(m.name, m.label, m.kind, m.better) for m in measures]
    theirs = [
        Column(name, label.partition(":")[0], "likeness", whose="theirs")
        for name, label in protocol.theirs.items()
    ]
    known = {column.name for column in (*ours, *theirs)}
    published = {name for peer in protocol.peers for name in peer.values}
    left = []
    for name in sorted(published - known):
        measure = MEASURES[name]
        left.append(Column(name, measure.label, measure.kind, measure.better, "theirs"))
    return (*ours, *theirs, *left)


def notes_of(protocol: Protocol, test_set: TestSet, rows: Sequence[Row]) -> tuple[str, ...]:
    """What a reader must know of the tables."""
    notes = [
        f"Set: {len(test_set.subjects)} subjects, {len(test_set.cases)} prompts, "
        f"{protocol.images} images each. {protocol.published}".strip(),
        "Means are over subjects; intervals are 95 %, by bootstrap over subjects "
        f"(10,000 resamples, seed {SEED}).",
        "Floor: real images of other subjects. Oracle: other real images of the same subject.",
    ]
    for row in rows:
        if len(row.images) < row.expected:
            notes.append(
                f"{row.name}: {len(row.images)} of {row.expected} images were there; it is not the "
                "whole protocol and cannot be compared with published rows."
            )
    if protocol.peers:
        notes.append("Published rows are their authors' numbers, not measured here.")
        notes += [f"{reason}." for reason in protocol.theirs.values()]
    return tuple(notes)
