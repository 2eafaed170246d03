"""What dev.py promises about choosing, setting up and talking to a host; nothing is installed or downloaded here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DEV = Path(os.path.abspath(__file__)).parent.parent / "dev.py"


def load() -> ModuleType:
    """dev.py as a module; registered first, because its dataclasses look their module up."""
    spec = importlib.util.spec_from_file_location("mm_diff_dev_script", DEV)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


dev = load()


def make_comfyui(folder: Path) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "custom_nodes").mkdir()
    (folder / "main.py").touch()
    (folder / "comfy" / "cli_args.py").touch()
    return folder


def make_pack(root: Path) -> Any:
    root.mkdir(parents=True)
    return dev.Pack(root)


def make_python(venv: Path) -> Path:
    python = dev.venv_python(venv)
    python.parent.mkdir(parents=True)
    python.touch()
    return python


# ---------------------------------------------------------------- which host


def test_comfyui_path_wins_over_everything(tmp_path: Path) -> None:
    around, other = make_comfyui(tmp_path / "around"), make_comfyui(tmp_path / "other")
    pack = make_pack(around / "custom_nodes" / "mm")
    host = dev.resolve_host(pack, {"COMFYUI_PATH": str(other)})
    assert (host.comfyui, host.own) == (other, False)


def test_pack_in_custom_nodes_finds_the_comfyui_around_it(tmp_path: Path) -> None:
    around = make_comfyui(tmp_path / "around")
    host = dev.resolve_host(make_pack(around / "custom_nodes" / "mm"), {})
    assert (host.comfyui, host.own) == (around, False)


def test_pack_linked_into_custom_nodes_finds_the_comfyui_around_the_link(tmp_path: Path) -> None:
    around, checkout = make_comfyui(tmp_path / "around"), make_pack(tmp_path / "checkout")
    link = around / "custom_nodes" / "mm"
    dev.link_folder(checkout.root, link)
    assert dev.resolve_host(dev.Pack(link), {}).comfyui == around


def test_shell_folder_keeps_the_link_that_the_system_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout, link = make_pack(tmp_path / "checkout"), tmp_path / "link"
    dev.link_folder(checkout.root, link)
    monkeypatch.chdir(link)
    script = Path.cwd() / "dev.py"
    assert dev.find_pack(script, {"PWD": str(link)}).root == link
    assert dev.find_pack(script, {"PWD": str(tmp_path)}).root == Path.cwd()
    assert dev.find_pack(script, {}).root == Path.cwd()


def test_custom_nodes_folder_without_a_comfyui_around_it_is_no_host(tmp_path: Path) -> None:
    assert dev.resolve_host(make_pack(tmp_path / "custom_nodes" / "mm"), {}).own


def test_alone_the_host_is_provided_inside_the_pack(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "mm")
    host = dev.resolve_host(pack, {"COMFYUI_PATH": ""})
    assert host == dev.Host(pack.root / ".host" / "ComfyUI", dev.venv_python(pack.root / ".host" / "venv"), own=True)


@pytest.mark.parametrize(("there", "lacking"), [("main.py", "comfy/"), ("comfy", "main.py")])
def test_wrong_comfyui_path_is_named_with_what_it_lacks(tmp_path: Path, there: str, lacking: str) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / there).mkdir() if there == "comfy" else (wrong / there).touch()
    with pytest.raises(dev.DevError) as caught:
        dev.resolve_host(make_pack(tmp_path / "mm"), {"COMFYUI_PATH": str(wrong)})
    assert str(wrong) in str(caught.value) and f"no {lacking}" in str(caught.value)


def test_python_is_the_given_one_then_the_nearest_environment_then_ours(tmp_path: Path) -> None:
    comfyui = make_comfyui(tmp_path / "ComfyUI")
    assert dev.find_python(comfyui, {}) == Path(sys.executable)
    beside = make_python(tmp_path / "venv")
    assert dev.find_python(comfyui, {}) == beside
    inside = make_python(comfyui / "venv")
    assert dev.find_python(comfyui, {}) == inside
    hidden = make_python(comfyui / ".venv")
    assert dev.find_python(comfyui, {}) == hidden
    assert dev.find_python(comfyui, {"COMFYUI_PYTHON": "mine"}) == Path("mine")


def test_python_that_cannot_run_comfyui_is_an_error_that_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(dev.DevError, match="COMFYUI_PYTHON"):
        dev.probe(dev.Host(tmp_path, tmp_path / "no-python", own=False))


# ---------------------------------------------------------------- stamps, links, replacing


def test_unchanged_requirements_are_not_installed_again_and_changed_ones_are(tmp_path: Path) -> None:
    stamp, runs = tmp_path / "stamps" / "packages", []
    assert dev.ensure(stamp, ["a", "b"], lambda: runs.append(1))
    assert not dev.ensure(stamp, ["a", "b"], lambda: runs.append(2))
    assert dev.ensure(stamp, ["a", "c"], lambda: runs.append(3))
    assert runs == [1, 3]


def test_failed_installation_is_tried_again(tmp_path: Path) -> None:
    stamp = tmp_path / "stamp"
    dev.ensure(stamp, ["old"], lambda: None)

    def fail() -> None:
        raise dev.DevError("no")

    with pytest.raises(dev.DevError):
        dev.ensure(stamp, ["new"], fail)
    assert dev.ensure(stamp, ["old"], lambda: None)


def test_own_packages_are_kept_and_only_missing_ones_are_installed(capsys: pytest.CaptureFixture[str]) -> None:
    plan = {"install": [{"metadata": {"name": "NumPy", "version": "2.0"}},
                        {"metadata": {"name": "py_test", "version": "9.0"}}]}
    assert dev.truly_missing(plan, {"numpy": "1.26"}) == ["py_test==9.0"]
    assert "1.26" in capsys.readouterr().out


def test_link_follows_a_pack_that_moved_and_spares_a_real_folder(tmp_path: Path) -> None:
    first, second, link = make_pack(tmp_path / "1").root, make_pack(tmp_path / "2").root, tmp_path / "c" / "link"
    dev.link_folder(first, link)
    dev.link_folder(second, link)
    assert link.samefile(second)
    (tmp_path / "real" / "work").mkdir(parents=True)
    with pytest.raises(dev.DevError, match="real"):
        dev.link_folder(first, tmp_path / "real")
    assert (tmp_path / "real" / "work").is_dir()


def test_new_comfyui_keeps_the_models_of_the_old_one(tmp_path: Path) -> None:
    tree, new = make_comfyui(tmp_path / "ComfyUI"), make_comfyui(tmp_path / "new")
    (tree / "models" / "loras").mkdir(parents=True)
    (tree / "models" / "loras" / "mine.safetensors").write_text("mine")
    (tree / "stale.py").touch()
    dev.replace_tree(tree, new)
    assert (tree / "models" / "loras" / "mine.safetensors").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ComfyUI"]
    assert not (tree / "stale.py").exists()


def test_models_survive_a_replacement_that_was_interrupted(tmp_path: Path) -> None:
    new, old = make_comfyui(tmp_path / "new"), tmp_path / "ComfyUI.old" / "models"
    old.mkdir(parents=True)
    (old / "mine.safetensors").touch()
    dev.replace_tree(tmp_path / "ComfyUI", new)
    assert (tmp_path / "ComfyUI" / "models" / "mine.safetensors").exists()


# ---------------------------------------------------------------- the newest frontend


class Registry:
    """Stands in for pip: puts a frontend of a version into the folder after --target, or fails."""

    def __init__(self) -> None:
        self.version, self.commands = "1.2.3", []

    def step(self, label: str, command: list[Any], log: Path) -> None:
        self.commands.append([str(part) for part in command])
        if not self.version:
            raise dev.DevError(f"{label} failed")
        target = Path(command[command.index("--target") + 1])
        (target / dev.FRONTEND_IN_PACKAGE).mkdir(parents=True)
        (target / dev.FRONTEND_IN_PACKAGE / "index.html").write_text(self.version)
        (target / f"comfyui_frontend_package-{self.version}.dist-info").mkdir()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    stand_in = Registry()
    monkeypatch.setattr(dev, "step", stand_in.step)
    return stand_in


def make_working_pack(tmp_path: Path) -> Any:
    pack = make_pack(tmp_path / "mm")
    pack.work.mkdir()
    return pack


@pytest.mark.parametrize("own", [True, False])
def test_newest_frontend_is_fetched_once_and_never_into_the_hosts_environment(
    tmp_path: Path, registry: Registry, own: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dev, "venv_python", lambda venv: Path(sys.executable))
    pack = make_working_pack(tmp_path)
    host = dev.Host(tmp_path, Path(sys.executable), own=own)
    static = dev.newest_frontend(pack, host)
    assert static.parent.parent == pack.work / "newest_frontend" and (static / "index.html").read_text() == "1.2.3"
    registry.version = "1.2.4"
    assert dev.newest_frontend(pack, host) == static and "1.2.3" in capsys.readouterr().out.splitlines()[-1]
    (command,) = registry.commands
    assert {"--no-deps", "--target", "comfyui-frontend-package"} <= set(command), "no version is asked for"
    dev.shutil.rmtree(pack.work / "newest_frontend")
    dev.newest_frontend(pack, host)
    assert (static / "index.html").read_text() == "1.2.4", "removed by hand, it is fetched again"
    assert sorted(path.name for path in pack.work.iterdir()) == ["newest_frontend", "stamps"]


def test_frontend_that_cannot_be_fetched_is_told_and_tried_again(
    tmp_path: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    pack, host = make_working_pack(tmp_path), dev.Host(tmp_path, Path(sys.executable), own=False)
    registry.version = ""
    static = dev.newest_frontend(pack, host)
    assert not static.exists() and "the page is not tested with it" in capsys.readouterr().out
    registry.version = "1.2.3"
    assert (dev.newest_frontend(pack, host) / "index.html").is_file()


@pytest.mark.parametrize(("named", "told"), [("", "fetched"), ("of my own", "of my own")])
def test_tests_are_told_where_the_newest_frontend_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, told: str
) -> None:
    calls: list[Any] = []
    monkeypatch.setenv(dev.NEWEST_FRONTEND, named)
    monkeypatch.setattr(dev, "ensure_host", lambda pack: dev.Host(tmp_path, Path(sys.executable), own=False))
    monkeypatch.setattr(dev, "newest_frontend", lambda pack, host: Path("fetched"))
    monkeypatch.setattr(dev.subprocess, "call", lambda command, **options: calls.append(options["env"]) or 0)
    assert dev.run_test(make_pack(tmp_path / "mm"), []) == 0
    assert [env[dev.NEWEST_FRONTEND] for env in calls] == [told]


# ---------------------------------------------------------------- yaml and server


def test_paths_yaml_quotes_any_path_and_lists_several_on_lines() -> None:
    text = dev.paths_yaml({"custom_nodes": [Path("a b"), Path("c")], "mmdiff": [Path("d: #é")]})
    head, nodes, models = text.splitlines()
    assert head == "mm_diff_dev:"
    assert nodes.startswith("  custom_nodes: ") and json.loads(nodes.partition(": ")[2]) == "a b\nc"
    assert json.loads(models.partition(": ")[2]) == "d: #é"


def test_test_models_and_nodes_are_added_only_when_asked_for(tmp_path: Path) -> None:
    host, pack = dev.Host(make_comfyui(tmp_path / "C"), Path("python"), own=False), make_pack(tmp_path / "mm")
    dev.link_folder(pack.root, host.comfyui / "custom_nodes" / "any-name")
    for folder in ("tests/host_nodes", "tests/tiny/models/mmdiff", "tests/tiny/models/insightface"):
        (pack.root / folder).mkdir(parents=True)
    assert dev.extra_paths(host, pack, with_tiny=False) == {}
    paths = dev.extra_paths(host, pack, with_tiny=True)
    assert sorted(paths) == ["custom_nodes", "insightface", "mmdiff"]
    assert paths["custom_nodes"] == [pack.root / "tests/host_nodes"]


def test_pack_outside_a_persons_comfyui_is_added_by_path_and_not_written_into_it(tmp_path: Path) -> None:
    host, pack = dev.Host(make_comfyui(tmp_path / "C"), Path("python"), own=False), make_pack(tmp_path / "mm")
    dev.link_folder(pack.root, pack.work / "custom_nodes" / dev.PACK_NAME)
    command = dev.server_command(pack, host, 8000, with_tiny=False)
    config = Path(command[command.index("--extra-model-paths-config") + 1])
    assert config.parent == pack.work and json.dumps(str(pack.work / "custom_nodes")) in config.read_text("utf-8")
    assert all(str(host.comfyui) not in part for part in command[2:])
    assert list((host.comfyui / "custom_nodes").iterdir()) == []


@pytest.mark.parametrize(("device", "cpu"), [("cpu", True), ("cuda", False), ("mps", False)])
def test_server_uses_the_cpu_only_without_an_accelerator(tmp_path: Path, device: str, cpu: bool) -> None:
    host = dev.Host(make_comfyui(tmp_path / "C"), Path("python"), own=False, device=device)
    assert ("--cpu" in dev.server_command(make_pack(tmp_path / "mm"), host, 1, False)) is cpu


def test_server_that_dies_shows_the_last_forty_lines_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("\n".join(f"line {number}." for number in range(100)), encoding="utf-8")
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    process.wait()
    with pytest.raises(dev.DevError) as caught:
        dev.wait_ready(process, "http://127.0.0.1:1", log)
    assert "exit status 3" in str(caught.value)
    assert "line 99." in str(caught.value) and "line 60." in str(caught.value) and "line 59." not in str(caught.value)


def test_failed_step_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(dev.DevError, match="(?s)Trying failed.*the reason"):
        dev.step("Trying", [sys.executable, "-c", "raise SystemExit('the reason')"], tmp_path / "install.log")


def test_taken_port_is_replaced_by_a_free_one() -> None:
    with dev.socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert dev.free_port(taken.getsockname()[1]) != taken.getsockname()[1]


# ---------------------------------------------------------------- the demo's client


def test_refused_workflow_names_the_node_and_the_fault() -> None:
    answer = {"error": {"message": "Prompt outputs failed validation", "details": ""},
              "node_errors": {"4": {"errors": [{"message": "Value not in list", "details": "adapter: 'x'"}]}}}
    text = dev.refusal(answer, {"4": "Load adapter"})
    assert text.splitlines() == ["Prompt outputs failed validation", "  Load adapter: Value not in list: adapter: 'x'"]


def test_picture_of_save_image_comes_before_a_preview() -> None:
    def output(name: str) -> dict[str, Any]:
        return {"images": [{"filename": name, "subfolder": "", "type": "output"}]}

    workflow = {"1": {"class_type": "PreviewImage"}, "2": {"class_type": "SaveImage"}}
    assert dev.first_image({"1": output("a.png"), "2": output("b.png")}, workflow)["filename"] == "b.png"
    with pytest.raises(dev.DevError, match="SaveImage"):
        dev.first_image({"1": {"text": ["x"]}}, workflow)


def test_stage_table_has_a_line_for_each_node_and_their_sum() -> None:
    stages = dev.Stages({"1": "First"})
    for node in ("1", "2", "1", None):
        stages.enter(node)
    assert [line.split("  ")[1] for line in stages.table().splitlines()] == ["First", "node 2", "all stages"]


def test_the_sheet_is_drawn_from_the_demos_own_prompt_and_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workflow = {"a": {"class_type": "LoadImage", "inputs": {"image": "one.png"}}, "b": {"class_type": "LoadImage", "inputs": {"image": "two.png"}},
                "t": {"class_type": "MMDiffTextEncode", "inputs": {"text": "a cat<|subj|> and a fish<|subj|>"}}}
    (tmp_path / "demo.api.json").write_text(dev.json.dumps(workflow))
    called: list[Any] = []
    monkeypatch.setattr(dev.subprocess, "call", lambda command, **options: called.append((command, options)) or 0)
    pack, host = make_pack(tmp_path / "mm"), dev.Host(tmp_path / "ComfyUI", Path(sys.executable), False)
    assert dev.draw_sheet(pack, host, tmp_path, tmp_path / "demo.api.json") == 0
    (command, options), = called
    assert command[4:6] == [str(tmp_path / "photos" / name) for name in ("one.png", "two.png")]
    assert "a cat<|subj|> and a fish<|subj|>" in command and options["env"]["COMFYUI_PATH"] == str(tmp_path / "ComfyUI")


@pytest.mark.parametrize("folder", [dev.DEMO, dev.PORTRAIT_DEMO])
def test_each_demo_has_one_workflow_its_pictures_and_a_note(folder: Path) -> None:
    root = Path(dev.HERE).parent / folder
    workflow, = root.glob("*.api.json")
    nodes = dev.json.loads(workflow.read_text(encoding="utf-8")).values()
    assert (root / "NOTE.txt").is_file()
    assert {n["inputs"]["image"] for n in nodes if n["class_type"] == "LoadImage"} <= {photo.name for photo in dev.photos_of(root)}


# ---------------------------------------------------------------- arguments


def test_arguments_after_the_command_are_passed_on_untouched() -> None:
    assert dev.split_arguments(["test", "-k", "x", "--help"]) == ("test", ["-k", "x", "--help"])


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["-x"]])
def test_unknown_command_is_refused_with_the_known_ones(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        dev.split_arguments(argv)
    assert "serve" in capsys.readouterr().err


def test_whole_test_folder_runs_unless_a_file_of_it_is_named(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "mm")
    (pack.root / "tests").mkdir()
    (pack.root / "tests" / "test_a.py").touch()
    assert dev.pytest_arguments(pack, ["-k", "word"])[-1] == str(pack.root / "tests")
    assert dev.pytest_arguments(pack, ["tests/test_a.py::test_b"])[-1] == "tests/test_a.py::test_b"


def test_problem_becomes_a_message_and_exit_status_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.setattr(dev.signal, "signal", lambda *_: None)
    assert dev.main(["host"]) == 1
    assert str(tmp_path) in capsys.readouterr().err
