"""MM-Diff Likeness, MM-Diff Pick Best: generated images -> scores -> the best of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..mmdiff_core.host.fidelity import prompt_fidelity
from ..mmdiff_core.host.likeness import measure, pick, picked_latents
from ..mmdiff_core.host.nouns import check_markers
from .aliases import schema
from .checks import CheckedNode, checked, told
from .inputs import share
from .sockets import CATEGORY, MMDiff, MMDiffFaces, MMDiffMaps, MMDiffScores, MMDiffSubjects

WITHIN = 0.02
NO_LATENTS = "latents is not connected to MM-Diff Pick Best, so it has none to give"


class Likeness(CheckedNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffLikeness",
            display_name="MM-Diff Likeness",
            category=CATEGORY,
            is_output_node=True,
            description="Scores how far each subject in generated images resembles its references, "
            "and tells who is missing, drawn twice, swapped or one too many. Connect scores to "
            "MM-Diff Pick Best to keep the best images of a batch.",
            inputs=[*_compared(), *_readers(), *_more()],
            outputs=[
                MMDiffScores.Output(
                    display_name="scores", tooltip="All scores, for MM-Diff Pick Best."
                ),
                io.Image.Output(
                    display_name="marked",
                    tooltip="The images with a box, a name and a score for each subject.",
                ),
                io.String.Output(
                    display_name="table", tooltip="The scale, then one line per image."
                ),
                io.Float.Output(
                    display_name="worst",
                    is_output_list=True,
                    tooltip="Score of the worst-served subject, one number per image.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, least: float | None = None) -> bool | str:
        return told(cls, least=least)

    @classmethod
    @checked
    def execute(
        cls,
        image,
        subjects,
        mmdiff,
        least: float = 0.0,
        clip_vision=None,
        faces=None,
        maps=None,
        references=None,
    ) -> io.NodeOutput:
        found = measure(mmdiff, image, subjects, clip_vision, faces, maps, references, least)
        worst = [each.worst for each in found.scores.images]
        shown = {**ui.PreviewImage(found.marked, cls=cls).as_dict(), "text": (found.table,)}
        return io.NodeOutput(found.scores, found.marked, found.table, worst, ui=shown)


def _compared() -> list:
    return [
        io.Image.Input("image", tooltip="Generated images, a whole batch."),
        MMDiffSubjects.Input("subjects", tooltip="The subjects that the images should show."),
        MMDiff.Input("mmdiff", tooltip="The adapter that encoded the subjects."),
        share(
            "least",
            0.0,
            "Score from which something in an image counts as a subject; below it the subject is "
            "missing. 0 = as the scale has it: 0.25 for faces.",
        ),
    ]


def _readers() -> list:
    return [
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="The image encoder that the subjects were encoded with, or DINOv2; not needed "
            "for faces. Load MM-Diff Models and Small World Loader send their own with mmdiff.",
        ),
        MMDiffFaces.Input(
            "faces",
            optional=True,
            tooltip="Face analyser from Load Face Analysis, for portrait checkpoints. Load MM-Diff "
            "Models sends its own along with mmdiff.",
        ),
    ]


def _more() -> list:
    return [
        MMDiffMaps.Input(
            "maps",
            optional=True,
            tooltip="Recording from MM-Diff Watch Attention of the same run: things are compared "
            "where they were read, and swapped subjects are told.",
        ),
        io.Image.Input(
            "references",
            optional=True,
            tooltip="One image per subject, in their order, to compare with instead of what the "
            "subjects carry; for DINOv2, and for subjects encoded with clip_only.",
        ),
    ]


class PickBest(CheckedNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffPickBest",
            display_name="MM-Diff Pick Best",
            category=CATEGORY,
            is_output_node=True,
            description="Keeps the best images of a batch: those whose worst-served subject has "
            "the highest score; where that is close, those that follow the prompt best. Shows the "
            "rest as well.",
            inputs=[*_scored(), *_followed()],
            outputs=[*_kept(), *_told()],
        )

    @classmethod
    def validate_inputs(
        cls, keep: int | None = None, within: float | None = None, prompt: str | None = None
    ) -> bool | str:
        return told(cls, keep=keep, within=within, prompt=prompt)

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> None:
        check_markers(values.get("prompt", ""))

    @classmethod
    @checked
    def execute(
        cls,
        images,
        scores,
        keep: int,
        latents=None,
        within: float = WITHIN,
        prompt: str = "",
        clip=None,
        clip_vision=None,
    ) -> io.NodeOutput:
        fidelity = prompt_fidelity(images, prompt, clip, clip_vision, within)
        picked = pick(images, scores, keep, fidelity)
        kept, others = list(picked.kept), list(picked.others)
        worst = [scores.images[number].worst for number in kept]
        shown = {**ui.PreviewImage(picked.ranked, cls=cls).as_dict(), "text": (picked.table,)}
        return io.NodeOutput(
            images[kept],
            images[others] if others else ExecutionBlocker(None),
            ExecutionBlocker(NO_LATENTS)
            if latents is None
            else picked_latents(latents, kept, len(images)),
            kept,
            worst,
            picked.ranked,
            picked.table,
            ui=shown,
        )


def _scored() -> list:
    return [
        io.Image.Input("images", tooltip="The images that MM-Diff Likeness scored."),
        MMDiffScores.Input("scores", tooltip="Scores from MM-Diff Likeness."),
        io.Int.Input(
            "keep",
            default=2,
            min=1,
            max=4096,
            tooltip="Number of images to keep; all where the batch has fewer.",
        ),
        io.Latent.Input(
            "latents",
            optional=True,
            tooltip="The latents that the images were decoded from, to keep the same ones.",
        ),
    ]


def _followed() -> list:
    """What orders images that serve their subjects equally well by the prompt."""
    return [
        share(
            "within",
            WITHIN,
            "Images whose worst-served subject scores at most this much below the best are ordered "
            "by how well they follow the prompt. Only with prompt, clip and clip_vision.",
            optional=True,
        ),
        io.String.Input(
            "prompt",
            default="",
            optional=True,
            tooltip="The positive prompt; markers may stay. Empty = the prompt does not count.",
        ),
        io.Clip.Input(
            "clip",
            optional=True,
            tooltip="CLIP of an SDXL checkpoint, or clip_g from Load CLIP.",
        ),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="CLIP ViT-bigG/14 from Load CLIP Vision: it shares a space with SDXL's second "
            "text encoder. The image encoder of the subjects does not.",
        ),
    ]


def _kept() -> list:
    return [
        io.Image.Output(display_name="images", tooltip="The kept images, best first."),
        io.Image.Output(
            display_name="others",
            tooltip="The other images, best first; nothing where all were kept.",
        ),
        io.Latent.Output(display_name="latents", tooltip="The latents of the kept images."),
        io.Int.Output(
            display_name="indices",
            is_output_list=True,
            tooltip="Number of each kept image in the batch, counted from 0.",
        ),
    ]


def _told() -> list:
    return [
        io.Float.Output(
            display_name="worst",
            is_output_list=True,
            tooltip="Score of the worst-served subject of each kept image.",
        ),
        io.Image.Output(
            display_name="ranked",
            tooltip="All images, best first, each with its rank, its scores and whether it was "
            "kept.",
        ),
        io.String.Output(display_name="table", tooltip="The same in words."),
    ]
