"""Where the subject is on a reference.

By mask or box instead of our detector, and portraits before there is a detector at all.
"""

from __future__ import annotations

import pytest
import torch

from mmdiff_core.host.apply import apply
from mmdiff_core.host.encode import encode_subject
from mmdiff_core.host.portraits import find_faces
from mmdiff_core.host.prompt import encode_prompt
from mmdiff_core.method.subjects import PromptSubject
from mmdiff_core.references.pixels import cut_out, read_references

from support import make
from support.cases import CASE, CHECKPOINT
from support.faces import THREE, middles, picture
from support.scene import BOTH, Scene
from tiny_model import build

PICTURES = torch.zeros(2, 40, 60, 3)
BOX = {"x": 10, "y": 5, "width": 20, "height": 30}


def regions_of(images, mask, boxes):
    return read_references(images, mask, boxes).regions


# ---------------------------------------------------------------- masks and boxes


def test_a_cut_out_is_the_region_on_black_with_a_margin():
    image = torch.randint(1, 255, (3, 40, 60), dtype=torch.uint8)
    region = torch.zeros(40, 60)
    region[5:25, 10:30] = 1
    region[5, 10] = 0
    found = cut_out(image, region)
    assert found.shape == (3, 22, 22) and (found[:, 0] == 0).all() and (found[:, :, -1] == 0).all()
    assert torch.equal(found[:, 2:21, 2:21], image[:, 6:25, 11:30]) and (found[:, 1, 1] == 0).all()
    with pytest.raises(ValueError, match="the region is empty"):
        cut_out(image, torch.zeros(40, 60))


@pytest.mark.parametrize(
    "boxes",
    [BOX, [BOX], [[BOX]], [BOX, BOX], [[BOX, {"x": 0, "y": 0, "width": 1, "height": 1}], [BOX]]],
)
def test_boxes_come_as_nodes_send_them(boxes):
    found = regions_of(PICTURES, None, boxes)
    for mask in found:
        assert mask.sum() == 600 and mask[5:35, 10:30].all()
    assert len(found) == 2


def test_masks_come_in_any_size_one_or_one_for_each_picture():
    mask = torch.zeros(1, 20, 30)
    mask[:, :, 15:] = 1
    for given in (mask, mask[0], mask.repeat(2, 1, 1)):
        found = regions_of(PICTURES, given, None)
        assert len(found) == 2 and all(
            m.shape == (40, 60) and m[:, 30:].all() and not m[:, :30].any() for m in found
        )
    assert regions_of(PICTURES, None, None) == (None, None) == regions_of(PICTURES, None, [])


@pytest.mark.parametrize(
    "mask, boxes, message",
    [
        (torch.ones(3, 4, 4), None, "3 masks for 2 images"),
        (None, [BOX] * 3, "boxes for 3 images, but there are 2"),
        (torch.ones(1, 4, 4), BOX, "connect only one of them"),
        (None, [[BOX], []], "image 2 has no box"),
        (None, {**BOX, "x": 100}, "lies outside image 1 of 60 x 40"),
    ],
)
def test_regions_that_do_not_fit_are_told(mask, boxes, message):
    with pytest.raises(ValueError, match=message):
        regions_of(PICTURES, mask, boxes)


@pytest.fixture(scope="module")
def world():
    from mmdiff_core.host.models import load_mmdiff

    return load_mmdiff(CHECKPOINT), build.clip_vision(), build.clip()


def test_what_lies_outside_the_region_does_not_reach_the_subject(world):
    mmdiff, clip_vision, _ = world
    slot = CASE.slots()[0]
    image = CASE.images(slot)
    region = torch.zeros(image.shape[1:3])
    region[: image.shape[1] // 2] = 1
    other = image.clone()
    other[:, image.shape[1] // 2 :] = 0.3

    class Faces:
        """The recorded faces, and what region they were asked in."""

        seen: list = []

        def portrait(self, picture, which, label, region=None):
            self.seen.append(region)
            return CASE.faces(slot).portrait(picture, which, label)

    words = [
        encode_subject(mmdiff, clip_vision, x, Faces(), "ann", region=region).subject.words["l"]
        for x in (image, other)
    ]
    assert torch.equal(*words) and Faces.seen[0].shape == region.shape
    whole = encode_subject(mmdiff, clip_vision, image, CASE.faces(slot), "ann").subject.words["l"]
    assert not torch.allclose(words[0], whole, atol=1e-4)


def test_of_several_faces_the_one_in_the_region_is_taken(analyser):
    image = picture(*THREE)
    for number, (x, y) in enumerate(middles(analyser.detect(image)), 1):
        region = torch.zeros(image.shape[:2])
        region[int(y) - 10 : int(y) + 10, int(x) - 10 : int(x) + 10] = 1
        assert analyser.pick(image, 0, "", region.numpy()).box == analyser.pick(image, number).box
    with pytest.raises(ValueError, match="none of the faces in the image"):
        analyser.pick(image, 0, "ann", torch.zeros(image.shape[:2]).numpy())


def test_found_faces_are_drawn_numbered_and_given_as_boxes(analyser):
    image = torch.from_numpy(picture(*THREE).copy())[None].float() / 255
    drawn, boxes, said = find_faces(image, analyser)
    assert (
        drawn.shape == image.shape and not torch.equal(drawn, image) and said == "image 1: 3 faces"
    )
    edges = [box["x"] for box in boxes[0]]
    assert len(edges) == 3 and edges == sorted(edges)
    assert all(regions_of(image, None, [[box]])[0].any() for box in boxes[0])
    assert find_faces(torch.zeros(1, 64, 64, 3), analyser)[2] == "image 1: no face"


# ---------------------------------------------------------------- before insightface is installed


def test_a_portrait_without_faces_is_carried_by_its_noun_alone_and_says_what_is_lost(world):
    mmdiff, clip_vision, clip = world
    image = torch.rand(2, 50, 40, 3, generator=torch.Generator().manual_seed(0))
    encoded = encode_subject(mmdiff, clip_vision, image, None, "ann", clip_only=True)
    subject, seen, notes = encoded.subject, encoded.seen, encoded.notes
    assert subject.tokens.shape == (0, mmdiff.config.context_width) and len(seen) == 2
    assert (
        len(notes) == 1
        and "facial identity is not preserved" in notes[0]
        and "insightface" in notes[0]
    )
    fused = encode_prompt(clip, mmdiff, "a man<|subj|> reading", "", (PromptSubject(subject),))
    plain = encode_prompt(clip, mmdiff, "a man reading", "")
    assert not torch.allclose(fused.positive[0][0], plain.positive[0][0], atol=1e-3)
    with pytest.raises(ValueError, match="turn on clip_only"):
        encode_subject(mmdiff, clip_vision, image, None, "ann")


def test_subjects_without_tokens_sample_alone_and_beside_others():
    from dataclasses import replace

    scene = Scene("sd15")
    subject = replace(scene.subjects[0].subject, tokens=torch.zeros(0, make.CONTEXT))
    tokenless = replace(scene.subjects[0], subject=subject)
    model = apply(scene.model, scene.adapter, BOTH)
    steps = torch.tensor([4.0, 1.0, 0.0])
    alone = scene.sample(model, scene.bound((tokenless,)), sigmas=steps)
    assert torch.equal(alone, scene.sample(model, scene.bound(()), sigmas=steps))
    beside = scene.sample(
        model, scene.bound((tokenless.masked(torch.ones(8, 8)), scene.subjects[1])), sigmas=steps
    )
    assert torch.allclose(
        beside, scene.sample(model, scene.bound(scene.subjects[1:]), sigmas=steps), atol=1e-4
    )
