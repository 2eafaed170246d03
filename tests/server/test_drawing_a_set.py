"""A protocol's images drawn through a real server, from a graph in API format."""

from __future__ import annotations

import json

import pytest

from mmdiff_core.commands import main
from mmdiff_core.evaluation.comfy_api import ComfyServer
from mmdiff_core.evaluation.drawing import Drawing, draw_set, missing, read_template
from mmdiff_core.evaluation.manifest import read_manifest
from mmdiff_core.evaluation.set_readers import read_own
from mmdiff_core.evaluation.sets import Case

from support.drawn_sets import PROMPTS, write_set
from support.paths import PACK
from support.server import Server

GRAPH = PACK / "api/small_world_two_subjects.json"
SHORT = ("sample.steps=2", "sample.cfg=1.0")


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    return read_own(write_set(tmp_path_factory.mktemp("things") / "set"))


def told_to(lines: list[str]):
    return lines.append


def test_a_set_is_drawn_and_what_is_there_is_not_drawn_again(server: Server, things, tmp_path):
    drawing = Drawing(read_template(GRAPH, SHORT), 1, seed=5, protocol="things")
    comfy, said = ComfyServer(server.url, poll=0.05), []
    assert draw_set(comfy, things, drawing, tmp_path, told_to(said)) == len(PROMPTS)
    assert f"{len(PROMPTS)} of {len(PROMPTS)} images" in said[-1]
    files = sorted((tmp_path / "images").rglob("*.png"))
    assert len(files) == len(PROMPTS) and (tmp_path / "images/rex+cup/0/0.png") in files
    gone = files[0]
    before = {path: path.read_bytes() for path in files}
    gone.unlink()
    assert draw_set(comfy, things, drawing, tmp_path, told_to(said)) == 1
    assert gone.is_file() and all(path.stat().st_size for path in files)
    assert all(path.read_bytes() == before[path] for path in files[1:])


def test_the_manifest_says_what_drew_and_another_setting_is_refused(server, things, tmp_path):
    comfy = ComfyServer(server.url, poll=0.05)
    one = Drawing(read_template(GRAPH, SHORT), 1, protocol="things")
    (tmp_path / "images").mkdir(parents=True)
    for _, _, path in missing(things, 1, tmp_path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"drawn")
    assert draw_set(comfy, things, one, tmp_path, print) == 0
    told = read_manifest(tmp_path)
    assert told["host"].count(".") == 2 and told["protocol"] == "things"
    assert told["settings"]["sample.steps"] == 2 and told["seeds"]["rex/1/0"] == 0
    other = Drawing(read_template(GRAPH, ("sample.steps=3",)), 1)
    with pytest.raises(ValueError, match="other settings.*sample.steps"):
        draw_set(comfy, things, other, tmp_path, print)


def test_what_the_server_says_of_a_wrong_graph_is_told(server, things, tmp_path):
    graph = json.loads(GRAPH.read_text())
    graph["sample"]["inputs"]["sampler_name"] = "no such sampler"
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    drawing = Drawing(read_template(tmp_path / "graph.json"), 1)
    with pytest.raises(ValueError, match="refused.*no such sampler"):
        draw_set(ComfyServer(server.url), things, drawing, tmp_path / "out", print)


def test_a_server_that_is_not_there_is_one_line_of_error(tmp_path, capsys):
    root = write_set(tmp_path / "set")
    told = ["evaluate", "things", "--data", str(root), "--images", str(tmp_path / "a")]
    assert main([*told, "--draw", "http://127.0.0.1:9", "--graph", str(GRAPH)]) == 1
    assert "no ComfyUI answers" in capsys.readouterr().err


def test_the_graph_for_portraits_has_the_inputs_of_its_nodes(info, asked):
    graph = read_template(PACK / "api/portraits.json").fill(asked, ["one.png", "two.png"], 3)
    for node in graph.values():
        known = info[node["class_type"]]["input"]
        required, optional = (set(known.get(each, {})) for each in ("required", "optional"))
        assert required <= set(node["inputs"]) <= required | optional, node["class_type"]


# ---------------------------------------------------------------- graphs, without a server


@pytest.fixture
def asked(tmp_path) -> Case:
    names, paths = ("rex", "cup"), (tmp_path / "rex.png", tmp_path / "cup.png")
    return Case(names, 0, "a dog<|s1|> beside a cup<|s2|>", paths)


def test_each_subject_gets_the_settings_of_the_graphs_encoder_and_its_own_reference(asked):
    graph = read_template(GRAPH).fill(asked, ["one.png", "two.png"], 7)
    encoders = [n["inputs"] for n in graph.values() if n["class_type"] == "MMDiffSubjectEncoder"]
    assert [each["name"] for each in encoders] == ["s1", "s2"]
    assert all(each["mmdiff"] == ["world", 4] for each in encoders)
    assert graph["reference_2"]["inputs"]["image"] == "two.png"
    assert graph["text"]["inputs"]["text"] == asked.marked
    assert graph["sample"]["inputs"]["seed"] == 7
    assert "image_1" not in graph, "what the graph itself showed is not drawn"


def test_the_plain_base_gets_no_marker_no_subject_and_no_adapter(asked):
    graph = read_template(GRAPH).fill(asked, [], 7, plain=True)
    kinds = {node["class_type"] for node in graph.values()}
    assert not kinds & {"MMDiffSubjectEncoder", "MMDiffApplyAttention", "LoadImage"}
    assert graph["text"]["inputs"]["text"] == "a dog beside a cup"
    assert graph["sample"]["inputs"]["model"] == ["world", 0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"text": None}, "0 nodes of the kind MMDiffTextEncode"),
        ({"save": None}, "0 nodes of the kind Save"),
        ({"sample": None}, "0 nodes of the kind a sampler"),
        ({"subject_1": None, "subject_2": None}, "no MMDiffSubjectEncoder"),
        ({"text": 5}, "API format"),
    ],
)
def test_a_graph_that_cannot_draw_a_set_is_told(tmp_path, change, told):
    graph = json.loads(GRAPH.read_text())
    for name, value in change.items():
        graph.pop(name) if value is None else graph.update({name: value})
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    with pytest.raises(ValueError, match=told):
        read_template(tmp_path / "graph.json")


def test_a_setting_that_the_graph_lacks_is_told_with_those_it_has():
    with pytest.raises(ValueError, match="'sample.stepz'.*sample.steps"):
        read_template(GRAPH, ["sample.stepz=3"])
