"""Every widget of every node as a link, generated from the schemas."""

from __future__ import annotations

import os
import random

import pytest
import torch

from support.every_node import prompt_with, right_values, schema_of, widgets
from support.graphs import node
from support.in_process import Refused

LONG = bool(os.environ.get("MMDIFF_LONG_FUZZ"))
WIDGETS = list(widgets())

# what no widget takes, but some node in front of it gives: never a crash
WRONG = {
    "nothing": None,
    "not a number": float("nan"),
    "infinite": float("inf"),
    "huge": 10**400,
    "far below": -(10**9),
    "true": True,
    "a half": 0.5,
    "empty text": "",
    "blank text": " \n\t",
    "a path": "/etc/hostname",
    "a path up": "../../secret",
    "a share": "\\\\server\\share\\x",
    "long text": "x" * 200_000,
    "a long name": "ä" * 300,
    "control characters": "\x1b[31m\x00",
    "a marker": "a<|b|>c",
    "half a marker": "a man<|ann",
    "brackets": "(" * 5000,
    "a surrogate": "\ud800",
    "a list": [1, 2],
    "an object": {"a": 1},
    "a tensor": torch.zeros(2, 2),
    "bytes": b"x",
}


def file_name(kind: str, name: str, number: int) -> dict:
    """A new name for each conversion, since none is ever overwritten."""
    if kind != "MMDiffConvert" or name == "file_name":
        return {}
    return {"file_name": f"converted-{number}.safetensors"}


def linked(host, kind: str, name: str, value: object, number: int = 0) -> dict:
    prompt = prompt_with(host, kind, **file_name(kind, name, number), **{name: ["given", 0]})
    return prompt | {"given": host.give(value)}


def test_every_node_with_widgets_is_among_them():
    assert len(WIDGETS) > 55 and len({kind for kind, _ in WIDGETS}) == 18


@pytest.mark.parametrize("kind, name", WIDGETS, ids=lambda x: x.removeprefix("MMDiff"))
def test_a_widget_runs_when_a_link_brings_its_value(host, kind, name):
    host.run(linked(host, kind, name, right_values(kind)[name], WIDGETS.index((kind, name))))


@pytest.mark.parametrize("kind, name", WIDGETS, ids=lambda x: x.removeprefix("MMDiff"))
def test_a_wrong_value_from_a_link_is_told_in_a_sentence(host, kind, name):
    choose = random.Random(f"{kind}.{name}")
    for what in WRONG if LONG else choose.sample(sorted(WRONG), 7):
        prompt = linked(host, kind, name, WRONG[what], 1000 + choose.randrange(10**9))
        try:
            host.run(prompt)
        except Refused as refused:
            assert refused.own, f"{what}: {refused}"
            assert len(str(refused).splitlines()[0]) < 1500, f"{what}: a message without bounds"


@pytest.mark.parametrize("kind, name", WIDGETS, ids=lambda x: x.removeprefix("MMDiff"))
def test_a_wrong_value_typed_in_is_told_before_the_run_or_in_a_sentence(host, kind, name):
    choose = random.Random(f"typed {kind}.{name}")
    typed = [what for what, value in WRONG.items() if isinstance(value, (str, float, int, dict))]
    for what in typed if LONG else choose.sample(sorted(typed), 5):
        values = file_name(kind, name, 2000 + choose.randrange(10**9)) | {name: WRONG[what]}
        try:
            host.run(prompt_with(host, kind, **values))
        except Refused as refused:
            assert refused.own, f"{what}: {refused}"


def is_combo(kind: str, name: str) -> bool:
    return any(item.id == name and hasattr(item, "options") for item in schema_of(kind).inputs)


COMBOS = [(kind, name) for kind, name in WIDGETS if is_combo(kind, name)]


@pytest.mark.parametrize("kind, name", COMBOS, ids=lambda x: x.removeprefix("MMDiff"))
@pytest.mark.parametrize("how", ["typed", "linked"])
def test_a_combo_takes_what_it_lists_and_nothing_else_and_touches_no_disk_for_it(
    host, kind, name, how, monkeypatch
):
    asked = []
    stat = os.stat
    monkeypatch.setattr(
        os, "stat", lambda path, *a, **k: asked.append(str(path)) or stat(path, *a, **k)
    )
    for value in ("evil", "/evil/path", "../evil", "\\\\evil\\share", "evil.safetensors", ""):
        prompt = (
            prompt_with(host, kind, **{name: value})
            if how == "typed"
            else linked(host, kind, name, value)
        )
        with pytest.raises(Refused) as refused:
            host.run(prompt)
        assert refused.value.own
    assert not [path for path in asked if "evil" in path]


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in WIDGETS}))
def test_an_input_that_is_left_out_is_told_by_its_name(host, kind):
    """By ComfyUI: what the node checks beside it must not hide that by an error of its own."""
    needed = [item.id for item in schema_of(kind).inputs if not item.optional]
    for name in needed:
        prompt = prompt_with(host, kind)
        del prompt["tried"]["inputs"][name]
        with pytest.raises(Refused, match=f"Required input is missing: {name}") as refused:
            host.run(prompt)
        assert refused.value.own


def test_an_input_that_a_node_does_not_have_is_told(host):
    prompt = prompt_with(host, "MMDiffApplyAttention", strenght=["given", 0])
    with pytest.raises(Refused, match="this node has no input 'strenght'") as refused:
        host.run(prompt | {"given": host.give(1.0)})
    assert refused.value.own


@pytest.mark.parametrize("value", [None, "text", (), ("a",), 3, torch.zeros(1)])
@pytest.mark.parametrize("name", ["mmdiff", "subjects"])
def test_what_is_forced_on_a_socket_is_told(host, name, value):
    prompt = prompt_with(host, "MMDiffTextEncode", **{name: ["given", 0]})
    try:
        host.run(prompt | {"given": host.give(value)})
    except Refused as refused:
        assert refused.own, refused


@pytest.mark.parametrize("kind", ["MMDiffFindFaces", "MMDiffAttentionMaps"])
def test_a_graph_may_end_in_a_node_that_shows_something(host, kind):
    shown = host.run(prompt_with(host, kind))
    assert shown["tried"]["images"]


def test_the_encoders_negative_prompt_from_a_primitive_runs(host):
    prompt = prompt_with(host, "MMDiffTextEncode", negative=["words", 0])
    prompt["words"] = node("Given", key=host.give("lowres")["inputs"]["key"])
    host.run(prompt)
