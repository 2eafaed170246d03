"""Resizing and warping give OpenCV's grey levels, and alignment scikit-image's matrix."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from insightface.utils import face_align
from skimage.transform import SimilarityTransform

from mmdiff_core.references import faces
from mmdiff_core.references.faces import resampling
from mmdiff_core.references.faces.alignment import TEMPLATE, similarity
from mmdiff_core.references.faces.resampling import resize, warp, warp_exactly

# OpenCV 4 rounds positions to 1/32 pixel
OPENCV_5 = int(cv2.__version__.split(".")[0]) >= 5


def noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def sizes(rng: np.random.Generator) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) before and after: larger, smaller, exactly half, one pixel thin, the same."""
    before, after = rng.integers(1, 300, 2), rng.integers(1, 300, 2)
    kind = rng.integers(8)
    if kind == 0:
        before = 2 * after
    elif kind == 1:
        before = after
    elif kind == 2:
        before = np.array([1, after[1]])
    return tuple(map(int, before)), tuple(map(int, after))


@pytest.mark.parametrize("seed", range(8))
def test_resizing_is_opencvs_to_the_bit(seed):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        before, (height, width) = sizes(rng)
        image = noise(rng, *before)
        assert np.array_equal(resize(image, width, height), cv2.resize(image, (width, height))), (
            f"{before} to {(height, width)}"
        )


def matrix(rng: np.random.Generator) -> np.ndarray:
    """Turned, scaled and shifted by amounts of which some leave little of the image."""
    scale, angle = rng.uniform(0.2, 3), rng.uniform(-np.pi, np.pi)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([turn, rng.uniform(-200, 200, 2)])


@pytest.mark.parametrize("seed", range(4))
def test_warping_without_opencv_is_opencv_5s_to_the_bit(seed):
    rng = np.random.default_rng(seed)
    for _ in range(25):
        image, wanted = noise(rng, *rng.integers(1, 500, 2)), matrix(rng)
        size = int(rng.choice([112, 128, 224]))
        ours = warp_exactly(image, wanted, size).astype(int)
        theirs = cv2.warpAffine(image, wanted, (size, size), borderValue=0.0)
        if OPENCV_5:
            assert np.array_equal(ours, theirs)
        else:
            assert np.abs(ours - theirs).mean() < 2


def test_without_opencv_warping_is_the_exact_one(monkeypatch):
    rng = np.random.default_rng(0)
    image, wanted = noise(rng, 90, 70), matrix(rng)
    monkeypatch.setattr(resampling, "_opencv", lambda: None)
    assert np.array_equal(warp(image, wanted, 112), warp_exactly(image, wanted, 112))


def test_an_image_that_opencv_4_refuses_is_warped_all_the_same():
    image = np.full((2, 40_000, 3), 200, np.uint8)
    shift = np.array([[1.0, 0, -39_900], [0, 1.0, 0]])
    assert (warp(image, shift, 112)[0, :99] == 200).all()


@pytest.mark.parametrize("seed", range(4))
def test_alignment_is_the_packages_matrix_and_crop(seed):
    rng = np.random.default_rng(seed)
    image = noise(rng, 200, 300)
    for size in (112, 128, 224, 256):
        landmarks = (TEMPLATE * rng.uniform(0.3, 2) + rng.normal(0, 4, (5, 2))).astype(np.float32)
        transform = SimilarityTransform()
        transform.estimate(landmarks, TEMPLATE)
        assert np.array_equal(similarity(landmarks, TEMPLATE), transform.params[:2])
        crop = face_align.norm_crop(image, landmarks, size)
        assert np.array_equal(faces.align(image, landmarks, size), crop)


def test_mirrored_and_collinear_landmarks_align_as_in_the_package():
    mirrored = TEMPLATE * np.float32([-1, 1])
    line = np.stack([np.arange(5), np.arange(5)], axis=1).astype(np.float32)
    for landmarks in (mirrored, line):
        transform = SimilarityTransform()
        transform.estimate(landmarks, TEMPLATE)
        assert np.allclose(similarity(landmarks, TEMPLATE), transform.params[:2], atol=1e-4)


@pytest.mark.parametrize(
    ("value", "told"), [(np.nan, "not finite"), (np.inf, "not finite"), (7, "all in one position")]
)
def test_landmarks_that_no_face_has_are_refused(value, told):
    with pytest.raises(ValueError, match=told):
        faces.align(np.zeros((20, 20, 3), np.uint8), np.full((5, 2), value, np.float32))
