"""Boxes of subjects: drawn on a node (JSON) or found by a detector (pixels), and as masks.

Shapes   H W the canvas that the regions are worked out on
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor

from ..untrusted import quoted

MOST = 6  # subjects that can have boxes: one colour each
MOST_BOXES = 100  # on one node; web/box_maths.js has the same
LONGEST = 100_000  # characters of the boxes' text
PIXELS = 4  # a box wider or higher than so many images is meant in pixels
KEYS = ("x", "y", "width", "height")
EXAMPLE = '[{"subject": 1, "x": 0, "y": 0, "width": 0.5, "height": 1}]'


@dataclass(frozen=True)
class Box:
    """A rectangle for one subject (counted from 1); corner and size as shares of the picture,
    0..1."""

    subject: int
    x: float
    y: float
    width: float
    height: float


def parse_boxes(text: str, subjects: int = MOST) -> tuple[Box, ...]:
    """The boxes drawn on the node, from their JSON. A box is cut to the picture. ValueError says
    which entry is wrong, and how."""
    if len(text) > LONGEST:
        raise ValueError(f"boxes is {len(text)} characters long, at most {LONGEST}")
    try:
        entries = json.loads(text.strip() or "[]")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"boxes is not JSON ({quoted(str(error))}); write {EXAMPLE}, or [] for none"
        ) from None
    if not isinstance(entries, list):
        raise ValueError(
            f"boxes is {quoted(entries)}, expected a list of boxes; write {EXAMPLE}, or [] for none"
        )
    _check_count(len(entries), "boxes")
    return tuple(_parsed(entry, number, subjects) for number, entry in enumerate(entries, 1))


def _check_count(count: int, what: str) -> None:
    if count > MOST_BOXES:
        raise ValueError(f"{what} has {count} boxes, at most {MOST_BOXES}; delete some")


def _parsed(entry: object, number: int, subjects: int) -> Box:
    if not isinstance(entry, dict):
        raise ValueError(
            f"box {number} is {quoted(entry)}, expected an object like {EXAMPLE[1:-1]}"
        )
    if lacking := [key for key in Box.__dataclass_fields__ if key not in entry]:
        raise ValueError(
            f"box {number} has no {' and no '.join(map(repr, lacking))}; a box is like "
            f"{EXAMPLE[1:-1]}"
        )
    subject = entry["subject"]
    if not _is_number(subject) or subject % 1 != 0:
        raise ValueError(
            f"box {number} is for subject {quoted(subject)}, expected a whole number, 1 for the "
            "first subject"
        )
    if not 1 <= subject <= subjects:
        raise ValueError(
            f"box {number} is for subject {quoted(subject)}, but there are only subjects 1 to "
            f"{subjects}; delete the box, or connect another subject"
        )
    return _inside(
        Box(
            int(subject),
            *(_number(entry[key], key, f"box {number}") for key in KEYS),
        ),
        f"box {number}",
        "fractions of the image, 0 to 1",
    )


def _is_number(value: object) -> bool:
    """A finite number; detectors also give numpy's."""
    return (
        isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    )


def _number(value: object, key: str, which: str) -> float:
    if not _is_number(value):
        raise ValueError(f"{which} has {key} {quoted(value)}, expected a number")
    return float(value)


def _inside(box: Box, which: str, unit: str) -> Box:
    """The part of the box that is in the picture."""
    if box.width <= 0 or box.height <= 0:
        raise ValueError(
            f"{which} is {box.width:g} wide and {box.height:g} high, expected more than 0; delete "
            "it, or redraw it"
        )
    left, top = max(box.x, 0.0), max(box.y, 0.0)
    right, bottom = min(box.x + box.width, 1.0), min(box.y + box.height, 1.0)
    if right <= left or bottom <= top:
        raise ValueError(
            f"{which} lies outside the image (x {box.x:g}, y {box.y:g}, {box.width:g} x "
            f"{box.height:g}; {unit})"
        )
    if max(box.width, box.height) > PIXELS:
        raise ValueError(
            f"{which} is {box.width:g} x {box.height:g}, far larger than the image ({unit}); is it "
            "in pixels?"
        )
    return replace(box, x=left, y=top, width=right - left, height=bottom - top)


def boxes_of_pixels(found: object, width: int, height: int, subjects: int) -> tuple[Box, ...]:
    """BOUNDING_BOX (pixels of a picture of `width` x `height`) to boxes of the subjects in order.

    One box, or a list of them: the n-th is the n-th subject's. One picture's list in a list: the
    same. Several lists: all of the n-th are the n-th subject's. Subjects beyond them get none.
    ValueError where there is none at all, or more than subjects.
    """
    given = _listed(found)
    if len(given) == 1 and not isinstance(given[0], Mapping):
        given = _listed(given[0])
    lists = [_listed(item) for item in given]
    if not any(lists):
        raise ValueError(
            "found_boxes contains no box: the detector found nothing; disconnect it, or use a "
            "clearer image"
        )
    _check_count(sum(map(len, lists)), "found_boxes")
    if len(lists) > subjects:
        raise ValueError(
            f"found_boxes has boxes for {len(lists)} subjects, but there are {subjects}; select "
            "the boxes to use before this node"
        )
    return tuple(
        _of_pixels(box, number, width, height)
        for number, boxes in enumerate(lists, 1)
        for box in boxes
    )


def _listed(found: object) -> list:
    if isinstance(found, Mapping):
        return [found]
    if found is None or isinstance(found, (list, tuple)):
        return list(found or ())
    raise ValueError(
        f"found_boxes has {quoted(found)}, expected boxes of x, y, width and height in pixels"
    )


def corner_and_size(box: object, which: str) -> tuple[float, float, float, float]:
    """x, y, width and height of a BOUNDING_BOX, finite. ValueError for anything else."""
    if not isinstance(box, Mapping) or any(key not in box for key in KEYS):
        raise ValueError(f"{which} is {quoted(box)}, expected x, y, width and height in pixels")
    x, y, width, height = (_number(box[key], key, which) for key in KEYS)
    return x, y, width, height


def _of_pixels(box: object, subject: int, width: int, height: int) -> Box:
    which = f"the found box of subject {subject}"
    x, y, w, h = corner_and_size(box, which)
    return _inside(
        Box(subject, x / width, y / height, w / width, h / height),
        which,
        f"fractions of {width} x {height} pixels: set width and height to the size of the image "
        "that the detector was given",
    )


def box_mask(box: Box, height: int, width: int) -> Tensor:
    """A box on a canvas [H W]; a pixel that it covers in part has that share of 1."""

    def covered(start: float, length: float, count: int) -> Tensor:
        edges = torch.arange(count + 1, dtype=torch.float64) / count
        share = (edges[1:].clamp(max=start + length) - edges[:-1].clamp(min=start)).clamp(
            min=0
        ) * count
        # 0.1 + 0.2 is a little more than 0.3: no pixel is touched by that
        return share.round(decimals=4)

    return torch.outer(covered(box.y, box.height, height), covered(box.x, box.width, width)).float()
