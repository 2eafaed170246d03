"""What trains the small world's image encoder, and the network that reads images for the scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..host import small_world as host
from ..host.frozen_base.encoders import vision_states
from ..references.pixels import normalise
from ..small_world import references, scenes, score, sizes, sprites
from ..training.example import Example
from ..training.noise import draw_noise


class VisionTask(nn.Module):
    """Reference images and their labels -> the image encoder, by heads that are not kept."""

    TRAITS: ClassVar = {
        "kind": sprites.CLASSES,
        "pattern": sprites.PATTERNS,
        "eyes": sprites.EYES,
        "accessory": sprites.ACCESSORIES,
    }

    def __init__(self, init: Path | None, seed: int):
        super().__init__()
        begun = host.read(init, "vision") if init else None
        self.encoder = host.clip_vision(begun).model.requires_grad_(True)
        width = sizes.VISION["projection_dim"]
        self.heads = nn.ModuleDict({"hues": nn.Linear(width, 4)})
        for name, values in self.TRAITS.items():
            self.heads[name] = nn.Linear(width, len(values))
        self.seed = seed

    def forward(self, batch: Sequence[Example]) -> dict[str, Tensor]:
        shown, pixels = [], []
        for example in batch:
            rng = np.random.default_rng((self.seed, example.index, 5))
            kind = str(rng.choice(sprites.CLASSES))
            shown.append((kind, scenes.random_identity(rng, "train")))
            pixels.append(references.augmented(rng, *shown[-1]))
        images = torch.from_numpy(np.stack(pixels)).movedim(-1, 1)
        cls = vision_states(self.encoder, normalise(images))[0].float()
        terms = {}
        for name in self.TRAITS:
            self._add_trait(terms, name, cls, shown)
        angles = torch.tensor([[who.first, who.second] for _, who in shown]) * 2 * math.pi
        wanted = torch.cat([angles.sin(), angles.cos()], 1).float()
        terms["hues"] = F.mse_loss(self.heads["hues"](cls).float(), wanted)
        loss = sum(terms[name] for name in self.TRAITS) + 4 * terms["hues"]
        return {"loss": loss} | {name: term.detach() for name, term in terms.items()}

    def _add_trait(
        self,
        terms: dict[str, Tensor],
        name: str,
        cls: Tensor,
        shown: Sequence[tuple[str, scenes.Identity]],
    ) -> None:
        """The error of one trait, and how often it is named right."""
        values = self.TRAITS[name]
        true = [kind if name == "kind" else getattr(who, name) for kind, who in shown]
        numbers = torch.tensor([values.index(value) for value in true])
        logits = self.heads[name](cls).float()
        terms[name] = F.cross_entropy(logits, numbers)
        terms[f"{name}_right"] = (logits.argmax(1) == numbers).float().mean()

    def files(self, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        kept = {key: weight for key, weight in weights.items() if key.startswith("encoder.")}
        return {"vision": {key.removeprefix("encoder."): weight for key, weight in kept.items()}}


class ReaderTask(nn.Module):
    """Scenes, also noisy ones -> the network that tells classes and places (`score.Reader`).

    It sees all pairs of classes and all colour combinations: a ruler must not err on what is held
    out from the models that it measures.
    """

    NOISE = 0.12

    def __init__(self, init: Path | None, seed: int):
        super().__init__()
        self.reader, self.seed = score.Reader(), seed
        if init:
            begun = host.read(init, "reader")
            self.reader.load_state_dict({key: weight.float() for key, weight in begun.items()})

    def forward(self, batch: Sequence[Example]) -> dict[str, Tensor]:
        numbers = [example.index for example in batch]
        drawn = [scenes.scene(scenes.SPLITS[n % 2], self.seed + 7, n) for n in numbers]
        noise, steps = draw_noise(numbers, (3, scenes.SIDE, scenes.SIDE), 1000, self.seed)
        strength = self.NOISE * steps.view(-1, 1, 1, 1) / 1000
        counts, background = self.reader(images_of(drawn) + noise * strength)
        wanted = torch.tensor([_counts(scene) for scene in drawn])
        places = torch.tensor([tuple(sprites.PLACES).index(scene.place) for scene in drawn])
        told = F.cross_entropy(counts.float().flatten(0, 1), wanted.flatten())
        return {
            "loss": told * len(sprites.CLASSES) + F.cross_entropy(background.float(), places),
            "counts_right": (counts.argmax(-1) == wanted).all(1).float().mean(),
            "background_right": (background.argmax(1) == places).float().mean(),
        }

    def files(self, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Trained weights -> the reader's file."""
        return {"reader": {key.removeprefix("reader."): w for key, w in weights.items()}}


def _counts(scene: scenes.Scene) -> list[int]:
    """How many of each class."""
    counts, _ = score.truth(scene)
    return [counts.get(kind, 0) for kind in sprites.CLASSES]


def images_of(drawn: Sequence[scenes.Scene]) -> Tensor:
    """Scenes -> [B 3 S S] in 0..1, float32."""
    images = np.stack([scenes.draw(scene)[0] for scene in drawn])
    return torch.from_numpy(images).movedim(-1, 1).float()
