"""MM-Diff Subject Encoder, MM-Diff Find Faces: pictures -> subjects."""
from __future__ import annotations

from comfy_api.latest import io, ui

from ..mmdiff_core.host.encode import MAX_WEIGHT, encode_subject, find_faces, to_look_at, to_pick_from
from ..mmdiff_core.method.subjects import PromptSubject, add_subject
from ..mmdiff_core.references.notes import look_alike_note
from ..mmdiff_core.references.pixels import reference_regions
from .aliases import schema
from .sockets import CATEGORY, SOCKET, BoundingBox, MMDiff, MMDiffFaces, MMDiffSubjects


class SubjectEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffSubjectEncoder", display_name="MM-Diff Subject Encoder", category=CATEGORY,
            description="One subject from one or more reference pictures. For several subjects, chain the nodes through `subjects`.",
            inputs=[
                MMDiff.Input("mmdiff", tooltip="From Load MM-Diff."),
                io.ClipVision.Input("clip_vision", tooltip="CLIP ViT-L/14 (224 px), from Load CLIP Vision."),
                io.Image.Input("image", tooltip="References of ONE subject as a batch; put the clearest first, it speaks in the text. "
                                                "1 to 5 are useful."),
                io.String.Input("name", default="subject 1", tooltip="A name of your own for this subject; each only once."),
                io.Float.Input("weight", default=1.0, min=0.0, max=MAX_WEIGHT, step=0.05,
                               tooltip="Factor on this subject's image branch. 1 = as trained, 0 = none, above 1.5 tends to burn."),
                io.Int.Input("face", default=0, min=0, max=100,
                             tooltip="Which face on each picture: 0 = the largest, 1 = the leftmost, 2 = the next ... "
                                     "Portrait checkpoints only."),
                MMDiffFaces.Input("faces", optional=True, tooltip="From Load Face Analysis. Portrait checkpoints need it."),
                MMDiffSubjects.Input("subjects", optional=True, tooltip="Earlier subjects; this one is added after them."),
                io.Mask.Input("region", optional=True,
                              tooltip="Where the subject is on the pictures, one mask or one per picture: it is cut out, and of several "
                                      "faces the one in there is taken."),
                BoundingBox.Input("boxes", optional=True, extra_dict=SOCKET,
                                  tooltip="The same as a box, or one per picture, from any detector node."),
                io.Boolean.Input("clip_only", default=False, optional=True,
                                 tooltip="Portrait checkpoints without face analysis: only the noun carries the person; the face does not "
                                         "follow."),
            ],
            outputs=[
                MMDiffSubjects.Output(display_name="subjects", tooltip="Earlier subjects and this one, in order."),
                io.Image.Output(display_name="seen",
                                tooltip="What the encoder looked at: the aligned faces, or the padded pictures."),
                io.String.Output(display_name="notes", tooltip="What you should know about the pictures: blurred, tiny, unlike the others, "
                                                               "or a subject that looks like another. Empty = nothing."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str) -> bool | str:
        return True if name.strip() else "the subject has no name; give it one, for example the person's first name"

    @classmethod
    def execute(cls, mmdiff, clip_vision, image, name: str, weight: float, face: int, faces=None, subjects=(), region=None, boxes=None,
                clip_only: bool = False) -> io.NodeOutput:
        regions = reference_regions(image, region, boxes)
        encoded = encode_subject(mmdiff, clip_vision, image, faces, name, face, regions, clip_only)
        earlier = subjects or ()
        chain = add_subject(earlier, PromptSubject(encoded.subject, weight))
        alike = (look_alike_note(s.subject, encoded.subject, mmdiff.config) for s in earlier)
        notes = "\n".join([*encoded.notes, *(note for note in alike if note)])
        shown = {**ui.PreviewImage(to_look_at(encoded.seen), cls=cls).as_dict(), "text": (notes,),
                 "faces": cls._to_pick_from(image, encoded.faces)}
        return io.NodeOutput(chain, encoded.seen, notes, ui=shown)

    @classmethod
    def _to_pick_from(cls, image, choices) -> list[dict]:
        """What the page's face picker shows: each picture's faces, and a file of the picture where there are several; nothing where no
        picture has a second face."""
        if all(len(choice.boxes) < 2 for choice in choices):
            return []
        height, width = image.shape[1:3]
        return [
            {"width": width, "height": height, "used": choice.used,
             "boxes": [{"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1} for x1, y1, x2, y2 in choice.boxes],
             "picture": ui.PreviewImage(to_pick_from(picture[None]), cls=cls).as_dict()["images"][0] if len(choice.boxes) > 1 else None}
            for picture, choice in zip(image[..., :3], choices, strict=True)
        ]


class FindFaces(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffFindFaces", display_name="MM-Diff Find Faces", category=CATEGORY,
            description="Shows which faces are found on the pictures, with the numbers that MM-Diff Subject Encoder's `face` counts by.",
            inputs=[
                io.Image.Input("image", tooltip="Pictures with one or more faces."),
                MMDiffFaces.Input("faces", tooltip="From Load Face Analysis."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The pictures with a numbered box around every face."),
                BoundingBox.Output(display_name="boxes", tooltip="The boxes in pixels, a list for each picture, from left to right."),
                io.String.Output(display_name="found", tooltip="How many faces each picture has."),
            ],
        )

    @classmethod
    def execute(cls, image, faces) -> io.NodeOutput:
        drawn, boxes, said = find_faces(image, faces)
        return io.NodeOutput(drawn, boxes, said, ui=ui.PreviewImage(drawn, cls=cls))
