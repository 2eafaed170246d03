"""The bundled workflows and the demos run in a real server, and are offered as templates."""

from __future__ import annotations

import urllib.request
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmdiff_core.checkpoints import checkpoint
from mmdiff_core.config import GENERAL
from mmdiff_core.small_world import scenes
from mmdiff_core.small_world.scenes import Identity

from support import make
from support.paths import PACK, PACK_NAME, TESTS
from support.server import Server
from support.workflows import BUNDLED, PHOTOS, WORKFLOWS, in_the_small_world, load, to_api

DEMO_GHOSTS = {
    "violet_ghost": Identity(0.74, 0.17, "stripes", "white", "crown"),
    "teal_ghost": Identity(0.5, 0.84, "bars", "dark", "bow"),
}


@pytest.fixture(scope="session")
def files_of_the_graphs(server: Server) -> None:
    """The demo photos, a style LoRA and a general adapter, both random and as wide as the tiny
    model.
    """
    folder = server.home / "input/mm-diff-eileen"
    folder.mkdir(exist_ok=True)
    for photo in PHOTOS.glob("*.jpg"):
        server.upload(photo)
        if photo.name.startswith("astronaut"):
            (folder / photo.name).write_bytes(photo.read_bytes())
    generator = torch.Generator().manual_seed(11)
    lora = {}
    for key, weight in load_file(TESTS / "reference/weights/unet_comfy.safetensors").items():
        if key.endswith(("attn1.to_q.weight", "attn2.to_k.weight")):
            name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
            lora[f"{name}.lora_up.weight"] = 0.1 * torch.randn(
                weight.shape[0], 4, generator=generator
            )
            lora[f"{name}.lora_down.weight"] = 0.1 * torch.randn(
                4, weight.shape[1], generator=generator
            )
    save_file(lora, server.loras / "pixel-art-xl.safetensors")
    portrait, _ = checkpoint.read(TESTS / "tiny/models/mmdiff/tiny-portrait")
    general = replace(portrait, variant=GENERAL, behaviour="corrected")
    checkpoint.save_single(
        server.models / "mm-diff-general.safetensors", general, make.random_tensors(general)
    )


def test_the_workflow_runs_in_a_server_and_saves_what_it_makes(
    workflow, info, server: Server, files_of_the_graphs
):
    kinds = {n["type"] for n in workflow["nodes"]}
    if "MMDiffLoadSubject" in kinds:
        server.run(to_api(load(PACK / "workflows/19 Save subjects.json"), info))
    prompt = to_api(workflow, info)
    entry = server.run(prompt)
    if "MMDiffSaveSubject" in kinds:
        assert {p.name for p in (server.home / "mmdiff_subjects/demo").iterdir()} == {
            "Eileen.safetensors",
            "Grace.safetensors",
        }
        return
    saved = [
        image
        for node, out in entry["outputs"].items()
        if prompt[node]["class_type"] == "SaveImage"
        for image in out["images"]
    ]
    assert saved and all(
        (server.output / i["subfolder"] / i["filename"]).stat().st_size > 1000 for i in saved
    )
    assert "lora key not loaded" not in server.log.read_text(encoding="utf-8", errors="replace")
    if in_the_small_world(workflow):
        assert_dots(server.output / saved[0]["subfolder"] / saved[0]["filename"])


@pytest.mark.parametrize(
    "name, kind, off",
    [
        ("18 With a style LoRA", "LoraLoader", {"strength_model": 0.0}),
        ("17 With ControlNet", "ControlNetApplyAdvanced", {"strength": 0.0}),
    ],
)
def test_what_stands_beside_the_subject_has_its_say_in_the_picture(
    name, kind, off, info, server: Server, files_of_the_graphs
):
    pictures = []
    for changed in ({}, off):
        prompt = to_api(load(PACK / f"workflows/{name}.json"), info)
        (node,) = (n for n in prompt.values() if n["class_type"] == kind)
        node["inputs"] |= changed
        (image,) = (
            i
            for out in server.run(prompt)["outputs"].values()
            for i in out.get("images", ())
            if i["type"] == "output"
        )
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
        drawn = (
            (scenes.reference("ghost", who) * 255)
            .round()
            .astype(np.uint8)
            .repeat(4, 0)
            .repeat(4, 1)
        )
        assert np.array_equal(
            np.asarray(Image.open(TESTS / f"small_world/demo/photos/{name}.png")), drawn
        )


def test_the_server_offers_the_workflows_as_templates_with_a_thumbnail(server: Server):
    assert set(server.get("/api/workflow_templates")[PACK_NAME]) == BUNDLED
    for path in WORKFLOWS:
        address = f"/api/workflow_templates/{PACK_NAME}/{quote(path.stem)}"
        assert server.get(f"{address}.json")["nodes"] == load(path)["nodes"]
        with urllib.request.urlopen(f"{server.url}{address}.jpg", timeout=120) as answer:
            picture = answer.read()
        assert picture[:2] == b"\xff\xd8" and len(picture) <= 60_000


def test_help_pages_and_the_script_are_served_for_our_nodes(server: Server, info):
    ours = [
        n
        for n in info
        if n.startswith("MMDiff") and not n.startswith(("MMDiffTest", "MMDiffLoadTiny"))
    ]
    for page in [*(f"docs/{n}.md" for n in ours), "mmdiff.js"]:
        with urllib.request.urlopen(
            f"{server.url}/extensions/{PACK_NAME}/{page}", timeout=30
        ) as answer:
            assert len(answer.read()) > 100
