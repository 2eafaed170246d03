"""Likeness of people by the faces that are found, and of things by what stands in their regions."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mmdiff_core.host.likeness import measure
from mmdiff_core.host.models import load_mmdiff
from mmdiff_core.method.subjects import PromptSubject, Region, Subject
from mmdiff_core.references import faces
from mmdiff_core.regions.attention_maps import AttentionMaps

from support.cases import CHECKPOINT
from support.faces import THREE, picture
from support.onnx_stand_ins import write_model_pack

HEIGHT, WIDTH = 600, 900


@pytest.fixture(scope="module")
def analyser(tmp_path_factory):
    root = tmp_path_factory.mktemp("faces")
    write_model_pack(root, "discs", detector="coloured_discs")
    return faces.load_analyser(root, "discs", "cpu")


@pytest.fixture(scope="module")
def portrait():
    return load_mmdiff(CHECKPOINT)


def image_of(*discs: tuple[int, int, int]) -> torch.Tensor:
    return torch.from_numpy(picture(*discs)).float() / 255


class Detector:
    """A face analyser that finds prepared faces."""

    providers = ("CPUExecutionProvider",)

    def __init__(self, *images: list[tuple[float, torch.Tensor]]):
        self.images = iter(images)

    def detect(self, image, label):
        found = []
        for left, embedding in next(self.images):
            box = (left, 100.0, left + 100, 220.0)
            found.append(SimpleNamespace(box=box, embedding=embedding.numpy()))
        return tuple(found)


def direction(*parts: float) -> torch.Tensor:
    vector = torch.zeros(512)
    vector[: len(parts)] = torch.tensor(parts)
    return vector / vector.norm()


ALAN, BEN, OTHER = direction(1), direction(0, 1), direction(0, 0, 1)


def person(mmdiff, name: str, identity, **region) -> PromptSubject:
    subject = Subject(name, torch.zeros(4, 8), {}, 1, mmdiff.adapter.fingerprint, identity=identity)
    return PromptSubject(subject, region=Region(**region))


def people(mmdiff) -> tuple[PromptSubject, ...]:
    return person(mmdiff, "Alan", ALAN), person(mmdiff, "Ben", BEN)


def told(mmdiff, *images, subjects=None, **more) -> list[tuple[str, ...]]:
    blank = torch.zeros(len(images), HEIGHT, WIDTH, 3)
    found = measure(mmdiff, blank, subjects or people(mmdiff), faces=Detector(*images), **more)
    return [image.verdicts for image in found.scores.images]


def test_every_image_of_a_batch_is_told_apart(portrait):
    assert told(
        portrait,
        [(100, ALAN), (500, BEN)],
        [],
        [(100, ALAN), (300, ALAN)],
        [(100, ALAN), (300, OTHER)],
        [(100, ALAN), (300, BEN), (500, OTHER)],
    ) == [
        (),
        ("Alan is missing", "Ben is missing"),
        ("Ben is missing", "Alan is drawn twice"),
        ("Ben is missing",),
        ("an extra person",),
    ]


def test_scores_are_cosines_of_the_matched_faces_and_never_below_zero(portrait):
    near, away = direction(0.6, 0, 0.8), direction(0, -1, 0, 1)
    detector = Detector([(100, near), (500, away)])
    found = measure(portrait, torch.zeros(1, HEIGHT, WIDTH, 3), people(portrait), faces=detector)
    assert found.scores.images[0].scores == pytest.approx((0.6, 0.0), abs=1e-6)


def test_a_face_as_alike_as_least_asks_for_is_not_missing(portrait):
    faint = direction(0.2, 0, 0.98)
    assert told(portrait, [(100, faint), (500, BEN)]) == [("Alan is missing",)]
    assert told(portrait, [(100, faint), (500, BEN)], least=0.15) == [()]


def halves() -> dict[str, torch.Tensor]:
    left = torch.zeros(HEIGHT, WIDTH)
    left[:, : WIDTH // 2] = 1
    return {"Alan": left, "Ben": 1 - left}


def test_people_in_one_anothers_masks_are_swapped(portrait):
    masks = halves()
    held = tuple(
        person(portrait, name, who, mask=masks[name])
        for name, who in (("Alan", ALAN), ("Ben", BEN))
    )
    swapped = [(100, BEN), (600, ALAN)]
    assert told(portrait, swapped, subjects=held) == [("Alan and Ben are swapped",)]
    assert told(portrait, [(100, ALAN), (600, BEN)], subjects=held) == [()]
    assert told(portrait, swapped) == [()]


def recorder(*names: str, images: int = 1) -> SimpleNamespace:
    """Maps in which the first subject is read on the left and the second on the right."""
    maps = torch.full((1, images, 2, 8, 12), 0.01)
    maps[:, :, 0, 2:6, 1:5] = 0.5
    maps[:, :, 1, 2:6, 7:11] = 0.5
    return SimpleNamespace(maps=[AttentionMaps(names, maps, maps.clone())])


def test_people_in_one_anothers_read_regions_are_swapped_whatever_their_order_in_the_prompt(
    portrait,
):
    swapped = [(150, BEN), (600, ALAN)]
    assert told(portrait, swapped, maps=recorder("alan", "ben")) == [("Alan and Ben are swapped",)]
    assert told(portrait, swapped, maps=recorder("ben", "alan")) == [()]


def test_maps_without_a_subject_or_of_another_run_are_refused(portrait):
    with pytest.raises(ValueError, match="'Ben' is not in the maps, which have 'Alan', 'Eve'"):
        told(portrait, [], maps=recorder("Alan", "Eve"))
    with pytest.raises(ValueError, match="generated 3 images, but 1 were given"):
        told(portrait, [], maps=recorder("Alan", "Ben", images=3))
    with pytest.raises(ValueError, match="no attention was recorded"):
        told(portrait, [], maps=SimpleNamespace(maps=[]))


def test_real_detection_finds_the_discs_and_names_them_by_their_identity(portrait, analyser):
    found = analyser.detect(picture(*THREE))
    who = [torch.from_numpy(face.embedding) for face in found[:2]]
    subjects = (person(portrait, "Alan", who[1]), person(portrait, "Ben", who[0]))
    images = torch.stack([image_of(*THREE), torch.full((HEIGHT, WIDTH, 3), 0.5)])
    measured = measure(portrait, images, subjects, faces=analyser)
    shown, empty = measured.scores.images
    assert shown.scores == pytest.approx((1, 1), abs=1e-4)
    assert shown.boxes[0] == found[1].box and shown.boxes[1] == found[0].box
    assert empty.verdicts == ("Alan is missing", "Ben is missing")
    assert "ArcFace" in measured.table and "CPUExecutionProvider" in measured.table
    assert len(measured.marked) == 2


def test_a_subject_without_an_identity_is_compared_with_its_reference_or_refused(
    portrait, analyser
):
    nobody = (person(portrait, "Alan", None),)
    image = image_of(THREE[1])[None]
    with pytest.raises(ValueError, match="'Alan': its identity is not known .* references"):
        measure(portrait, image, nobody, faces=analyser)
    shown = measure(portrait, image, nobody, faces=analyser, references=image).scores.images[0]
    assert shown.scores == pytest.approx((1,), abs=1e-4)


def test_a_portrait_adapter_without_faces_and_a_foreign_subject_are_refused(portrait):
    blank = torch.zeros(1, HEIGHT, WIDTH, 3)
    with pytest.raises(ValueError, match="faces is not connected: connect Load Face Analysis"):
        measure(portrait, blank, people(portrait))
    alan = people(portrait)[0]
    foreign = replace(alan, subject=replace(alan.subject, adapter="another"))
    with pytest.raises(ValueError, match="'Alan' was encoded with another MM-Diff adapter"):
        measure(portrait, blank, (foreign,), faces=Detector([]))
