"""Loading the face models: what is there, what is missing, and what is said of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmdiff_core.references import faces
from mmdiff_core.references.faces import loading, runtime

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


@pytest.mark.parametrize("backend", ["built-in", "insightface"])
def test_a_damaged_file_is_reported_with_its_size(tmp_path, backend):
    folder = write_model_pack(tmp_path, "damaged")
    (folder / "det_stand_in.onnx").write_bytes(b"not a model")
    with pytest.raises(
        RuntimeError, match=r"damaged could not be loaded.*det_stand_in.onnx \(11 bytes\)"
    ):
        faces.load_analyser(tmp_path, "damaged", "cpu", backend)


@pytest.mark.parametrize("backend", ["built-in", "insightface"])
@pytest.mark.parametrize(
    ("gone", "task"), [("det_stand_in.onnx", "detection"), ("rec_stand_in.onnx", "recognition")]
)
def test_a_pack_without_a_needed_model_is_refused(tmp_path, gone, task, backend):
    (write_model_pack(tmp_path, "half") / gone).unlink()
    with pytest.raises(FileNotFoundError, match=f"half has no {task} model"):
        faces.load_analyser(tmp_path, "half", "cpu", backend)


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


@pytest.mark.parametrize(
    "name",
    [
        "/etc",
        "..",
        ".",
        "",
        "a/b",
        "a\\b",
        "\\\\server\\share",
        "c:x",
        "\x1b[31m",
        "x" * 999,
        None,
        3,
    ],
)
def test_what_is_no_folders_name_is_refused_before_the_disk_is_touched(tmp_path, monkeypatch, name):
    def touched(*_: object) -> None:
        raise AssertionError("the disk was touched")

    for method in ("is_dir", "is_file", "glob", "stat"):
        monkeypatch.setattr(Path, method, touched)
    with pytest.raises(ValueError, match="is no name of a face model pack") as error:
        faces.load_analyser(tmp_path, name, "cpu")
    assert len(str(error.value)) < 300 and "\x1b" not in str(error.value)


@pytest.mark.parametrize("name", [None, ["a"], {"a": 1}, 3, "../a", "\x00"])
def test_a_value_of_another_kind_from_a_link_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="is no name of a face model pack"):
        faces.find_root([tmp_path], name)


@pytest.mark.parametrize("value", [None, ["auto"], {}, 3, "AUTO", "x" * 9999, "\x1b[31m"])
def test_devices_and_backends_of_another_kind_are_refused_in_a_short_sentence(face_models, value):
    for given in ({"device": value}, {"backend": value}):
        with pytest.raises(
            ValueError, match="^Unknown (device|backend) .* for faces; cho"
        ) as error:
            faces.load_analyser(face_models, "stand_in", **given)
        assert len(str(error.value)) < 250 and "\x1b" not in str(error.value)


def test_folders_that_are_none_and_files_that_are_none_are_not_listed(tmp_path):
    """Listing happens as the server describes its nodes: an error there hides the whole pack."""
    models = tmp_path / "models"
    for name in ("whole", "dangling", "fifo", "folder"):
        (models / name).mkdir(parents=True)
    (models / "whole" / "a.onnx").touch()
    (models / "whole" / "gone.onnx").symlink_to(tmp_path / "gone")
    (models / "dangling" / "a.onnx").symlink_to(tmp_path / "gone")
    os.mkfifo(models / "fifo" / "a.onnx")
    (models / "folder" / "a.onnx").mkdir()
    (models / "circle").symlink_to(models / "circle")
    unprintable = os.fsencode(models) + b"/\xff"
    os.mkdir(unprintable)
    with open(unprintable + b"/a.onnx", "w"):
        pass
    (tmp_path / "file").touch()
    assert list(faces.list_models([tmp_path / "file", tmp_path])) == ["whole"]
    assert "\x1b" not in message_of_missing(tmp_path, "fifo")


def test_a_root_that_cannot_be_read_lists_nothing(tmp_path, monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refused)
    assert faces.list_models([tmp_path]) == {}


# packages
def test_installing_the_pack_asks_for_nothing_that_could_replace_an_onnxruntime():
    """Measured in tests/requirements_experiment.md."""
    lines = (PACK / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    project = (PACK / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = project.partition("\ndependencies = [")[2].partition("]")[0]
    assert re.findall(r'"(.+)"', dependencies) == wanted
    assert not [line for line in wanted if re.match("onnx|insightface|opencv|scikit", line)]


WITHOUT = """
import sys
for name in {absent!r}:
    sys.modules[name] = None
from mmdiff_core.references import faces
from mmdiff_core.references.faces import loading, runtime
assert faces.installed() is ("onnxruntime" not in {absent!r})
try:
    faces.load_analyser(".", "buffalo_l", backend={backend!r})
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("absent", "backend", "told"),
    [
        (["onnxruntime"], "auto", ["onnxruntime"]),
        (["insightface", "onnxruntime"], "built-in", ["onnxruntime"]),
        (["insightface"], "insightface", ["insightface"]),
        (["insightface", "onnxruntime"], "insightface", ["insightface", "onnxruntime"]),
    ],
)
def test_without_the_packages_importing_works_and_loading_says_what_to_install(
    absent, backend, told
):
    code = WITHOUT.format(absent=absent, backend=backend)
    environment = {**os.environ, "PYTHONPATH": str(PACK)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert f"the Python package {' and '.join(told)}, which" in done.stdout
    assert f'"{sys.executable}" -m pip install {" ".join(told)}\n' in done.stdout
    assert "models/insightface/models/buffalo_l" in done.stdout
    assert "non-commercial" in done.stdout


def test_importing_loads_neither_insightface_nor_onnxruntime():
    late = {"insightface", "onnxruntime", "cv2", "torch"}
    code = f"import sys, mmdiff_core.references.faces; assert not {late} & set(sys.modules)"
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(PACK)}, check=True
    )


def test_an_onnxruntime_is_installed():
    assert faces.installed()


@pytest.mark.parametrize(
    ("backend", "package"), [("built-in", "onnxruntime"), ("insightface", "insightface")]
)
def test_a_package_that_cannot_be_imported_says_why(monkeypatch, face_models, backend, package):
    def broken(name):
        raise OSError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(runtime.importlib, "import_module", broken)
    with pytest.raises(ImportError, match=f"{package} is installed but cannot be imported: libGL"):
        faces.load_analyser(face_models, "stand_in", "cpu", backend)


# backends
def test_auto_reads_the_files_itself(analyser):
    assert analyser.backend == "built-in"


def test_an_unknown_backend_lists_the_backends(face_models):
    with pytest.raises(ValueError, match="'evil'.*auto, built-in, insightface"):
        faces.load_analyser(face_models, "stand_in", "cpu", "evil")


def test_a_pack_that_only_the_package_can_read_is_left_to_it(tmp_path, monkeypatch):
    folder = write_model_pack(tmp_path, "newer")
    (folder / "manifest.json").write_text("{}")
    opened = (SimpleNamespace(providers=(faces.CPU,), sizes=()), None)
    monkeypatch.setattr(loading, "open_with_package", lambda *_: opened)
    assert faces.load_analyser(tmp_path, "newer", "cpu").backend == "insightface"
    with pytest.raises(ValueError, match="only the insightface package"):
        faces.load_analyser(tmp_path, "newer", "cpu", "built-in")
