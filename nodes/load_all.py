"""Load MM-Diff Models: everything that a graph loads, in one node."""

from __future__ import annotations

from collections.abc import Mapping

from comfy_api.latest import io

from ..mmdiff_core.host import all_models, files
from . import inputs
from .aliases import schema
from .checks import CheckedNode, checked, told
from .sockets import CATEGORY, MMDiff, MMDiffFaces


class LoadModels(CheckedNode):
    lookups: Mapping = {
        "base_model": all_models.find_base,
        "checkpoint": files.find_checkpoint,
        "clip_vision": all_models.find_encoder,
        "faces": all_models.find_faces,
    }

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffLoadModels",
            display_name="Load MM-Diff Models",
            category=CATEGORY,
            description="Loads the base model, the MM-Diff adapter, CLIP Vision and the face "
            "models. MM-Diff Subject Encoder needs only `mmdiff` from it: its image encoder and "
            "face analyser come along.",
            inputs=_files(),
            outputs=[*_base(), *_readers()],
        )

    @classmethod
    def validate_inputs(
        cls,
        base_model: str | None = None,
        checkpoint: str | None = None,
        clip_vision: str | None = None,
        faces: str | None = None,
    ) -> bool | str:
        return told(
            cls, base_model=base_model, checkpoint=checkpoint, clip_vision=clip_vision, faces=faces
        )

    @classmethod
    @checked
    def execute(
        cls, base_model: str, checkpoint: str, clip_vision: str, faces: str
    ) -> io.NodeOutput:
        base, mmdiff = all_models.load_all(base_model, checkpoint, clip_vision, faces)
        return io.NodeOutput(
            base.model, base.clip, base.vae, mmdiff, base.clip_vision, mmdiff.readers.faces
        )


def _files() -> list:
    return [
        inputs.model_file(
            "base_model", all_models.BASES, "A model of the adapter's base, in models/checkpoints."
        ),
        inputs.checkpoint(
            "A .safetensors file, or a folder with the released .bin files, in models/mmdiff."
        ),
        inputs.model_file(
            "clip_vision", all_models.ENCODERS, "CLIP ViT-L/14 (224 px), in models/clip_vision."
        ),
        inputs.face_models(
            "faces",
            "A model pack in models/insightface/models. Portrait checkpoints require one; (none) "
            "is for general adapters.",
            all_models.NO_FACES,
        ),
    ]


def _base() -> list:
    return [
        io.Model.Output(display_name="model", tooltip="The UNet, for Apply MM-Diff Attention."),
        io.Clip.Output(display_name="clip", tooltip="The text encoders, for MM-Diff Text Encode."),
        io.Vae.Output(display_name="vae", tooltip="For VAE Decode."),
        MMDiff.Output(
            display_name="mmdiff",
            tooltip="The adapter, with the image encoder and the face analyser of this node.",
        ),
    ]


def _readers() -> list:
    return [
        io.ClipVision.Output(display_name="clip_vision", tooltip="The image encoder, for others."),
        MMDiffFaces.Output(
            display_name="faces",
            tooltip="The face analyser, for MM-Diff Find Faces; empty for (none).",
        ),
    ]
