"""Where each subject is in an image: from its recorded attention maps or from its mask.

Shapes   B images · S subjects · h w a grid · H W the image's pixels
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ..method.subjects import PromptSubject, name_key
from ..regions.attention_maps import AttentionMaps, find_regions
from ..regions.map_images import stretch
from ..regions.shaping import resized
from ..untrusted import quoted, quoted_list
from .verdicts import Box

SHARPNESS = 4.0  # of the contest between the subjects, as MM-Diff Find Regions has it by default
HALF = 0.5  # of a subject's largest value: what is read less belongs to no region
MARGIN = 0.05  # around a region's box, as share of its longer side


def read_regions(recorded: Sequence[AttentionMaps], names: Sequence[str], images: int) -> Tensor:
    """Where each subject was read [B S h w], bool: where its maps, the nouns' and the tokens'
    together, are larger than the other subjects', and at least half as large as their own maximum.

    ValueError where nothing was recorded, or another run, or a subject is not in the maps.
    """
    if not recorded:
        raise ValueError(
            "no attention was recorded: connect `maps` from the MM-Diff Watch Attention node whose "
            "model generated these images"
        )
    if recorded[0].text.shape[1] != images:
        raise ValueError(
            f"the recorded run generated {recorded[0].text.shape[1]} images, but {images} were "
            "given; connect the decoded images of the same run"
        )
    places = [_place(recorded, name) for name in names]
    text = torch.stack([maps.text.mean(0)[:, at] for maps, at in places], 1).float()
    image = torch.stack([maps.image.mean(0)[:, at] for maps, at in places], 1).float()
    most_read = find_regions(text, image, SHARPNESS) == 1
    both = torch.where(image.amax((-2, -1), keepdim=True) > 0, (text * image).sqrt(), text)
    strong = stretch(both) >= HALF
    own = most_read & strong
    # one who is never read most still has the place where it is read most itself
    return torch.where(own.any(-1, keepdim=True).any(-2, keepdim=True), own, strong)


def _place(recorded: Sequence[AttentionMaps], name: str) -> tuple[AttentionMaps, int]:
    """The recording that has a subject, and its number there."""
    for maps in recorded:
        known = [name_key(each) for each in maps.names]
        if name_key(name) in known:
            return maps, known.index(name_key(name))
    listed = quoted_list([each for maps in recorded for each in maps.names])
    raise ValueError(
        f"{quoted(name)} is not in the maps, which have {listed}; connect the subjects that the "
        "prompt of the same run used"
    )


def mask_regions(subjects: Sequence[PromptSubject], height: int, width: int) -> Tensor | None:
    """The subjects' own regions [S H W], bool; None unless each has one."""
    masks = [subject.region.mask for subject in subjects]
    if any(mask is None for mask in masks):
        return None
    return torch.stack([resized(mask.float().cpu(), height, width) > 0.5 for mask in masks])


def largest_part(region: Tensor) -> Tensor:
    """The largest connected part of a region [H W], bool; one without any part stays empty."""
    parts, count = ndimage.label(region.numpy(), structure=np.ones((3, 3)))
    if count < 2:
        return region
    sizes = np.bincount(parts.flatten())
    return torch.from_numpy(parts == 1 + int(sizes[1:].argmax()))


def region_box(region: Tensor, height: int, width: int) -> Box:
    """The box in pixels of an image of that size around a region [h w], bool, with a margin. The
    whole image for an empty region."""
    rows, columns = (region.any(axis).nonzero().flatten() for axis in (1, 0))
    if not len(rows):
        return 0.0, 0.0, float(width), float(height)
    down, across = height / region.shape[0], width / region.shape[1]
    left, right = int(columns[0]) * across, (int(columns[-1]) + 1) * across
    top, bottom = int(rows[0]) * down, (int(rows[-1]) + 1) * down
    margin = MARGIN * max(right - left, bottom - top)
    return (
        max(0.0, left - margin),
        max(0.0, top - margin),
        min(float(width), right + margin),
        min(float(height), bottom + margin),
    )


def owner_of(box: Box, regions: Tensor, height: int, width: int) -> int | None:
    """In whose region a box stands: the subject whose region [S h w] covers most of it, and at
    least half of what is anybody's there; None where it stands in nobody's."""
    scale_y, scale_x = regions.shape[-2] / height, regions.shape[-1] / width
    top, bottom = int(box[1] * scale_y), max(int(box[1] * scale_y) + 1, round(box[3] * scale_y))
    left, right = int(box[0] * scale_x), max(int(box[0] * scale_x) + 1, round(box[2] * scale_x))
    inside = regions[:, max(0, top) : bottom, max(0, left) : right].float().sum((1, 2))
    most = int(inside.argmax())
    return most if float(inside[most]) > HALF * float(inside.sum()) else None
