"""Small World Loader, Small World Sprite: a small trained model, to try every node offline."""

from __future__ import annotations

from comfy_api.latest import io

from ..mmdiff_core.host import small_world
from ..mmdiff_core.host.models import Readers
from ..mmdiff_core.small_world import sprites
from .aliases import schema
from .checks import CheckedNode, checked, told
from .inputs import share
from .sockets import CATEGORY, MMDiff

WORLD = f"{CATEGORY}/small world"


class SmallWorldLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffSmallWorldLoader",
            display_name="Small World Loader",
            category=WORLD,
            description="Loads the small pixel-art model that comes with the pack and the MM-Diff "
            "adapter trained on it. The rest of the graph is the same as for SDXL. "
            "Images are 128 x 128 px (32 x 32 dots of 4 px).",
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="The UNet, trained on scenes and captions only."),
                io.Clip.Output(tooltip="Its text encoder."),
                io.Vae.Output(tooltip="8 px per latent position, without weights."),
                io.ClipVision.Output(tooltip="Its image encoder."),
                MMDiff.Output(
                    display_name="mmdiff",
                    tooltip="The adapter, with the image encoder, for the other MM-Diff nodes.",
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        base = small_world.load()
        adapter = small_world.load_adapter(readers=Readers(base.clip_vision))
        return io.NodeOutput(base.model, base.clip, base.vae, base.clip_vision, adapter)


class SmallWorldSprite(CheckedNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffSmallWorldSprite",
            display_name="Small World Sprite",
            category=WORLD,
            description="Draws reference images of one individual of the small world. Its two "
            "colours, pattern, eyes and accessory come from the reference; the prompt needs only "
            "its class.",
            inputs=[*_body(), *_details(), *_drawing()],
            outputs=[
                io.Image.Output(tooltip="Images of 128 x 128 px, for MM-Diff Subject Encoder.")
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        kind: str | None = None,
        pattern: str | None = None,
        eyes: str | None = None,
        accessory: str | None = None,
    ) -> bool | str:
        return told(cls, kind=kind, pattern=pattern, eyes=eyes, accessory=accessory)

    @classmethod
    @checked
    def execute(
        cls,
        kind: str,
        first_colour: float,
        second_colour: float,
        pattern: str,
        eyes: str,
        accessory: str,
        references: int,
        seed: int,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            small_world.draw_references(
                kind, first_colour, second_colour, pattern, eyes, accessory, references, seed
            )
        )


def _body() -> list:
    hue = {"step": 0.01, "round": 0.001}
    return [
        io.Combo.Input(
            "kind",
            options=list(sprites.CLASSES),
            tooltip="Class of the individual: the noun before the marker in the prompt.",
        ),
        share(
            "first_colour",
            0.6,
            "Hue of the body, 0 to 1: red 0, green 0.33, blue 0.67, red 1.",
            **hue,
        ),
        share("second_colour", 0.1, "Hue of the pattern and details, 0 to 1.", **hue),
    ]


def _details() -> list:
    return [
        io.Combo.Input(
            "pattern",
            options=list(sprites.PATTERNS),
            default="stripes",
            tooltip="Pattern of the body.",
        ),
        io.Combo.Input("eyes", options=list(sprites.EYES), tooltip="Style of the eyes."),
        io.Combo.Input(
            "accessory",
            options=list(sprites.ACCESSORIES),
            default="crown",
            tooltip="Accessory that it wears.",
        ),
    ]


def _drawing() -> list:
    return [
        io.Int.Input(
            "references",
            default=1,
            min=1,
            max=5,
            tooltip="Number of reference images. The first is plain; the others vary in size, "
            "tilt and lighting, and some are partly covered.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**31 - 1,
            control_after_generate=False,
            tooltip="Seed for the reference variations.",
        ),
    ]
