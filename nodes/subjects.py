"""MM-Diff Subject Encoder, MM-Diff Find Faces: reference images -> subjects."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..mmdiff_core.host.encode import (
    MAX_WEIGHT,
    encode_subject,
    find_faces,
    to_look_at,
    to_pick_from,
)
from ..mmdiff_core.method.subjects import PromptSubject, add_subject
from ..mmdiff_core.references.notes import look_alike_note
from ..mmdiff_core.references.pixels import reference_regions
from .aliases import schema
from .sockets import CATEGORY, SOCKET, BoundingBox, MMDiff, MMDiffFaces, MMDiffSubjects


class SubjectEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffSubjectEncoder",
            display_name="MM-Diff Subject Encoder",
            category=CATEGORY,
            description="Encodes one or more reference images of one person or thing as a subject. "
            "For several subjects, chain these nodes through `subjects`.",
            inputs=[
                MMDiff.Input("mmdiff", tooltip="Adapter from Load MM-Diff."),
                io.ClipVision.Input(
                    "clip_vision", tooltip="CLIP ViT-L/14 (224 px), from Load CLIP Vision."
                ),
                io.Image.Input(
                    "image",
                    tooltip="Reference images of ONE subject as a batch, the clearest "
                    "first: only the first image affects the prompt embedding. "
                    "1 to 5 are useful.",
                ),
                io.String.Input("name", default="subject 1", tooltip="Unique name of the subject."),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=MAX_WEIGHT,
                    step=0.05,
                    tooltip="Factor on this subject's image branch. 1 = as trained, 0 = "
                    "none; values above 1.5 often oversaturate.",
                ),
                io.Int.Input(
                    "face",
                    default=0,
                    min=0,
                    max=100,
                    tooltip="Which face to use in each image: 0 = the largest, 1 = the "
                    "leftmost, 2 = the next ... Portrait checkpoints only.",
                ),
                MMDiffFaces.Input(
                    "faces",
                    optional=True,
                    tooltip="Face analyser from Load Face Analysis. Required by "
                    "portrait checkpoints.",
                ),
                MMDiffSubjects.Input(
                    "subjects", optional=True, tooltip="Earlier subjects; this one is appended."
                ),
                io.Mask.Input(
                    "region",
                    optional=True,
                    tooltip="Where the subject is in the reference images, one mask for "
                    "all or one per image. The subject is cut out; of several "
                    "faces, the one in the region is used.",
                ),
                BoundingBox.Input(
                    "boxes",
                    optional=True,
                    extra_dict=SOCKET,
                    tooltip="The same as a box, one for all or one per image, from "
                    "any detector node.",
                ),
                io.Boolean.Input(
                    "clip_only",
                    default=False,
                    optional=True,
                    tooltip="Use a portrait checkpoint without face analysis. Uses "
                    "CLIP features only; facial identity is not preserved.",
                ),
            ],
            outputs=[
                MMDiffSubjects.Output(
                    display_name="subjects", tooltip="Earlier subjects followed by this one."
                ),
                io.Image.Output(
                    display_name="seen",
                    tooltip="What the encoder was given: the aligned faces, or the padded images.",
                ),
                io.String.Output(
                    display_name="notes",
                    tooltip="Warnings about the reference images: blurred, too small, "
                    "unlike the others, or similar to another subject. Empty "
                    "= none.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str) -> bool | str:
        return (
            True
            if name.strip()
            else "the subject has no name; give it one, for example the person's first name"
        )

    @classmethod
    def execute(
        cls,
        mmdiff,
        clip_vision,
        image,
        name: str,
        weight: float,
        face: int,
        faces=None,
        subjects=(),
        region=None,
        boxes=None,
        clip_only: bool = False,
    ) -> io.NodeOutput:
        regions = reference_regions(image, region, boxes)
        encoded = encode_subject(mmdiff, clip_vision, image, faces, name, face, regions, clip_only)
        earlier = subjects or ()
        chain = add_subject(earlier, PromptSubject(encoded.subject, weight))
        alike = (look_alike_note(s.subject, encoded.subject, mmdiff.config) for s in earlier)
        notes = "\n".join([*encoded.notes, *(note for note in alike if note)])
        shown = {
            **ui.PreviewImage(to_look_at(encoded.seen), cls=cls).as_dict(),
            "text": (notes,),
            "faces": cls._to_pick_from(image, encoded.faces),
        }
        return io.NodeOutput(chain, encoded.seen, notes, ui=shown)

    @classmethod
    def _to_pick_from(cls, image, choices) -> list[dict]:
        """What the page's face picker shows: each picture's faces, and a file of the picture where
        there are several; nothing where no picture has a second face."""
        if all(len(choice.boxes) < 2 for choice in choices):
            return []
        height, width = image.shape[1:3]
        return [
            {
                "width": width,
                "height": height,
                "used": choice.used,
                "boxes": [
                    {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
                    for x1, y1, x2, y2 in choice.boxes
                ],
                "picture": ui.PreviewImage(to_pick_from(picture[None]), cls=cls).as_dict()[
                    "images"
                ][0]
                if len(choice.boxes) > 1
                else None,
            }
            for picture, choice in zip(image[..., :3], choices, strict=True)
        ]


class FindFaces(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffFindFaces",
            display_name="MM-Diff Find Faces",
            category=CATEGORY,
            description="Detects faces and numbers them in the order that `face` of MM-Diff "
            "Subject Encoder uses.",
            inputs=[
                io.Image.Input("image", tooltip="Images with one or more faces."),
                MMDiffFaces.Input("faces", tooltip="Face analyser from Load Face Analysis."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="image", tooltip="The images with a numbered box around each face."
                ),
                BoundingBox.Output(
                    display_name="boxes",
                    tooltip="Boxes in pixels, one list per image, from left to right.",
                ),
                io.String.Output(display_name="found", tooltip="Number of faces in each image."),
            ],
        )

    @classmethod
    def execute(cls, image, faces) -> io.NodeOutput:
        drawn, boxes, said = find_faces(image, faces)
        return io.NodeOutput(drawn, boxes, said, ui=ui.PreviewImage(drawn, cls=cls))
