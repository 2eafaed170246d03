"""Where individuals stand in an image of the small world, and how alike they are to given ones, as
the frozen image encoder sees it. Nothing of the exact ruler is used: only references are given.

Shapes   B images · S subjects · R references · K reference and scene side in dots (32) · h w a
         sprite with headroom · P positions of a sprite in a scene · F found positions · C features
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..evaluation.verdicts import Box
from . import scenes
from .references import SOFTENING
from .score import APART, Embed, EncoderRuler
from .sprites import WIDTH

COLUMNS = range(0, scenes.SIDE - WIDTH + 1, scenes.GRID)
POSITIONS = tuple((x, y) for y in scenes.FEET for x in COLUMNS)  # x y of a sprite's top left corner
DIFFERENT = 0.15  # from its ground, for a dot of a reference to count; softened edges differ less
LARGE = 2  # reference dots per sprite dot
TOP, LEFT = (scenes.SIDE - LARGE * scenes.TALL) // 2, (scenes.SIDE - LARGE * WIDTH) // 2
MORE = 2  # positions looked for beyond the number of subjects
NOTHING = -1e9


@dataclass(frozen=True, eq=False)
class Windows:
    """How features of references and of cut-outs are compared: by their cosine after whitening by
    how they differ for training individuals (as `EncoderRuler` does), from the mean reference.

    offset     [C] by which references differ from cut-outs
    whitening  [C C]
    middle     [C] mean of the training individuals' references, whitened
    """

    offset: Tensor
    whitening: Tensor
    middle: Tensor

    @classmethod
    def learn(cls, embed: Embed) -> Windows:
        """From training individuals; takes about 2 s on a CPU core."""
        ruler = EncoderRuler(embed)
        given = [scenes.scene("train", 6, number, 1).placed[0] for number in range(256)]
        mean = ruler.references([(p.kind, p.identity) for p in given]).mean(0)
        return cls(ruler.offset, ruler.whitening, (mean - ruler.offset) @ ruler.whitening)

    def of_references(self, features: Tensor) -> Tensor:
        """Features of references [R C] -> one unit vector [C]."""
        apart = (features - self.offset) @ self.whitening - self.middle
        return F.normalize(F.normalize(apart, dim=-1).mean(0), dim=0)

    def of_cut_outs(self, features: Tensor) -> Tensor:
        """Features of cut-outs [... C] -> unit vectors."""
        return F.normalize(features @ self.whitening - self.middle, dim=-1)


def silhouette_of(reference: Tensor) -> Tensor:
    """Dots [h w] (bool) that a subject covers in its plain reference [3 K K] in 0..1."""
    ground = reference[:, :1, :1]
    shown = F.avg_pool2d(reference[None], LARGE)[0]
    top, left = TOP // LARGE, LEFT // LARGE
    inside = shown[:, top : top + scenes.TALL, left : left + WIDTH]
    return (inside - ground).abs().amax(0) > DIFFERENT


def cut_outs(
    images: Tensor, silhouette: Tensor, positions: Sequence[tuple[int, int]] = POSITIONS
) -> Tensor:
    """A silhouette [h w] cut out of images [B 3 K K] at every position (x, y), on the blank ground,
    twice as large and softened, as a reference shows it [B P 3 K K]."""
    parts = [images[..., y : y + scenes.TALL, x : x + WIDTH] for x, y in positions]
    blank = torch.tensor(scenes.BLANK)
    shown = torch.where(silhouette, torch.stack(parts, 1).clamp(0, 1), blank)
    large = shown.repeat_interleave(LARGE, -1).repeat_interleave(LARGE, -2)
    return softened(F.pad(large, (LEFT, LEFT, TOP, TOP), value=scenes.BLANK))


def softened(images: Tensor) -> Tensor:
    """Images [... 3 K K] with each dot a little of its neighbours: what resizing makes of the
    references, which are given enlarged."""
    flat = F.pad(images.flatten(0, -3)[:, None], (1, 1, 1, 1), mode="replicate")
    weights = torch.tensor(SOFTENING)
    kernel = (weights[:, None] * weights)[None, None]
    return F.conv2d(flat, kernel)[:, 0].unflatten(0, images.shape[:-2])


def read_positions(
    images: Tensor, references: Sequence[Tensor], embed: Embed, windows: Windows
) -> tuple[Tensor, Tensor]:
    """Scores [B S P] of every subject at every position of images [B 3 K K] in 0..1, and those of
    the subjects' references among one another [S S]. `references`: [R 3 K K] of each subject, the
    first one plain."""
    own = torch.stack([windows.of_references(embed(shown)) for shown in references])
    scores = []
    for identity, shown in zip(own, references, strict=True):
        cut = cut_outs(images, silhouette_of(shown[0]))
        features = embed(cut.flatten(0, 1)).unflatten(0, cut.shape[:2])
        scores.append(windows.of_cut_outs(features) @ identity)
    return torch.stack(scores, 1), own @ own.T


def find_individuals(table: Tensor, least: float) -> tuple[Tensor, tuple[Box, ...]]:
    """The best positions of one image that are apart: as many as there are subjects, and up to
    `MORE` further ones from a score of `least` on. `table` [S P] -> scores [S F] of every subject
    at or beside each, and boxes in dots."""
    left, columns, boxes = table.clone(), [], []
    spots = torch.tensor(POSITIONS)
    for number in range(len(table) + MORE):
        best = int(left.amax(0).argmax())
        most = float(left[:, best].max())
        if most == NOTHING or (number >= len(table) and most < least):
            break
        across, down = (spots - spots[best]).abs().T
        beside = (across <= scenes.GRID) & (down <= scenes.GRID)
        columns.append(table[:, beside].amax(1))
        x, y = POSITIONS[best]
        boxes.append((float(x), float(y), float(x + WIDTH), float(y + scenes.TALL)))
        near = (across < APART) | ((across < WIDTH) & (down < APART))
        left[:, near] = NOTHING
    return torch.stack(columns, 1), tuple(boxes)
