"""The built-in reader gives what the insightface package gives for the same files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from insightface.model_zoo.scrfd import SCRFD

from mmdiff_core.references import faces
from mmdiff_core.references.faces.detector import Detector
from mmdiff_core.references.faces.onnx_file import first_node_names

from support.faces import THREE, picture
from support.onnx_stand_ins import FORMS, write_model_pack
from support.paths import PACK

STRIDES = {9: (8, 16, 32), 15: (8, 16, 32, 64, 128)}


def scene(rng: np.random.Generator) -> np.ndarray:
    """Up to three discs on an image of any shape, with noise that rounding can be seen in."""
    size = tuple(map(int, rng.integers(40, 1400, 2)))
    discs = []
    for _ in range(rng.integers(4)):
        radius = int(rng.integers(8, 200))
        middle = (int(rng.integers(size[1])), int(rng.integers(size[0])))
        discs.append((*middle, radius))
    image = picture(*discs, size=size).astype(int)
    return np.clip(image + rng.integers(-6, 7, image.shape), 0, 255).astype(np.uint8)


def same(ours: tuple[faces.Face, ...], theirs: tuple[faces.Face, ...]) -> float:
    """The largest difference of embeddings of faces that are otherwise equal."""
    differences = [0.0]
    for our, their in zip(ours, theirs, strict=True):
        assert (our.box, our.score) == (their.box, their.score)
        assert np.array_equal(our.landmarks, their.landmarks)
        differences.append(float(np.abs(our.embedding - their.embedding).max()))
    return max(differences)


@pytest.mark.parametrize("scales_itself", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_boxes_order_and_embeddings_are_the_packages(tmp_path, form, scales_itself):
    write_model_pack(tmp_path, "p", form=form, scales_itself=scales_itself)
    ours = faces.load_analyser(tmp_path, "p", "cpu", "built-in")
    theirs = faces.load_analyser(tmp_path, "p", "cpu", "insightface")
    rng = np.random.default_rng(7)
    images = [picture(*THREE), *[scene(rng) for _ in range(5)]]
    found = 0
    for image in images:
        detected = ours.detect(image)
        found += len(detected)
        assert same(detected, theirs.detect(image)) <= 1e-5
    assert found > 3


def test_the_centre_of_any_image_is_seen_alike(tmp_path):
    write_model_pack(tmp_path, "p", "centre")
    ours = faces.load_analyser(tmp_path, "p", "cpu", "built-in")
    theirs = faces.load_analyser(tmp_path, "p", "cpu", "insightface")
    rng = np.random.default_rng(3)
    for size in ((300, 300), (1280, 1280), (1280, 700), (37, 900), (700, 33)):
        image = rng.integers(20, 256, (*size, 3), dtype=np.uint8)
        assert same(ours.detect(image), theirs.detect(image)) <= 1e-5


# Where nothing but numpy and onnxruntime is installed.
ALONE = """
import sys
for name in ("insightface", "cv2", "skimage", "scipy", "onnx", "torch"):
    sys.modules[name] = None
import numpy as np
from mmdiff_core.references import faces
given = np.load({given!r})
found = faces.load_analyser({root!r}, "stand_in").detect(given["image"])
np.savez({out!r}, boxes=[f.box for f in found], embeddings=[f.embedding for f in found])
"""


def test_numpy_and_onnxruntime_are_enough(tmp_path, face_models):
    rng = np.random.default_rng(5)
    image = picture(*THREE).astype(int)
    image = np.clip(image + rng.integers(-6, 7, image.shape), 0, 255).astype(np.uint8)
    np.savez(tmp_path / "given.npz", image=image)
    code = ALONE.format(
        given=str(tmp_path / "given.npz"), root=str(face_models), out=str(tmp_path / "out.npz")
    )
    environment = {**os.environ, "PYTHONPATH": str(PACK)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    found = np.load(tmp_path / "out.npz")
    theirs = faces.load_analyser(face_models, "stand_in", "cpu", "insightface").detect(image)
    assert np.array_equal(found["boxes"], [face.box for face in theirs])
    embeddings = [face.embedding for face in theirs]
    # OpenCV 5's numbers are reproduced to the bit, OpenCV 4's are not
    bound = 1e-5 if has_opencv_5() else 1e-2
    assert np.abs(found["embeddings"] - embeddings).max() <= bound


def has_opencv_5() -> bool:
    import cv2

    return int(cv2.__version__.split(".")[0]) >= 5


# detectors that answer anything
class Answers:
    """A session that gives the same answers to every image."""

    def __init__(self, answers: list[np.ndarray]):
        self.answers = answers

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="image", shape=[1, 3, "h", "w"], type="tensor(float)")]

    def get_outputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=str(i), shape=a.shape) for i, a in enumerate(self.answers)]

    def get_providers(self) -> list[str]:
        return [faces.CPU]

    def run(self, names: object, feed: object) -> list[np.ndarray]:
        return self.answers


def random_answers(rng: np.random.Generator, outputs: int, size: int) -> list[np.ndarray]:
    """Crowds of overlapping boxes, many with the same confidence."""
    answers = []
    for width in (1, 4, 10):
        for stride in STRIDES[outputs]:
            cells = (size // stride) ** 2 * (2 if outputs == 9 else 1)
            values = rng.normal(1, 2, (cells, width))
            if width == 1:
                values = np.round(rng.random((cells, 1)) ** 3, int(rng.integers(1, 5)))
            answers.append(values.astype(np.float32))
    return answers


@pytest.mark.parametrize("outputs", STRIDES)
def test_any_answers_give_the_packages_boxes_in_its_order(outputs):
    rng = np.random.default_rng(outputs)
    for _ in range(30):
        session = Answers(random_answers(rng, outputs, 128))
        image = np.zeros((*rng.integers(20, 300, 2), 3), np.uint8)
        boxes, landmarks = Detector(session, "x.onnx").detect(image, (128, 128))
        theirs = SCRFD(session=session).detect(image, input_size=(128, 128))
        assert np.array_equal(boxes, theirs[0])
        assert np.array_equal(landmarks, theirs[1])


def broken(rng: np.random.Generator, answers: list[np.ndarray]) -> list[np.ndarray]:
    """One fault in one answer: its rows, its width, its rank, or a position that is none."""
    at = int(rng.integers(len(answers)))
    answer = answers[at].copy()
    kind = rng.integers(5)
    if kind == 0:
        answer = answer[:-1]
    elif kind == 1:
        answer = answer[:, :0]
    elif kind == 2:
        answer = answer.reshape(-1)
    elif kind == 3:
        answer = answer[:0]
    else:
        answers = [np.ones_like(a) if a.shape[1] == 1 else a for a in answers]
        answer = np.full_like(answers[at], rng.choice([np.nan, np.inf]))
    return [*answers[:at], answer, *answers[at + 1 :]]


@pytest.mark.parametrize("outputs", STRIDES)
def test_answers_that_no_detector_gives_end_in_a_sentence_with_the_file(outputs):
    rng = np.random.default_rng(outputs)
    image = np.zeros((100, 80, 3), np.uint8)
    for _ in range(100):
        detector = Detector(Answers(broken(rng, random_answers(rng, outputs, 128))), "x.onnx")
        with pytest.raises(RuntimeError, match="x.onnx"):
            detector.detect(image, (128, 128))


@pytest.mark.parametrize(
    ("outputs", "told"), [(6, "finds no landmarks"), (10, "finds no landmarks"), (7, "7 outputs")]
)
def test_a_detector_of_another_kind_is_refused(outputs, told):
    with pytest.raises(RuntimeError, match=told):
        Detector(Answers([np.zeros((1, 1), np.float32)] * outputs), "x.onnx")


# files
@pytest.mark.parametrize("backend", ["built-in", "insightface"])
def test_damaged_files_end_in_a_sentence(tmp_path, backend):
    folder = write_model_pack(tmp_path, "p")
    path = folder / "rec_stand_in.onnx"
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for kind in range(12):
        cut = whole[: int(rng.integers(len(whole)))]
        path.write_bytes(cut if kind % 3 else rng.bytes(200) if kind else b"")
        with pytest.raises((RuntimeError, FileNotFoundError), match=r"\bp (could not|has no)"):
            faces.load_analyser(tmp_path, "p", "cpu", backend)


def test_node_names_are_those_that_onnx_reads(tmp_path):
    import onnx

    for path in write_model_pack(tmp_path, "p", scales_itself=True).glob("*.onnx"):
        names = [node.name for node in onnx.load(path).graph.node]
        assert list(first_node_names(path, 8)) == names[:8]


def test_a_file_that_is_no_message_is_refused_and_never_read_past_its_end(tmp_path):
    whole = next(write_model_pack(tmp_path, "p").glob("rec*.onnx")).read_bytes()[:4000]
    rng, path = np.random.default_rng(2), Path(tmp_path / "x.onnx")
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for at in rng.integers(0, 60, 3):
            damaged[at] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            first_node_names(path, 8)
        except ValueError:
            refused += 1
    assert refused > 0
