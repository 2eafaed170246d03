"""Loading the face models: what is there, what is missing, and what is said of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmdiff_core.references import faces

from support.faces import THREE, picture
from support.onnx_stand_ins import write_model_pack
from support.paths import PACK


# model files
def message_of_missing(face_models: Path, name: str = "buffalo_l") -> str:
    with pytest.raises(FileNotFoundError) as error:
        faces.load_analyser(face_models, name, "cpu")
    return str(error.value)


def test_missing_models_are_named_and_never_downloaded(tmp_path, no_network):
    message = message_of_missing(tmp_path)
    assert str(tmp_path / "models" / "buffalo_l") in message
    for part in (
        "det_10g.onnx",
        "w600k_r50.onnx",
        "non-commercial research only",
        "Nothing is downloaded",
    ):
        assert part in message
    assert no_network == []
    assert list(tmp_path.iterdir()) == []


def test_loading_and_detecting_need_no_network(face_models, no_network):
    assert faces.load_analyser(face_models, "stand_in", "cpu").detect(picture(*THREE))
    assert no_network == []


def test_one_missing_file_is_named(tmp_path):
    folder = tmp_path / "models" / "buffalo_l"
    folder.mkdir(parents=True)
    (folder / "det_10g.onnx").touch()
    assert "has det_10g.onnx but not w600k_r50.onnx" in message_of_missing(tmp_path)


@pytest.mark.parametrize(
    "place", ["models/buffalo_l/buffalo_l", "models", "buffalo_l", "buffalo_l/buffalo_l", "."]
)
def test_models_unpacked_too_deep_or_too_shallow_are_found_and_explained(tmp_path, place):
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "det_10g.onnx").touch()
    (folder / "w600k_r50.onnx").touch()
    assert "buffalo_l" not in faces.list_models([tmp_path])
    message = message_of_missing(tmp_path)
    assert f"Found det_10g.onnx, w600k_r50.onnx in {folder}: move them into that folder" in message


def test_a_pack_that_is_still_zipped_is_found(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "buffalo_l.zip").touch()
    assert f"{tmp_path / 'models' / 'buffalo_l.zip'} still packed" in message_of_missing(tmp_path)


def test_a_damaged_file_is_reported_with_its_size(tmp_path):
    folder = write_model_pack(tmp_path, "damaged")
    (folder / "det_stand_in.onnx").write_bytes(b"not a model")
    with pytest.raises(
        RuntimeError, match=r"damaged could not be loaded.*det_stand_in.onnx \(11 bytes\)"
    ):
        faces.load_analyser(tmp_path, "damaged", "cpu")


@pytest.mark.parametrize(
    ("gone", "task"), [("det_stand_in.onnx", "detection"), ("rec_stand_in.onnx", "recognition")]
)
def test_a_pack_without_a_needed_model_is_refused(tmp_path, gone, task):
    (write_model_pack(tmp_path, "half") / gone).unlink()
    with pytest.raises(FileNotFoundError, match=f"half has no {task} model"):
        faces.load_analyser(tmp_path, "half", "cpu")


def test_model_packs_are_listed_by_name_and_the_first_root_counts(tmp_path):
    for root, name in (("one", "a"), ("one", "b"), ("two", "b"), ("two", "c")):
        folder = tmp_path / root / "models" / name
        folder.mkdir(parents=True)
        (folder / "x.onnx").touch()
    (tmp_path / "one" / "models" / "empty").mkdir()
    roots = [tmp_path / "absent", tmp_path / "one", tmp_path / "two"]
    assert faces.list_models(roots) == {
        "a": tmp_path / "one",
        "b": tmp_path / "one",
        "c": tmp_path / "two",
    }


# packages
WITHOUT = """
import sys
for name in {absent!r}:
    sys.modules[name] = None
from mmdiff_core.references import faces
assert not faces.installed()
try:
    faces.load_analyser(".", "buffalo_l")
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "absent", [("insightface",), ("onnxruntime",), ("insightface", "onnxruntime")]
)
def test_without_the_packages_importing_works_and_loading_says_what_to_install(absent):
    code = WITHOUT.format(absent=absent)
    environment = {**os.environ, "PYTHONPATH": str(PACK)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert f'"{sys.executable}" -m pip install {" ".join(absent)}\n' in done.stdout
    assert "models/insightface/models/buffalo_l" in done.stdout
    assert "non-commercial" in done.stdout


def test_importing_loads_neither_insightface_nor_onnxruntime():
    late = {"insightface", "onnxruntime", "cv2", "torch"}
    code = f"import sys, mmdiff_core.references.faces; assert not {late} & set(sys.modules)"
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(PACK)}, check=True
    )


def test_the_packages_are_installed():
    assert faces.installed()


def test_a_package_that_cannot_be_imported_says_why(monkeypatch, face_models):
    def broken(name):
        raise OSError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(faces.importlib, "import_module", broken)
    with pytest.raises(ImportError, match="insightface is installed but cannot be imported: libGL"):
        faces.load_analyser(face_models, "stand_in", "cpu")
