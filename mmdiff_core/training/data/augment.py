"""How references differ from the image they come from: random variations and their ranges.

References that look different in size, side, tilt, position, light and cover cannot be learned by
copying. All randomness is drawn in `random_variation`, from the generator that is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...untrusted import STRICT, quoted

# field -> (smallest, largest); a pair must ascend
RANGES = {
    "clean": (0, 1),
    "scale": (0.05, 4),
    "flip": (0, 1),
    "rotation": (0, 180),
    "translation": (0, 1),
    "brightness": (0, 0.99),
    "contrast": (0, 0.99),
    "saturation": (0, 0.99),
    "hue": (0, 0.5),
    "occlusion": (0, 1),
    "occluded": (0, 0.95),
}


@dataclass(frozen=True)
class Augmentation:
    """How far references may differ from the image. A field out of range is a ValueError.

    clean        chance that a reference is left as it was cut out, 0..1
    scale        (smallest, largest) factor on the subject's size, 0.05..4; (1, 1) = none
    flip         chance of left and right exchanged, 0..1
    rotation     degrees, uniform within plus and minus it, 0..180
    translation  share of the side, uniform within plus and minus it on both axes, 0..1
    brightness   the factor is uniform within 1 plus and minus it, 0..0.99; contrast and
                 saturation likewise
    hue          turn of the colour circle, uniform within plus and minus it, 0..0.5; keep it
                 small, or a red dog becomes a blue one
    occlusion    chance that a part is covered by a rectangle or from one side, 0..1
    occluded     (smallest, largest) share of the subject's visible pixels that is then covered,
                 0..0.95
    """

    __pydantic_config__ = STRICT

    clean: float = 0.1
    scale: tuple[float, float] = (0.6, 1.1)
    flip: float = 0.5
    rotation: float = 15.0
    translation: float = 0.1
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.02
    occlusion: float = 0.3
    occluded: tuple[float, float] = (0.1, 0.4)

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            pair = isinstance(value, (tuple, list))
            ends = value if pair else (value, value)
            if len(ends) != 2 or not low <= ends[0] <= ends[1] <= high:
                order = ", the smaller end first" if pair else ""
                raise ValueError(
                    f"augmentation.{name} is {quoted(value)}, expected within {low} to "
                    f"{high}{order}"
                )

    @classmethod
    def identity(cls) -> Augmentation:
        """References exactly as they were cut out."""
        return cls(0, (1, 1), 0, 0, 0, 0, 0, 0, 0, 0, (0, 0))


@dataclass(frozen=True)
class Variation:
    """One draw of an `Augmentation`.

    rotation  degrees
    shift     share of the side, to the right and down
    covered   share of the subject that is covered, 0..1
    cover     (rectangle rather than side, its angle or aspect 0..1, its centre among the
              subject's pixels 0..1)
    """

    scale: float = 1.0
    flipped: bool = False
    rotation: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    covered: float = 0.0
    cover: tuple[bool, float, float] = (False, 0.0, 0.0)


def random_variation(wanted: Augmentation, generator: torch.Generator) -> Variation:
    """A draw within the ranges of `wanted`.

    It always takes 16 numbers, so changing one strength leaves the other draws as they were.
    """
    u = torch.rand(16, generator=generator, dtype=torch.float64).tolist()
    if u[0] < wanted.clean:
        return Variation()
    shift = (_around(0, wanted.translation, u[4]), _around(0, wanted.translation, u[5]))
    return Variation(
        scale=_between(wanted.scale, u[1]),
        flipped=u[2] < wanted.flip,
        rotation=_around(0, wanted.rotation, u[3]),
        shift=shift,
        brightness=_around(1, wanted.brightness, u[6]),
        contrast=_around(1, wanted.contrast, u[7]),
        saturation=_around(1, wanted.saturation, u[8]),
        hue=_around(0, wanted.hue, u[9]),
        covered=_between(wanted.occluded, u[11]) if u[10] < wanted.occlusion else 0.0,
        cover=(u[12] < 0.5, u[13], u[14]),
    )


def _around(centre: float, width: float, u: float) -> float:
    return centre + width * (2 * u - 1)


def _between(ends: tuple[float, float], u: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * u
