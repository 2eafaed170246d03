"""MM-Diff Text Encode: text and subjects -> CONDITIONING."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..mmdiff_core.config import BEHAVIOURS
from ..mmdiff_core.host.encode import encode_prompt
from ..mmdiff_core.host.text import MARKERS
from .aliases import schema
from .sockets import CATEGORY, MMDiff, MMDiffSubjects

FROM_CHECKPOINT = "from checkpoint"


class TextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffTextEncode",
            display_name="MM-Diff Text Encode",
            category=CATEGORY,
            description="Encodes both prompts and binds subjects to nouns. Write a marker right "
            "after a subject's noun: its name, \"a man<|alan|> and a woman<|grace|> in "
            'the snow", or <|subj|> for the next subject in order.',
            inputs=[
                io.Clip.Input("clip", tooltip="CLIP of the adapter's base model."),
                MMDiff.Input(
                    "mmdiff",
                    tooltip="Adapter from Load MM-Diff; the one that encoded the subjects.",
                ),
                io.String.Input(
                    "text",
                    default="a man<|subj|> in the snow",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="Positive prompt. Write a marker right after each "
                    "subject's noun: <|its name|>, any number of times, or "
                    "<|subj|> for the next subject. Prompt weights such as "
                    "(man<|alan|>:1.2) work.",
                ),
                io.String.Input(
                    "negative",
                    default="lowres, bad anatomy, bad hands",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="Negative prompt, without markers.",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Delayed conditioning: fraction of the denoising that uses "
                    "the plain prompt before the subjects are added. 0 = "
                    "subjects from the first step; higher values follow the "
                    "text more closely and reduce the likeness.",
                ),
                io.Combo.Input(
                    "behaviour",
                    options=[FROM_CHECKPOINT, *BEHAVIOURS],
                    default=FROM_CHECKPOINT,
                    tooltip="released: matches the official code, which does not apply "
                    "the LoRA of the second text encoder and fuses the subjects "
                    "into the negative prompt as well. corrected: does "
                    "neither.",
                ),
                MMDiffSubjects.Input(
                    "subjects", optional=True, tooltip="Subjects that the markers refer to."
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="positive", tooltip="Carries the subjects to the model."
                ),
                io.Conditioning.Output(display_name="negative", tooltip="For the same sampler."),
                io.String.Output(
                    display_name="bindings", tooltip="Which noun was bound to which subject."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, negative: str) -> bool | str:
        if found := MARKERS.search(negative):
            return (
                f"{found[0]} belongs in the positive prompt only; the negative prompt takes no "
                "markers"
            )
        return True

    @classmethod
    def execute(
        cls, clip, mmdiff, text: str, negative: str, start: float, behaviour: str, subjects=()
    ) -> io.NodeOutput:
        encoded = encode_prompt(
            clip,
            mmdiff,
            text,
            negative,
            subjects or (),
            start,
            None if behaviour == FROM_CHECKPOINT else behaviour,
        )
        numbers = {id(s): i for i, s in enumerate(subjects or (), 1)}
        bound = [{"word": word, "subject": numbers[id(s)]} for word, s in encoded.bindings]
        shown = {**ui.PreviewText(encoded.describe()).as_dict(), "bindings": bound}
        return io.NodeOutput(encoded.positive, encoded.negative, encoded.describe(), ui=shown)
