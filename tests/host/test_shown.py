"""What a cached node had shown is found in the host's history, and nobody else's."""

from __future__ import annotations

import copy
import sys
from types import SimpleNamespace

import pytest

from mmdiff_core.host.shown import ROUTE, answer_of, last_shown, serve_last_shown, signature

KINDS = ("Encoder", "Text")
PHOTO = {"class_type": "LoadImage", "inputs": {"image": "ann.png"}}
PROMPT = {
    "1": PHOTO,
    "2": {"class_type": "Encoder", "inputs": {"image": ["1", 0], "face": 0}},
    "3": {"class_type": "Text", "inputs": {"subjects": ["2", 0], "text": "a man<|ann|>"}},
    "4": {"class_type": "PreviewImage", "inputs": {"images": ["2", 1]}},
}


def changed(node: str, name: str, value) -> dict:
    prompt = copy.deepcopy(PROMPT)
    prompt[node]["inputs"][name] = value
    return prompt


def renumbered(prompt: dict) -> dict:
    """The same graph, all of whose numbers are others."""
    new = {node: str(int(node) + 10) for node in prompt}
    moved = {}
    for node, entry in prompt.items():
        inputs = dict(entry["inputs"])
        for name, value in inputs.items():
            if isinstance(value, list):
                inputs[name] = [new[value[0]], value[1]]
        moved[new[node]] = {**entry, "inputs": inputs}
    return moved


def run(prompt: dict, **outputs) -> tuple[dict, dict]:
    return prompt, {name.strip("_"): {"text": [shown]} for name, shown in outputs.items()}


def test_the_last_run_of_the_same_computation_is_found_whatever_its_numbers():
    runs = [
        run(PROMPT, _4="preview"),
        run(renumbered(PROMPT), _12="face 2"),
        run(PROMPT, _2="older", _3="bound"),
    ]
    assert last_shown(PROMPT, {"2", "3"}, runs) == {
        "2": {"text": ["face 2"]},
        "3": {"text": ["bound"]},
    }


@pytest.mark.parametrize(
    "other",
    [
        changed("2", "face", 1),
        changed("1", "image", "ben.png"),
        changed("2", "image", ["1", 1]),
        changed("2", "faces", ["1", 0]),
        {**PROMPT, "1": {**PHOTO, "class_type": "LoadImageMask"}},
        {**PROMPT, "2": {**PROMPT["2"], "class_type": "Text"}},
    ],
)
def test_a_node_of_the_same_number_that_computed_something_else_is_passed_over(other):
    assert last_shown(PROMPT, {"2"}, [run(other, _2="another's")]) == {}


def test_two_equal_nodes_of_a_graph_both_show_what_one_of_them_computed():
    prompt = PROMPT | {"9": copy.deepcopy(PROMPT["2"])}
    found = last_shown(prompt, {"2", "9"}, [run(prompt, _9="face 2")])
    assert found == {"2": {"text": ["face 2"]}, "9": {"text": ["face 2"]}}


def test_a_graph_of_many_diamonds_is_read_in_a_moment_and_a_circle_is_no_computation():
    diamonds = {"0": PHOTO}
    for i in range(1, 200):
        both = {"a": [str(i - 1), 0], "b": [str(i - 1), 0]}
        diamonds[str(i)] = {"class_type": "ImageBatch", "inputs": both}
    assert signature(diamonds, "199", {})
    circle = changed("1", "image", ["2", 0])
    assert signature(circle, "2", {}) is None and signature(PROMPT, "nowhere", {}) is None
    assert last_shown(circle, {"2"}, [run(circle, _2="circle")]) == {}


def queue_of(running: list, finished: dict) -> SimpleNamespace:
    return SimpleNamespace(
        get_current_queue_volatile=lambda: (running, []),
        get_history=lambda map_function: {k: map_function(v) for k, v in finished.items()},
    )


def entry(name: str, prompt: dict, extra: dict) -> tuple:
    return (0, name, prompt, extra, ["4"])


FINISHED = {
    "old": {"prompt": entry("old", PROMPT, {}), "outputs": run(PROMPT, _2="older")[1]},
    "new": {"prompt": entry("new", PROMPT, {}), "outputs": run(PROMPT, _2="newest")[1]},
}


def test_a_running_prompt_is_answered_from_the_newest_run_with_the_id_of_its_workflow():
    extra = {"extra_pnginfo": {"workflow": {"id": "some-id"}}}
    queue = queue_of([entry("now", PROMPT, extra)], FINISHED)
    asked = answer_of(queue, "now", ["2", "4", "77"], KINDS)
    assert asked == {"workflow": "some-id", "shown": {"2": {"text": ["newest"]}}}
    assert answer_of(queue, "old", ["2"], KINDS)["shown"] == {"2": {"text": ["newest"]}}
    assert answer_of(queue, "nobody's", ["2"], KINDS) is None


@pytest.mark.parametrize("extra", [{}, {"extra_pnginfo": None}, {"extra_pnginfo": ["workflow"]}])
def test_a_prompt_that_no_page_queued_has_no_workflow(extra):
    queue = queue_of([entry("now", PROMPT, extra)], FINISHED)
    assert answer_of(queue, "now", ["2"], KINDS)["workflow"] is None


def test_the_route_is_added_once_and_only_where_there_is_a_server(monkeypatch):
    from aiohttp import web

    routes = web.RouteTableDef()
    started = SimpleNamespace(instance=SimpleNamespace(routes=routes, prompt_queue=None))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=started))
    serve_last_shown(KINDS)
    serve_last_shown(KINDS)  # a second copy of the pack
    assert [route.path for route in routes] == [ROUTE]
    monkeypatch.setitem(sys.modules, "server", None)
    serve_last_shown(KINDS)
