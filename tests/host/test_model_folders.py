"""Model folders: links in them are fine, names decide what is inside, and no name crashes."""

from __future__ import annotations

import importlib
import os
import random
import shutil

import pytest

from support.cases import CHECKPOINT
from support.every_node import prompt_with
from support.in_process import Refused, load_pack


@pytest.fixture(scope="module")
def files(host):
    return importlib.import_module(
        f"{load_pack().__name__.rpartition('.')[0]}.mmdiff_core.host.files"
    )


def link(to, path) -> None:
    try:
        path.symlink_to(to, target_is_directory=to.is_dir())
    except OSError:
        if os.name != "nt":  # there it is a right that an account may lack
            raise
        pytest.skip("this account may not make links")


@pytest.mark.parametrize("way", ["file", "folder", "folder in a folder"])
def test_a_saved_subject_behind_a_link_is_offered_and_loads(host, files, tmp_path, way):
    kept = tmp_path / "elsewhere"
    kept.mkdir()
    shutil.copy(host.subjects / "ann.safetensors", kept / "eve.safetensors")
    name = f"linked {way.replace(' ', '_')}"
    if way == "file":
        link(kept / "eve.safetensors", host.subjects / f"{name}.safetensors")
        offered = f"{name}.safetensors"
    else:
        (host.subjects / "deep").mkdir(exist_ok=True)
        prefix = "deep/" if way == "folder in a folder" else ""
        link(kept, host.subjects / f"{prefix}{name}")
        offered = f"{prefix}{name}/eve.safetensors"
    assert offered.replace("/", os.sep) in files.list_subjects()
    host.run(prompt_with(host, "MMDiffLoadSubject", file=offered.replace("/", os.sep)))


def test_a_checkpoint_behind_a_link_is_offered_and_loads(host, files, tmp_path):
    link(CHECKPOINT, host.checkpoints / "linked-portrait")
    assert "linked-portrait" in files.list_checkpoints()
    host.run(prompt_with(host, "MMDiffLoad", checkpoint="linked-portrait"))


def test_a_subject_is_saved_into_a_linked_folder(host, tmp_path):
    link(tmp_path, host.subjects / "family")
    host.run(prompt_with(host, "MMDiffSaveSubject", prefix="family/"))
    assert (tmp_path / "ann.safetensors").is_file()


@pytest.mark.parametrize("name, message", [
    ("../x", "points outside"), ("a/../../x", "points outside"), ("/etc/x", "points outside"),
    ("a/../x", "points outside"), ("anna/", "names a folder and no file in it"),
    ("", "names a folder and no file in it"), (" ", "names a folder and no file in it"),
    ("a/.", "names a folder and no file in it"), ("x" * 300, "too long .300 bytes"),
    ("é" * 150, "too long .300 bytes"), ("a/" * 400 + "x/" * 400 + "x", "too long"),
])  # fmt: skip
@pytest.mark.parametrize("how", ["subject", "checkpoint"])
def test_a_name_that_is_no_file_of_the_folder_is_told_why(files, name, message, how):
    with pytest.raises(ValueError, match=message) as error:
        files.subject_path(name, True) if how == "subject" else files.target_path(name)
    assert len(str(error.value)) < 600


def test_made_up_names_stay_inside_the_folder_or_are_refused(host, files):
    choose = random.Random(5)
    letters = ["a", "b", ".", "..", "/", "\\", ":", "C:", "~", " ", "\n", "\0", "é", "安", "\ud800"]
    letters += ["x" * 100, "*", "?", "|", "con", "-", "%2e", "\u202e"]
    root = host.subjects.resolve()
    for _ in range(3000):
        name = "".join(choose.choices(letters, k=choose.randint(0, 6)))
        for find in (lambda n: files.subject_path(n, True), files.target_path):
            try:
                path = find(name)
            except ValueError as error:
                assert len(str(error)) < 600 and "\n" not in str(error), repr(name)
                continue
            assert os.path.normpath(path).startswith((str(root), str(host.checkpoints)))
            assert path.name not in ("", ".", ".."), repr(name)


def test_a_graph_from_another_system_finds_a_subject_in_a_folder(host, files):
    host.run(prompt_with(host, "MMDiffSaveSubject", prefix="two/"))
    for name in ("two/ann.safetensors", r"two\ann.safetensors"):
        assert files.find_subject(name) == host.subjects / "two/ann.safetensors"


def test_a_folder_that_cannot_be_written_is_told_with_the_reason(host):
    (host.subjects / "blocked").write_text("a file where a folder should be")
    with pytest.raises(Refused, match="'ann' cannot be saved as .*check that the folder") as error:
        host.run(prompt_with(host, "MMDiffSaveSubject", prefix="blocked/"))
    assert error.value.own


def test_a_linked_file_is_read_again_when_a_file_has_changed(host):
    loader = host.classes["MMDiffLoadSubject"]
    before = loader.fingerprint_inputs(name="", weight=1.0)
    os.utime(host.subjects / "ann.safetensors", (4e9, 4e9))
    assert loader.fingerprint_inputs(name="", weight=1.0) != before
    assert loader.fingerprint_inputs(file="gone") == ""
