"""A run's section "data", for annotated images on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .augment import Augmentation
from .buckets import bucket_sizes
from .cutouts import BLACK


@dataclass(frozen=True)
class Dropout:
    """Shares of the examples, 0..1, that teach the parts of classifier-free guidance.

    Each example loses one or the other or nothing.

    caption    the caption is "", and there are no subjects
    subjects   the caption stays, and there are no subjects
    """

    caption: float = 0.1
    subjects: float = 0.05

    def __post_init__(self) -> None:
        if min(self.caption, self.subjects) < 0 or self.caption + self.subjects > 1:
            raise ValueError(
                f"dropout is {self.caption} and {self.subjects}, expected shares from 0 whose sum "
                "is at most 1"
            )


@dataclass(frozen=True)
class DataConfig:
    """How images become examples. A field outside its range is a ValueError that names it.

    side            images have at most side x side pixels; in pixels, from `multiple`
    multiple        heights and widths are multiples of this, in pixels, from 1; latents need 8,
                    SDXL works well with 64
    aspect          largest ratio of the longer side to the shorter, from 1
    group           examples that share a bucket, from 1; a multiple of every batch size
    reference_side  side of the references, in pixels, from 1: the image encoder's input
    references      (fewest, most) references of a subject, from 1
    subjects        most subjects of an image, from 1; of more, a random choice is taken
    visible         smallest share of a subject's mask, 0..1, that must be left after the crop to
                    the bucket; other subjects are left out
    background      red, green, blue in 0..1 behind cut-out subjects; black as in the release
    """

    side: int = 512
    multiple: int = 64
    aspect: float = 2.0
    group: int = 16
    reference_side: int = 224
    references: tuple[int, int] = (1, 5)
    subjects: int = 4
    visible: float = 0.25
    background: tuple[float, float, float] = BLACK
    augmentation: Augmentation = field(default_factory=Augmentation)
    dropout: Dropout = field(default_factory=Dropout)

    def __post_init__(self) -> None:
        for name in ("group", "reference_side", "subjects"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} is {getattr(self, name)}, expected at least 1")
        if len(self.references) != 2 or not 1 <= self.references[0] <= self.references[1]:
            raise ValueError(
                f"data.references is {self.references}, expected (fewest, most) from 1"
            )
        if not 0 <= self.visible <= 1:
            raise ValueError(f"data.visible is {self.visible}, expected 0..1")
        if len(self.background) != 3 or not all(0 <= v <= 1 for v in self.background):
            raise ValueError(
                f"data.background is {self.background}, expected red, green and blue in 0..1"
            )
        bucket_sizes(self.side, self.multiple, self.aspect)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataConfig:
        """A dict as json.load gives it; lists become tuples.

        ValueError names unknown fields and values out of range.
        """
        filled = dict(values)
        for name, section in (("augmentation", Augmentation), ("dropout", Dropout)):
            if isinstance(filled.get(name), Mapping):
                filled[name] = _filled(section, filled[name])
        return _filled(cls, filled)


def _filled(cls: type, values: Mapping[str, Any]) -> Any:
    known = {f.name for f in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{cls.__name__} has unknown fields {unknown}; known are {sorted(known)}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
