"""Apply MM-Diff Attention: a model -> the same model, able to show subjects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..mmdiff_core.host.apply import Strength, apply
from ..mmdiff_core.regions.layer_weights import parse_layer_weights
from .aliases import schema
from .checks import CheckedNode, checked, told
from .inputs import check_window, model_output, window
from .sockets import CATEGORY, MMDiff


class ApplyAttention(CheckedNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffApplyAttention",
            display_name="Apply MM-Diff Attention",
            category=CATEGORY,
            description="Adds multi-modal cross-attention to a model. The subjects travel with the "
            "conditioning of MM-Diff Text Encode. For regional prompts use Conditioning (Set "
            "Mask) or (Set Area), not Attention Couple.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A model of the adapter's base (SDXL for the released checkpoint).",
                ),
                MMDiff.Input("mmdiff", tooltip="Adapter from Load MM-Diff."),
                *_strength(),
            ],
            outputs=[model_output()],
        )

    @classmethod
    def validate_inputs(
        cls,
        start_percent: float | None = None,
        end_percent: float | None = None,
        layer_weights: str | None = None,
    ) -> bool | str:
        return told(
            cls,
            start_percent=start_percent,
            end_percent=end_percent,
            layer_weights=layer_weights,
        )

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> None:
        check_window(values)
        parse_layer_weights(values.get("layer_weights", ""))

    @classmethod
    @checked
    def execute(
        cls,
        model,
        mmdiff,
        fuse_scale: float,
        start_percent: float,
        end_percent: float,
        lora_strength: float,
        layer_weights: str = "",
    ) -> io.NodeOutput:
        strength = Strength(fuse_scale, start_percent, end_percent, lora_strength, layer_weights)
        return io.NodeOutput(apply(model, mmdiff.adapter, strength))


def _strength() -> list:
    return [
        io.Float.Input(
            "fuse_scale",
            default=0.8,
            min=0.0,
            max=3.0,
            step=0.05,
            tooltip="Strength of the image branch for all subjects. 0.8 suits most images; lower "
            "values follow the text more closely.",
        ),
        *window("the image branch"),
        io.Float.Input(
            "lora_strength",
            default=1.0,
            min=0.0,
            max=2.0,
            step=0.05,
            tooltip="Strength of the adapter's LoRA on the model's attention layers. 1 = as "
            "trained.",
        ),
        io.String.Input(
            "layer_weights",
            default="",
            optional=True,
            tooltip='Factors on the image branch in parts of the model: "input 0.5, middle 0, '
            'output.3 1.2, output.3.1 0". Parts that are not named keep 1; "all 0, output 1" '
            "leaves only the output blocks.",
        ),
    ]
