"""What an MM-Diff adapter is made of: one frozen record, written into every checkpoint's header.

Widths are feature sizes; nothing here depends on torch.
"""
from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

VARIANTS = ("portrait", "general")
BEHAVIOURS = ("released", "corrected")


@dataclass(frozen=True)
class MMDiffConfig:
    """Sizes and choices of one adapter.

    variant     "portrait": query tokens from a 512-wide ArcFace embedding (the released weights);
                "general": query tokens from the image encoder's CLS embedding (the paper's main model)
    base        name of the UNet layout in `unet_layers.LAYOUTS` ("sdxl", "sd15", ...)
    behaviour   "released": as the official code runs (second text encoder's LoRA unused, negative prompt fused too);
                "corrected": both undone
    """

    name: str
    variant: str
    base: str
    behaviour: str
    query_width: int
    cls_width: int
    vision_width: int
    context_width: int
    text_widths: tuple[tuple[str, int], ...]
    tokens_per_reference: int = 4
    refiner_depth: int = 4
    refiner_head_width: int = 256
    image_size: int = 224

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant is {self.variant!r}, expected one of {VARIANTS}")
        if self.behaviour not in BEHAVIOURS:
            raise ValueError(f"behaviour is {self.behaviour!r}, expected one of {BEHAVIOURS}")
        if self.context_width % self.refiner_head_width:
            raise ValueError(
                f"context width {self.context_width} is not a multiple of the refiner's head width {self.refiner_head_width}"
            )
        if self.variant == "general" and self.query_width != self.cls_width:
            raise ValueError(
                "a general adapter derives its queries from the CLS embedding: query width "
                f"{self.query_width} must be {self.cls_width}"
            )

    @property
    def encoders(self) -> tuple[str, ...]:
        """ComfyUI's names of the text encoders, "l" before "g"."""
        return tuple(name for name, _ in self.text_widths)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> MMDiffConfig:
        """Inverse of `to_json`. Raises ValueError that names a field this version does not know."""
        fields = json.loads(text)
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise ValueError(f"the config in the header has unknown fields {unknown}: was it written by a newer version?")
        if missing := sorted(f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.name not in fields):
            raise ValueError(
                f"the config in the header lacks the fields {missing}: the file is damaged, or was "
                "not written by this pack"
            )
        fields["text_widths"] = tuple((name, int(width)) for name, width in fields["text_widths"])
        return cls(**fields)


PORTRAIT_SDXL = MMDiffConfig(
    name="portrait-sdxl", variant="portrait", base="sdxl", behaviour="released",
    query_width=512, cls_width=768, vision_width=1024, context_width=2048, text_widths=(("l", 768), ("g", 1280)),
)
GENERAL_SDXL = dataclasses.replace(
    PORTRAIT_SDXL, name="general-sdxl", variant="general", behaviour="corrected", query_width=768,
)
GENERAL_SD15 = dataclasses.replace(
    GENERAL_SDXL, name="general-sd15", base="sd15", context_width=768, text_widths=(("l", 768),),
)
PORTRAIT_SD15 = dataclasses.replace(GENERAL_SD15, name="portrait-sd15", variant="portrait", query_width=512)

# the small trained world in the pack: 32 x 32 dots, one text encoder, one image encoder of 4 x 4 patches
SMALL_WORLD = MMDiffConfig(
    name="small-world", variant="general", base="small-world", behaviour="corrected", query_width=128, cls_width=128,
    vision_width=128, context_width=128, text_widths=(("l", 128),), refiner_depth=2, refiner_head_width=32, image_size=32,
)

CONFIGS = {c.name: c for c in (PORTRAIT_SDXL, GENERAL_SDXL, GENERAL_SD15, PORTRAIT_SD15, SMALL_WORLD)}
