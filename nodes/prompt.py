"""MM-Diff Text Encode: text and subjects -> CONDITIONING."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io, ui

from ..mmdiff_core.config import BEHAVIOURS
from ..mmdiff_core.host.nouns import check_markers, check_negative
from ..mmdiff_core.host.prompt import encode_prompt
from .aliases import schema
from .checks import CheckedNode, checked, told
from .inputs import share
from .sockets import CATEGORY, MMDiff, MMDiffSubjects

FROM_CHECKPOINT = "from checkpoint"


class TextEncode(CheckedNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffTextEncode",
            display_name="MM-Diff Text Encode",
            category=CATEGORY,
            description="Encodes both prompts and binds subjects to nouns. Write a marker right "
            "after a subject's noun: its name, \"a man<|alan|> and a woman<|grace|> in "
            'the snow", or <|subj|> for the next subject in order.',
            inputs=_inputs(),
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
    def validate_inputs(
        cls, text: str | None = None, negative: str | None = None, behaviour: str | None = None
    ) -> bool | str:
        return told(cls, text=text, negative=negative, behaviour=behaviour)

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> None:
        check_markers(values.get("text", ""))
        check_negative(values.get("negative", ""))

    @classmethod
    @checked
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


def _inputs() -> list:
    return [
        io.Clip.Input("clip", tooltip="CLIP of the adapter's base model."),
        MMDiff.Input(
            "mmdiff", tooltip="Adapter from Load MM-Diff; the one that encoded the subjects."
        ),
        _prompt(
            "text",
            "a man<|subj|> in the snow",
            "Positive prompt. Write a marker right after each subject's noun: <|its name|>, any "
            "number of times, or <|subj|> for the next subject. Prompt weights such as "
            "(man<|alan|>:1.2) work.",
        ),
        _prompt("negative", "lowres, bad anatomy, bad hands", "Negative prompt, without markers."),
        share(
            "start",
            0.0,
            "Delayed conditioning: fraction of the denoising that uses the plain prompt before "
            "the subjects are added. 0 = subjects from the first step; higher values follow the "
            "text more closely and reduce the likeness.",
        ),
        io.Combo.Input(
            "behaviour",
            options=[FROM_CHECKPOINT, *BEHAVIOURS],
            default=FROM_CHECKPOINT,
            tooltip="released: matches the official code, which does not apply the LoRA of the "
            "second text encoder and fuses the subjects into the negative prompt as well. "
            "corrected: does neither.",
        ),
        MMDiffSubjects.Input(
            "subjects", optional=True, tooltip="Subjects that the markers refer to."
        ),
    ]


def _prompt(name: str, default: str, tooltip: str):
    return io.String.Input(
        name, default=default, multiline=True, dynamic_prompts=True, tooltip=tooltip
    )
