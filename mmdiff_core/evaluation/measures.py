"""What is measured of one image of a protocol: the scores of `scores` by name, and what they need.

A value is None where it is not defined for an image: it is left out of the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from . import scores
from .extractors import (
    ARCFACE,
    CLIP_B32,
    CLIP_L14,
    DINO_S8,
    DINO_S16,
    DINOV2_S,
    EXTRACTORS,
    FACENET,
)
from .matching import hungarian
from .sets import Case, TestSet
from .store import Job, Store


@dataclass(frozen=True)
class Shown:
    """One generated image, and the case it was drawn for."""

    path: Path
    case: Case
    number: int  # of the image among those of the case


Compute = Callable[[Store, TestSet, Shown], float | None]


@dataclass(frozen=True)
class Measure:
    """A column of the tables.

    label      for people, with its unit or range
    extractor  the model it needs
    kind       "likeness", "prompt" or "people"; the first of each is what the scatter shows
    factor     what a cosine is multiplied by
    cut        whether a negative cosine counts as 0
    better     "higher" or "lower"
    """

    name: str
    label: str
    extractor: str
    kind: str
    compute: Compute
    factor: float = 1.0
    better: str = "higher"
    cut: bool = False


# ---------------------------------------------------------------- whole images


def _references(given: bool, test_set: TestSet, case: Case) -> Iterator[tuple[Path, ...]]:
    for name, path in zip(case.subjects, case.given, strict=True):
        yield (path,) if given else test_set.subjects[name].references


def _whole(
    extractor: str, given: bool, factor: float, store: Store, test_set: TestSet, shown: Shown
) -> float:
    """Mean over the subjects of the mean cosine with their references."""
    own = store.image(extractor, shown.path)[None]
    values = []
    for paths in _references(given, test_set, shown.case):
        real = np.stack([store.image(extractor, path) for path in paths])
        values.append(scores.all_pairs(own, real))
    return factor * float(np.mean(values))


def _prompt(extractor: str, factor: float, store: Store, _: TestSet, shown: Shown) -> float:
    text = store.text(extractor, shown.case.prompt)[None]
    return factor * scores.paired(text, store.image(extractor, shown.path)[None])


def _lost(tau: float, store: Store, test_set: TestSet, shown: Shown) -> float:
    """Share of the references whose cosine with the whole image is below tau."""
    own, best = store.image(DINOV2_S.name, shown.path)[None], []
    for paths in _references(False, test_set, shown.case):
        real = np.stack([store.image(DINOV2_S.name, path) for path in paths])
        best.append(float(scores.cosines(own, real).max()))
    return scores.collapse_rate(best, tau)


# ---------------------------------------------------------------- faces


def people_of(test_set: TestSet, case: Case) -> list[tuple[str, Path]]:
    """The case's subjects that are people, each with its given reference."""
    pairs = zip(case.subjects, case.given, strict=True)
    return [(name, path) for name, path in pairs if test_set.subjects[name].person]


def face_table(
    store: Store, test_set: TestSet, shown: Shown, extractor: str = ARCFACE.name
) -> np.ndarray | None:
    """Cosines [R F] of each given reference's first face with the image's faces; None where the
    prompt asks for no people. ValueError for a reference without a face."""
    people = people_of(test_set, shown.case)
    if not people:
        return None
    found = store.faces(extractor, shown.path)
    wanted = np.stack([_first_face(store, path, extractor) for _, path in people])
    return scores.cosines(wanted, found) if len(found) else np.zeros((len(wanted), 0))


def _first_face(store: Store, path: Path, extractor: str = ARCFACE.name) -> np.ndarray:
    faces = store.faces(extractor, path)
    if not len(faces):
        raise ValueError(f"no face was found in the reference {path}; this protocol needs one")
    return faces[0]


def _identity(extractor: str, store: Store, test_set: TestSet, shown: Shown) -> float | None:
    """One person: the largest face; several: the greedy minimum of FastComposer's code."""
    people = people_of(test_set, shown.case)
    if len(people) != 1:
        table = face_table(store, test_set, shown, extractor)
        return None if table is None else max(scores.greedy_min(table), 0.0)
    faces = store.faces(extractor, shown.path)
    return scores.fastcomposer_identity(faces, _first_face(store, people[0][1], extractor))


def _of_faces(
    compute: Callable[[np.ndarray], float | None], store: Store, test_set: TestSet, shown: Shown
) -> float | None:
    table = face_table(store, test_set, shown)
    return None if table is None else compute(table)


def _id_sim(table: np.ndarray) -> float:
    return 100 * float(np.mean(scores.best_faces(table)))


def _id_conf(table: np.ndarray) -> float | None:
    found = scores.identity_confidence(table)
    return None if found is None else 100 * float(np.mean(found))


def _count(table: np.ndarray) -> float:
    return float(table.shape[0] == table.shape[1])


def _drawn_twice(table: np.ndarray) -> float:
    return scores.duplicates(table) / len(table)


def _copy_paste(store: Store, test_set: TestSet, shown: Shown) -> float | None:
    """Of images with as many faces as asked, whose people have other photos: the mean over the
    people and those photos."""
    table = face_table(store, test_set, shown)
    if table is None or table.shape[0] != table.shape[1]:
        return None
    faces, values = store.faces(ARCFACE.name, shown.path), []
    people = people_of(test_set, shown.case)
    for (name, given), column in zip(people, hungarian(table), strict=True):
        first = _first_face(store, given)
        for truth in test_set.subjects[name].references:
            real = store.faces(ARCFACE.name, truth)
            if truth != given and len(real):
                values.append(scores.copy_paste(faces[column], real[0], first))
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _measure_of_faces(
    name: str, label: str, compute: Callable, better: str = "higher", factor: float = 1.0
) -> Measure:
    made = partial(_of_faces, compute)
    return Measure(name, label, ARCFACE.name, "people", made, factor, better)


def _who(name: str, label: str, extractor: str) -> Measure:
    return Measure(name, label, extractor, "likeness", partial(_identity, extractor), cut=True)


def _likeness(name: str, label: str, model, given: bool, factor: float = 1.0) -> Measure:
    compute = partial(_whole, model.name, given, factor)
    return Measure(name, label, model.name, "likeness", compute, factor)


def _fidelity(name: str, label: str, model, factor: float = 1.0) -> Measure:
    compute = partial(_prompt, model.name, factor)
    return Measure(name, label, model.name, "prompt", compute, factor)


ALL = (
    _likeness("clip-i", "CLIP-I", CLIP_B32, False),
    _likeness("dino", "DINO", DINO_S16, False),
    _fidelity("clip-t", "CLIP-T", CLIP_B32),
    _likeness("clip-i-pairs", "CLIP-I x100", CLIP_B32, True, 100),
    _likeness("dino-pairs", "DINO x100", DINO_S16, True, 100),
    _likeness("clip-i-plus", "CLIP-I x100, one reference", CLIP_B32, True, 100),
    _likeness("dino-plus", "DINO (ViT-S/8) x100", DINO_S8, True, 100),
    _likeness("dinov2-plus", "DINOv2 x100", DINOV2_S, True, 100),
    _fidelity("clip-t-plus", "CLIP-T x100", CLIP_B32, 100),
    _fidelity("clip-t-l14", "CLIP-T (ViT-L/14)", CLIP_L14),
    _who("identity", "identity (ArcFace)", ARCFACE.name),
    _who("identity-facenet", "identity (FaceNet)", FACENET.name),
    Measure(
        "id-sim",
        "ID-Sim x100 (ArcFace)",
        ARCFACE.name,
        "likeness",
        partial(_of_faces, _id_sim),
        100,
    ),
    _measure_of_faces("multi-id", "Multi-ID", scores.multi_id),
    _measure_of_faces("greedy-min", "worst person, greedy", scores.greedy_min),
    _measure_of_faces("hungarian-min", "worst person, Hungarian", scores.hungarian_min),
    _measure_of_faces("id-conf", "ID-Conf x100", _id_conf, factor=100),
    _measure_of_faces("count", "as many faces as asked", _count),
    _measure_of_faces("duplicates", "drawn twice", _drawn_twice, "lower"),
    Measure("copy-paste", "copy-paste", ARCFACE.name, "people", _copy_paste, better="lower"),
    *(
        Measure(
            f"scr-{tau}",
            f"lost, DINOv2 below {tau}",
            DINOV2_S.name,
            "people",
            partial(_lost, tau),
            better="lower",
        )
        for tau in scores.COLLAPSE
    ),
)
MEASURES = {measure.name: measure for measure in ALL}


def jobs_of(measures: tuple[Measure, ...], test_set: TestSet, images: list[Shown]) -> list[Job]:
    """All embeddings that these measures need of these images, of their prompts and references."""
    kinds = {}
    for measure in measures:
        face = EXTRACTORS[measure.extractor].kind == "face"
        kinds[measure.extractor] = "faces" if face else "image"
    texts = {measure.extractor for measure in measures if measure.kind == "prompt"}
    references = [path for each in test_set.subjects.values() for path in each.references]
    given = [path for case in test_set.cases for path in case.given]
    jobs = []
    for extractor, kind in kinds.items():
        files = [*references, *given, *(shown.path for shown in images)]
        jobs += [Job(extractor, kind, path) for path in files]
        if extractor in texts:
            jobs += [Job(extractor, "text", shown.case.prompt) for shown in images]
    return jobs
