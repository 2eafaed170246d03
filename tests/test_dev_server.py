"""How dev.py starts the server and talks to it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dev
from dev_parts import demo
from dev_parts.client import Stages, first_image, photos_of, refusal
from dev_parts.demo import DEMO, PORTRAIT_DEMO, draw_sheet
from dev_parts.folders import link_folder
from dev_parts.host import PACK_NAME, Host
from dev_parts.process import DevError, step
from dev_parts.server import extra_paths, free_port, paths_yaml, server_command, wait_ready

from support.folders import make_comfyui, make_pack

# ---------------------------------------------------------------- yaml and server


def test_paths_yaml_quotes_any_path_and_lists_several_on_lines() -> None:
    text = paths_yaml({"custom_nodes": [Path("a b"), Path("c")], "mmdiff": [Path("d: #é")]})
    head, nodes, models = text.splitlines()
    assert head == "mm_diff_dev:"
    assert nodes.startswith("  custom_nodes: ") and json.loads(nodes.partition(": ")[2]) == "a b\nc"
    assert json.loads(models.partition(": ")[2]) == "d: #é"


def test_test_models_and_nodes_are_added_only_when_asked_for(tmp_path: Path) -> None:
    host, pack = (
        Host(make_comfyui(tmp_path / "C"), Path("python"), own=False),
        make_pack(tmp_path / "mm"),
    )
    link_folder(pack.root, host.comfyui / "custom_nodes" / "any-name")
    for folder in ("tests/host_nodes", "tests/tiny/models/mmdiff", "tests/tiny/models/insightface"):
        (pack.root / folder).mkdir(parents=True)
    assert extra_paths(host, pack, with_tiny=False) == {}
    paths = extra_paths(host, pack, with_tiny=True)
    assert sorted(paths) == ["custom_nodes", "insightface", "mmdiff"]
    assert paths["custom_nodes"] == [pack.root / "tests/host_nodes"]


def test_pack_outside_a_persons_comfyui_is_added_by_path_and_not_written_into_it(
    tmp_path: Path,
) -> None:
    host, pack = (
        Host(make_comfyui(tmp_path / "C"), Path("python"), own=False),
        make_pack(tmp_path / "mm"),
    )
    link_folder(pack.root, pack.work / "custom_nodes" / PACK_NAME)
    command = server_command(pack, host, 8000, with_tiny=False)
    config = Path(command[command.index("--extra-model-paths-config") + 1])
    assert config.parent == pack.work and json.dumps(
        str(pack.work / "custom_nodes")
    ) in config.read_text("utf-8")
    assert all(str(host.comfyui) not in part for part in command[2:])
    assert list((host.comfyui / "custom_nodes").iterdir()) == []


@pytest.mark.parametrize(("device", "cpu"), [("cpu", True), ("cuda", False), ("mps", False)])
def test_server_uses_the_cpu_only_without_an_accelerator(
    tmp_path: Path, device: str, cpu: bool
) -> None:
    host = Host(make_comfyui(tmp_path / "C"), Path("python"), own=False, device=device)
    assert ("--cpu" in server_command(make_pack(tmp_path / "mm"), host, 1, False)) is cpu


def test_server_that_dies_shows_the_last_forty_lines_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("\n".join(f"line {number}." for number in range(100)), encoding="utf-8")
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    process.wait()
    with pytest.raises(DevError) as caught:
        wait_ready(process, "http://127.0.0.1:1", log)
    assert "exit status 3" in str(caught.value)
    assert (
        "line 99." in str(caught.value)
        and "line 60." in str(caught.value)
        and "line 59." not in str(caught.value)
    )


def test_failed_step_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(DevError, match="(?s)Trying failed.*the reason"):
        step(
            "Trying",
            [sys.executable, "-c", "raise SystemExit('the reason')"],
            tmp_path / "install.log",
        )


def test_taken_port_is_replaced_by_a_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert free_port(taken.getsockname()[1]) != taken.getsockname()[1]


# ---------------------------------------------------------------- the demo's client


def test_refused_workflow_names_the_node_and_the_fault() -> None:
    answer = {
        "error": {"message": "Prompt outputs failed validation", "details": ""},
        "node_errors": {
            "4": {"errors": [{"message": "Value not in list", "details": "adapter: 'x'"}]}
        },
    }
    text = refusal(answer, {"4": "Load adapter"})
    assert text.splitlines() == [
        "Prompt outputs failed validation",
        "  Load adapter: Value not in list: adapter: 'x'",
    ]


def test_picture_of_save_image_comes_before_a_preview() -> None:
    def output(name: str) -> dict[str, Any]:
        return {"images": [{"filename": name, "subfolder": "", "type": "output"}]}

    workflow = {"1": {"class_type": "PreviewImage"}, "2": {"class_type": "SaveImage"}}
    assert (
        first_image({"1": output("a.png"), "2": output("b.png")}, workflow)["filename"] == "b.png"
    )
    with pytest.raises(DevError, match="SaveImage"):
        first_image({"1": {"text": ["x"]}}, workflow)


def test_stage_table_has_a_line_for_each_node_and_their_sum() -> None:
    stages = Stages({"1": "First"})
    for node in ("1", "2", "1", None):
        stages.enter(node)
    assert [line.split("  ")[1] for line in stages.table().splitlines()] == [
        "First",
        "node 2",
        "all stages",
    ]


def test_the_sheet_is_drawn_from_the_demos_own_prompt_and_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = {
        "a": {"class_type": "LoadImage", "inputs": {"image": "one.png"}},
        "b": {"class_type": "LoadImage", "inputs": {"image": "two.png"}},
        "t": {
            "class_type": "MMDiffTextEncode",
            "inputs": {"text": "a cat<|subj|> and a fish<|subj|>"},
        },
    }
    (tmp_path / "demo.api.json").write_text(json.dumps(workflow))
    called: list[Any] = []
    monkeypatch.setattr(
        demo, "call", lambda command, **options: called.append((command, options)) or 0
    )
    pack, host = make_pack(tmp_path / "mm"), Host(tmp_path / "ComfyUI", Path(sys.executable), False)
    assert draw_sheet(pack, host, tmp_path, tmp_path / "demo.api.json") == 0
    ((command, options),) = called
    assert command[4:6] == [str(tmp_path / "photos" / name) for name in ("one.png", "two.png")]
    assert "a cat<|subj|> and a fish<|subj|>" in command and options["env"]["COMFYUI_PATH"] == str(
        tmp_path / "ComfyUI"
    )


@pytest.mark.parametrize("folder", [DEMO, PORTRAIT_DEMO])
def test_each_demo_has_one_workflow_its_pictures_and_a_note(folder: Path) -> None:
    root = Path(dev.HERE).parent / folder
    (workflow,) = root.glob("*.api.json")
    nodes = json.loads(workflow.read_text(encoding="utf-8")).values()
    assert (root / "NOTE.txt").is_file()
    there = {photo.name for photo in photos_of(root, dev.HERE.parent / demo.PHOTOS)}
    assert {n["inputs"]["image"] for n in nodes if n["class_type"] == "LoadImage"} <= there
