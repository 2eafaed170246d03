"""Linear resampling of uint8 images in OpenCV's arithmetic, which InsightFace's models are fed by.

A face embedding changes with every grey level of the crop, so results that are equal to those of
the insightface package need the same rounding, not just the same formula. OpenCV itself is not
needed.
"""

from __future__ import annotations

import importlib

import numpy as np

# weights are whole numbers of 1 / 2048, and a row's sum loses 4 bits before the rows are added
WEIGHT = np.float32(2048)
# OpenCV 4 refuses larger images
OPENCV_LARGEST = 2**15 - 2


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """A uint8 image [H W C] at another size: `cv2.resize` with linear interpolation, to the bit.

    The same in OpenCV 4 and 5: fixed-point weights, and means of 2 x 2 pixels at half the size.
    """
    if image.shape[:2] == (2 * height, 2 * width):
        fields = image.reshape(height, 2, width, 2, -1).sum((1, 3), dtype=np.int32)
        return ((fields + 2) >> 2).astype(np.uint8)
    columns, weights = _neighbours(image.shape[1], width, clamp=True)
    rows, row_weights = _neighbours(image.shape[0], height, clamp=False)
    total = np.full((height, width, image.shape[2]), 2, np.int32)
    for row, row_weight in zip(rows, row_weights, strict=True):
        across = np.zeros_like(total)
        for column, weight in zip(columns, weights, strict=True):
            across += image[row[:, None], column] * weight[:, None]
        total += (row_weight[:, None, None] * (across >> 4)) >> 16
    return np.clip(total >> 2, 0, 255).astype(np.uint8)


def _neighbours(
    size: int, new_size: int, clamp: bool
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Both pixels that each new pixel lies between, and their weights in 1 / 2048.

    clamp  at the borders the outermost pixel has all the weight (columns); else it counts as both
           neighbours with a weight each (rows), which rounds otherwise
    """
    # through the inverse, as OpenCV does: the last bit differs from size / new_size
    scale = 1 / (new_size / size)
    at = ((np.arange(new_size) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    part = at - first.astype(np.float32)
    if clamp:
        part = np.where((first < 0) | (first >= size - 1), np.float32(0), part)
    near = (np.clip(first, 0, size - 1), np.clip(first + 1, 0, size - 1))
    weights = (np.rint((1 - part) * WEIGHT), np.rint(part * WEIGHT))
    return near, tuple(weight.astype(np.int32) for weight in weights)


def warp(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """The uint8 image [H W C] that `matrix` [2 3] maps `image` to, [size size C]; black outside.

    OpenCV 4 rounds positions to 1/32 pixel, OpenCV 5 does not, so that the insightface package
    makes crops that differ by several grey levels with the one and the other. Where OpenCV can be
    imported it is asked, so that faces are the same as the package's on this computer; elsewhere
    `warp_exactly` gives the numbers of OpenCV 5.
    """
    opencv = _opencv()
    if opencv is None or max(image.shape) > OPENCV_LARGEST:
        return warp_exactly(image, matrix, size)
    return opencv.warpAffine(np.ascontiguousarray(image), matrix, (size, size), borderValue=0.0)


def warp_exactly(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """`cv2.warpAffine` of OpenCV 5 with linear interpolation, to the bit, without OpenCV."""
    back = _inverse(matrix).astype(np.float32)
    column = np.arange(size, dtype=np.float32)
    row = column[:, None]
    x, y = (_multiply_add(column, a, row * b + c) for a, b, c in back)
    left, top = np.floor(x), np.floor(y)
    across, down = (x - left)[..., None], (y - top)[..., None]
    column, row = left.astype(np.int64), top.astype(np.int64)
    upper = _between(_pixels(image, row, column), _pixels(image, row, column + 1), across)
    lower = _between(_pixels(image, row + 1, column), _pixels(image, row + 1, column + 1), across)
    return np.clip(np.rint(_between(upper, lower, down)), 0, 255).astype(np.uint8)


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse [2 3] of an affine map, by Cramer's rule in float64; zeros if there is none."""
    (a, b, c), (d, e, f) = np.asarray(matrix, np.float64)
    determinant = a * e - b * d
    factor = 1 / determinant if determinant else 0.0
    a, b, d, e = e * factor, -b * factor, -d * factor, a * factor
    return np.array([[a, b, -a * c - b * f], [d, e, -d * c - e * f]])


def _multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float32 with one rounding, as a processor's fused instruction does it."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


def _between(start: np.ndarray, end: np.ndarray, part: np.ndarray) -> np.ndarray:
    return _multiply_add(part, end - start, start)


def _pixels(image: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Pixels as float32; 0 outside of the image."""
    height, width = image.shape[:2]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    found = image[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
    return np.where(inside[..., None], found, 0).astype(np.float32)


def _opencv():
    try:
        return importlib.import_module("cv2")
    except Exception:  # not installed, or without a system library that it needs
        return None
