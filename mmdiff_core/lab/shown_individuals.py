"""Who is seen in drawn images of the small world, with gradient: the `Scorer` of its last stage.

Shapes   B images · S subjects · F found · H W image · K image side in dots · C features
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..host import small_world
from ..host.frozen_base.encoders import vision_states
from ..references.pixels import normalise
from ..small_world import scenes, score, sizes
from ..small_world.examples import SmallWorldExamples
from ..small_world.windows import Windows, cut_outs
from ..training.example import Example


class ShownIndividuals:
    """The frozen image encoder compares cut-outs with clean references, as MM-Diff Likeness does.

    The squared error to true renderings says where subjects stand, the encoder alone how alike they
    are. So neither Likeness nor the second ruler can judge what was trained with it.
    """

    def __init__(self, source: SmallWorldExamples):
        """source  of the examples; their scenes follow from their numbers"""
        self.source = source
        weights = small_world.read(small_world.WEIGHTS, "vision")
        self.encoder = small_world.clip_vision(weights).model.requires_grad_(False)
        with torch.no_grad():
            self.windows = Windows.learn(self.embed)

    def embed(self, images: Tensor) -> Tensor:
        """Images [n 3 K K] in 0..1 -> CLS [n C]."""
        return vision_states(self.encoder, normalise(images))[0].float()

    def __call__(self, images: Tensor, batch: Sequence[Example]) -> list[Tensor]:
        dots = images[:, :: sizes.DOT, :: sizes.DOT].movedim(-1, 1)
        wanted = [self.wanted(example.index) for example in batch]
        return [self.table(image, own) for image, own in zip(dots, wanted, strict=True)]

    def wanted(self, number: int) -> list[score.Candidate]:
        """Class and individual of each subject of that example."""
        scene = scenes.scene(self.source.split, self.source.seed, number, self.source.count)
        return [(placed.kind, placed.identity) for placed in scene.placed]

    def table(self, image: Tensor, wanted: Sequence[score.Candidate]) -> Tensor:
        """Similarities [S F] of the wanted to those who stand in an image [3 K K] in 0..1, as many
        as are wanted, each cut out by the silhouette of the one it is compared to."""
        matches = score.find(image.detach(), wanted, len(wanted))
        positions, parts, clean = [(match.x, match.y) for match in matches], [], []
        for candidate in wanted:
            silhouette = torch.from_numpy(scenes.sprite(*candidate)[1].copy())
            parts.append(cut_outs(image[None], silhouette, positions)[0])
            clean.append(torch.from_numpy(scenes.reference(*candidate)).movedim(-1, 0).float())
        with torch.no_grad():
            features = self.embed(torch.stack(clean))
            given = torch.stack([self.windows.of_references(one[None]) for one in features])
        shown = self.windows.of_cut_outs(self.embed(torch.cat(parts)))
        return torch.einsum("sfc,sc->sf", shown.unflatten(0, (len(wanted), -1)), given)
