"""What is in a picture of the small world, told from its exact knowledge.

Identity and binding need no learning: a candidate individual is drawn at every place, both ways round, and its squared error over
its own dots is measured there. Classes and backgrounds of any picture, also one whose individuals nobody chose, are told by a small
network trained on true renderings (`reader`).

Shapes   B pictures · S side in dots (32) · K candidates · F flips (2) · Y X places
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import scenes
from .scenes import Identity
from .sprites import CLASSES, PLACES, WIDTH

APART = 6           # dots between two places that show two individuals
Candidate = tuple[str, Identity]


@dataclass(frozen=True)
class Found:
    """A candidate's number, where it is (x, y of the sprite with headroom), and its mean squared error there."""

    candidate: int
    x: int
    y: int
    error: float


def errors(picture: Tensor, candidates: Sequence[Candidate]) -> Tensor:
    """Mean squared error of every candidate at every place [K Y X], the better of both ways round. picture [3 S S] in 0..1."""
    drawn = [scenes.sprite(kind, identity) for kind, identity in candidates]
    colours = torch.from_numpy(np.stack([c for c, _ in drawn])).movedim(-1, 1)                   # K 3 h w
    masks = torch.from_numpy(np.stack([m for _, m in drawn])).float()[:, None]                   # K 1 h w
    colours, masks = torch.cat([colours, colours.flip(-1)]), torch.cat([masks, masks.flip(-1)])
    picture = picture[None].float()
    squares = F.conv2d(picture.square().sum(1, keepdim=True), masks)
    products = F.conv2d(picture, colours * masks)
    constant = (colours.square() * masks).sum((1, 2, 3))
    total = squares - 2 * products + constant[None, :, None, None]
    mean = total / (3 * masks.sum((1, 2, 3)))[None, :, None, None]
    both = mean[0].unflatten(0, (2, len(candidates)))
    return both.amin(0)


def find(picture: Tensor, candidates: Sequence[Candidate], count: int) -> list[Found]:
    """The `count` best explained places that are apart, each with the candidate that explains it best."""
    table = errors(picture, candidates)
    found = []
    for _ in range(count):
        flat = int(table.argmin())
        k, y, x = np.unravel_index(flat, tuple(table.shape))
        found.append(Found(int(k), int(x), int(y), float(table.flatten()[flat])))
        rows, columns = torch.arange(table.shape[1])[:, None], torch.arange(table.shape[2])[None]
        near = ((columns - int(x)).abs() < WIDTH) & ((rows - int(y)).abs() < APART) | ((columns - int(x)).abs() < APART)
        table = table.masked_fill(near[None], float("inf"))
    return found


def right_identity(picture: Tensor, kind: str, truth: Identity, others: Sequence[Identity]) -> bool:
    """Whether the picture's individual of that class is the true one rather than any of the others (7 make it one of 8)."""
    table = errors(picture, [(kind, truth), *((kind, o) for o in others)])
    return int(table.flatten(1).amin(1).argmin()) == 0


@dataclass(frozen=True)
class Binding:
    """Of the wanted individuals: how many stand there as their own class; how many places show a mixture or a swap instead."""

    wanted: int
    bound: int
    mixed: int

    @property
    def complete(self) -> bool:
        return self.bound == self.wanted


def binding(picture: Tensor, wanted: Sequence[Candidate], strangers: Sequence[Identity]) -> Binding:
    """Each wanted (class, individual) must be the best explanation of a place of its own.

    The candidates at every wanted class: every wanted individual, every mixture of two of them, and the strangers.
    """
    kinds = sorted({kind for kind, _ in wanted})
    who = [identity for _, identity in wanted]
    mixtures = [m for i, a in enumerate(who) for b in who[:i] for m in scenes.blend(a, b)]
    candidates = [(kind, identity) for kind in kinds for identity in (*who, *mixtures, *strangers)]
    named = [candidates[f.candidate] for f in find(picture, candidates, len(wanted))]
    left, bound = list(wanted), 0
    for name in named:
        if name in left:
            left.remove(name)
            bound += 1
    confused = set(who) | set(mixtures)
    mixed = sum(1 for name in named if name not in wanted and name[1] in confused)
    return Binding(len(wanted), bound, mixed)


# ---------------------------------------------------------------- classes and backgrounds

class Reader(nn.Module):
    """A small network: picture [B 3 S S] in 0..1 -> how many of each class (logits [B classes 4]) and which background [B places]."""

    def __init__(self, width: int = 32):
        super().__init__()

        def layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.ReLU())

        self.body = nn.Sequential(
            layer(3, width), layer(width, width), layer(width, 2 * width, 2), layer(2 * width, 2 * width), layer(2 * width, 2 * width),
            layer(2 * width, 4 * width, 2), layer(4 * width, 4 * width), layer(4 * width, 4 * width),
        )
        self.counts = nn.Linear(8 * width, 4 * len(CLASSES))
        self.place = nn.Linear(8 * width, len(PLACES))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(pictures * 2 - 1)
        pooled = torch.cat([features.mean((2, 3)) * 8, features.amax((2, 3))], 1)
        return self.counts(pooled).unflatten(1, (len(CLASSES), 4)), self.place(pooled)

    @torch.no_grad()
    def read(self, pictures: Tensor) -> list[tuple[dict[str, int], str]]:
        """What is there: {class: how many} without the absent ones, and the background."""
        counts, places = self(pictures)
        return [
            ({CLASSES[c]: int(n) for c, n in enumerate(row.argmax(-1)) if n}, tuple(PLACES)[int(p)])
            for row, p in zip(counts, places.argmax(1), strict=True)
        ]


def truth(scene: scenes.Scene) -> tuple[dict[str, int], str]:
    """What `Reader.read` should say of a scene."""
    kinds = [p.kind for p in scene.placed]
    return {kind: kinds.count(kind) for kind in kinds}, scene.place


def interval(hits: int, total: int) -> tuple[float, float, float]:
    """Share of hits and its 95 % interval (Wilson), in 0..1."""
    if total == 0:
        return float("nan"), float("nan"), float("nan")
    z, p = 1.959964, hits / total
    centre, half = p + z * z / (2 * total), z * (p * (1 - p) / total + z * z / (4 * total * total)) ** 0.5
    return p, max(0.0, (centre - half) / (1 + z * z / total)), min(1.0, (centre + half) / (1 + z * z / total))
