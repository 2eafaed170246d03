"""What an MM-Diff adapter is made of: one frozen record, written into every checkpoint's header."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from .bases import BASES, SD2, SD15, SDXL, Base, EncoderName, Name, Pixels, Width
from .bases import SMALL_WORLD as SMALL_WORLD_BASE
from .untrusted import STRICT, fill, listed, load_json, quoted

BEHAVIOURS = ("released", "corrected")
# field of a config -> (smallest, largest)
RANGES = {
    "tokens_per_reference": (1, 64),
    "refiner_depth": (0, 64),
    "refiner_head_width": (1, 4096),
}


@dataclass(frozen=True)
class Variant:
    """What an adapter reads of a reference.

    reads_faces     its references are aligned faces, its query tokens come from the face embedding;
                    otherwise it reads whole images and queries with their CLS embedding
    query_width     width of the face embedding; None = that of the CLS embedding
    look_alike      cosine of two subjects' identities above which they may be confused
    """

    name: str
    reads_faces: bool
    query_width: int | None
    look_alike: float


PORTRAIT = Variant("portrait", reads_faces=True, query_width=512, look_alike=0.5)  # ArcFace
GENERAL = Variant("general", reads_faces=False, query_width=None, look_alike=0.92)
VARIANTS = {variant.name: variant for variant in (PORTRAIT, GENERAL)}


@dataclass(frozen=True)
class MMDiffConfig:
    """Sizes and choices of one adapter.

    variant     PORTRAIT (the released weights) or GENERAL (the paper's main model)
    base        the model it is made for
    behaviour   "released": as the official code runs (the LoRA of the second text encoder unused,
                the negative prompt fused too); "corrected": both undone
    tokens_per_reference    1..64
    refiner_depth           0..64; 0 = tokens from the query embedding alone
    refiner_head_width      1..4096, a divisor of the context width
    routed                  the image branch has a softmax for each subject and a router in each
                            layer (`method.attention.Router`); the published one has neither
    """

    name: str
    variant: Variant
    base: Base
    behaviour: str
    tokens_per_reference: int = 4
    refiner_depth: int = 4
    refiner_head_width: int = 256
    routed: bool = False

    def __post_init__(self) -> None:
        if self.behaviour not in BEHAVIOURS:
            raise ValueError(
                f"behaviour is {quoted(self.behaviour)}, expected one of {BEHAVIOURS}"
            )
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(
                    f"{name} is {quoted(getattr(self, name))}, expected {low} to {high}"
                )
        if self.context_width % self.refiner_head_width:
            raise ValueError(
                f"context width {self.context_width} is not a multiple of the refiner's head width "
                f"{self.refiner_head_width}"
            )

    @property
    def query_width(self) -> int:
        return self.variant.query_width or self.base.image.cls_width

    @property
    def cls_width(self) -> int:
        return self.base.image.cls_width

    @property
    def vision_width(self) -> int:
        return self.base.image.width

    @property
    def image_size(self) -> int:
        return self.base.image.size

    @property
    def context_width(self) -> int:
        return self.base.context_width

    @property
    def text_widths(self) -> dict[str, int]:
        """Width of each text encoder by its name."""
        return {encoder.name: encoder.width for encoder in self.base.text}

    @property
    def encoders(self) -> tuple[str, ...]:
        """ComfyUI's names of the text encoders, "l" before "g"."""
        return self.base.encoders

    # ------------------------------------------------------------ the header of a checkpoint
    def to_json(self) -> str:
        """The record as the header holds it: names for variant and base, and the base's widths."""
        return json.dumps(_header(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, bases: Mapping[str, Base] = BASES) -> MMDiffConfig:
        """Inverse of `to_json`. Raises ValueError naming a field that is unknown, missing, of
        another type, out of range, or not as this version has it."""
        fields = load_json(text, "the config in the header")
        _check_names(fields, _header(PORTRAIT_SDXL) | {"routed": False})
        told = fill(_Header, fields, "the config in the header")
        own = {f.name: getattr(told, f.name) for f in dataclasses.fields(cls)}
        for field, known in (("variant", VARIANTS), ("base", bases)):
            if own[field] not in known:
                raise ValueError(
                    f"the header says {field} {quoted(own[field])}; this version knows "
                    f"{sorted(known)}"
                )
            own[field] = known[own[field]]
        config = cls(**own)
        _check_widths(fields, _header(config))
        return config


@dataclass(frozen=True)
class _Header:
    """The record as JSON has it; `MMDiffConfig` checks its ranges."""

    __pydantic_config__ = STRICT

    name: Name
    variant: Name
    base: Name
    behaviour: Name
    query_width: Width
    cls_width: Width
    vision_width: Width
    context_width: Width
    text_widths: Annotated[tuple[tuple[EncoderName, Width], ...], Field(max_length=4)]
    image_size: Pixels | None = None
    tokens_per_reference: int = 4
    refiner_depth: int = 4
    refiner_head_width: int = 256
    routed: bool = False


WIDTHS = ("query_width", "cls_width", "vision_width", "image_size", "context_width")


def _header(config: MMDiffConfig) -> dict[str, Any]:
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    if not config.routed:  # as before there were routers: fingerprints are made of this text
        del fields["routed"]
    widths = {name: getattr(config, name) for name in WIDTHS}
    text_widths = [[name, width] for name, width in config.text_widths.items()]
    return (
        fields
        | widths
        | {
            "variant": config.variant.name,
            "base": config.base.name,
            "text_widths": text_widths,
        }
    )


def _check_names(fields: Any, known: Mapping[str, Any]) -> None:
    if not isinstance(fields, Mapping):
        raise ValueError(f"the config in the header is {quoted(fields)}, expected an object")
    if unknown := sorted(set(fields) - set(known)):
        raise ValueError(
            f"the config in the header has unknown fields {listed(unknown)}: was it written by a "
            "newer version?"
        )
    optional = {"image_size"}
    for field in dataclasses.fields(MMDiffConfig):
        optional |= set() if field.default is dataclasses.MISSING else {field.name}
    if missing := sorted(set(known) - set(fields) - optional):
        raise ValueError(
            f"the config in the header lacks the fields {missing}: the file is damaged, or was not "
            "written by this pack"
        )


def _check_widths(fields: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name in (*WIDTHS, "text_widths"):
        if name in fields and fields[name] != expected[name]:
            raise ValueError(
                f"the header says {name} {quoted(fields[name])}, but adapters of this variant for "
                f"{quoted(expected['base'])} have {expected[name]}: is it another base?"
            )


# ---------------------------------------------------------------- the named adapters


def _standard(variant: Variant, base: Base, behaviour: str = "corrected") -> MMDiffConfig:
    return MMDiffConfig(f"{variant.name}-{base.name}", variant, base, behaviour)


PORTRAIT_SDXL = _standard(PORTRAIT, SDXL, "released")  # the published checkpoint
GENERAL_SDXL = _standard(GENERAL, SDXL)
GENERAL_SD15 = _standard(GENERAL, SD15)
# the adapter of the small trained world in the pack
SMALL_WORLD = MMDiffConfig(
    "small-world",
    GENERAL,
    SMALL_WORLD_BASE,
    "corrected",
    refiner_depth=2,
    refiner_head_width=32,
)

CONFIGS = {
    config.name: config
    for config in (
        PORTRAIT_SDXL,
        GENERAL_SDXL,
        GENERAL_SD15,
        _standard(PORTRAIT, SD15),
        _standard(GENERAL, SD2),
        _standard(PORTRAIT, SD2),
        SMALL_WORLD,
    )
}
