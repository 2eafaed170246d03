"""Where every subject is read: the true softmax probabilities of its nouns (text branch) and of its
tokens (image branch), and the regions that follow from them. Pure torch.

Shapes   B rows · H heads · P positions · T text columns · N subject tokens · S subjects · h w a
         grid
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..method.attention import Router, by_head, probabilities_by_head

FINEST = 64  # longest side of the grid that maps of all layers are added up on
CanvasArea = tuple[int, int, int, int]  # top, left, height, width on that grid


def members(
    groups: Sequence[Sequence[int]], length: int, device: torch.device | str = "cpu"
) -> Tensor:
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
    """Something about text columns [... T'] as the model reads them [... length]: the host repeats
    a shorter context to batch it with a longer one, and a prompt may also be read without what was
    added behind it."""
    return x.repeat(*[1] * (x.ndim - 1), max(1, length // x.shape[-1]))[..., :length]


def noun_map(q: Tensor, k: Tensor, heads: int, nouns: Tensor) -> Tensor:
    """Probability of reading each subject's nouns [B S P], mean over heads. q [B P HD], k [B T HD];
    `nouns` [T' S] by `members`."""
    seen = probabilities_by_head(by_head(q, heads), by_head(k, heads)).mean(1)
    return (seen @ fit_columns(nouns.T, k.shape[1]).T.to(seen)).transpose(1, 2)


def token_map(
    q: Tensor, key: Tensor, heads: int, tokens: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Probability of reading each subject's tokens [B S P], mean over heads. q [B P HD], key [1|B H
    N D], `tokens` [N S] by `members`, `bias` [1|B 1 P N] as the image branch has it. Over the
    subjects it sums to 1 at every position."""
    seen = probabilities_by_head(by_head(q, heads), key.to(q), bias).mean(1)
    return (seen @ tokens.to(seen)).transpose(1, 2)


def routed_map(router: Router, q: Tensor, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same [B S P] where a router shares the positions out: each subject's share, which is the
    probability of its tokens in every head; 0 for one without tokens."""
    first = [own.start for own in owners(router.tokens)]
    member = torch.stack([tokens[number] for number in first])
    shares = router.shares(q, bias)
    return (shares @ member.to(shares)).transpose(1, 2)


def canvas_grid(latent: tuple[int, int]) -> tuple[int, int]:
    """The grid that maps are added up on: the latent's shape, its longest side at most `FINEST`."""
    scale = min(1.0, FINEST / max(latent))
    return max(1, round(latent[0] * scale)), max(1, round(latent[1] * scale))


@dataclass(frozen=True, eq=False)
class Canvas:
    """Sums of maps on one grid, made once and added to in place.

    text, image     [images S h w]
    looks           [images 1 h w] how many maps each position of each image has
    """

    text: Tensor
    image: Tensor
    looks: Tensor

    @classmethod
    def blank(
        cls, images: int, subjects: int, grid: tuple[int, int], device: torch.device | str = "cpu"
    ) -> Canvas:
        def zeros(channels: int) -> Tensor:
            return torch.zeros(images, channels, *grid, device=device)

        return cls(zeros(subjects), zeros(subjects), zeros(1))

    @property
    def grid(self) -> tuple[int, int]:
        return tuple(self.looks.shape[-2:])

    def copy_to(self, device: torch.device) -> Canvas:
        """The same sums on another device, or once more on this one."""
        return Canvas(*(x.to(device, copy=True) for x in (self.text, self.image, self.looks)))

    def add(
        self,
        text: Tensor,
        image: Tensor,
        first: int,
        box: CanvasArea | None = None,
        weight: float | Tensor = 1.0,
    ) -> None:
        """Maps [B S gh gw] of images from number `first` on; `box` says which part of the canvas
        they cover, `weight` (0 or 1, a number or a tensor [1]) whether they count."""
        top, left, height, width = box or (0, 0, *self.grid)
        part = (
            slice(first, first + len(text)),
            slice(None),
            slice(top, top + height),
            slice(left, left + width),
        )
        for sums, seen in ((self.text, text), (self.image, image)):
            seen = F.interpolate(
                seen.float(), size=(height, width), mode="bilinear", align_corners=False
            )
            sums[part] += seen if isinstance(weight, float) else seen * weight
        self.looks[part] += weight

    def mean(self) -> tuple[Tensor, Tensor]:
        """Mean text and image maps [images S h w]; 0 where nothing was looked at."""
        looks = self.looks.clamp_min(1)
        return self.text / looks, self.image / looks

    def fade(self, share: float | Tensor) -> None:
        """Let what was seen so far count `share` as much."""
        for sums in (self.text, self.image, self.looks):
            sums.mul_(share)


def find_regions(text: Tensor, image: Tensor, sharpness: float, image_share: float = 0.5) -> Tensor:
    """`find_places` without its last map: whose each place is [B S h w]."""
    return find_places(text, image, sharpness, image_share)[:, :-1]


def find_places(text: Tensor, image: Tensor, sharpness: float, image_share: float = 0.5) -> Tensor:
    """Maps [B S h w] -> whose each place is, and how far it is inside any subject [B S+1 h w], in
    0..1: 1 for the subject that is read there most.

    Every subject's noun map is measured against its own mean, so that a word that is read little
    everywhere still has its place; the image map says which of the subjects' tokens were read
    there. The contest is among the subjects alone: the ground stays open. A place is inside by 0.5
    where the noun read most there is read as much as in its own mean, and less on the ground.
    """

    nouns = _relative(text)
    both = (1 - image_share) * nouns + image_share * _relative(image)
    # a subject without tokens has no image map
    score = torch.where(image.amax((-2, -1), keepdim=True) > 0, both, nouns)
    whose = torch.exp(sharpness * (score - score.amax(1, keepdim=True)))
    return torch.cat([whose, torch.sigmoid(sharpness * nouns.amax(1, keepdim=True))], 1)


def _relative(seen: Tensor) -> Tensor:
    """Logarithm of maps, each over its own mean."""
    soft = F.avg_pool2d(F.pad(seen, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return (soft / soft.mean((-2, -1), keepdim=True).clamp_min(1e-8)).clamp_min(1e-4).log()


KINDS = ("both", "nouns", "tokens")


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """What was recorded of one prompt. text, image [parts pictures S h w]: mean probabilities, the
    steps in equal parts, early first."""

    names: tuple[str, ...]
    text: Tensor
    image: Tensor

    def of(self, kind: str) -> Tensor:
        """Maps of "nouns", "tokens" or both together (their geometric mean) [parts pictures S h
        w]."""
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}, expected one of {KINDS}")
        return {"nouns": self.text, "tokens": self.image}.get(kind, (self.text * self.image).sqrt())
