"""Nodes for tests and the demo.

The small SDXL with random weights of the reference numbers, and the recorded cases as inputs.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
from pathlib import Path

import torch
from comfy_api.latest import ComfyExtension, io

CATEGORY = "MM-Diff/tests"
TESTS = Path(__file__).resolve().parents[2]


class LoadTinyReferenceModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MMDiffLoadTinyReferenceModel",
            display_name="Load Tiny Reference Model (random weights)",
            category=CATEGORY,
            inputs=[io.String.Input("folder", default="", optional=True)],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output(), io.ClipVision.Output()],
        )

    @classmethod
    def execute(cls, folder: str = ""):
        """`folder` has weights/ and configs/ of its own; empty: those of the tests."""
        from . import build

        source = Path(folder) if folder else build.REFERENCE
        return io.NodeOutput(
            build.model(source), build.clip(source), build.vae(), build.clip_vision(source)
        )


class LoadTinyControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MMDiffLoadTinyControlNet",
            display_name="Load Tiny ControlNet (random weights)",
            category=CATEGORY,
            inputs=[],
            outputs=[io.ControlNet.Output()],
        )

    @classmethod
    def execute(cls):
        from . import build

        return io.NodeOutput(build.controlnet())


def read_case(path: str):
    spec = importlib.util.spec_from_file_location(
        "mmdiff_recorded_cases", TESTS / "support/cases.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.Case(Path(path))


class RecordedNoise:
    """A NOISE that starts a sampling at the recorded latents."""

    seed = 0

    def __init__(self, noise: torch.Tensor):
        self.noise = noise

    def generate_noise(self, latent) -> torch.Tensor:
        return self.noise


class RecordedSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MMDiffTestRecordedSubject",
            display_name="Recorded Subject",
            category=CATEGORY,
            inputs=[io.String.Input("case"), io.Int.Input("number", default=0)],
            outputs=[io.Image.Output(), io.Custom("MMDIFF_FACES").Output()],
        )

    @classmethod
    def execute(cls, case: str, number: int):
        recorded = read_case(case)
        slot = recorded.slots()[number]
        return io.NodeOutput(recorded.images(slot), recorded.faces(slot))


class RecordedSampling(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MMDiffTestRecordedSampling",
            display_name="Recorded Sampling",
            category=CATEGORY,
            inputs=[
                io.String.Input("case"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
            ],
            outputs=[
                io.Conditioning.Output(),
                io.Conditioning.Output(),
                io.Noise.Output(),
                io.Sigmas.Output(),
                io.Latent.Output(),
            ],
        )

    @classmethod
    def execute(cls, case: str, positive, negative):
        import node_helpers

        recorded = read_case(case)
        sigmas = recorded["official/run/sigmas"]
        first = sigmas[0].item()
        noise = recorded["input/latents"] * (first**2 + 1) ** 0.5 / first
        sized = [
            node_helpers.conditioning_set_values(c, recorded.size_options)
            for c in (positive, negative)
        ]
        return io.NodeOutput(
            *sized, RecordedNoise(noise), sigmas, {"samples": torch.zeros_like(noise)}
        )


class Extension(ComfyExtension):
    async def get_node_list(self):
        return [LoadTinyReferenceModel, LoadTinyControlNet, RecordedSubject, RecordedSampling]


async def comfy_entrypoint():
    # What a server has imported is no garbage: ComfyUI collects with every model that it loads
    # while one model's clone is gone, and to look through all of it takes up to a second.
    gc.freeze()
    return Extension()
