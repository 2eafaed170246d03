"""A run's section "data", for annotated images on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from ...untrusted import STRICT, fill, quoted
from .augment import Augmentation
from .buckets import bucket_sizes
from .cutouts import BLACK

# field of `DataConfig` -> (smallest, largest)
RANGES = {
    "side": (1, 16384),
    "multiple": (1, 4096),
    "aspect": (1, 100),
    "group": (1, 10**6),
    "reference_side": (1, 4096),
    "subjects": (1, 64),
    "visible": (0, 1),
}
MOST_REFERENCES = 64


@dataclass(frozen=True)
class Dropout:
    """Shares of the examples, 0..1, that teach the parts of classifier-free guidance.

    Each example loses one or the other or nothing.

    caption    the caption is "", and there are no subjects
    subjects   the caption stays, and there are no subjects
    """

    __pydantic_config__ = STRICT

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

    __pydantic_config__ = STRICT

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
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(
                    f"data.{name} is {quoted(getattr(self, name))}, expected {low} to {high}"
                )
        fewest, most = self.references if len(self.references) == 2 else (0, 0)
        if not 1 <= fewest <= most <= MOST_REFERENCES:
            raise ValueError(
                f"data.references is {self.references}, expected (fewest, most) from 1 to "
                f"{MOST_REFERENCES}"
            )
        if len(self.background) != 3 or not all(0 <= v <= 1 for v in self.background):
            raise ValueError(
                f"data.background is {self.background}, expected red, green and blue in 0..1"
            )
        bucket_sizes(self.side, self.multiple, self.aspect)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataConfig:
        """A dict as json.load gives it; lists become tuples.

        ValueError names fields that are unknown, of another type or out of range.
        """
        for name, section in SECTIONS.items():
            if isinstance(values, Mapping) and name in values:
                fill(section, values[name], section.__name__)
        return fill(cls, values, cls.__name__)


SECTIONS = {"augmentation": Augmentation, "dropout": Dropout}


@dataclass(frozen=True)
class FaceModels:
    """Where the faces of portrait adapters come from: a folder of models/ and a pack in it."""

    __pydantic_config__ = STRICT

    root: str
    model: str = "buffalo_l"
    device: Literal["auto", "cuda", "cpu"] = "auto"


@dataclass(frozen=True)
class FileData:
    """The whole section "data" of a run on files, beside its `kind`.

    records     .jsonl files, .tar shards or folders
    faces       for portrait adapters
    seed        None = the run's
    encoded     folder that `python -m mmdiff_core encode` writes, and the run reads latents and
                cutouts of; None = every step encodes and cuts out
    """

    __pydantic_config__ = STRICT

    records: Annotated[tuple[str, ...], Field(min_length=1, max_length=10_000)]
    faces: FaceModels | None = None
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = None
    encoded: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    config: DataConfig = field(default_factory=DataConfig)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FileData:
        """A dict as json.load gives it, all fields side by side; errors as in `DataConfig`."""
        names = ("records", "faces", "seed", "encoded")
        own = {name: values[name] for name in names if name in values}
        rest = {name: value for name, value in values.items() if name not in own}
        files = fill(cls, own, "the section data")
        return replace(files, config=DataConfig.from_dict(rest))
