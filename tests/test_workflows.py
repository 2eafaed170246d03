"""The bundled workflows are sound, are offered as templates, and run in a real server (on the tiny model)."""
from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdiff_core.host.text import MARKERS
from mmdiff_core.small_world import scenes, sprites
from mmdiff_core.small_world.scenes import Identity

from server import PACK, PACK_NAME, TESTS, Server

WORKFLOWS = sorted((PACK / "workflows").glob("*.json"))
PHOTOS = TESTS / "tiny/demo/photos"
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NAMES = {"single_portrait", "several_references", "two_subjects", "delayed_conditioning",
         "small_world_one_subject", "small_world_two_subjects", "small_world_masks",
         "small_world_attention_maps"}
# how the graphs run without the real models: node type -> (stand-in, {output: output of the stand-in})
STAND_INS = {"CheckpointLoaderSimple": {0: 0, 1: 1, 2: 2}, "CLIPVisionLoader": {0: 3}}
SMALL = {
    "MMDiffLoad": {"checkpoint": "tiny-portrait"}, "MMDiffLoadFaceAnalysis": {"model": "stand_in", "device": "cpu"},
    "EmptyLatentImage": {"width": 192, "height": 128}, "KSampler": {"steps": 2},
}
SMALL_WORLD = {"KSampler": {"steps": 4}, "EmptyLatentImage": {"batch_size": 1}}     # its graphs run as they are, only shorter

DEMO_GHOSTS = {"violet_ghost": Identity(0.74, 0.17, "stripes", "white", "crown"), "teal_ghost": Identity(0.5, 0.84, "bars", "dark", "bow")}


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(params=WORKFLOWS, ids=lambda p: p.stem)
def workflow(request) -> dict:
    return load(request.param)


@pytest.fixture(scope="session")
def info(server: Server) -> dict:
    return server.get("/object_info")


def slots(entry: dict) -> list[tuple[str, list]]:
    return [(k, v) for kind in ("required", "optional") for k, v in entry["input"].get(kind, {}).items()]


def widgets(entry: dict) -> list[str]:
    """Names of a node's widget values in their saved order, with the ones the page adds."""
    names = []
    for name, spec in slots(entry):
        if isinstance(spec[0], list) or spec[0] in WIDGET_TYPES:
            options = spec[1] if len(spec) > 1 else {}
            names += [name] + ["control_after_generate"] * bool(options.get("control_after_generate")) + ["upload"] * bool(options.get("image_upload"))
    return names


def drawn(workflow: dict) -> list[dict]:
    return [n for n in workflow["nodes"] if n["type"] != "MarkdownNote"]


def in_the_small_world(workflow: dict) -> bool:
    return any(n["type"] == "MMDiffSmallWorldLoader" for n in workflow["nodes"])


def test_exactly_the_promised_workflows_are_bundled():
    assert {p.stem for p in WORKFLOWS} == NAMES


def test_every_node_exists_and_has_the_widgets_it_was_saved_with(workflow, info):
    for node in drawn(workflow):
        assert node["type"] in info, f"unknown node {node['type']}"
        assert len(node["widgets_values"]) == len(widgets(info[node["type"]])), node["type"]
        sockets = {k: v[0] for k, v in slots(info[node["type"]])}
        for socket in node["inputs"]:
            assert sockets[socket["name"]] == socket["type"], f"{node['type']}.{socket['name']}"
        assert [o["type"] for o in node["outputs"]] == info[node["type"]]["output"]


def test_links_fit_at_both_ends(workflow):
    nodes = {n["id"]: n for n in workflow["nodes"]}
    for number, source, out, target, into, kind in workflow["links"]:
        output, entry = nodes[source]["outputs"][out], nodes[target]["inputs"][into]
        assert number in output["links"] and entry["link"] == number and output["type"] == entry["type"] == kind
    numbers = sorted(link[0] for link in workflow["links"])
    assert numbers == sorted(n for node in nodes.values() for out in node["outputs"] for n in out["links"])
    assert numbers == sorted(i["link"] for node in nodes.values() for i in node["inputs"] if i["link"] is not None)
    assert len(set(numbers)) == len(numbers)


def test_no_two_nodes_overlap(workflow):
    boxes = [(n["pos"][0], n["pos"][1] - 30, n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1], n["type"]) for n in workflow["nodes"]]
    for i, a in enumerate(boxes):
        for b in boxes[i + 1:]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], f"{a[4]} and {b[4]} overlap"


def test_our_nodes_say_which_pack_they_come_from(workflow):
    for node in drawn(workflow):
        properties = node["properties"]
        assert properties["Node name for S&R"] == node["type"]
        assert properties["cnr_id"] == ("mm-diff" if node["type"].startswith("MMDiff") else "comfy-core") and properties["ver"]


def test_models_are_named_as_their_loader_asks_for_them(workflow):
    for node in drawn(workflow):
        for model in node["properties"].get("models", []):
            assert model["name"] in node["widgets_values"] and model["url"].startswith("https://huggingface.co/")


def chain_of_subjects(workflow: dict) -> list[str]:
    """Types of the nodes that the text node's `subjects` come through, last first."""
    nodes, source = {n["id"]: n for n in workflow["nodes"]}, {link[0]: link[1] for link in workflow["links"]}
    (node,) = (n for n in workflow["nodes"] if n["type"] == "MMDiffTextEncode")
    chain = []
    while links := [i["link"] for i in node["inputs"] if i["type"] == "MMDIFF_SUBJECTS" and i["link"] is not None]:
        node = nodes[source[links[0]]]
        chain.append(node["type"])
    return chain


def test_the_prompt_has_a_marker_for_every_chained_subject(workflow):
    chain = chain_of_subjects(workflow)
    (text,) = (n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MMDiffTextEncode")
    assert len(MARKERS.findall(text)) == chain.count("MMDiffSubjectEncoder") > 0
    assert chain.count("MMDiffSubjectEncoder") == [n["type"] for n in workflow["nodes"]].count("MMDiffSubjectEncoder")


def test_a_note_explains_the_workflow_and_its_marker(workflow):
    (note,) = (n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MarkdownNote")
    assert "<|subj|>" in note and "**Files**" in note


def test_every_loaded_photo_is_a_demo_photo(workflow):
    assert all((PHOTOS / n["widgets_values"][0]).is_file() for n in workflow["nodes"] if n["type"] == "LoadImage")


def test_every_demo_photo_is_small_and_has_its_licence_stated():
    stated = (PHOTOS.parent / "LICENCES.md").read_text(encoding="utf-8")
    for photo in PHOTOS.iterdir():
        assert f"`{photo.name}`" in stated and photo.stat().st_size < 120_000


def to_api(workflow: dict, info: dict) -> dict:
    """The saved graph as the server takes it, with SDXL's loaders exchanged for the tiny model's, small pictures and few steps."""
    prompt: dict = {"tiny": {"class_type": "MMDiffLoadTinyReferenceModel", "inputs": {}}}
    instead = SMALL_WORLD if in_the_small_world(workflow) else SMALL
    kinds = {n["id"]: n["type"] for n in workflow["nodes"]}
    origin = {link[0]: (link[1], link[2]) for link in workflow["links"]}

    def source(link: int) -> list:
        node, out = origin[link]
        return ["tiny", STAND_INS[kinds[node]][out]] if kinds[node] in STAND_INS else [str(node), out]

    for node in drawn(workflow):
        kind = node["type"]
        if kind in STAND_INS:
            continue
        values = dict(zip(widgets(info[kind]), node["widgets_values"], strict=True))
        inputs = {k: v for k, v in values.items() if k not in ("control_after_generate", "upload")} | instead.get(kind, {})
        inputs |= {s["name"]: source(s["link"]) for s in node["inputs"] if s["link"] is not None}
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs}
    return prompt


def test_the_workflow_runs_in_a_server_and_saves_a_picture(workflow, info, server: Server):
    for photo in PHOTOS.iterdir():
        server.upload(photo)
    prompt = to_api(workflow, info)
    entry = server.run(prompt)
    saved = [image for node, out in entry["outputs"].items() if prompt[node]["class_type"] == "SaveImage" for image in out["images"]]
    assert saved and all((server.output / i["subfolder"] / i["filename"]).stat().st_size > 1000 for i in saved)
    if in_the_small_world(workflow):
        assert_dots(server.output / saved[0]["subfolder"] / saved[0]["filename"])


def assert_dots(path: Path) -> None:
    """The picture is 32 x 32 dots, enlarged to 512 px without softening, and not blank."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    dots = pixels[::16, ::16]
    assert dots.shape == (scenes.SIDE, scenes.SIDE, 3) and dots.std() > 10, dots.std()
    assert np.array_equal(pixels, dots.repeat(16, 0).repeat(16, 1))


@pytest.mark.parametrize("path", [p for p in WORKFLOWS if p.stem.startswith("small_world")], ids=lambda p: p.stem)
def test_a_small_world_graph_needs_no_file_and_its_note_and_prompt_know_the_world(path):
    workflow = load(path)
    assert in_the_small_world(workflow)
    assert {n["type"] for n in workflow["nodes"] if "Load" in n["type"]} == {"MMDiffSmallWorldLoader"}
    (note,) = (n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MarkdownNote")
    assert f"({', '.join(sprites.CLASSES)})" in note and f"({', '.join(sprites.PLACES.values())})" in note
    (text,) = (n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MMDiffTextEncode")
    drawn_kinds = [n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MMDiffSmallWorldSprite"]
    captions = {" and ".join(f"a {kind}<|subj|>" for kind in drawn_kinds) + f" {place}" for place in sprites.PLACES.values()}
    assert MARKERS.sub("<|subj|>", text) in captions


def test_the_loaders_help_page_knows_the_world():
    page = (PACK / "web/docs/MMDiffSmallWorldLoader.md").read_text(encoding="utf-8")
    assert f"Classes: {', '.join(sprites.CLASSES)}." in page and f"Places: {', '.join(sprites.PLACES.values())}." in page


def test_the_demo_graph_runs_in_a_server(server: Server):
    for photo in PHOTOS.iterdir():
        server.upload(photo)
    prompt = load(TESTS / "tiny/demo/portrait.api.json")
    prompt["sample"]["inputs"]["steps"] = 2
    prompt["latent"]["inputs"] |= {"width": 192, "height": 128}
    assert server.run(prompt)["outputs"]["save"]["images"]


def test_the_small_worlds_demo_graph_draws_two_given_subjects_in_a_server(server: Server):
    demo = TESTS / "small_world/demo"
    for photo in (demo / "photos").iterdir():
        assert photo.stat().st_size < 5_000
        server.upload(photo)
    prompt = load(demo / "two_ghosts.api.json")
    assert prompt["sample"]["inputs"]["steps"] >= 15
    (image,) = server.run(prompt)["outputs"]["save"]["images"]
    assert_dots(server.output / image["subfolder"] / image["filename"])


def test_the_demos_individuals_were_never_trained_on():
    for name, who in DEMO_GHOSTS.items():
        assert who.held_out
        drawn = (scenes.reference("ghost", who) * 255).round().astype(np.uint8).repeat(4, 0).repeat(4, 1)
        assert np.array_equal(np.asarray(Image.open(TESTS / f"small_world/demo/photos/{name}.png")), drawn)


def test_the_server_offers_the_workflows_as_templates_with_a_thumbnail(server: Server):
    assert set(server.get("/api/workflow_templates")[PACK_NAME]) == NAMES
    for path in WORKFLOWS:
        address = f"/api/workflow_templates/{PACK_NAME}/{path.stem}"
        assert server.get(f"{address}.json")["nodes"] == load(path)["nodes"]
        with urllib.request.urlopen(f"{server.url}{address}.jpg", timeout=30) as answer:
            picture = answer.read()
        assert picture[:2] == b"\xff\xd8" and len(picture) <= 60_000


def test_help_pages_and_the_script_are_served_for_our_nodes(server: Server, info):
    ours = [n for n in info if n.startswith("MMDiff") and not n.startswith(("MMDiffTest", "MMDiffLoadTiny"))]
    for page in [*(f"docs/{n}.md" for n in ours), "mmdiff.js"]:
        with urllib.request.urlopen(f"{server.url}/extensions/{PACK_NAME}/{page}", timeout=30) as answer:
            assert len(answer.read()) > 100
