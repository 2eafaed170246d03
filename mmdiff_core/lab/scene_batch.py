"""What a step of the base's training sees: scenes, drawn, with their captions as token rows.

Shapes   B scenes · N most subjects of a scene (3) · S scene side · T columns of a caption
         G groups: the class, then the traits
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..small_world import descriptions, scenes, sizes, sprites
from ..training.noise import LogNormal, draw_noise
from .told import told_values

MOST = 3  # subjects of a scene
CAPTION_DROPOUT = 0.1
ONLY_NOUNS = 0.5  # share of the captions whose traits the UNet sees in the nouns' states alone
NOISE = LogNormal(median=2.2, spread=0.9, share=0.6)  # where classes and positions are decided


@dataclass(frozen=True, eq=False)
class SceneBatch:
    """Scenes as tensors.

    latents     [B 12 h w] of the drawn scenes
    noise       [B 12 h w]
    steps       timesteps [B]
    masks       where each subject is visible [B N S S] bool, in the caption's order
    values      its class and traits as numbers [B N G]; -1 where there is no subject
    told        the caption with traits [B T], rows of the token table
    plain       the same caption without traits [B T]
    told_nouns  columns of the nouns in `told` [B N]; 0 where there is none
    plain_nouns the same in `plain`
    known       the traits that `told` tells of each noun [B N G-1], -1 where it tells none
    only_nouns  whether the traits are shown in the nouns' states alone [B] bool
    """

    latents: Tensor
    noise: Tensor
    steps: Tensor
    masks: Tensor
    values: Tensor
    told: Tensor
    plain: Tensor
    told_nouns: Tensor
    plain_nouns: Tensor
    known: Tensor
    only_nouns: Tensor

    def __len__(self) -> int:
        return len(self.steps)

    def to(self, device: torch.device) -> SceneBatch:
        """The same on that device."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        return SceneBatch(**moved)


@dataclass(frozen=True)
class Captions:
    """Captions as rows of the token table, word by word as the tokenizer splits them.

    words  each word's rows
    first  row of the token before a caption
    last   row of the token that ends and fills it
    """

    words: Mapping[str, tuple[int, ...]]
    first: int
    last: int

    def rows(self, caption: str) -> list[int]:
        """T rows."""
        found = [self.first]
        for word in caption.split():
            found += self.words[word]
        return found + [self.last] * (sizes.TOKENS - len(found))


@dataclass(frozen=True)
class Scenes:
    """Training scenes by number; what number n is follows from the seed alone.

    levels  sigma of every timestep, ascending
    """

    captions: Captions
    levels: tuple[float, ...]
    seed: int

    @cached_property
    def _sigmas(self) -> Tensor:
        return torch.tensor(self.levels)

    def scene(self, number: int) -> scenes.Scene:
        """The scene of that number, with traits in its caption."""
        rng = np.random.default_rng((self.seed, number, 5))
        return descriptions.describe(scenes.scene("train", self.seed, number), rng)

    def example(self, index: int) -> SceneBatch:
        """One scene."""
        return self.batch(index, 1)

    def batch(self, start: int, size: int) -> SceneBatch:
        """`size` scenes from number `start` on."""
        numbers = range(start, start + size)
        pictured = [self.scene(number) for number in numbers]
        shown = [scenes.draw(scene) for scene in pictured]
        pixels = torch.from_numpy(np.stack([image for image, _ in shown])).movedim(-1, 1).float()
        latents = F.pixel_unshuffle(pixels * 2 - 1, sizes.FOLD) * sizes.LATENT_SCALE
        noise, steps = draw_noise(numbers, latents.shape[1:], len(self.levels), self.seed)
        steps = NOISE.replace_steps(steps, numbers, self._sigmas, self.seed)
        drawn = np.stack([self._drops(number) for number in numbers])
        texts = self._texts(pictured, drawn[:, 0] < CAPTION_DROPOUT)
        only_nouns = torch.from_numpy(drawn[:, 1] < ONLY_NOUNS)
        masks, values = pad_masks([masks for _, masks in shown]), values_of(pictured)
        return SceneBatch(latents, noise, steps, masks, values, *texts, only_nouns)

    def _drops(self, number: int) -> np.ndarray:
        return np.random.default_rng((self.seed, number, 3)).random(2)

    def _texts(self, pictured: Sequence[scenes.Scene], dropped: np.ndarray) -> tuple[Tensor, ...]:
        """told, plain, told_nouns, plain_nouns and known of a `SceneBatch`."""
        columns: list[list] = [[], [], [], [], []]
        for scene, without in zip(pictured, dropped, strict=True):
            told = "" if without else scene.caption
            plain = "" if without else descriptions.plainly(scene).caption
            row = (
                self.captions.rows(told),
                self.captions.rows(plain),
                padded(noun_columns(told), 0),
                padded(noun_columns(plain), 0),
                [[-1] * (len(sprites.WORDS))] * MOST if without else told_values(scene, MOST),
            )
            for column, value in zip(columns, row, strict=True):
                column.append(value)
        return tuple(map(torch.tensor, columns))


def padded(values: Sequence[int], fill: int) -> list[int]:
    """The values and `fill`, N in all."""
    return [*values, *[fill] * (MOST - len(values))]


def noun_columns(caption: str) -> list[int]:
    """Columns of the nouns in a caption's states."""
    return [i for i, word in enumerate(caption.split(), 1) if word in sprites.CLASSES]


def pad_masks(shown: Sequence[np.ndarray]) -> Tensor:
    """Masks of every scene's subjects [n S S] -> [B N S S] bool."""
    masks = torch.zeros(len(shown), MOST, scenes.SIDE, scenes.SIDE, dtype=torch.bool)
    for row, of_scene in zip(masks, shown, strict=True):
        row[: len(of_scene)] = torch.from_numpy(of_scene)
    return masks


def values_of(pictured: Sequence[scenes.Scene]) -> Tensor:
    """Class and traits of every scene's subjects as numbers [B N G], -1 where there is none."""
    rows = []
    for scene in pictured:
        row = [[-1] * (1 + len(sprites.WORDS)) for _ in range(MOST)]
        for number, placed in enumerate(scene.placed):
            traits = descriptions.traits(placed.identity)
            own = [traits[trait] for trait in sprites.WORDS]
            row[number] = [sprites.CLASSES.index(placed.kind), *own]
        rows.append(row)
    return torch.tensor(rows)
