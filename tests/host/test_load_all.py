"""One node loads what four nodes load, and the encoder then needs only its adapter."""

from __future__ import annotations

import pytest
import torch

from support.every_node import around
from support.graphs import node
from support.in_process import STAND_IN, Refused

ALL = {"base_model": STAND_IN, "checkpoint": "tiny-portrait", "clip_vision": STAND_IN}


def loader(faces: str = "discs", **changed) -> dict:
    return node("MMDiffLoadModels", **(ALL | {"faces": faces} | changed))


def encoder(mmdiff: list, image: list, **links) -> dict:
    values = {"name": "ann", "weight": 1.0, "face": 0, "clip_only": False}
    return node("MMDiffSubjectEncoder", mmdiff=mmdiff, image=image, **(values | links))


def end(source: list) -> dict:
    return {"end": node("Sink", value=source)}


def subject_of(host, prompt: dict):
    from support.in_process import Sink

    host.run(prompt | end(["tried", 0]))
    ((subject,),) = Sink.taken
    return subject.subject


@pytest.fixture(scope="module")
def small_world(host) -> dict:
    return {name: around(host)[name] for name in ("world", "sprite")}


def test_the_small_worlds_adapter_brings_its_image_encoder(host, small_world):
    alone = subject_of(host, small_world | {"tried": encoder(["world", 4], ["sprite", 0])})
    linked = encoder(["world", 4], ["sprite", 0], clip_vision=["world", 3])
    both = subject_of(host, small_world | {"tried": linked})
    assert torch.equal(alone.tokens, both.tokens)


def test_a_linked_image_encoder_is_used_before_the_loaders_own(host, small_world):
    other = {"tried": encoder(["world", 4], ["sprite", 0], clip_vision=["given", 0])}
    with pytest.raises(Refused, match="'str' object has no attribute 'model'"):
        host.run(small_world | other | {"given": host.give("no_encoder")} | end(["tried", 0]))


def test_the_loader_gives_what_the_four_loaders_give_and_its_faces_come_with_the_adapter(host):
    from support.in_process import Sink

    for out in range(6):
        host.run({"all": loader(), **end(["all", out])})
        (given,) = Sink.taken
        assert given is not None
        if out == 3:
            assert given.adapter.config.variant.name == "portrait"
            assert given.readers.clip_vision is not None and given.readers.faces is not None


def test_without_an_image_encoder_the_person_is_told_what_to_connect(host, small_world):
    adapter = node("MMDiffLoad", checkpoint="tiny-portrait")
    prompt = small_world | {"adapter": adapter, "tried": encoder(["adapter", 0], ["sprite", 0])}
    with pytest.raises(Refused, match="clip_vision is not connected; connect Load CLIP") as told:
        host.run(prompt | end(["tried", 0]))
    assert told.value.own


def test_without_face_models_none_is_loaded(host):
    from support.in_process import Sink

    host.run({"all": loader("(none)"), **end(["all", 3])})
    assert Sink.taken[0].readers.faces is None


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"base_model": "sd.safetensors"}, "base model 'sd.safetensors' not found. Searched: .*"),
        ({"clip_vision": "v.safetensors"}, "CLIP Vision model 'v.safetensors' not found. Sear.*"),
        ({"checkpoint": "x"}, "MM-Diff checkpoint 'x' not found. Searched: .*found there: .*"),
        ({"faces": "buffalo_l"}, "The face models buffalo_l were not found: the folder .*"),
        ({"faces": "no_such"}, "faces is 'no_such', expected one of: 'discs'"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_file_that_is_not_there_is_told_before_the_run(host, changed, said):
    with pytest.raises(Refused, match=said) as told:
        host.run({"all": loader(**changed), **end(["all", 0])})
    assert told.value.own and "Custom validation failed" in str(told.value)
