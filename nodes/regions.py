"""Multi-Subject Constraint Masks: drawn boxes, masks and detected boxes -> a region per subject."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..mmdiff_core.regions.boxes import MOST, boxes_of_pixels, parse_boxes
from ..mmdiff_core.regions.preview import preview
from ..mmdiff_core.regions.shaping import (
    EVERYWHERE,
    FREE,
    Shaping,
    canvas_of,
    resized,
    shape_regions,
)
from .aliases import schema
from .sockets import CATEGORY, SOCKET, BoundingBox, MMDiffSubjects

MASKS = MOST
LARGEST = 8192
# of the image for one position of the latent, in SDXL and SD1.5; newer ComfyUI says it with the
# latent
PIXELS = 8


class ConstraintMasks(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        masks = [
            io.Mask.Input(
                f"mask_{i}",
                optional=True,
                tooltip=f"Region of subject {i} (white); merged with its boxes.",
            )
            for i in range(1, MASKS + 1)
        ]
        size = {"default": 1024, "min": 16, "max": LARGEST, "step": 8, "optional": True}
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
                io.Float.Input(
                    "feather",
                    default=0.0,
                    min=0.0,
                    max=512.0,
                    step=1.0,
                    tooltip="Softens the border inwards over this many pixels of the "
                    "mask (of width x height without masks); positions outside "
                    "the region stay excluded.",
                ),
                io.String.Input(
                    "boxes",
                    default="[]",
                    optional=True,
                    tooltip="The boxes drawn on the node, as JSON: a list of "
                    '{"subject": 1, "x", "y", "width", "height"} in '
                    "fractions of the image, 0 to 1.",
                ),
                io.Int.Input(
                    "grow",
                    default=0,
                    min=-512,
                    max=512,
                    optional=True,
                    tooltip="Moves the borders outwards by this many pixels; negative "
                    "values shrink the region. Applied before feather.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="1 = never outside the region. Lower values keep 1 - "
                    "strength of the subject outside it; 0 = no constraint.",
                ),
                io.Boolean.Input(
                    "exclusive",
                    default=False,
                    optional=True,
                    tooltip="Where regions overlap, only the earlier subject of the "
                    "chain keeps the position.",
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
                io.Boolean.Input(
                    "hold_tokens",
                    default=True,
                    optional=True,
                    tooltip="Restrict the subject tokens, which carry the likeness, "
                    "to the regions.",
                ),
                io.Boolean.Input(
                    "hold_nouns",
                    default=False,
                    optional=True,
                    tooltip="Restrict the bound nouns in the text to the regions as "
                    "well: stronger, and the text branch becomes slightly "
                    "slower.",
                ),
                *masks,
                BoundingBox.Input(
                    "found_boxes",
                    optional=True,
                    extra_dict=SOCKET,
                    tooltip="Boxes in pixels of width x height, from any detector "
                    "node: the first box belongs to the first subject, and "
                    "so on. Several lists: one per subject.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The sampler's latent; sets the image size instead of "
                    "width and height.",
                ),
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
    def validate_inputs(cls, boxes: str | None = None) -> bool | str:
        try:
            parse_boxes(boxes or "[]")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
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
        hold_nouns: bool = False,
        found_boxes=None,
        latent=None,
        **masks,
    ) -> io.NodeOutput:
        if latent is not None:
            height, width = (
                side * latent.get("downscale_ratio_spacial", PIXELS)
                for side in latent["samples"].shape[-2:]
            )
        names = [s.name for s in subjects]
        drawn = parse_boxes(boxes, min(len(subjects), MOST))
        drawn += (
            ()
            if found_boxes is None
            else boxes_of_pixels(found_boxes, width, height, len(subjects))
        )
        given = _given(masks, names)
        kept = {i: s.region.mask for i, s in enumerate(subjects, 1) if s.region.mask is not None}
        canvas = canvas_of([*given.values()] or [*kept.values()], height, width)
        regions = shape_regions(
            names,
            given,
            drawn,
            kept,
            canvas,
            Shaping(feather, grow, strength, exclusive, free_subjects),
        )
        shown = preview(names, regions, width, height)
        every = torch.stack(
            [
                torch.ones(canvas) if r is None else resized(r.float().cpu(), *canvas)
                for r in regions
            ]
        )
        chain = tuple(
            s.within(mask=region, hold_tokens=hold_tokens, hold_nouns=hold_nouns)
            for s, region in zip(subjects, regions, strict=True)
        )
        return io.NodeOutput(chain, shown, every, ui=ui.PreviewImage(shown, cls=cls))


def _given(masks: dict, names: list[str]) -> dict[int, torch.Tensor]:
    """The connected masks [H W] by their subject's number."""
    given = {int(key.rsplit("_", 1)[1]): mask for key, mask in masks.items() if mask is not None}
    if beyond := [i for i in given if i > len(names)]:
        raise ValueError(
            f"mask_{beyond[0]} is connected, but there are only {len(names)} subjects "
            f"({', '.join(names)})"
        )
    for i, mask in given.items():
        if mask.ndim == 3 and len(mask) != 1:
            raise ValueError(
                f"mask_{i} is a batch of {len(mask)} masks; each input takes a single mask"
            )
    return {i: mask.reshape(mask.shape[-2:]).float().cpu().clamp(0, 1) for i, mask in given.items()}
