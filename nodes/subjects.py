"""MM-Diff Subject Encoder, MM-Diff Find Faces: reference images -> subjects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io, ui

from ..mmdiff_core.host.encode import encode_subject
from ..mmdiff_core.host.portraits import find_faces
from ..mmdiff_core.method.subjects import PromptSubject, add_subject, checked_name
from ..mmdiff_core.references.notes import look_alike_note
from ..mmdiff_core.references.pixels import enlarged, reduced
from .aliases import schema
from .checks import CheckedNode, checked, told
from .inputs import chain_output, earlier_subjects, more_images, subject_weight
from .sockets import CATEGORY, SOCKET, BoundingBox, MMDiff, MMDiffFaces


class SubjectEncoder(CheckedNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffSubjectEncoder",
            display_name="MM-Diff Subject Encoder",
            category=CATEGORY,
            description="Encodes one or more reference images of one person or thing as a subject. "
            "For several subjects, chain these nodes through `subjects`.",
            inputs=[*_references(), *_choice(), *_where()],
            outputs=[
                chain_output(),
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
    def validate_inputs(cls, name: str | None = None, more: object = None) -> bool | str:
        """Hosts with growing sockets pass `more` to whatever a node has here."""
        return told(cls, name=name)

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> None:
        checked_name(values.get("name", "someone"))

    @classmethod
    @checked
    def execute(
        cls,
        mmdiff,
        image,
        name: str,
        weight: float,
        face: int,
        clip_vision=None,
        faces=None,
        subjects=(),
        region=None,
        boxes=None,
        clip_only: bool = False,
        more: Mapping[str, Any] | None = None,
    ) -> io.NodeOutput:
        if isinstance(boxes, (list, tuple)) and not boxes:
            raise ValueError(
                "boxes contains no box: the detector found nothing; disconnect it, or use a "
                "clearer image"
            )
        readers = mmdiff.readers_of(clip_vision, faces)
        encoded = encode_subject(
            mmdiff, readers.clip_vision, image, readers.faces, name, face, region, boxes, clip_only,
            more or {},
        )
        earlier = subjects or ()
        chain = add_subject(earlier, PromptSubject(encoded.subject, weight))
        alike = (look_alike_note(s.subject, encoded.subject, mmdiff.config) for s in earlier)
        notes = "\n".join([*encoded.notes, *(note for note in alike if note)])
        shown = {
            **ui.PreviewImage(enlarged(encoded.seen), cls=cls).as_dict(),
            "text": (notes,),
            "faces": cls._to_pick_from(encoded.images, encoded.faces),
        }
        return io.NodeOutput(chain, encoded.seen, notes, ui=shown)

    @classmethod
    def _to_pick_from(cls, images, choices) -> list[dict]:
        """What the page's face picker shows: the faces of each of the images [3 H W], and a file
        of the image where there are several; nothing where no image has a second face."""
        if all(len(choice.boxes) < 2 for choice in choices):
            return []
        return [
            {
                "width": pixels.shape[2],
                "height": pixels.shape[1],
                "used": choice.used,
                "boxes": list(map(_box, choice.boxes)),
                "picture": cls._file(pixels) if len(choice.boxes) > 1 else None,
            }
            for pixels, choice in zip(images, choices, strict=True)
        ]

    @classmethod
    def _file(cls, pixels) -> dict:
        """A preview of an image [3 H W] among the host's temporary files."""
        image = pixels.movedim(0, -1)[None].float() / 255
        return ui.PreviewImage(reduced(image), cls=cls).as_dict()["images"][0]


def _box(corners: tuple[float, float, float, float]) -> dict[str, float]:
    x1, y1, x2, y2 = corners
    return {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}


def _references() -> list:
    return [
        MMDiff.Input("mmdiff", tooltip="Adapter from Load MM-Diff."),
        io.Image.Input(
            "image",
            tooltip="Reference images of ONE subject as a batch, the clearest first: only the "
            "first image affects the prompt embedding. 1 to 5 are useful.",
        ),
        io.String.Input("name", default="subject 1", tooltip="Unique name of the subject."),
        subject_weight(
            "Factor on this subject's image branch. 1 = as trained, 0 = none; values above 1.5 "
            "often oversaturate."
        ),
    ]


def _choice() -> list:
    return [
        io.Int.Input(
            "face",
            default=0,
            min=0,
            max=100,
            tooltip="Which face to use in each image: 0 = the largest, 1 = the leftmost, 2 = the "
            "next ... Portrait checkpoints only.",
        ),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="CLIP ViT-L/14 (224 px), from Load CLIP Vision. Load MM-Diff Models sends its "
            "own along with mmdiff.",
        ),
        MMDiffFaces.Input(
            "faces",
            optional=True,
            tooltip="Face analyser from Load Face Analysis, required by portrait checkpoints. Load "
            "MM-Diff Models sends its own along with mmdiff.",
        ),
        earlier_subjects(),
    ]


def _where() -> list:
    return [
        io.Mask.Input(
            "region",
            optional=True,
            tooltip="Where the subject is in the reference images, one mask for all or one per "
            "image. The subject is cut out; of several faces, the one in the region is used.",
        ),
        BoundingBox.Input(
            "boxes",
            optional=True,
            extra_dict=SOCKET,
            tooltip="The same as a box, one for all or one per image, from any detector node.",
        ),
        io.Boolean.Input(
            "clip_only",
            default=False,
            optional=True,
            tooltip="Use a portrait checkpoint without face analysis. Uses CLIP features only; "
            "facial identity is not preserved.",
        ),
        *more_images(),
    ]


class FindFaces(CheckedNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffFindFaces",
            display_name="MM-Diff Find Faces",
            category=CATEGORY,
            is_output_node=True,
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
    @checked
    def execute(cls, image, faces) -> io.NodeOutput:
        drawn, boxes, said = find_faces(image, faces)
        return io.NodeOutput(drawn, boxes, said, ui=ui.PreviewImage(drawn, cls=cls))
