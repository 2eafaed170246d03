"""Which ComfyUI and which Python dev.py chooses, and how it sets them up.

Nothing is installed or downloaded here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dev_parts.adopt import truly_missing
from dev_parts.folders import ensure, link_folder, replace_tree
from dev_parts.host import Host, Pack, find_pack, find_python, probe, resolve_host, venv_python
from dev_parts.process import DevError

from support.folders import make_comfyui, make_pack, make_python

# ---------------------------------------------------------------- which host


def test_comfyui_path_wins_over_everything(tmp_path: Path) -> None:
    around, other = make_comfyui(tmp_path / "around"), make_comfyui(tmp_path / "other")
    pack = make_pack(around / "custom_nodes" / "mm")
    host = resolve_host(pack, {"COMFYUI_PATH": str(other)})
    assert (host.comfyui, host.own) == (other, False)


def test_pack_in_custom_nodes_finds_the_comfyui_around_it(tmp_path: Path) -> None:
    around = make_comfyui(tmp_path / "around")
    host = resolve_host(make_pack(around / "custom_nodes" / "mm"), {})
    assert (host.comfyui, host.own) == (around, False)


def test_pack_linked_into_custom_nodes_finds_the_comfyui_around_the_link(tmp_path: Path) -> None:
    around, checkout = make_comfyui(tmp_path / "around"), make_pack(tmp_path / "checkout")
    link = around / "custom_nodes" / "mm"
    link_folder(checkout.root, link)
    assert resolve_host(Pack(link), {}).comfyui == around


def test_shell_folder_keeps_the_link_that_the_system_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, link = make_pack(tmp_path / "checkout"), tmp_path / "link"
    link_folder(checkout.root, link)
    monkeypatch.chdir(link)
    script = Path.cwd() / "dev.py"
    assert find_pack(script, {"PWD": str(link)}).root == link
    assert find_pack(script, {"PWD": str(tmp_path)}).root == Path.cwd()
    assert find_pack(script, {}).root == Path.cwd()


def test_custom_nodes_folder_without_a_comfyui_around_it_is_no_host(tmp_path: Path) -> None:
    assert resolve_host(make_pack(tmp_path / "custom_nodes" / "mm"), {}).own


def test_alone_the_host_is_provided_inside_the_pack(tmp_path: Path) -> None:
    pack = make_pack(tmp_path / "mm")
    host = resolve_host(pack, {"COMFYUI_PATH": ""})
    assert host == Host(
        pack.root / ".host" / "ComfyUI", venv_python(pack.root / ".host" / "venv"), own=True
    )


@pytest.mark.parametrize(("there", "lacking"), [("main.py", "comfy/"), ("comfy", "main.py")])
def test_wrong_comfyui_path_is_named_with_what_it_lacks(
    tmp_path: Path, there: str, lacking: str
) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / there).mkdir() if there == "comfy" else (wrong / there).touch()
    with pytest.raises(DevError) as caught:
        resolve_host(make_pack(tmp_path / "mm"), {"COMFYUI_PATH": str(wrong)})
    assert str(wrong) in str(caught.value) and f"no {lacking}" in str(caught.value)


def test_python_is_the_given_one_then_the_nearest_environment_then_ours(tmp_path: Path) -> None:
    comfyui = make_comfyui(tmp_path / "ComfyUI")
    assert find_python(comfyui, {}) == Path(sys.executable)
    beside = make_python(tmp_path / "venv")
    assert find_python(comfyui, {}) == beside
    inside = make_python(comfyui / "venv")
    assert find_python(comfyui, {}) == inside
    hidden = make_python(comfyui / ".venv")
    assert find_python(comfyui, {}) == hidden
    assert find_python(comfyui, {"COMFYUI_PYTHON": "mine"}) == Path("mine")


def test_python_that_cannot_run_comfyui_is_an_error_that_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(DevError, match="COMFYUI_PYTHON"):
        probe(Host(tmp_path, tmp_path / "no-python", own=False))


# ---------------------------------------------------------------- stamps, links, replacing


def test_unchanged_requirements_are_not_installed_again_and_changed_ones_are(
    tmp_path: Path,
) -> None:
    stamp, runs = tmp_path / "stamps" / "packages", []
    assert ensure(stamp, ["a", "b"], lambda: runs.append(1))
    assert not ensure(stamp, ["a", "b"], lambda: runs.append(2))
    assert ensure(stamp, ["a", "c"], lambda: runs.append(3))
    assert runs == [1, 3]


def test_failed_installation_is_tried_again(tmp_path: Path) -> None:
    stamp = tmp_path / "stamp"
    ensure(stamp, ["old"], lambda: None)

    def fail() -> None:
        raise DevError("no")

    with pytest.raises(DevError):
        ensure(stamp, ["new"], fail)
    assert ensure(stamp, ["old"], lambda: None)


def test_own_packages_are_kept_and_only_missing_ones_are_installed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = {
        "install": [
            {"metadata": {"name": "NumPy", "version": "2.0"}},
            {"metadata": {"name": "py_test", "version": "9.0"}},
        ]
    }
    assert truly_missing(plan, {"numpy": "1.26"}) == ["py_test==9.0"]
    assert "1.26" in capsys.readouterr().out


def test_an_onnxruntime_of_another_package_is_not_hidden_by_ours() -> None:
    plan = {"install": [{"metadata": {"name": "onnxruntime", "version": "1.32.0"}}]}
    assert truly_missing(plan, {"onnxruntime-gpu": "1.31.1"}) == []
    assert truly_missing(plan, {"numpy": "1.26"}) == ["onnxruntime==1.32.0"]


def test_link_follows_a_pack_that_moved_and_spares_a_real_folder(tmp_path: Path) -> None:
    first, second, link = (
        make_pack(tmp_path / "1").root,
        make_pack(tmp_path / "2").root,
        tmp_path / "c" / "link",
    )
    link_folder(first, link)
    link_folder(second, link)
    assert link.samefile(second)
    (tmp_path / "real" / "work").mkdir(parents=True)
    with pytest.raises(DevError, match="real"):
        link_folder(first, tmp_path / "real")
    assert (tmp_path / "real" / "work").is_dir()


def test_new_comfyui_keeps_the_models_of_the_old_one(tmp_path: Path) -> None:
    tree, new = make_comfyui(tmp_path / "ComfyUI"), make_comfyui(tmp_path / "new")
    (tree / "models" / "loras").mkdir(parents=True)
    (tree / "models" / "loras" / "mine.safetensors").write_text("mine")
    (tree / "stale.py").touch()
    replace_tree(tree, new)
    assert (tree / "models" / "loras" / "mine.safetensors").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ComfyUI"]
    assert not (tree / "stale.py").exists()


def test_models_survive_a_replacement_that_was_interrupted(tmp_path: Path) -> None:
    new, old = make_comfyui(tmp_path / "new"), tmp_path / "ComfyUI.old" / "models"
    old.mkdir(parents=True)
    (old / "mine.safetensors").touch()
    replace_tree(tmp_path / "ComfyUI", new)
    assert (tmp_path / "ComfyUI" / "models" / "mine.safetensors").exists()
