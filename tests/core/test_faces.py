"""Faces found by small stand-in models; "faces" are magenta discs on grey."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from insightface.utils import face_align

from mmdiff_core.references import faces

from support.faces import MAGENTA, THREE, middles, near, picture
from support.onnx_stand_ins import write_model_pack


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
    for part in (
        "Anna, picture 1 of 2",
        "900 x 600",
        "25%, 50%, 100%",
        "0.5",
        *map(str, faces.DETECTOR_SIZES),
    ):
        assert part in message


@pytest.mark.parametrize(
    "image", [np.zeros((64, 64, 3), np.float32), np.zeros((64, 64), np.uint8), [[1, 2, 3]]]
)
def test_what_is_no_rgb_picture_is_refused(analyser, image):
    with pytest.raises(ValueError, match="holiday: expected a uint8 RGB array"):
        analyser.detect(image, "holiday")


# the attempts
def attempts_of(
    analyser: faces.FaceAnalyser, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[tuple[int, ...], int]]:
    """Records (shape of the picture, detector size) of every attempt from now on."""
    tried = []
    original = type(analyser._detector).detect

    def recorded(self, image, size):
        tried.append((image.shape[:2], size[0]))
        return original(self, image, size)

    monkeypatch.setattr(type(analyser._detector), "detect", recorded)
    return tried


def test_a_face_seen_only_at_a_smaller_detector_size_is_found_in_picture_coordinates(
    analyser, monkeypatch
):
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
    assert list(dict.fromkeys(shape for shape, _ in tried)) == [
        (100, 200),
        (200, 300),
        (300, 400),
        (500, 600),
    ]
    assert len(tried) == 4 * len(faces.DETECTOR_SIZES)


def test_sessions_are_opened_once_for_all_attempts(face_models, monkeypatch):
    opened = []
    original = onnxruntime.InferenceSession.__init__

    def counted(self, *args, **options):
        opened.append(args)
        original(self, *args, **options)

    monkeypatch.setattr(onnxruntime.InferenceSession, "__init__", counted)
    analyser = faces.load_analyser(face_models, "stand_in", "cpu")
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


def test_a_face_is_what_insightface_itself_returns(face_models, analyser):
    from insightface.app import FaceAnalysis

    app = FaceAnalysis(name="stand_in", root=str(face_models), providers=[faces.CPU])
    app.prepare(ctx_id=0, det_size=(640, 640))
    image = picture(*THREE)
    theirs = app.get(np.ascontiguousarray(image[..., ::-1]))
    for our, their in zip(
        analyser.detect(image), sorted(theirs, key=lambda face: face.bbox[0]), strict=True
    ):
        assert np.allclose(our.box, their.bbox)
        assert np.allclose(our.landmarks, their.kps)
        assert np.allclose(our.embedding, their.normed_embedding, atol=1e-6)


def test_align_is_insightfaces_crop_in_rgb(analyser):
    image = picture(THREE[1])
    landmarks = analyser.pick(image).landmarks
    crop = faces.align(image, landmarks)
    theirs = face_align.norm_crop(
        np.ascontiguousarray(image[..., ::-1]), landmark=landmarks, image_size=224
    )
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
        part = np.s_[y - radius - 20 : y + radius + 20, x - radius - 20 : x + radius + 20]
        assert (drawn[part] != image[part]).any()
    assert (faces.draw(image, ()) == image).all()


def test_the_centre_stand_in_sees_one_face_in_the_middle_of_any_picture(tmp_path):
    write_model_pack(tmp_path, "demo", "centre")
    analyser = faces.load_analyser(tmp_path, "demo", "cpu")
    for height, width in ((600, 400), (400, 600), (300, 300)):
        ((x, y),) = middles(analyser.detect(np.full((height, width, 3), 90, np.uint8)))
        assert x == pytest.approx(width / 2, abs=3)
        assert y == pytest.approx(0.42 * height, abs=3)
