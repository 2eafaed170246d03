"""What a person should know about their references and subjects before they wonder at the picture:
the card's failure modes.

Shapes   R references · S side of what the encoder looked at · Q width of what subjects are compared
         by
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import MMDiffConfig
from ..method.subjects import Subject

# Below this sharpness a picture has no more detail than one about 60 px wide: the demo photographs
# have 0.12 to 0.41 at 224 px, the same photographs made 64 px wide and enlarged again 0.005 to
# 0.014 (tests/core/test_notes.py).
BLURRED = 0.015
# sides below this are pixel art, where sharpness says nothing
SMALLEST = 112
# an ArcFace cosine between pictures of one person is rarely lower
UNLIKE = 0.25
# of a found face; not calibrated on photographs here detector confidence of a plain view is mostly
# above 0.75; 0.5 is no face at all
UNSURE = 0.65
# its shorter side in pixels: half of what ArcFace reads, a quarter of what CLIP is shown
TINY_FACE = 56
# the nose this near to the line through one eye, as a share of the eyes' distance
TURNED = 0.15


def sharpness(picture: Tensor) -> float:
    """Variance of the Laplacian over variance of the brightness of a picture [3 S S] in 0..1; near
    0 = blurred or flat."""
    grey = (
        picture.float() * torch.tensor([0.299, 0.587, 0.114], device=picture.device).view(3, 1, 1)
    ).sum(0)[None, None]
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], device=picture.device).view(
        1, 1, 3, 3
    )
    return float(F.conv2d(grey, kernel).var() / grey.var().clamp_min(1e-4))


def reference_notes(name: str, seen: Tensor, query: Tensor, config: MMDiffConfig) -> list[str]:
    """A sentence for each reference that is blurred or tiny, or whose face is unlike the others':
    seen [R 3 S S] in 0..1, query [R Q]."""
    found = []
    if seen.shape[-1] >= SMALLEST:
        for i, picture in enumerate(seen, 1):
            if sharpness(picture) < BLURRED:
                found.append(
                    f"{name}, image {i}: blurred or too small; the encoder receives no more detail "
                    "than from an image about 60 px wide. Use a sharper or closer one."
                )
    if config.variant.reads_faces and len(query) > 2:
        unit = F.normalize(query.float(), dim=-1)
        for i in range(len(unit)):
            others = F.normalize((unit.sum(0) - unit[i]), dim=0)
            if (alike := float(unit[i] @ others)) < UNLIKE:
                found.append(
                    f"{name}, image {i + 1}: the face differs from the others (similarity "
                    f"{alike:.2f}): another person, or a covered or turned face? Leave the image "
                    "out, or choose the face."
                )
    return found


def face_remarks(number: int, box: Sequence[float], score: float, landmarks: Tensor) -> list[str]:
    """What is wrong with the face found on picture `number`, told without the subject's name: box
    x1 y1 x2 y2 in pixels, detector confidence 0..1, landmarks [5 2] (left eye, right eye, nose,
    mouth corners)."""
    found, side = [], min(box[2] - box[0], box[3] - box[1])
    eyes = landmarks[1] - landmarks[0]
    nose = float((landmarks[2] - landmarks[0]) @ eyes / (eyes @ eyes).clamp_min(1e-6))
    if side < TINY_FACE:
        found.append(f"image {number}: the face is only {side:.0f} px wide. Use a closer image.")
    if not TURNED <= nose <= 1 - TURNED:
        found.append(
            f"image {number}: the face is turned far to the side; half of it is hidden. Use a "
            "frontal image."
        )
    elif score < UNSURE:
        found.append(
            f"image {number}: the face is detected with a confidence of only {score:.0%}: covered, "
            "in shadow or unclear? Use an image that shows eyes, nose and mouth."
        )
    return found


def similarity(a: Subject, b: Subject) -> float | None:
    """Cosine between two subjects' identities, or None where one is not known."""
    if a.identity is None or b.identity is None or a.identity.shape != b.identity.shape:
        return None
    return float(a.identity @ b.identity)


def look_alike_note(a: Subject, b: Subject, config: MMDiffConfig) -> str | None:
    """A sentence when the adapter may take two subjects for one another."""
    alike, least = similarity(a, b), config.variant.look_alike
    if alike is None or alike <= least:
        return None
    return (
        f"{a.name} and {b.name} look alike (similarity {alike:.2f}, reported above {least:g}): "
        "they may blend. Restrict each to a region with Multi-Subject Constraint Masks, and "
        "describe in the prompt how they differ."
    )


def look_alike_notes(subjects: Sequence[Subject], config: MMDiffConfig) -> list[str]:
    """A sentence for each pair of subjects that the adapter may take for one another."""
    notes = (look_alike_note(a, b, config) for a, b in combinations(subjects, 2))
    return [note for note in notes if note]
