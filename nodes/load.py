"""Load MM-Diff, Load Face Analysis, Convert MM-Diff Checkpoint: files -> objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io, ui

from ..mmdiff_core.checkpoints import checkpoint
from ..mmdiff_core.config import BEHAVIOURS
from ..mmdiff_core.host import files
from ..mmdiff_core.host.models import load_mmdiff
from ..mmdiff_core.references import faces
from . import inputs
from .aliases import schema
from .checks import CheckedNode, checked, told
from .sockets import CATEGORY, MMDiff, MMDiffFaces

AS_STORED = "as stored"


class LoadMMDiff(CheckedNode):
    lookups: Mapping = {"checkpoint": files.find_checkpoint}

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffLoad",
            display_name="Load MM-Diff",
            category=CATEGORY,
            description="Loads an MM-Diff adapter: the released folder of three .bin files, or a "
            "single .safetensors file.",
            inputs=[
                inputs.checkpoint(
                    "A .safetensors file, or a folder with the released .bin files, in "
                    "models/mmdiff."
                )
            ],
            outputs=[
                MMDiff.Output(
                    display_name="mmdiff", tooltip="The adapter, for the other MM-Diff nodes."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: str | None = None) -> bool | str:
        return told(cls, checkpoint=checkpoint)

    @classmethod
    @checked
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        return io.NodeOutput(load_mmdiff(files.find_checkpoint(checkpoint)))


class LoadFaceAnalysis(CheckedNode):
    lookups: Mapping = {"model": files.find_face_models}

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffLoadFaceAnalysis",
            display_name="Load Face Analysis",
            category=CATEGORY,
            description="Loads the InsightFace models for face detection and recognition, which "
            "portrait checkpoints require. The buffalo_l models are licensed for "
            "non-commercial research only.",
            inputs=[
                inputs.face_models(
                    "model",
                    "A model pack in models/insightface/models. The released checkpoint was "
                    "trained with buffalo_l.",
                ),
                *_face_options(),
            ],
            outputs=[
                MMDiffFaces.Output(
                    display_name="faces", tooltip="The face analyser, for MM-Diff Subject Encoder."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None) -> bool | str:
        """The host repeats the answer for every input that is named here."""
        return told(cls, model=model)

    @classmethod
    @checked
    def execute(cls, model: str, device: str, backend: str = "auto") -> io.NodeOutput:
        root = files.find_face_models(model)
        return io.NodeOutput(faces.load_analyser(root, model, device, backend))


def _face_options() -> tuple[io.Combo.Input, io.Combo.Input]:
    return (
        io.Combo.Input(
            "device",
            options=list(faces.DEVICES),
            default="auto",
            tooltip="auto: the GPU if onnxruntime can use it, otherwise the "
            "CPU. cuda: fails if the GPU cannot be used.",
        ),
        io.Combo.Input(
            "backend",
            options=list(faces.BACKENDS),
            default="auto",
            optional=True,
            tooltip="What runs the models. built-in: this pack, with onnxruntime only. "
            "insightface: the insightface package, with the same results. auto: built-in, "
            "except for models that only the package can read.",
        ),
    )


class ConvertCheckpoint(CheckedNode):
    lookups: Mapping = {"checkpoint": files.find_checkpoint}

    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffConvert",
            display_name="Convert MM-Diff Checkpoint",
            category=CATEGORY,
            is_output_node=True,
            description="Converts a checkpoint to the other layout: a single .safetensors file, or "
            "the released folder of three .bin files.",
            inputs=[
                inputs.checkpoint("Checkpoint to convert, in models/mmdiff."),
                io.String.Input(
                    "file_name",
                    default="mm-diff-portrait.safetensors",
                    tooltip="Name in models/mmdiff. A name ending in .safetensors writes a single "
                    "file; any other name writes the released folder.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["fp16", "bf16", "fp32"],
                    default="fp16",
                    tooltip="Precision of the saved weights.",
                ),
                io.Combo.Input(
                    "behaviour",
                    options=[AS_STORED, *BEHAVIOURS],
                    default=AS_STORED,
                    tooltip="Behaviour to store in the checkpoint; see MM-Diff Text Encode.",
                ),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="What was written.")],
        )

    @classmethod
    def validate_inputs(
        cls,
        checkpoint: str | None = None,
        file_name: str | None = None,
        dtype: str | None = None,
        behaviour: str | None = None,
    ) -> bool | str:
        return told(
            cls, checkpoint=checkpoint, file_name=file_name, dtype=dtype, behaviour=behaviour
        )

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> None:
        if "file_name" in values:
            files.target_path(values["file_name"])

    @classmethod
    @checked
    def execute(cls, checkpoint: str, file_name: str, dtype: str, behaviour: str) -> io.NodeOutput:
        report = convert_checkpoint(
            checkpoint, file_name, dtype, None if behaviour == AS_STORED else behaviour
        )
        return io.NodeOutput(report, ui=ui.PreviewText(report))


def convert_checkpoint(name: str, file_name: str, dtype: str, behaviour: str | None) -> str:
    target = files.target_path(file_name)
    if target.exists():
        raise FileExistsError(f"{target.name} is already there; choose another file name")
    return checkpoint.convert(files.find_checkpoint(name), target, dtype, behaviour)
