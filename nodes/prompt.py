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
            node_id="MMDiffTextEncode", display_name="MM-Diff Text Encode", category=CATEGORY,
            description="Encodes both prompts. Write a subject's name right after its class noun, \"a man<|alan|> and a woman<|grace|> in "
                        "the snow\", or <|subj|> for the subjects in their order.",
            inputs=[
                io.Clip.Input("clip", tooltip="The checkpoint's CLIP."),
                MMDiff.Input("mmdiff", tooltip="From Load MM-Diff."),
                io.String.Input("text", default="a man<|subj|> in the snow", multiline=True, dynamic_prompts=True,
                                tooltip="A marker right after each subject's noun: <|its name|>, as often as you like, or <|subj|> for the "
                                        "next subject. Prompt weights like (man<|alan|>:1.2) work."),
                io.String.Input("negative", default="lowres, bad anatomy, bad hands", multiline=True, dynamic_prompts=True,
                                tooltip="What to avoid; without markers."),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Delayed conditioning: the fraction of the denoising drawn from the plain prompt first. "
                                       "0 = subjects from the first step; more follows the text better, and the subject less."),
                io.Combo.Input("behaviour", options=[FROM_CHECKPOINT, *BEHAVIOURS], default=FROM_CHECKPOINT,
                               tooltip="released: as the official code runs (second text encoder's LoRA unused, negative prompt fused "
                                       "too). corrected: neither."),
                MMDiffSubjects.Input("subjects", optional=True, tooltip="The subjects that the markers name."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="Carries the subjects to the model."),
                io.Conditioning.Output(display_name="negative", tooltip="For the same sampler."),
                io.String.Output(display_name="bindings", tooltip="Which word was bound to which subject."),
            ],
        )

    @classmethod
    def validate_inputs(cls, negative: str) -> bool | str:
        if found := MARKERS.search(negative):
            return f"{found[0]} belongs in the positive prompt only; the negative prompt names no subject"
        return True

    @classmethod
    def execute(cls, clip, mmdiff, text: str, negative: str, start: float, behaviour: str, subjects=()) -> io.NodeOutput:
        encoded = encode_prompt(
            clip, mmdiff, text, negative, subjects or (), start, None if behaviour == FROM_CHECKPOINT else behaviour
        )
        numbers = {id(s): i for i, s in enumerate(subjects or (), 1)}
        bound = [{"word": word, "subject": numbers[id(s)]} for word, s in encoded.bindings]
        shown = {**ui.PreviewText(encoded.describe()).as_dict(), "bindings": bound}
        return io.NodeOutput(encoded.positive, encoded.negative, encoded.describe(), ui=shown)
