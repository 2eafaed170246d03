"""Experiments drawn by a real server, from a graph in API format, and scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mmdiff_core.commands import main
from mmdiff_core.evaluation import experiment_needs as N
from mmdiff_core.evaluation import experiment_run as R
from mmdiff_core.evaluation.comfy_api import ComfyServer, GraphFailed, Ran
from mmdiff_core.evaluation.drawing import read_template
from mmdiff_core.evaluation.experiment_graphs import with_defaults
from mmdiff_core.evaluation.experiment_sets import with_real_weights
from mmdiff_core.evaluation.experiments import EXPERIMENTS, FRAMES, Cell
from mmdiff_core.evaluation.set_readers import read_subjects
from mmdiff_core.evaluation.store import Store

from support.drawn_sets import write_set
from support.paths import PACK
from support.server import Server
from support.tiny_encoders import write_encoders

GRAPH = PACK / "api/small_world_two_subjects.json"
PORTRAITS = PACK / "api/portraits.json"
SHORT = ("sample.steps=2", "sample.cfg=1.0")


def _with_channels(path: Path) -> Path:
    """The graph with a latent of the small world's twelve channels. KSampler corrects an empty one
    of four by itself; AddNoise does not."""
    graph = json.loads(GRAPH.read_text())
    image = {"width": 128, "height": 128, "batch_size": 1, "color": 0}
    graph["blank"] = {"class_type": "EmptyImage", "inputs": image}
    encoded = {"pixels": ["blank", 0], "vae": ["world", 2]}
    graph["encoded"] = {"class_type": "VAEEncode", "inputs": encoded}
    empty = {"samples": ["encoded", 0], "multiplier": 0.0}
    graph["latent"] = {"class_type": "LatentMultiply", "inputs": empty}
    path.write_text(json.dumps(graph))
    return path


class Scene:
    """Three things of two photos each, and the models that score."""

    def __init__(self, root: Path) -> None:
        self.set, self.models = write_set(root / "set"), write_encoders(root / "models")
        self.graph = _with_channels(root / "graph.json")

    def command(self, server: Server, name: str, out: Path, *more: str) -> list[str]:
        told = ["experiments", name, str(out), "--comfy", server.url, "--data", str(self.set)]
        told += ["--kind", "things", "--graph", str(self.graph), "--models", str(self.models)]
        return [*told, "--count", "8", "--device", "cpu", "--set", *SHORT, *more]


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Scene:
    return Scene(tmp_path_factory.mktemp("experiments"))


def test_frames_are_drawn_scored_and_not_drawn_again(server, scene, tmp_path, capsys):
    command = scene.command(server, "temporal", tmp_path)
    assert main(command) == 0
    said = capsys.readouterr()
    assert "images folder: 3 subjects, 6 images" in said.err and "MISSING" not in said.err
    told = json.loads((tmp_path / "results.json").read_text())
    rows = {row["name"]: row for row in told["rows"]}
    assert {"own noise", "noise walk", "prompt walk", "noise walk, plain base"} <= set(rows)
    files = sorted(tmp_path.glob("*/images/0/*.png"))
    assert len(files) == FRAMES * len(rows)
    for row in rows.values():
        assert len(row["images"]) == row["expected"] == FRAMES
        assert row["summary"]["next"]["mean"] >= row["summary"]["worst"]["mean"]
    walk, own = (rows[name]["summary"]["next"]["mean"] for name in ("noise walk", "own noise"))
    assert walk > own, "a slow walk is steadier than unrelated noise"
    first = [Image.open(tmp_path / name / "images/0/0.png") for name in ("noise_walk", "own_noise")]
    assert list(first[0].getdata()) == list(first[1].getdata()), "both begin with one noise"
    before = {path: path.stat().st_mtime_ns for path in files}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_several_references_boxes_and_the_base_are_drawn_by_one_command(server, scene, tmp_path):
    assert main(scene.command(server, "constraints", tmp_path)) == 0
    told = json.loads((tmp_path / "results.json").read_text())
    rows = {row["name"]: row["images"] for row in told["rows"]}
    assert {len(images) for images in rows.values()} == {8}
    off, held = (Image.open(rows[f"two, {name}"][0]["file"]) for name in ("off", "tokens"))
    assert list(off.getdata()) != list(held.getdata()), "a held subject changes the image"
    costs = json.loads((tmp_path / "two_off/costs.json").read_text())
    assert costs["0"]["seconds"] is None and costs["1"]["seconds"] > 0
    assert costs["1"]["memory"] > 0
    assert any("two, tokens less two, off" in note for note in told["notes"])


def test_all_that_is_missing_is_told_before_anything_is_drawn(server, scene, tmp_path, capsys):
    command = scene.command(server, "references", tmp_path / "out")
    command[command.index("--models") + 1] = str(tmp_path)
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "5 images of 'rex', there are 2" in said and "huggingface.co" in said
    assert said.splitlines()[-1].startswith("error: ") and not (tmp_path / "out").exists()


def test_check_draws_nothing(server, scene, tmp_path, capsys):
    assert main(scene.command(server, "subjects", tmp_path / "out", "--check")) == 0
    assert "needed:" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_model_that_the_server_has_not_is_told_with_its_folder(server, scene):
    template = read_template(PORTRAITS, ["base.ckpt_name=nowhere.safetensors"])
    subjects = list(read_subjects(scene.set).values())
    given = (ComfyServer(server.url), template, subjects, (), ())
    needs = N.needs_of(with_real_weights(EXPERIMENTS["conditions"]), *given)
    lacks = {need.what: need.lacks for need in needs if need.lacks}
    assert "models/checkpoints" in lacks["nowhere.safetensors (CheckpointLoaderSimple)"]
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors"):
        N.check(needs)


def test_a_node_that_the_server_has_not_is_told(server, scene):
    template = read_template(GRAPH)
    template.graph["decode"]["class_type"] = "NoSuchNode"
    subjects = list(read_subjects(scene.set).values())
    given = (ComfyServer(server.url), template, subjects, (), ())
    needs = N.needs_of(with_real_weights(EXPERIMENTS["conditions"]), *given)
    assert any(need.what == "node NoSuchNode" and need.lacks for need in needs)


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda e: e.name)
def test_the_graphs_for_portraits_have_the_inputs_of_their_nodes(experiment, info):
    for cell in with_real_weights(experiment).cells:
        graph = N.example(read_template(PORTRAITS), cell)
        filled = with_defaults(graph, info.get)
        grown = {node["class_type"] for name, node in filled.items() if node != graph[name]}
        assert grown <= {"ContextWindowsManual"}, "all others have their inputs from us"
        for node in filled.values():
            known = info[node["class_type"]]["input"]
            required, optional = (set(known.get(each, {})) for each in ("required", "optional"))
            told = (cell.name, node["class_type"])
            assert required <= set(node["inputs"]) <= required | optional, told


@pytest.mark.parametrize(
    ("version", "lost"), [("0.3.75", 1), ("0.3.60", 1), ("0.4.0", 0), ("unknown", 1)]
)
def test_a_host_whose_windows_fail_for_a_batch_loses_that_row_only(version, lost):
    found = N.without_windows(with_real_weights(EXPERIMENTS["temporal"]), version)
    assert [cell.host for cell in found] == ["windows"] * lost


# ---------------------------------------------------------------- graphs that fail


class Failing:
    """A server on which chosen graphs fail."""

    url = "http://127.0.0.1"

    def __init__(self, failing: set[int]) -> None:
        self.failing, self.asked = failing, 0

    def about(self):
        return "0.3.75", "cpu"

    def upload(self, path: Path, name: str) -> str:
        return name

    def node(self, kind: str) -> None:
        return None

    def run_all(self, graph, save, watched):
        self.asked += 1
        if self.asked - 1 in self.failing:
            raise GraphFailed("the graph failed in ComfyUI: 'no face'")
        return Ran((b"an image",), 1.5, 2.0)


def drawn(scene: Scene, out: Path, failing: set[int]):
    measures, template = (), read_template(GRAPH)
    experiment = with_real_weights(EXPERIMENTS["conditions"])
    subjects = read_subjects(scene.set)
    plan = R.Plan(experiment, subjects, measures, template, 8, 0, out)
    cell = Cell("clean")
    asked, server = plan.asked(cell, Store(out, ())), Failing(failing)
    return R.draw_cell(server, plan, cell, asked, lambda text: None), server


def test_an_image_whose_graph_fails_is_told_and_the_others_are_drawn(scene, tmp_path):
    failed, _ = drawn(scene, tmp_path, {1, 2, 5})
    assert len(failed) == 3 and "clean, image 1: " in failed[0] and "no face" in failed[0]
    assert len(list((tmp_path / "clean/images").rglob("*.png"))) == 5
    failed, server = drawn(scene, tmp_path, set())
    assert failed == () and server.asked == 3, "only those that are missing"


def test_a_row_without_any_image_ends_the_run(scene, tmp_path):
    drawn(scene, tmp_path, {6, 7})
    with pytest.raises(GraphFailed):
        drawn(scene, tmp_path, {0, 1})


def test_three_failures_in_a_row_end_the_run(scene, tmp_path):
    with pytest.raises(GraphFailed):
        drawn(scene, tmp_path, {2, 3, 4})
