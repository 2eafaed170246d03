"""Turning faces upright by their landmarks, to the template that ArcFace was trained with."""

from __future__ import annotations

import numpy as np

from .face import check_image
from .resampling import warp

CROP_SIZE = 224
# eyes, nose, mouth corners (x, y) in a crop of 112 x 112; crops of a multiple of 128 have a margin
# of 8 / 128 of their width at the left and the right
TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ],
    dtype=np.float32,
)


def align(image: np.ndarray, landmarks: np.ndarray, size: int = CROP_SIZE) -> np.ndarray:
    """The face turned upright and scaled to ArcFace's template: uint8 RGB [size size 3].

    landmarks  [5 2] eyes, nose, mouth corners as (x, y) in the image

    Raises ValueError for a size that is a multiple of neither 112 nor 128, for another image than
    uint8 RGB, and for landmarks that are not finite or all in one position.
    """
    check_image(image, "image to align")
    if size < 112 or (size % 112 and size % 128):
        raise ValueError(f"aligned size {size}; InsightFace aligns to multiples of 112 or of 128")
    ratio, margin = (size / 112, 0.0) if size % 112 == 0 else (size / 128, size / 16)
    target = TEMPLATE * ratio
    target[:, 0] += margin
    return warp(image, similarity(np.asarray(landmarks, np.float32), target), size)


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The turn, scale and shift [2 3] that brings points [n 2] nearest to others, in least squares.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
    PAMI 1991, equations 38 to 43. The sums are float32 if the points are, as in scikit-image.
    """
    if not np.isfinite(source).all():
        raise ValueError(f"the landmarks of a face are not finite: {source.tolist()}")
    middle, target_middle = source.mean(axis=0), target.mean(axis=0)
    from_middle = source - middle
    covariance = (target - target_middle).T @ from_middle / len(source)
    left, sizes, right = np.linalg.svd(covariance)
    if not sizes[0] > 0:
        raise ValueError(f"the landmarks of a face are all in one position: {source.tolist()}")
    # no mirroring: the last axis is turned where the two bases are of different handedness
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    turn = left @ np.diag(signs) @ right
    scale = 1 / from_middle.var(axis=0).sum() * (sizes @ signs)
    shift = target_middle - scale * (turn @ middle)
    return np.column_stack([scale * turn, shift])
