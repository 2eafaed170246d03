"""The bundled workflows are sound, are offered as templates, and run in a real server (on the tiny model)."""
from __future__ import annotations

import json
import re
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmdiff_core.checkpoints import checkpoint
from mmdiff_core.config import GENERAL
from mmdiff_core.host.text import MARKERS
from mmdiff_core.small_world import scenes, sprites
from mmdiff_core.small_world.scenes import Identity

import make
from server import PACK, PACK_NAME, TESTS, Server

WORKFLOWS = sorted((PACK / "workflows").glob("*.json"))
PHOTOS = PACK / "web/photos"
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NAMES = {"single_portrait", "several_references", "two_people_free", "two_people_boxes", "three_subjects", "identity_mixing",
         "general_subject", "with_controlnet", "with_style_lora", "save_subject", "load_subject", "delayed_conditioning",
         "small_world_one_subject", "small_world_several_references", "small_world_two_subjects", "small_world_three_subjects",
         "small_world_boxes", "small_world_masks", "small_world_mixing", "small_world_attention_maps"}
# how the graphs run without the real models: node type -> (stand-in, {output: output of the stand-in}); the LoRA and the general
# adapter are real files of the tiny model's size, under the names that the graphs ask for
TINY = "MMDiffLoadTinyReferenceModel"
STAND_INS = {"CheckpointLoaderSimple": (TINY, {0: 0, 1: 1, 2: 2}), "CLIPVisionLoader": (TINY, {0: 3}),
             "ControlNetLoader": ("MMDiffLoadTinyControlNet", {0: 0})}
FILES = {"portrait_generation": "tiny-portrait", "buffalo_l": "stand_in", "auto": "cpu"}
SMALL = {"EmptyLatentImage": {"width": 192, "height": 128}, "ImageScale": {"width": 192, "height": 128}, "KSampler": {"steps": 2}}
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


def test_the_readme_says_what_each_one_shows():
    (section,) = re.findall(r"## Bundled workflows\n(.*?)\n## ", (PACK / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    named = [name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(NAMES)


def test_every_node_exists_and_has_the_widgets_it_was_saved_with(workflow, info):
    for node in drawn(workflow):
        assert node["type"] in info, f"unknown node {node['type']}"
        assert len(node["widgets_values"]) == len(widgets(info[node["type"]])), node["type"]
        sockets = {k: v[0] for k, v in slots(info[node["type"]])}
        for socket in node["inputs"]:
            assert sockets[socket["name"]] == socket["type"], f"{node['type']}.{socket['name']}"
        known, saved = info[node["type"]]["output"], [o["type"] for o in node["outputs"]]
        assert saved == (known if node["type"].startswith("MMDiff") else known[:len(saved)]), node["type"]       # newer ComfyUI may add some


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


def names_in_the_chain(workflow: dict) -> list[str]:
    """What the prompt can call: the subjects' names as markers write them; a mix stands for all that it was made of."""
    nodes = {n["id"]: n for n in workflow["nodes"]}
    names = [Path(n["widgets_values"][0]).stem if n["type"] == "MMDiffLoadSubject" else n["widgets_values"][0]
             for n in nodes.values() if n["type"] in ("MMDiffSubjectEncoder", "MMDiffLoadSubject")]
    mixes = [n["widgets_values"][2] for n in nodes.values() if n["type"] == "MMDiffMixSubjects"]
    return [name.lower() for name in mixes or names]


def test_the_prompt_has_a_marker_for_every_chained_subject(workflow):
    texts = [n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MMDiffTextEncode"]
    if not texts:
        assert any(n["type"] == "MMDiffSaveSubject" for n in workflow["nodes"]), "what draws nothing keeps subjects"
        return
    makers = ("MMDiffSubjectEncoder", "MMDiffLoadSubject")
    chain = chain_of_subjects(workflow)
    assert sum(chain.count(m) for m in makers) == sum(n["type"] in makers for n in workflow["nodes"]) > 0
    marked = [m.strip("<|>").lower() for m in MARKERS.findall(texts[0])]
    assert sorted(marked) == sorted(names_in_the_chain(workflow)) or marked == ["subj"] * len(names_in_the_chain(workflow))


def test_a_note_explains_the_workflow_and_its_marker(workflow):
    (note,) = (n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MarkdownNote")
    assert "<|subj|>" in note and "**Files**" in note
    for marker in (m for n in workflow["nodes"] if n["type"] == "MMDiffTextEncode" for m in MARKERS.findall(n["widgets_values"][0])[:1]):
        assert marker in note


def test_every_graph_that_a_note_names_is_bundled(workflow):
    (note,) = (n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MarkdownNote")
    assert set(re.findall(r"\*([a-z]+(?:_[a-z]+)+)\*", note)) <= NAMES


def test_every_loaded_photo_is_a_demo_photo(workflow):
    assert all((PHOTOS / n["widgets_values"][0]).is_file() for n in workflow["nodes"] if n["type"] == "LoadImage")


def test_every_demo_photo_is_small_and_has_its_licence_stated():
    stated = (PHOTOS / "LICENCES.md").read_text(encoding="utf-8")
    for photo in PHOTOS.glob("*.jpg"):
        assert f"`{photo.name}`" in stated and photo.stat().st_size < 120_000


def test_the_page_knows_every_demo_photo_so_that_a_graph_opens_with_them():
    (listed,) = re.findall(r"const PHOTOS = \[(.*?)\];", (PACK / "web/demo_photos.js").read_text(encoding="utf-8"), re.S)
    assert set(re.findall(r'"([^"]+)"', listed)) == {photo.name for photo in PHOTOS.glob("*.jpg")}


def to_api(workflow: dict, info: dict) -> dict:
    """The saved graph as the server takes it, with SDXL's loaders exchanged for the tiny model's, small pictures and few steps."""
    prompt: dict = {}
    instead = SMALL_WORLD if in_the_small_world(workflow) else SMALL
    kinds = {n["id"]: n["type"] for n in workflow["nodes"]}
    origin = {link[0]: (link[1], link[2]) for link in workflow["links"]}

    def source(link: int) -> list:
        node, out = origin[link]
        if kinds[node] not in STAND_INS:
            return [str(node), out]
        stand_in, outputs = STAND_INS[kinds[node]]
        prompt[stand_in] = {"class_type": stand_in, "inputs": {}}
        return [stand_in, outputs[out]]

    for node in drawn(workflow):
        kind = node["type"]
        if kind in STAND_INS:
            continue
        values = dict(zip(widgets(info[kind]), node["widgets_values"], strict=True))
        inputs = {k: FILES.get(v, v) for k, v in values.items() if k not in ("control_after_generate", "upload")} | instead.get(kind, {})
        inputs |= {s["name"]: source(s["link"]) for s in node["inputs"] if s["link"] is not None}
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs}
    return prompt


@pytest.fixture(scope="session")
def files_of_the_graphs(server: Server) -> None:
    """The demo photos, a style LoRA and a general adapter, both random and as wide as the tiny model."""
    for photo in PHOTOS.glob("*.jpg"):
        server.upload(photo)
    generator = torch.Generator().manual_seed(11)
    lora = {}
    for key, weight in load_file(TESTS / "reference/weights/unet_comfy.safetensors").items():
        if key.endswith(("attn1.to_q.weight", "attn2.to_k.weight")):
            name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
            lora[f"{name}.lora_up.weight"] = 0.1 * torch.randn(weight.shape[0], 4, generator=generator)
            lora[f"{name}.lora_down.weight"] = 0.1 * torch.randn(4, weight.shape[1], generator=generator)
    save_file(lora, server.loras / "pixel-art-xl.safetensors")
    portrait, _ = checkpoint.read(TESTS / "tiny/models/mmdiff/tiny-portrait")
    general = replace(portrait, variant=GENERAL, behaviour="corrected")
    checkpoint.save_single(server.models / "mm-diff-general.safetensors", general, make.random_tensors(general))


def test_the_workflow_runs_in_a_server_and_saves_what_it_makes(workflow, info, server: Server, files_of_the_graphs):
    kinds = {n["type"] for n in workflow["nodes"]}
    if "MMDiffLoadSubject" in kinds:
        server.run(to_api(load(PACK / "workflows/save_subject.json"), info))
    prompt = to_api(workflow, info)
    entry = server.run(prompt)
    if "MMDiffSaveSubject" in kinds:
        assert {p.name for p in (server.home / "mmdiff_subjects/demo").iterdir()} == {"Eileen.safetensors", "Grace.safetensors"}
        return
    saved = [image for node, out in entry["outputs"].items() if prompt[node]["class_type"] == "SaveImage" for image in out["images"]]
    assert saved and all((server.output / i["subfolder"] / i["filename"]).stat().st_size > 1000 for i in saved)
    assert "lora key not loaded" not in server.log.read_text(encoding="utf-8", errors="replace")
    if in_the_small_world(workflow):
        assert_dots(server.output / saved[0]["subfolder"] / saved[0]["filename"])


@pytest.mark.parametrize("name, kind, off", [
    ("with_style_lora", "LoraLoader", {"strength_model": 0.0}), ("with_controlnet", "ControlNetApplyAdvanced", {"strength": 0.0}),
])
def test_what_stands_beside_the_subject_has_its_say_in_the_picture(name, kind, off, info, server: Server, files_of_the_graphs):
    pictures = []
    for changed in ({}, off):
        prompt = to_api(load(PACK / f"workflows/{name}.json"), info)
        (node,) = (n for n in prompt.values() if n["class_type"] == kind)
        node["inputs"] |= changed
        (image,) = (i for out in server.run(prompt)["outputs"].values() for i in out.get("images", ()) if i["type"] == "output")
        with Image.open(server.output / image["subfolder"] / image["filename"]) as picture:
            pictures.append(np.asarray(picture.convert("RGB"), dtype=np.int16))
    assert np.abs(pictures[0] - pictures[1]).max() > 2


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
    if any(n["type"] == "MMDiffMixSubjects" for n in workflow["nodes"]):
        (mixed,) = set(drawn_kinds)                                         # several of a class become one
        drawn_kinds = [mixed]
    captions = {" and ".join(f"a {kind}<|subj|>" for kind in drawn_kinds) + f" {place}" for place in sprites.PLACES.values()}
    assert MARKERS.sub("<|subj|>", text) in captions


def test_the_loaders_help_page_knows_the_world():
    page = (PACK / "web/docs/MMDiffSmallWorldLoader.md").read_text(encoding="utf-8")
    assert f"Classes: {', '.join(sprites.CLASSES)}." in page and f"Places: {', '.join(sprites.PLACES.values())}." in page


def test_the_demo_graph_runs_in_a_server(server: Server, files_of_the_graphs):
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
