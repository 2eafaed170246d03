"""Where every subject is read: the true softmax probabilities of its nouns (text branch) and of its tokens (image branch), and the
regions that follow from them. Pure torch.

Shapes   B rows · H heads · P positions · T text columns · N subject tokens · S subjects · h w a grid
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import by_head, probabilities_by_head

FINEST = 64         # longest side of the grid that maps of all layers are added up on
CanvasArea = tuple[int, int, int, int]     # top, left, height, width on that grid


def members(groups: Sequence[Sequence[int]], length: int, device: torch.device | str = "cpu") -> Tensor:
    """[length S]: 1 where column or token l belongs to subject s."""
    out = torch.zeros(length, len(groups))
    for s, columns in enumerate(groups):
        out[list(columns), s] = 1
    return out.to(device)


def owners(tokens: Sequence[int]) -> list[range]:
    """Numbers of the tokens that belong to each subject, where subject s has tokens[s]."""
    starts = [sum(tokens[:s]) for s in range(len(tokens))]
    return [range(start, start + count) for start, count in zip(starts, tokens, strict=True)]


def fit_columns(x: Tensor, length: int) -> Tensor:
    """Something about text columns [... T'] as the model reads them [... length]: the host repeats a shorter context to batch it with a
    longer one, and a prompt may also be read without what was added behind it."""
    return x.repeat(*[1] * (x.ndim - 1), max(1, length // x.shape[-1]))[..., :length]


def noun_map(q: Tensor, k: Tensor, heads: int, nouns: Tensor) -> Tensor:
    """Probability of reading each subject's nouns [B S P], mean over heads. q [B P HD], k [B T HD]; `nouns` [T' S] by `members`."""
    seen = probabilities_by_head(by_head(q, heads), by_head(k, heads)).mean(1)
    return (seen @ fit_columns(nouns.T, k.shape[1]).T.to(seen)).transpose(1, 2)


def token_map(q: Tensor, key: Tensor, heads: int, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
    """Probability of reading each subject's tokens [B S P], mean over heads. q [B P HD], key [1|B H N D], `tokens` [N S] by `members`,
    `bias` [1|B 1 P N] as the image branch has it. Over the subjects it sums to 1 at every position."""
    seen = probabilities_by_head(by_head(q, heads), key.to(q), bias).mean(1)
    return (seen @ tokens.to(seen)).transpose(1, 2)


def canvas_grid(latent: tuple[int, int]) -> tuple[int, int]:
    """The grid that maps are added up on: the latent's shape, its longest side at most `FINEST`."""
    scale = min(1.0, FINEST / max(latent))
    return max(1, round(latent[0] * scale)), max(1, round(latent[1] * scale))


@dataclass(frozen=True, eq=False)
class Canvas:
    """Sums of maps on one grid, made once and added to in place.

    text, image     [pictures S h w]
    looks           [h w] how many maps each place has
    """

    text: Tensor
    image: Tensor
    looks: Tensor

    @classmethod
    def blank(cls, pictures: int, subjects: int, grid: tuple[int, int], device: torch.device | str = "cpu") -> Canvas:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, device=device)

        return cls(zeros(pictures, subjects, *grid), zeros(pictures, subjects, *grid), zeros(*grid))

    def add(self, text: Tensor, image: Tensor, first: int, box: CanvasArea | None = None) -> None:
        """Maps [B S gh gw] of pictures from number `first` on; `box` says which part of the canvas they cover."""
        top, left, height, width = box or (0, 0, *self.looks.shape)
        rows, part = slice(first, first + len(text)), (slice(top, top + height), slice(left, left + width))
        for sums, seen in ((self.text, text), (self.image, image)):
            sums[rows, :, part[0], part[1]] += F.interpolate(seen.float(), size=(height, width), mode="bilinear", align_corners=False)
        self.looks[part] += 1

    def mean(self) -> tuple[Tensor, Tensor]:
        """Mean text and image maps [pictures S h w]; 0 where nothing was looked at."""
        looks = self.looks.clamp_min(1)
        return self.text / looks, self.image / looks

    def fade(self, share: float) -> None:
        """Let what was seen so far count `share` as much."""
        for sums in (self.text, self.image, self.looks):
            sums.mul_(share)


def find_regions(text: Tensor, image: Tensor, sharpness: float, image_share: float = 0.5) -> Tensor:
    """Maps [B S h w] -> whose each place is [B S h w], in 0..1, 1 for the subject that is read there most.

    Every subject's noun map is measured against its own mean, so that a word that is read little everywhere still has its place; the
    image map says which of the subjects' tokens were read there. The contest is among the subjects alone: the ground stays open.
    """
    def relative(seen: Tensor) -> Tensor:
        soft = F.avg_pool2d(F.pad(seen, (1, 1, 1, 1), mode="replicate"), 3, 1)
        return (soft / soft.mean((-2, -1), keepdim=True).clamp_min(1e-8)).clamp_min(1e-4).log()

    nouns = relative(text)
    both = (1 - image_share) * nouns + image_share * relative(image)
    score = torch.where(image.amax((-2, -1), keepdim=True) > 0, both, nouns)       # a subject without tokens has no image map
    return torch.exp(sharpness * (score - score.amax(1, keepdim=True)))


# ---------------------------------------------------------------- for the eye

@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """What was recorded of one prompt. text, image [parts pictures S h w]: mean probabilities, the steps in equal parts, early first."""

    names: tuple[str, ...]
    text: Tensor
    image: Tensor

    def of(self, kind: str) -> Tensor:
        """Maps of "nouns", "tokens" or both together (their geometric mean) [parts pictures S h w]."""
        if kind not in KINDS:
            raise ValueError(f"maps of {kind!r}: expected one of {KINDS}")
        return {"nouns": self.text, "tokens": self.image}.get(kind, (self.text * self.image).sqrt())


KINDS = ("both", "nouns", "tokens")
HEAT = torch.tensor([[0.0, 0.0, 0.15], [0.25, 0.05, 0.55], [0.85, 0.2, 0.35], [1.0, 0.7, 0.2], [1.0, 1.0, 0.85]])


def stretch(maps: Tensor) -> Tensor:
    """Maps [... h w] -> 0..1, each from its least to its largest value; a map without any difference is 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-8)


def heat(values: Tensor) -> Tensor:
    """0..1 [...] -> colours [... 3]: dark where nothing is read, bright where most is."""
    at = values.clamp(0, 1) * (len(HEAT) - 1)
    below = at.floor().long().clamp_max(len(HEAT) - 2)
    return torch.lerp(HEAT[below], HEAT[below + 1], (at - below)[..., None])


def overlay(pictures: Tensor, maps: Tensor, opacity: float = 0.6) -> Tensor:
    """Pictures [B H W 3] and maps [B S h w] in 0..1 -> heat over each picture, a subject after the other [B S H W 3]. Where little is read
    the picture shows, in grey, so that colours are the heat's."""
    B, S = maps.shape[:2]
    large = F.interpolate(maps, size=pictures.shape[1:3], mode="bilinear", align_corners=False)
    grey = (pictures @ torch.tensor([0.299, 0.587, 0.114]))[:, None, :, :, None].expand(B, S, -1, -1, 3)
    share = (opacity * (0.35 + 0.65 * large))[..., None]
    return grey * (1 - share) + heat(large) * share


def strip(maps: Tensor, side: int = 96, gap: int = 4) -> Tensor:
    """Maps [parts S h w] in 0..1 -> one picture [1 H W 3]: a row for each subject, the steps from left to right."""
    parts, subjects, h, w = maps.shape
    height, width = (side, max(1, round(side * w / h))) if h >= w else (max(1, round(side * h / w)), side)
    tiles = heat(F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False))
    out = torch.full((subjects * (height + gap) + gap, parts * (width + gap) + gap, 3), 0.1)
    for p in range(parts):
        for s in range(subjects):
            top, left = gap + s * (height + gap), gap + p * (width + gap)
            out[top:top + height, left:left + width] = tiles[p, s]
    return out[None]


def show_maps(recorded: Sequence[AttentionMaps], image: Tensor, kind: str, opacity: float
              ) -> tuple[Tensor, Tensor, Tensor, str]:
    """Overlays [B S H W 3] flattened, masks [B S h w] at the pictures' size flattened, the strip, and the order in words."""
    if not recorded:
        raise ValueError("no attention was recorded: connect `maps` of the MM-Diff Watch Attention whose model drew these pictures, and "
                         "let the sampler run with a prompt of MM-Diff Text Encode that shows subjects")
    if any(m.text.shape[1] != len(image) for m in recorded):
        raise ValueError(f"the recorded run drew {recorded[0].text.shape[1]} pictures, but {len(image)} came in; connect the decoded "
                         "pictures of the same run")
    pictures = image[..., :3].float().cpu()
    every = torch.cat([m.of(kind) for m in recorded], 2)                        # parts B S h w
    mean = stretch(every.mean(0))
    large = F.interpolate(mean, size=pictures.shape[1:3], mode="bilinear", align_corners=False)
    names = [name for m in recorded for name in m.names]
    return (overlay(pictures, mean, opacity).flatten(0, 1), large.flatten(0, 1), strip(stretch(every[:, 0])),
            "in each picture: " + ", ".join(names))
