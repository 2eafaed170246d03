"""The bundled workflows are sound, are offered as templates, and run in a real server (on the tiny
model).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmdiff_core.host.nouns import MARKERS
from mmdiff_core.small_world import sprites

from support.paths import PACK
from support.workflows import (
    BUNDLED,
    PHOTOS,
    WORKFLOWS,
    drawn,
    in_the_small_world,
    load,
    slots,
    widgets,
)


def test_exactly_the_promised_workflows_are_bundled():
    assert {p.stem for p in WORKFLOWS} == BUNDLED


def test_the_readme_says_what_each_one_shows():
    (section,) = re.findall(
        r"## Bundled workflows\n(.*?)\n## ",
        (PACK / "README.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    named = [
        name
        for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", row)
    ]
    assert sorted(named) == sorted(BUNDLED)


def test_every_node_exists_and_has_the_widgets_it_was_saved_with(workflow, info):
    for node in drawn(workflow):
        assert node["type"] in info, f"unknown node {node['type']}"
        assert len(node["widgets_values"]) == len(widgets(info[node["type"]])), node["type"]
        sockets = {k: v[0] for k, v in slots(info[node["type"]])}
        for socket in node["inputs"]:
            assert sockets[socket["name"]] == socket["type"], f"{node['type']}.{socket['name']}"
        known, saved = info[node["type"]]["output"], [o["type"] for o in node["outputs"]]
        # newer ComfyUI may add some
        assert saved == (known if node["type"].startswith("MMDiff") else known[: len(saved)]), node[
            "type"
        ]


def test_links_fit_at_both_ends(workflow):
    nodes = {n["id"]: n for n in workflow["nodes"]}
    for number, source, out, target, into, kind in workflow["links"]:
        output, entry = nodes[source]["outputs"][out], nodes[target]["inputs"][into]
        assert (
            number in output["links"]
            and entry["link"] == number
            and output["type"] == entry["type"] == kind
        )
    numbers = sorted(link[0] for link in workflow["links"])
    assert numbers == sorted(
        n for node in nodes.values() for out in node["outputs"] for n in out["links"]
    )
    assert numbers == sorted(
        i["link"] for node in nodes.values() for i in node["inputs"] if i["link"] is not None
    )
    assert len(set(numbers)) == len(numbers)


def test_no_two_nodes_overlap(workflow):
    boxes = [
        (
            n["pos"][0],
            n["pos"][1] - 30,
            n["pos"][0] + n["size"][0],
            n["pos"][1] + n["size"][1],
            n["type"],
        )
        for n in workflow["nodes"]
    ]
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (
                f"{a[4]} and {b[4]} overlap"
            )


def test_our_nodes_say_which_pack_they_come_from(workflow):
    for node in drawn(workflow):
        properties = node["properties"]
        assert properties["Node name for S&R"] == node["type"]
        assert (
            properties["cnr_id"]
            == ("mm-diff" if node["type"].startswith("MMDiff") else "comfy-core")
            and properties["ver"]
        )


def test_models_are_named_as_their_loader_asks_for_them(workflow):
    for node in drawn(workflow):
        for model in node["properties"].get("models", []):
            assert model["name"] in node["widgets_values"] and model["url"].startswith(
                "https://huggingface.co/"
            )


def chain_of_subjects(workflow: dict) -> list[str]:
    """Types of the nodes that the text node's `subjects` come through, last first."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    source = {link[0]: link[1] for link in workflow["links"]}
    (node,) = (n for n in workflow["nodes"] if n["type"] == "MMDiffTextEncode")
    chain = []
    while links := [
        i["link"]
        for i in node["inputs"]
        if i["type"] == "MMDIFF_SUBJECTS" and i["link"] is not None
    ]:
        node = nodes[source[links[0]]]
        chain.append(node["type"])
    return chain


def names_in_the_chain(workflow: dict) -> list[str]:
    """What the prompt can call: the subjects' names as markers write them.

    A mix stands for all that it was made of.
    """
    nodes = {n["id"]: n for n in workflow["nodes"]}
    names = [
        Path(n["widgets_values"][0]).stem
        if n["type"] == "MMDiffLoadSubject"
        else n["widgets_values"][0]
        for n in nodes.values()
        if n["type"] in ("MMDiffSubjectEncoder", "MMDiffLoadSubject")
    ]
    mixes = [n["widgets_values"][2] for n in nodes.values() if n["type"] == "MMDiffMixSubjects"]
    return [name.lower() for name in mixes or names]


def test_the_prompt_has_a_marker_for_every_chained_subject(workflow):
    texts = [n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MMDiffTextEncode"]
    if not texts:
        assert any(n["type"] == "MMDiffSaveSubject" for n in workflow["nodes"]), (
            "what draws nothing keeps subjects"
        )
        return
    makers = ("MMDiffSubjectEncoder", "MMDiffLoadSubject")
    chain = chain_of_subjects(workflow)
    made = [node for node in workflow["nodes"] if node["type"] in makers]
    assert sum(chain.count(m) for m in makers) == len(made) > 0
    marked = [m.strip("<|>").lower() for m in MARKERS.findall(texts[0])]
    assert sorted(marked) == sorted(names_in_the_chain(workflow)) or marked == ["subj"] * len(
        names_in_the_chain(workflow)
    )


def test_a_note_explains_the_workflow_and_its_marker(workflow):
    (note,) = (n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MarkdownNote")
    assert "<|subj|>" in note and "**Files**" in note
    for marker in (
        m
        for n in workflow["nodes"]
        if n["type"] == "MMDiffTextEncode"
        for m in MARKERS.findall(n["widgets_values"][0])[:1]
    ):
        assert marker in note


def test_every_graph_that_a_note_names_is_bundled(workflow):
    (note,) = (n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MarkdownNote")
    assert set(re.findall(r"\*([a-z]+(?:_[a-z]+)+)\*", note)) <= BUNDLED


def test_every_loaded_photo_is_a_demo_photo(workflow):
    assert all(
        (PHOTOS / n["widgets_values"][0]).is_file()
        for n in workflow["nodes"]
        if n["type"] == "LoadImage"
    )


def test_every_demo_photo_is_small_and_has_its_licence_stated():
    stated = (PHOTOS / "LICENCES.md").read_text(encoding="utf-8")
    for photo in PHOTOS.glob("*.jpg"):
        assert f"`{photo.name}`" in stated and photo.stat().st_size < 120_000


def test_the_page_knows_every_demo_photo_so_that_a_graph_opens_with_them():
    (listed,) = re.findall(
        r"const PHOTOS = \[(.*?)\];",
        (PACK / "web/demo_photos.js").read_text(encoding="utf-8"),
        re.S,
    )
    assert set(re.findall(r'"([^"]+)"', listed)) == {photo.name for photo in PHOTOS.glob("*.jpg")}


@pytest.mark.parametrize(
    "path", [p for p in WORKFLOWS if p.stem.endswith(", small world")], ids=lambda p: p.stem
)
def test_a_small_world_graph_needs_no_file_and_its_note_and_prompt_know_the_world(path):
    workflow = load(path)
    assert in_the_small_world(workflow)
    assert {n["type"] for n in workflow["nodes"] if "Load" in n["type"]} == {
        "MMDiffSmallWorldLoader"
    }
    (note,) = (n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MarkdownNote")
    assert (
        f"({', '.join(sprites.CLASSES)})" in note
        and f"({', '.join(sprites.PLACES.values())})" in note
    )
    (text,) = (n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MMDiffTextEncode")
    drawn_kinds = [
        n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MMDiffSmallWorldSprite"
    ]
    if any(n["type"] == "MMDiffMixSubjects" for n in workflow["nodes"]):
        # several of a class become one
        (mixed,) = set(drawn_kinds)
        drawn_kinds = [mixed]
    individuals = " and ".join(f"a {kind}<|subj|>" for kind in drawn_kinds)
    captions = {f"{individuals} {place}" for place in sprites.PLACES.values()}
    assert MARKERS.sub("<|subj|>", text) in captions


def test_the_loaders_help_page_knows_the_world():
    page = (PACK / "web/docs/MMDiffSmallWorldLoader.md").read_text(encoding="utf-8")
    assert (
        f"Classes: {', '.join(sprites.CLASSES)}." in page
        and f"Places: {', '.join(sprites.PLACES.values())}." in page
    )
