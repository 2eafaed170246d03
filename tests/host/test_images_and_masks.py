"""Images, masks, boxes and latents of every wrong form on every socket that takes them, generated
from the schemas.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmdiff_core.host.encode import encode_subject
from mmdiff_core.host.vision import check_encoder
from mmdiff_core.references.pixels import checked_images, read_references
from mmdiff_core.regions.boxes import parse_boxes
from mmdiff_core.regions.masks import one_mask

from support import make
from support.cases import CHECKPOINT
from support.every_node import prompt_with, sockets
from support.in_process import Refused
from tiny_model import build

NAN = float("nan")


def spoiled(value: float, *shape: int) -> torch.Tensor:
    tensor = torch.full(shape, 0.5)
    tensor.view(-1)[3] = value
    return tensor


IMAGES = {
    "none": None,
    "text": "image.png",
    "an empty batch": torch.zeros(0, 64, 64, 3),
    "no width": torch.zeros(1, 64, 0, 3),
    "no height": torch.zeros(1, 0, 64, 3),
    "no channels": torch.zeros(1, 64, 64, 0),
    "one pixel": torch.rand(1, 1, 1, 3),
    "a line": torch.rand(1, 1, 300, 3),
    "one channel": torch.rand(1, 64, 64, 1),
    "two channels": torch.rand(1, 64, 64, 2),
    "four channels": torch.rand(1, 64, 64, 4),
    "five channels": torch.rand(1, 64, 64, 5),
    "a mask": torch.rand(1, 64, 64),
    "a video": torch.rand(1, 2, 64, 64, 3),
    "a vector": torch.rand(3),
    "all NaN": torch.full((1, 64, 64, 3), NAN),
    "one NaN": spoiled(NAN, 1, 64, 64, 3),
    "one infinite": spoiled(float("inf"), 1, 64, 64, 3),
    "bytes": torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8),
    "half": torch.rand(1, 64, 64, 3).half(),
    "out of range": torch.rand(1, 64, 64, 3) * 100 - 50,
    "strided": torch.rand(1, 64, 128, 3)[:, :, ::2],
    "a list": [torch.rand(64, 64, 3)],
}
MASKS = {
    "none": None,
    "text": "mask",
    "empty": torch.zeros(0, 64, 64),
    "no width": torch.zeros(1, 64, 0),
    "no height": torch.zeros(0, 64),
    "two": torch.ones(2, 64, 64),
    "flat": torch.ones(64, 64),
    "with a channel": torch.ones(1, 1, 64, 64),
    "black": torch.zeros(1, 64, 64),
    "nearly black": torch.full((1, 64, 64), 1e-4),
    "NaN": torch.full((1, 64, 64), NAN),
    "one infinite": spoiled(float("inf"), 1, 64, 64),
    "negative": torch.full((1, 64, 64), -1.0),
    "above one": torch.full((1, 64, 64), 7.0),
    "boolean": torch.ones(1, 64, 64, dtype=torch.bool),
    "whole numbers": torch.ones(1, 64, 64, dtype=torch.int64),
    "a vector": torch.ones(5),
    "an image": torch.ones(1, 64, 64, 3),
    "one pixel": torch.ones(1, 1, 1),
}
BOX = {"x": 1, "y": 1, "width": 30, "height": 30}
BOXES = {
    "none": None,
    "nothing": [],
    "nothing in it": [[]],
    "text": "box",
    "a number": 3,
    "numbers": [1, 2, 3, 4],
    "lists of numbers": [[1, 2, 3, 4]],
    "an empty box": {},
    "corners": {"x1": 0, "y1": 0, "x2": 4, "y2": 4},
    "NaN": {**BOX, "x": NAN},
    "infinite": {**BOX, "width": float("inf")},
    "huge": {**BOX, "width": 10**400},
    "text in it": {**BOX, "x": "1"},
    "true": {**BOX, "x": True},
    "nothing wide": {**BOX, "width": 0},
    "negative": {**BOX, "width": -5},
    "far away": {**BOX, "x": 10**6},
    "a tensor": torch.tensor([1.0, 2, 3, 4]),
    "tensors in it": {k: torch.tensor(float(v)) for k, v in BOX.items()},
    "deep": [[[BOX]]],
    "many": [[BOX] * 5000],
    "for many": [BOX] * 5000,
    "one": BOX,
    "a list": [BOX],
    "an image's list": [[BOX]],
    "a tuple": (BOX,),
}
LATENTS = {
    "none": None,
    "text": "latent",
    "empty": {},
    "nothing in it": {"samples": None},
    "no width": {"samples": torch.zeros(1, 4, 16, 0)},
    "a vector": {"samples": torch.zeros(4)},
    "a video": {"samples": torch.zeros(1, 4, 3, 16, 16)},
    "huge": {"samples": torch.zeros(1, 1, 1, 5000)},
    "one position": {"samples": torch.zeros(1, 4, 1, 1)},
}
KINDS = {"IMAGE": IMAGES, "MASK": MASKS, "BOUNDING_BOX": BOXES, "LATENT": LATENTS}
# what has to run: everything else may, or is told
USABLE = {
    "IMAGE": ("one channel", "four channels", "bytes", "half", "out of range", "strided"),
    "MASK": ("flat", "with a channel", "boolean", "whole numbers", "one pixel", "above one"),
    "BOUNDING_BOX": ("one", "a list", "an image's list", "a tuple"),
    "LATENT": ("a video", "one position"),
}
# masks 2 to 6 are read as the first
SOCKETS = [s for s in sockets(*KINDS) if not s[1].startswith("mask_") or s[1] == "mask_1"]
CASES = [(*s, what) for s in SOCKETS for what in KINDS[s[2]]]


@pytest.mark.parametrize("kind, name, type_, what", CASES, ids=lambda x: x.removeprefix("MMDiff"))
def test_an_image_mask_box_or_latent_runs_or_is_told_in_a_sentence(host, kind, name, type_, what):
    prompt = prompt_with(host, kind, **{name: ["given", 0]})
    try:
        host.run(prompt | {"given": host.give(KINDS[type_][what])})
    except Refused as refused:
        assert refused.own, f"{what}: {refused}"
        unsampled = "no attention was recorded" in str(refused)
        assert unsampled or what not in USABLE[type_], refused


@pytest.mark.parametrize("what", ["one channel", "four channels", "half", "bytes", "strided"])
def test_usable_images_are_read(what):
    assert checked_images(IMAGES[what]).shape == (1, 64, 64, 3)


@pytest.mark.parametrize("what, message", [
    ("an empty batch", "is an empty batch"), ("no width", "has a size of 0 x 64 pixels"),
    ("two channels", "has 2 channels, expected 1"), ("all NaN", "image 1 of 1 contains values"),
    ("a mask", "is a tensor of 3 axes, expected images"), ("none", "image is None"),
])  # fmt: skip
def test_unusable_images_are_told_with_what_was_found(what, message):
    with pytest.raises(ValueError, match=message):
        checked_images(IMAGES[what])


def test_a_grey_image_makes_the_same_subject_as_its_grey_in_three_channels():
    from mmdiff_core.host.models import load_mmdiff

    mmdiff, vision, grey = load_mmdiff(CHECKPOINT), build.clip_vision(), torch.rand(1, 40, 30, 1)
    one, three = (
        encode_subject(mmdiff, vision, image, None, "ann", clip_only=True).subject
        for image in (grey, grey.repeat(1, 1, 1, 3))
    )
    assert all(torch.equal(one.words[e], three.words[e]) for e in one.words)


@pytest.mark.parametrize("what, message", [
    ("NaN", "the box of image 1 has x nan, expected a number"),
    ("corners", "the box of image 1 is .*expected x, y, width and height in pixels"),
    ("text", "boxes is 'box', expected boxes of x, y"), ("far away", "lies outside image 1"),
])  # fmt: skip
def test_boxes_of_references_are_told_as_found_boxes_are(what, message):
    with pytest.raises(ValueError, match=message):
        read_references(torch.zeros(1, 40, 60, 3), None, BOXES[what])


def test_drawn_boxes_in_pixels_are_told_and_never_the_whole_image():
    for width, height in ((512, 512), (64, 8), (5, 5)):
        box = f'[{{"subject": 1, "x": 0, "y": 0, "width": {width}, "height": {height}}}]'
        with pytest.raises(ValueError, match="far larger than the image .*is it in pixels?"):
            parse_boxes(box)


def test_boxes_smaller_than_a_pixel_are_told(host):
    box = '[{"subject": 1, "x": 0.5, "y": 0.5, "width": 1e-7, "height": 1e-7}]'
    with pytest.raises(Refused, match=r"the boxes of subject 1 \(ann\) are smaller than a pixel"):
        host.run(prompt_with(host, "MMDiffConstraintMasks", boxes=box))


@pytest.mark.parametrize("text", [
    "[" * 50_000, "[" + "9" * 5000 + "]", '[{"subject": 1e400, "x": 0, "y": 0, "width": 1}]',
    '[{"subject": 1' + "0" * 400 + ', "x": 0, "y": 0, "width": 1, "height": 1}]',
    '[{"subject": 1, "x": 1' + "0" * 400 + ', "y": 0, "width": 1, "height": 1}]', '"\\ud800"',
    "null", "NaN", "[null]", '{"a": [1, {"b": 2}]}', "\x00", "[1" + ",1" * 40_000 + "]",
])  # fmt: skip
def test_no_text_of_boxes_ends_in_anything_but_a_sentence(text):
    with pytest.raises(ValueError) as error:
        parse_boxes(text)
    assert type(error.value) is ValueError and len(str(error.value)) < 400


@pytest.mark.parametrize("what, message", [
    ("NaN", "mask_1 contains values that are not finite"), ("empty", "mask_1 is empty"),
    ("two", "mask_1 is a batch of 2 masks"), ("text", "mask_1 is 'mask', expected a mask"),
])  # fmt: skip
def test_masks_are_told_with_what_was_found(what, message):
    with pytest.raises(ValueError, match=message):
        one_mask(MASKS[what], "mask_1")


def test_a_black_mask_is_refused_unless_boxes_give_its_subject_a_region(host):
    black = {"given": host.give(MASKS["black"])}
    prompt = prompt_with(host, "MMDiffConstraintMasks", mask_1=["given", 0])
    with pytest.raises(Refused, match=r"mask_1 is black everywhere.*subject 1 \(ann\)"):
        host.run(prompt | black)
    prompt["tried"]["inputs"]["boxes"] = (
        '[{"subject": 1, "x": 0, "y": 0, "width": 0.5, "height": 1}]'
    )
    host.run(prompt | black)


def test_an_image_encoder_for_another_image_size_is_told_in_a_sentence():
    narrow = make.narrow_config("sdxl")
    larger = replace(narrow, base=replace(narrow.base, image=replace(narrow.base.image, size=336)))
    with pytest.raises(ValueError, match="reads images of 224 x 224 pixels, .*336 x 336"):
        check_encoder(build.clip_vision(), larger)
    check_encoder(build.clip_vision(), narrow)


@pytest.mark.parametrize("text", ["0,5", "0,5; 0,7", "0,5 0,7", "1,0.5 0,3", ",0,5", "0,5\n1"])
@pytest.mark.parametrize("name", ["weights", "per_picture"])
def test_a_decimal_comma_is_refused_since_it_may_be_two_numbers(host, name, text):
    kind = "MMDiffMixSubjects" if name == "weights" else "MMDiffSubjectWeights"
    with pytest.raises(Refused, match="may be one number or two") as refused:
        host.run(prompt_with(host, kind, **{name: text}))
    assert refused.value.own


@pytest.mark.parametrize("text", ["1,1,1,1,0,0,0,0", "1, 0.5, 0", "0.5", "1;0.5;0", "1 0", "1,"])
def test_lists_of_numbers_stay_lists(host, text):
    host.run(prompt_with(host, "MMDiffSubjectWeights", per_picture=text))


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("behaviour", ["released", "corrected"])
def test_swapped_outputs_of_the_text_node_are_told(host, behaviour, cfg):
    prompt = prompt_with(host, "MMDiffAttentionMaps")
    prompt["said"]["inputs"]["behaviour"] = behaviour
    prompt["sampled"]["inputs"] |= {"positive": ["said", 1], "negative": ["said", 0], "cfg": cfg}
    with pytest.raises(Refused, match="positive and negative are swapped"):
        host.run(prompt)
