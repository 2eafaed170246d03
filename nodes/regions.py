"""Multi-Subject Constraint Masks: drawn boxes, masks and detected boxes -> a region per subject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..mmdiff_core.regions.boxes import MOST, Box, boxes_of_pixels, parse_boxes
from ..mmdiff_core.regions.masks import one_mask
from ..mmdiff_core.regions.preview import preview
from ..mmdiff_core.regions.shaping import (
    EVERYWHERE,
    FREE,
    Shaping,
    Sources,
    resized,
    shape_regions,
)
from ..mmdiff_core.untrusted import quoted
from .aliases import schema
from .checks import CheckedNode, checked, told
from .inputs import bounded, share
from .sockets import CATEGORY, SOCKET, BoundingBox, MMDiffSubjects

MASKS = MOST
SMALLEST, LARGEST = 16, 8192
# of the image for one position of the latent, in SDXL and SD1.5; newer ComfyUI says it with the
# latent
PIXELS = 8


class ConstraintMasks(CheckedNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffConstraintMasks",
            display_name="Multi-Subject Constraint Masks",
            category=CATEGORY,
            description="Optional: restricts each subject to a region, given by boxes drawn here, "
            "masks, or detected boxes. Without this node the model chooses where "
            "subjects appear.",
            inputs=[
                MMDiffSubjects.Input(
                    "subjects",
                    tooltip="Subjects in order; mask 1 and box colour 1 belong to the first.",
                ),
                *_shaping(),
                *_size(),
                *_held(),
                *_masks(),
                *_sources(),
            ],
            outputs=[
                MMDiffSubjects.Output(
                    display_name="subjects", tooltip="The subjects with their regions."
                ),
                io.Image.Output(
                    display_name="preview",
                    tooltip="Each region in its subject's colour; at most 512 pixels.",
                ),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="One mask per subject, in order; all white for a free subject.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, boxes: str | None = None, free_subjects: str | None = None
    ) -> bool | str:
        return told(cls, boxes=boxes, free_subjects=free_subjects)

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> None:
        parse_boxes(values.get("boxes", "[]"))

    @classmethod
    @checked
    def execute(
        cls,
        subjects,
        feather: float,
        boxes: str = "[]",
        grow: int = 0,
        strength: float = 1.0,
        exclusive: bool = False,
        free_subjects: str = EVERYWHERE,
        width: int = 1024,
        height: int = 1024,
        hold_tokens: bool = True,
        hold_nouns: bool = True,
        bound_self_attention: bool = False,
        found_boxes=None,
        latent=None,
        **masks,
    ) -> io.NodeOutput:
        width, height = (width, height) if latent is None else _size_of(latent)
        names = [s.name for s in subjects]
        sources = Sources(
            _boxes(boxes, found_boxes, width, height, len(subjects)),
            _given(masks, names),
            {i: s.region.mask for i, s in enumerate(subjects, 1) if s.region.mask is not None},
        )
        canvas = sources.canvas(height, width)
        shaping = Shaping(feather, grow, strength, exclusive, free_subjects)
        regions = shape_regions(names, sources, canvas, shaping)
        shown = preview(names, regions, width, height)
        held = {
            "hold_tokens": hold_tokens,
            "hold_nouns": hold_nouns,
            "bound_self_attention": bound_self_attention,
        }
        chain = tuple(
            s.within(mask=region, **held) for s, region in zip(subjects, regions, strict=True)
        )
        return io.NodeOutput(
            chain, shown, _as_masks(regions, canvas), ui=ui.PreviewImage(shown, cls=cls)
        )


def _shaping() -> list:
    return [
        io.Float.Input(
            "feather",
            default=0.0,
            min=0.0,
            max=512.0,
            step=1.0,
            tooltip="Softens the border inwards over this many pixels of the mask (of width x "
            "height without masks); positions outside the region stay excluded.",
        ),
        io.String.Input(
            "boxes",
            default="[]",
            optional=True,
            tooltip='The boxes drawn on the node, as JSON: a list of {"subject": 1, "x", "y", '
            '"width", "height"} in fractions of the image, 0 to 1.',
        ),
        io.Int.Input(
            "grow",
            default=0,
            min=-512,
            max=512,
            optional=True,
            tooltip="Moves the borders outwards by this many pixels; negative values shrink the "
            "region. Applied before feather.",
        ),
        share(
            "strength",
            1.0,
            "1 = never outside the region. Lower values keep 1 - strength of the subject outside "
            "it; 0 = no constraint.",
            step=0.05,
            optional=True,
        ),
    ]


def _size() -> list:
    size = {"default": 1024, "min": SMALLEST, "max": LARGEST, "step": 8, "optional": True}
    return [
        io.Boolean.Input(
            "exclusive",
            default=False,
            optional=True,
            tooltip="Where regions overlap, only the earlier subject of the chain keeps the "
            "position.",
        ),
        io.Combo.Input(
            "free_subjects",
            options=list(FREE),
            default=EVERYWHERE,
            optional=True,
            tooltip="Where subjects without a region may act.",
        ),
        io.Int.Input(
            "width",
            tooltip="Image width in pixels, for the drawing, found_boxes and the preview.",
            **size,
        ),
        io.Int.Input("height", tooltip="Image height in pixels.", **size),
    ]


def _held() -> list:
    return [
        io.Boolean.Input(
            "hold_tokens",
            default=True,
            optional=True,
            tooltip="Restrict the subject tokens, which carry the likeness, to the regions.",
        ),
        io.Boolean.Input(
            "hold_nouns",
            default=True,
            optional=True,
            tooltip="Restrict the bound nouns in the text to the regions as well, so that the "
            "model draws each subject in its own. The text branch becomes slightly slower.",
        ),
        bounded(),
    ]


def _masks() -> list:
    """Not sockets that grow: newer ComfyUI would call them `masks.mask_1` and so on in saved graphs
    and for the API, and a graph made with them would not run on an older one."""
    return [
        io.Mask.Input(
            f"mask_{i}",
            optional=True,
            tooltip=f"Region of subject {i} (white); merged with its boxes.",
        )
        for i in range(1, MASKS + 1)
    ]


def _sources() -> list:
    return [
        BoundingBox.Input(
            "found_boxes",
            optional=True,
            extra_dict=SOCKET,
            tooltip="Boxes in pixels of width x height, from any detector node: the first box "
            "belongs to the first subject, and so on. Several lists: one per subject.",
        ),
        io.Latent.Input(
            "latent",
            optional=True,
            tooltip="The sampler's latent; sets the image size instead of width and height.",
        ),
    ]


def _size_of(latent: object) -> tuple[int, int]:
    """Width and height in pixels of the image that a latent becomes."""
    samples = latent.get("samples") if isinstance(latent, Mapping) else None
    if not torch.is_tensor(samples) or samples.ndim < 2 or 0 in samples.shape:
        raise ValueError(
            f"latent is {quoted(samples)}, expected the latent that the sampler is given"
        )
    times = latent.get("downscale_ratio_spacial", PIXELS)
    height, width = (side * times for side in samples.shape[-2:])
    if max(width, height) > LARGEST:
        raise ValueError(
            f"latent becomes an image of {width} x {height} pixels, at most {LARGEST} x {LARGEST}"
        )
    return width, height


def _boxes(drawn: str, found: object, width: int, height: int, subjects: int) -> tuple[Box, ...]:
    boxes = parse_boxes(drawn, min(subjects, MOST))
    return boxes if found is None else boxes + boxes_of_pixels(found, width, height, subjects)


def _as_masks(regions: list, canvas: tuple[int, int]) -> torch.Tensor:
    """MASK [S H W], all white where there is no region."""
    return torch.stack(
        [
            torch.ones(canvas) if region is None else resized(region.float().cpu(), *canvas)
            for region in regions
        ]
    )


def _given(masks: dict, names: list[str]) -> dict[int, torch.Tensor]:
    """The connected masks [H W] by their subject's number."""
    given = {int(key.rsplit("_", 1)[1]): mask for key, mask in masks.items() if mask is not None}
    if beyond := [i for i in given if i > len(names)]:
        raise ValueError(
            f"mask_{beyond[0]} is connected, but there are only {len(names)} subjects "
            f"({', '.join(names)})"
        )
    return {i: one_mask(mask, f"mask_{i}") for i, mask in given.items()}
