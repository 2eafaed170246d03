"""The card's failure modes are told before the picture shows them.

Blurred references, an unlike face, subjects that look alike.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mmdiff_core.config import GENERAL_SDXL, PORTRAIT_SDXL
from mmdiff_core.method.subjects import PromptSubject, Subject
from mmdiff_core.references.notes import (
    BLURRED,
    face_remarks,
    look_alike_notes,
    reference_notes,
    sharpness,
)
from mmdiff_core.references.pixels import object_pixels

from support.paths import PACK

PHOTOS = sorted((PACK / "web/photos").glob("*.jpg"))


def photo(path: Path) -> torch.Tensor:
    """[3 H W] uint8."""
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).movedim(-1, 0)


def seen(path: Path, width: int | None = None) -> torch.Tensor:
    """The photograph as the encoder sees it [1 3 224 224], made `width` px wide first."""
    picture = photo(path)
    if width is not None:
        height = round(picture.shape[1] * width / picture.shape[2])
        picture = (
            (
                F.interpolate(
                    picture[None].float(), size=(height, width), mode="bicubic", antialias=True
                )[0]
            )
            .clamp(0, 255)
            .byte()
        )
    return object_pixels(picture, 224)[None]


@pytest.mark.parametrize("path", PHOTOS, ids=lambda p: p.stem)
def test_a_photograph_is_sharp_and_the_same_made_tiny_is_noted(path):
    query = F.normalize(torch.randn(1, 512), dim=-1)
    assert sharpness(seen(path)[0]) > 3 * BLURRED and not reference_notes(
        "ann", seen(path), query, PORTRAIT_SDXL
    )
    (note,) = reference_notes("ann", seen(path, 48), query, PORTRAIT_SDXL)
    assert note.startswith("ann, image 1: blurred or too small")


def test_pixel_art_is_never_called_blurred():
    assert not reference_notes(
        "ghost", torch.full((2, 3, 32, 32), 0.5), torch.randn(2, 128), GENERAL_SDXL
    )


def test_the_face_that_is_unlike_the_others_is_named():
    torch.manual_seed(0)
    one, other = torch.randn(512), torch.randn(512)
    faces = torch.stack([one + 0.3 * torch.randn(512), other, one + 0.3 * torch.randn(512), one])
    pictures = torch.rand(4, 3, 224, 224)
    (note,) = reference_notes("ann", pictures, faces, PORTRAIT_SDXL)
    assert note.startswith("ann, image 2: the face differs from the others")
    # of two, who is to say
    assert not reference_notes("ann", pictures[:2], faces[:2], PORTRAIT_SDXL)
    assert not reference_notes("ann", pictures, faces, GENERAL_SDXL)


FRONTAL = torch.tensor([[30.0, 40], [70, 40], [50, 60], [35, 80], [65, 80]])


@pytest.mark.parametrize(
    "box, score, nose, told",
    [
        ((0, 0, 100, 120), 0.85, 50, None),
        ((0, 0, 40, 50), 0.85, 50, "only 40 px wide"),
        ((0, 0, 100, 120), 0.55, 50, "confidence of only 55%: covered"),
        ((0, 0, 100, 120), 0.85, 72, "turned far to the side"),
        ((0, 0, 100, 120), 0.85, 33, "turned far to the side"),
    ],
)
def test_a_tiny_covered_or_turned_face_is_told_with_its_picture(box, score, nose, told):
    landmarks = FRONTAL.clone()
    landmarks[2, 0] = nose
    found = face_remarks(2, box, score, landmarks)
    assert (
        not found
        if told is None
        else len(found) == 1 and found[0].startswith("image 2: ") and told in found[0]
    )


def test_the_encoder_tells_of_a_covered_face_also_under_another_name():
    from types import SimpleNamespace

    from mmdiff_core.host.encode import encode_subject
    from mmdiff_core.host.models import load_mmdiff

    from support.cases import CASE, CHECKPOINT
    from tiny_model import build

    (slot,) = CASE.slots()

    class Covered:
        def portrait(self, image, which, label):
            face = SimpleNamespace(
                box=(0, 0, 100, 120),
                score=0.5,
                landmarks=FRONTAL.numpy(),
                among=((0, 0, 100, 120),),
            )
            return *CASE.faces(slot).portrait(image, which, label), face

    mmdiff, vision, faces = load_mmdiff(CHECKPOINT), build.clip_vision(), Covered()
    for name in ("ann", "ben"):
        notes = encode_subject(mmdiff, vision, CASE.images(slot), faces, name).notes
        assert any(
            note.startswith(f"{name}, image 1: the face is detected with a confidence of only 50%")
            for note in notes
        )


def subject(name: str, identity: torch.Tensor | None) -> Subject:
    return Subject(
        name,
        torch.zeros(4, 8),
        {},
        1,
        "a",
        identity=None if identity is None else F.normalize(identity, dim=0),
    )


def test_subjects_that_look_alike_are_told_with_what_to_do():
    torch.manual_seed(0)
    ann, rex = torch.randn(512), torch.randn(512)
    twin = ann + 0.5 * torch.randn(512)
    (note,) = look_alike_notes(
        [subject("ann", ann), subject("rex", rex), subject("twin", twin)], PORTRAIT_SDXL
    )
    assert (
        note.startswith("ann and twin look alike (similarity 0.88, reported above 0.5)")
        and "Multi-Subject Constraint Masks" in note
    )
    assert not look_alike_notes([subject("ann", ann), subject("rex", rex)], PORTRAIT_SDXL)
    assert not look_alike_notes([subject("ann", None), subject("twin", None)], PORTRAIT_SDXL)


def test_the_prompt_says_which_subjects_look_alike():
    from mmdiff_core.host.prompt import EncodedPrompt

    ann, bob = (PromptSubject(subject(name, torch.ones(8))) for name in ("ann", "bob"))
    said = EncodedPrompt([], [], (("man", ann), ("man", bob)), ("they look alike",)).describe()
    assert said.splitlines()[-1] == "note: they look alike" and len(said.splitlines()) == 3
