"""MM-Diff Doctor reports: what is there, what is not and where it comes from.

And it is never stopped by what it finds.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmdiff_core.checkpoints.released import FILES
from mmdiff_core.commands import main
from mmdiff_core.host import doctor, start
from mmdiff_core.host.doctor import MISSING, NOTE, OK, SOURCES, Line, looking
from mmdiff_core.references import faces
from mmdiff_core.references.faces import runtime

from support.doctor_example import LINES
from support.paths import PACK
from support.server import Server

TINY = PACK / "tests/tiny/models/mmdiff/tiny-portrait"
WHOLE = {
    "MM-Diff": "0.1.0",
    "Python": "3.11.7",
    "ComfyUI": "0.3.75",
    **dict.fromkeys(doctor.PACKAGES, "1.0"),
}


def states(lines: list[Line]) -> list[str]:
    return [line.state for line in lines]


def text_of(lines: list[Line], state: str) -> str:
    return "\n".join(line.text for line in lines if line.state == state)


def weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    save_file(
        {name: torch.zeros(shape, dtype=torch.uint8) for name, shape in shapes.items()}, str(path)
    )
    return path


# ---------------------------------------------------------------- lines


def test_a_whole_installation_is_ok_in_every_version_line():
    lines = doctor.version_lines(WHOLE, "cuda:0 Some GPU")
    assert set(states(lines)) == {OK} and "torch 1.0, computing on cuda:0 Some GPU" in text_of(
        lines, OK
    )


@pytest.mark.parametrize("name", doctor.PACKAGES)
def test_a_package_that_is_not_installed_is_missing_and_told_what_for(name):
    lines = doctor.version_lines({**WHOLE, name: None}, "cpu")
    assert text_of(lines, MISSING) == f"{name} is not installed; needed for {doctor.PACKAGES[name]}"


def test_a_comfyui_that_is_too_old_is_noted_and_none_at_all_is_missing():
    assert "0.3.9 is older than 0.3.75" in text_of(
        doctor.version_lines({**WHOLE, "ComfyUI": "0.3.9"}, "cpu"), NOTE
    )
    assert set(states(doctor.version_lines({**WHOLE, "ComfyUI": "0.33.0"}, "cpu"))) == {OK}
    assert "no ComfyUI found" in text_of(
        doctor.version_lines({**WHOLE, "ComfyUI": None}, "cpu"), MISSING
    )


def test_a_gpu_build_that_the_cpu_build_shadows_is_noted_with_the_line_that_repairs_it():
    both = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
    shadowed = doctor.runtime_lines(
        both, None, [faces.CPU], faces.provider_advice(both, [faces.CPU], cuda_wanted=False)
    )
    assert "--force-reinstall --no-deps onnxruntime-gpu==1.31.1" in text_of(shadowed, NOTE)
    offered = [faces.CUDA, faces.CPU]
    fine = doctor.runtime_lines(
        both, None, offered, faces.provider_advice(both, offered, cuda_wanted=True)
    )
    assert set(states(fine)) == {OK} and "does not shadow" in text_of(fine, OK)
    other = doctor.runtime_lines(
        {"onnxruntime": "1.32.0", "onnxruntime-directml": "1.24.4"}, None, [faces.CPU], None
    )
    assert set(states(other)) == {OK} and "shadow" not in text_of(other, OK)


def test_without_an_onnxruntime_the_report_says_what_to_run_and_goes_on(monkeypatch):
    monkeypatch.setattr(runtime, "missing_packages", lambda *names: ["onnxruntime"])
    monkeypatch.setattr(faces, "runtimes", dict)
    (line,) = doctor.look_at_runtimes()
    assert line.state == MISSING and f"-m pip install {runtime.runtime_package()}" in line.text


def test_without_insightface_nothing_is_missing(monkeypatch):
    monkeypatch.setattr(looking, "_version_of", lambda package: None)
    assert MISSING not in states(doctor.look_at_runtimes())


def test_a_package_that_is_there_but_broken_is_missing_too(monkeypatch):
    def broken(name: str) -> None:
        raise ImportError(f"{name} is installed but cannot be imported")

    monkeypatch.setattr(runtime, "import_package", broken)
    assert "cannot be imported" in text_of(doctor.look_at_runtimes(), MISSING)


def test_a_folder_line_says_which_of_the_folders_do_not_exist(tmp_path):
    line = doctor.folder_line("mmdiff", [tmp_path, tmp_path / "gone"])
    assert line.state == OK and f"{tmp_path / 'gone'} (does not exist)" in line.text
    assert doctor.folder_line("mmdiff", [tmp_path / "gone"]).state == NOTE


def test_a_whole_checkpoint_folder_is_ok_and_every_wrong_file_of_another_is_named(tmp_path):
    assert states(doctor.adapter_lines([TINY], [], FILES)) == [OK]
    folder = shutil.copytree(TINY, tmp_path / "portrait_generation")
    (folder / FILES[0]).unlink()
    (folder / FILES[1]).write_bytes(b"")
    (folder / FILES[2]).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    first, advice = doctor.adapter_lines([folder], [], FILES)
    assert (first.state, advice.state) == (MISSING, MISSING)
    assert first.text == (
        f"portrait_generation: {FILES[0]} is missing; {FILES[1]} is empty; "
        f"{FILES[2]} is a Git LFS pointer, not the file itself"
    )


def test_a_web_page_saved_as_a_model_is_noticed(tmp_path):
    page = tmp_path / "mm-diff.safetensors"
    page.write_text("\n<!DOCTYPE html><html>not found</html>")
    assert "mm-diff.safetensors is a web page" in text_of(
        doctor.adapter_lines([], [page], FILES), NOTE
    )


@pytest.mark.parametrize(
    "signs, folder", [(doctor.VIT_L14, "clip_vision"), (doctor.SDXL, "checkpoints")]
)
def test_a_model_is_known_by_its_header_not_by_its_name(tmp_path, signs, folder):
    other = weights(tmp_path / "clip_vit_l14_sdxl.safetensors", dict.fromkeys(signs, (1, 2)))
    right = weights(tmp_path / "model.safetensors", {**signs, "more": (1,)})
    damaged = tmp_path / "cut.safetensors"
    damaged.write_bytes(right.read_bytes()[:40])
    assert states(
        doctor.kind_lines("x", [other, damaged, right], "the kind", signs, SOURCES[folder])
    ) == [OK]
    (line,) = doctor.kind_lines("x", [other, damaged], "the kind", signs, SOURCES[folder])
    assert (
        line.state == MISSING
        and "none of the 2 files is the kind" in line.text
        and SOURCES[folder].page in line.text
    )


def test_a_file_that_cannot_be_looked_into_is_not_called_missing(tmp_path):
    (tmp_path / "old.ckpt").write_bytes(b"PK\x03\x04 something")
    (line,) = doctor.kind_lines(
        "x", [tmp_path / "old.ckpt"], "the kind", doctor.SDXL, SOURCES["checkpoints"]
    )
    assert line.state == NOTE and "old.ckpt" in line.text


def test_an_incomplete_face_pack_is_told_in_the_words_of_the_face_loader(tmp_path):
    folder = tmp_path / "models/buffalo_l"
    folder.mkdir(parents=True)
    (folder / "det_10g.onnx").write_bytes(b"")
    with pytest.raises(FileNotFoundError) as error:
        faces.check_files(tmp_path, "buffalo_l")
    lines = doctor.face_pack_lines(faces.list_models([tmp_path]), str(error.value), faces.LICENCE)
    assert "det_10g.onnx is empty" in text_of(lines, NOTE)
    assert "but not w600k_r50.onnx" in text_of(lines, MISSING) and "non-commercial" in text_of(
        lines, MISSING
    )


def test_the_report_counts_groups_and_indents():
    lines = [Line(OK, "A", "one"), Line(MISSING, "B", "two\nRun: this"), Line(NOTE, "A", "three")]
    assert doctor.render(lines) == (
        "MM-Diff Doctor: 1 missing, 1 note\n\nA\n  ok      one\n  note    three\n\n"
        "B\n  missing two\n          Run: this"
    )


def test_the_table_begins_with_what_is_missing_and_has_each_state_by_word_and_by_colour():
    table = doctor.as_table(LINES)
    parts = re.findall(r"<th.*?>(.*?)</th>", table)
    assert parts == ["MM-Diff checkpoints", "Folders", "Versions"]
    badges = re.findall(r"background:(#\w{6}).*?>(\w+)</span>", table)
    assert badges == [(doctor.COLOURS[state], state) for state in (MISSING, NOTE, OK, OK)]
    assert len(set(doctor.COLOURS.values())) == 3


def test_an_address_in_the_table_is_a_link_and_what_a_folder_is_called_is_no_markup():
    text = '<b>&"x see https://example.org/a?b=1&c, twice\nRun'
    table = doctor.as_table([Line(NOTE, "A", text)])
    assert "&lt;b&gt;&amp;&quot;x see " in table and "twice<br>Run" in table
    assert 'href="https://example.org/a?b=1&amp;c"' in table and "\n\n" not in table


@pytest.mark.parametrize("page", ["MMDiffDoctor.md", "MMDiffDoctor/zh.md"])
def test_the_help_page_shows_the_table_as_the_doctor_writes_it(page):
    assert f"\n\n{doctor.as_table(LINES)}\n" in (PACK / "web/docs" / page).read_text("utf-8")


# ---------------------------------------------------------------- looking


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A host with no model in any folder, and no network."""
    import folder_paths

    for name in doctor.FOLDERS:
        monkeypatch.setitem(
            folder_paths.folder_names_and_paths, name, ([str(tmp_path / name)], {".safetensors"})
        )
        folder_paths.filename_list_cache.pop(name, None)
    monkeypatch.setattr(
        socket.socket, "connect", lambda *_: pytest.fail("the doctor went to the network")
    )
    yield tmp_path
    for name in doctor.FOLDERS:
        folder_paths.filename_list_cache.pop(name, None)


def test_with_nothing_there_every_model_is_missing_with_page_and_licence_and_nothing_is_made(bare):
    lines = doctor.examine()
    told = text_of([line for line in lines if line.part not in ("Versions", "Faces")], MISSING)
    for source in SOURCES.values():
        assert source.page in told and source.licence.split(",")[0] in told
    assert not list(bare.iterdir())


def test_one_part_that_cannot_be_looked_at_does_not_stop_the_others(bare, monkeypatch):
    monkeypatch.setattr(
        looking, "look_at_folders", lambda: (_ for _ in ()).throw(PermissionError("not yours"))
    )
    lines = doctor.examine()
    assert "could not be checked: PermissionError: not yours" in text_of(lines, NOTE)
    assert {line.part for line in lines} >= {
        "Versions",
        "Faces",
        "Folders",
        "Face models",
        "Saved subjects",
    }


def test_the_command_without_a_comfyui_still_reports(bare, monkeypatch, capsys):
    monkeypatch.setattr(
        start,
        "use_comfyui",
        lambda: (_ for _ in ()).throw(FileNotFoundError("no ComfyUI found: put this pack")),
    )
    page = ["--html", str(bare / "report.html")]
    assert main(["doctor", "--extra-model-paths-config", str(bare / "gone.yaml"), *page]) == 0
    said = capsys.readouterr().out
    page = (bare / "report.html").read_text("utf-8")
    assert page.startswith("<!DOCTYPE html>") and "no ComfyUI found: put this pack" in page
    assert (
        "missing no ComfyUI found: put this pack" in said
        and "gone.yaml not found" in said
        and "Versions" in said
    )


def test_the_command_sees_the_folders_it_is_told_of(tmp_path):
    config = tmp_path / "paths.yaml"
    config.write_text(f"tests:\n  mmdiff: {TINY.parent}\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mmdiff_core", "doctor", "--extra-model-paths-config", str(config)],
        cwd=PACK,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONUTF8": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (
        f"ok      mmdiff: {TINY.parent}" in done.stdout
        and "ok      tiny-portrait: all 3 files found" in done.stdout
    )


def test_the_node_reports_through_a_server_and_looks_anew_each_time(server: Server):
    graph = {
        "doctor": {"class_type": "MMDiffDoctor", "inputs": {}},
        "show": {"class_type": "PreviewAny", "inputs": {"source": ["doctor", 0]}},
    }
    outputs = server.run(graph)["outputs"]
    (report,) = outputs["doctor"]["text"]
    lines = [Line(**line) for line in outputs["doctor"]["lines"]]
    assert doctor.render(lines) == report, "the node's table is made of these lines"
    assert report.startswith("MM-Diff Doctor: ") and list(outputs["show"]["text"]) == [report]
    for part in ("ok      ComfyUI ", "ok      tiny-portrait: all 3 files found", "stand_in in "):
        assert part in report
    damaged = server.home / "mmdiff_subjects/doctor_test.safetensors"
    damaged.write_bytes(b"")
    try:
        (again,) = server.run(graph)["outputs"]["doctor"]["text"]
    finally:
        damaged.unlink()
    assert "doctor_test.safetensors is empty" in again
