"""MM-Diff Doctor: what is installed, what is missing, and where to get it."""

from __future__ import annotations

from dataclasses import asdict

from comfy_api.latest import io, ui

from ..mmdiff_core.host import doctor
from .aliases import schema
from .sockets import CATEGORY


class Doctor(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffDoctor",
            display_name="MM-Diff Doctor",
            category=CATEGORY,
            is_output_node=True,
            description="Reports what MM-Diff finds on this computer: package versions, "
            "onnxruntime providers, model folders and models, and for missing models "
            "the page to get them from. It downloads nothing and changes nothing.",
            inputs=[],
            outputs=[
                io.String.Output(
                    display_name="report",
                    tooltip="The report, one line per item: ok, note or missing.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls) -> float:
        return float("nan")  # equal to nothing, so that the node runs every time

    @classmethod
    def execute(cls) -> io.NodeOutput:
        lines = doctor.examine()
        report = doctor.render(lines)
        shown = {**ui.PreviewText(report).as_dict(), "lines": [asdict(line) for line in lines]}
        return io.NodeOutput(report, ui=shown)
