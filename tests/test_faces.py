"""Faces: InsightFace's own code runs on small stand-in models; "faces" are magenta discs on grey."""
from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from insightface.utils import face_align

from mmdiff_core.references import faces

from onnx_stand_ins import write_model_pack

PACK = Path(__file__).resolve().parent.parent
GREY = (128, 128, 128)
MAGENTA = (255, 0, 255)
SQUARES = ((255, 255, 0), (0, 0, 0), (0, 255, 255))
GPU_BUILD = ("TensorrtExecutionProvider", faces.CUDA, faces.CPU)
BOTH = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}


def picture(*discs: tuple[int, int, int], size: tuple[int, int] = (600, 900)) -> np.ndarray:
    """Discs (x, y, radius) on grey; each before a square of its own colour, so that embeddings differ."""
    image = np.full((*size, 3), GREY, np.uint8)
    for (x, y, radius), behind in zip(discs, SQUARES, strict=False):
        cv2.rectangle(image, (x - radius, y - radius), (x + radius, y + radius), behind, -1)
        cv2.circle(image, (x, y), radius, MAGENTA, -1)
    return image


THREE = ((150, 200, 40), (500, 300, 90), (750, 150, 60))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("insightface")
    write_model_pack(folder)
    return folder


@pytest.fixture(scope="module")
def analyser(root: Path) -> faces.FaceAnalyser:
    return faces.load_analyser(root, "stand_in", "cpu")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    attempts: list[object] = []

    def refuse(*args: object, **_: object) -> None:
        attempts.append(args)
        raise OSError("this test allows no network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    return attempts


def middles(found: tuple[faces.Face, ...]) -> list[tuple[float, float]]:
    return [((f.box[0] + f.box[2]) / 2, (f.box[1] + f.box[3]) / 2) for f in found]


def near(face: faces.Face, disc: tuple[int, int, int], tolerance: float) -> bool:
    x, y, radius = disc
    return bool(np.allclose(face.box, (x - radius, y - radius, x + radius, y + radius), atol=tolerance))


# finding and choosing

def test_faces_come_left_to_right(analyser):
    found = analyser.detect(picture(THREE[2], THREE[0], THREE[1]))
    assert len(found) == 3
    for face, disc in zip(found, THREE, strict=True):
        assert near(face, disc, 12)
        assert 0.5 <= face.score <= 1
        assert face.landmarks.shape == (5, 2)


def test_the_largest_face_is_the_default(analyser):
    assert near(analyser.pick(picture(*THREE)), THREE[1], 12)


@pytest.mark.parametrize("which", [1, 2, 3])
def test_the_nth_face_counts_from_the_left(analyser, which):
    assert near(analyser.pick(picture(*THREE), which), THREE[which - 1], 12)


def test_a_face_number_that_is_too_big_says_how_many_there_are(analyser):
    with pytest.raises(ValueError, match=r"Anna, picture 2.*face 4.*there are 3 faces.*1 to 3"):
        analyser.pick(picture(*THREE), 4, "Anna, picture 2")
    with pytest.raises(ValueError, match="there is 1 face"):
        analyser.pick(picture(THREE[1]), 2)
    with pytest.raises(ValueError, match="0 is the largest"):
        analyser.pick(picture(THREE[1]), -1)


def test_no_face_names_the_picture_and_everything_that_was_tried(analyser):
    empty = picture()
    assert analyser.detect(empty) == ()
    with pytest.raises(ValueError) as error:
        analyser.pick(empty, label="Anna, picture 1 of 2")
    message = str(error.value)
    for part in ("Anna, picture 1 of 2", "900 x 600", "25%, 50%, 100%", "0.5", *map(str, faces.DETECTOR_SIZES)):
        assert part in message


@pytest.mark.parametrize("image", [np.zeros((64, 64, 3), np.float32), np.zeros((64, 64), np.uint8), [[1, 2, 3]]])
def test_what_is_no_rgb_picture_is_refused(analyser, image):
    with pytest.raises(ValueError, match="holiday: expected a uint8 RGB array"):
        analyser.detect(image, "holiday")


# the attempts

def attempts_of(analyser: faces.FaceAnalyser, monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], int]]:
    """Records (shape of the picture, detector size) of every attempt from now on."""
    tried = []
    original = type(analyser._detector).detect

    def recorded(self, image, input_size=None, **options):
        tried.append((image.shape[:2], input_size[0]))
        return original(self, image, input_size=input_size, **options)

    monkeypatch.setattr(type(analyser._detector), "detect", recorded)
    return tried


def test_a_face_seen_only_at_a_smaller_detector_size_is_found_in_picture_coordinates(analyser, monkeypatch):
    disc = (520, 480, 340)
    tried = attempts_of(analyser, monkeypatch)
    (face,) = analyser.detect(picture(disc, size=(1000, 1000)))
    assert [size for _, size in tried] == [640, 512, 384]
    assert near(face, disc, 25)
    eyes, mouth = face.landmarks[:2], face.landmarks[3:]
    assert eyes[0, 0] < 520 < eyes[1, 0]
    assert eyes[:, 1].max() < 480 < mouth[:, 1].min()


def test_a_close_up_is_found_with_a_border_and_mapped_back(analyser, monkeypatch):
    disc = (500, 500, 520)
    tried = attempts_of(analyser, monkeypatch)
    (face,) = analyser.detect(picture(disc, size=(1000, 1000)))
    assert {shape for shape, _ in tried} == {(1000, 1000), (1500, 1500)}
    assert near(face, disc, 40)
    assert face.box[0] < 0
    assert face.box[3] > 1000
    assert np.allclose(face.landmarks[2], (500, 526), atol=25)


def test_every_border_is_tried_before_giving_up(analyser, monkeypatch):
    tried = attempts_of(analyser, monkeypatch)
    assert analyser.detect(picture(size=(100, 200))) == ()
    assert list(dict.fromkeys(shape for shape, _ in tried)) == [(100, 200), (200, 300), (300, 400), (500, 600)]
    assert len(tried) == 4 * len(faces.DETECTOR_SIZES)


def test_sessions_are_opened_once_for_all_attempts(root, monkeypatch):
    opened = []
    original = onnxruntime.InferenceSession.__init__

    def counted(self, *args, **options):
        opened.append(args)
        original(self, *args, **options)

    monkeypatch.setattr(onnxruntime.InferenceSession, "__init__", counted)
    analyser = faces.load_analyser(root, "stand_in", "cpu")
    analyser.detect(picture())
    analyser.detect(picture(*THREE))
    assert len(opened) == 2


# embeddings and crops

def test_embeddings_are_unit_length_differ_between_faces_and_repeat(analyser):
    first = analyser.detect(picture(*THREE))
    again = analyser.detect(picture(*THREE))
    for face, same in zip(first, again, strict=True):
        assert face.embedding.shape == (512,)
        assert np.linalg.norm(face.embedding) == pytest.approx(1, abs=1e-5)
        assert np.array_equal(face.embedding, same.embedding)
    assert float(first[0].embedding @ first[1].embedding) < 0.99


def test_a_face_is_what_insightface_itself_returns(root, analyser):
    from insightface.app import FaceAnalysis
    app = FaceAnalysis(name="stand_in", root=str(root), providers=[faces.CPU])
    app.prepare(ctx_id=0, det_size=(640, 640))
    image = picture(*THREE)
    theirs = app.get(np.ascontiguousarray(image[..., ::-1]))
    for our, their in zip(analyser.detect(image), sorted(theirs, key=lambda face: face.bbox[0]), strict=True):
        assert np.allclose(our.box, their.bbox)
        assert np.allclose(our.landmarks, their.kps)
        assert np.allclose(our.embedding, their.normed_embedding, atol=1e-6)


def test_align_is_insightfaces_crop_in_rgb(analyser):
    image = picture(THREE[1])
    landmarks = analyser.pick(image).landmarks
    crop = faces.align(image, landmarks)
    theirs = face_align.norm_crop(np.ascontiguousarray(image[..., ::-1]), landmark=landmarks, image_size=224)
    assert crop.shape == (224, 224, 3)
    assert crop.dtype == np.uint8
    assert np.array_equal(crop, theirs[..., ::-1])
    assert tuple(crop[100, 80]) == MAGENTA


def test_align_refuses_a_size_that_insightface_has_no_template_for(analyser):
    with pytest.raises(ValueError, match="aligned size 200"):
        faces.align(picture(), np.zeros((5, 2)), 200)


def test_a_portrait_is_the_picked_face_and_its_crop(analyser):
    image = picture(*THREE)
    embedding, crop, _ = analyser.portrait(image, 3, "Anna")
    face = analyser.pick(image, 3)
    assert np.array_equal(embedding, face.embedding)
    assert np.array_equal(crop, faces.align(image, face.landmarks))


def test_draw_marks_every_face_and_leaves_the_picture_alone(analyser):
    image = picture(*THREE)
    before = image.copy()
    drawn = faces.draw(image, analyser.detect(image))
    assert np.array_equal(image, before)
    assert drawn.shape == image.shape
    for x, y, radius in THREE:
        part = np.s_[y - radius - 20:y + radius + 20, x - radius - 20:x + radius + 20]
        assert (drawn[part] != image[part]).any()
    assert (faces.draw(image, ()) == image).all()


# model files

def message_of_missing(root: Path, name: str = "buffalo_l") -> str:
    with pytest.raises(FileNotFoundError) as error:
        faces.load_analyser(root, name, "cpu")
    return str(error.value)


def test_missing_models_are_named_and_never_downloaded(tmp_path, no_network):
    message = message_of_missing(tmp_path)
    assert str(tmp_path / "models" / "buffalo_l") in message
    for part in ("det_10g.onnx", "w600k_r50.onnx", "non-commercial research only", "Nothing is downloaded"):
        assert part in message
    assert no_network == []
    assert list(tmp_path.iterdir()) == []


def test_loading_and_detecting_need_no_network(root, no_network):
    assert faces.load_analyser(root, "stand_in", "cpu").detect(picture(*THREE))
    assert no_network == []


def test_one_missing_file_is_named(tmp_path):
    folder = tmp_path / "models" / "buffalo_l"
    folder.mkdir(parents=True)
    (folder / "det_10g.onnx").touch()
    assert "has det_10g.onnx but not w600k_r50.onnx" in message_of_missing(tmp_path)


@pytest.mark.parametrize("place", ["models/buffalo_l/buffalo_l", "models", "buffalo_l", "buffalo_l/buffalo_l", "."])
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
    with pytest.raises(RuntimeError, match=r"damaged could not be loaded.*det_stand_in.onnx \(11 bytes\)"):
        faces.load_analyser(tmp_path, "damaged", "cpu")


@pytest.mark.parametrize(("gone", "task"), [("det_stand_in.onnx", "detection"), ("rec_stand_in.onnx", "recognition")])
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
    assert faces.list_models(roots) == {"a": tmp_path / "one", "b": tmp_path / "one", "c": tmp_path / "two"}


def test_the_centre_stand_in_sees_one_face_in_the_middle_of_any_picture(tmp_path):
    write_model_pack(tmp_path, "demo", "centre")
    analyser = faces.load_analyser(tmp_path, "demo", "cpu")
    for height, width in ((600, 400), (400, 600), (300, 300)):
        ((x, y),) = middles(analyser.detect(np.full((height, width, 3), 90, np.uint8)))
        assert x == pytest.approx(width / 2, abs=3)
        assert y == pytest.approx(0.42 * height, abs=3)


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


@pytest.mark.parametrize("absent", [("insightface",), ("onnxruntime",), ("insightface", "onnxruntime")])
def test_without_the_packages_importing_works_and_loading_says_what_to_install(absent):
    code = WITHOUT.format(absent=absent)
    environment = {**os.environ, "PYTHONPATH": str(PACK)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert f'"{sys.executable}" -m pip install {" ".join(absent)}\n' in done.stdout
    assert "models/insightface/models/buffalo_l" in done.stdout
    assert "non-commercial" in done.stdout


def test_importing_loads_neither_insightface_nor_onnxruntime():
    code = "import sys, mmdiff_core.references.faces; assert not {'insightface', 'onnxruntime', 'cv2', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(PACK)}, check=True)


def test_the_packages_are_installed():
    assert faces.installed()


def test_a_package_that_cannot_be_imported_says_why(monkeypatch, root):
    def broken(name):
        raise OSError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(faces.importlib, "import_module", broken)
    with pytest.raises(ImportError, match="insightface is installed but cannot be imported: libGL"):
        faces.load_analyser(root, "stand_in", "cpu")


# providers

@pytest.mark.parametrize(("offered", "chosen"), [
    (("AzureExecutionProvider", faces.CPU), (faces.CPU,)),
    (GPU_BUILD, (faces.CUDA, faces.CPU)),
    ((faces.CPU, "DmlExecutionProvider"), ("DmlExecutionProvider", faces.CPU)),
    (("CoreMLExecutionProvider", faces.CPU), (faces.CPU,)),
    (("MIGraphXExecutionProvider", "ROCMExecutionProvider", faces.CPU), ("ROCMExecutionProvider", faces.CPU)),
])
def test_auto_follows_what_onnxruntime_offers(monkeypatch, offered, chosen):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(offered))
    assert faces.available_providers() == offered
    assert faces.choose_providers("auto", faces.available_providers(), {}) == chosen
    assert faces.choose_providers("cpu", faces.available_providers(), {}) == (faces.CPU,)


def test_cuda_asks_for_cuda_and_cpu_only():
    assert faces.choose_providers("cuda", ("DmlExecutionProvider", *GPU_BUILD), BOTH) == (faces.CUDA, faces.CPU)


def test_the_analyser_tells_the_providers_that_are_active(analyser):
    assert analyser.providers == (faces.CPU,)


def test_cuda_where_there_is_none_names_what_is_installed(root, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [faces.CPU])
    monkeypatch.setattr(faces, "runtimes", lambda: {"onnxruntime": "1.32.0"})
    with pytest.raises(RuntimeError) as error:
        faces.load_analyser(root, "stand_in", "cuda")
    for part in ("onnxruntime 1.32.0", faces.CPU, "-m pip install onnxruntime-gpu", "choose auto or cpu"):
        assert part in str(error.value)


def test_an_unknown_device_lists_the_devices(root):
    with pytest.raises(ValueError, match="'gpu'.*auto, cuda, cpu"):
        faces.load_analyser(root, "stand_in", "gpu")


def test_an_overwritten_gpu_package_gets_a_one_line_repair():
    advice = faces.provider_advice(BOTH, [faces.CPU], cuda_wanted=False)
    assert "onnxruntime 1.32.0, onnxruntime-gpu 1.31.1" in advice
    assert "-m pip install --force-reinstall --no-deps onnxruntime-gpu==1.31.1" in advice


@pytest.mark.parametrize("distributions", [BOTH, {"onnxruntime-gpu": "1.31.1"}, {}])
def test_there_is_no_advice_where_cuda_is_offered(distributions):
    assert faces.provider_advice(distributions, GPU_BUILD, cuda_wanted=True) is None


def test_a_cpu_package_is_fine_until_cuda_is_wanted():
    only = {"onnxruntime": "1.32.0"}
    assert faces.provider_advice(only, [faces.CPU], cuda_wanted=False) is None
    assert "-m pip install onnxruntime-gpu" in faces.provider_advice(only, [faces.CPU], cuda_wanted=True)
    assert "no onnxruntime package" in faces.provider_advice({}, [], cuda_wanted=True)


def warnings_while_loading(root: Path, caplog: pytest.LogCaptureFixture, device: str) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "mmdiff_core.faces"):
        faces.load_analyser(root, "stand_in", device)
    return [record.getMessage() for record in caplog.records if record.name == "mmdiff_core.faces"]


def test_the_overwritten_state_is_one_warning_when_loading(root, monkeypatch, caplog):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [faces.CPU])
    monkeypatch.setattr(faces, "runtimes", lambda: BOTH)
    (warning,) = warnings_while_loading(root, caplog, "auto")
    assert "Faces run on CPUExecutionProvider" in warning
    assert "--force-reinstall --no-deps onnxruntime-gpu==1.31.1" in warning
    assert warnings_while_loading(root, caplog, "cpu") == []


def test_cuda_that_is_offered_but_does_not_start_is_one_warning(root, monkeypatch, caplog):
    monkeypatch.setattr(faces, "available_providers", lambda: GPU_BUILD)
    monkeypatch.setattr(faces, "choose_providers", lambda *_: (faces.CUDA, faces.CPU))
    original = faces._open
    monkeypatch.setattr(faces, "_open", lambda root, name, _: original(root, name, (faces.CPU,)))
    (warning,) = warnings_while_loading(root, caplog, "auto")
    assert "could not start it" in warning
    assert "Choose device cpu" in warning
