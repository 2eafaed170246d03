"""MM-Diff Doctor: what is there, what is missing, and where it comes from."""
from __future__ import annotations

from comfy_api.latest import io, ui

from ..mmdiff_core.host import doctor
from .aliases import schema
from .sockets import CATEGORY


class Doctor(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffDoctor", display_name="MM-Diff Doctor", category=CATEGORY, is_output_node=True,
            description="Reports what MM-Diff finds on this computer: versions, onnxruntime's providers, model folders, models, and for "
                        "what is missing the page to get it from. It downloads nothing and changes nothing.",
            inputs=[],
            outputs=[io.String.Output(display_name="report", tooltip="The report, one line each: ok, note or missing.")],
        )

    @classmethod
    def fingerprint_inputs(cls) -> float:
        return float("nan")         # equal to nothing: looked at anew every time

    @classmethod
    def execute(cls) -> io.NodeOutput:
        report = doctor.render(doctor.examine())
        return io.NodeOutput(report, ui=ui.PreviewText(report))
