"""Regions from attention maps, and the recording and display of attention maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io, ui

from ..mmdiff_core.host.live import live_view, page
from ..mmdiff_core.host.watch import Recorder, WatchPlan, watch
from ..mmdiff_core.method.subjects import FindRegions
from ..mmdiff_core.references.pixels import checked_images
from ..mmdiff_core.regions.attention_maps import KINDS
from ..mmdiff_core.regions.layer_weights import entries
from ..mmdiff_core.regions.map_images import show_maps
from .aliases import schema
from .checks import CheckedNode, checked, told
from .inputs import bounded, check_window, model_output, share, window
from .sockets import CATEGORY, MMDiffMaps, MMDiffSubjects


class FindSubjectRegions(CheckedNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffFindRegions",
            display_name="MM-Diff Find Regions",
            category=CATEGORY,
            description="Separates subjects without a layout: the first steps record the attention "
            "maps of each subject's noun and tokens; afterwards each position belongs "
            "to the subject with the highest attention.",
            inputs=[*_finding(), *_holding()],
            outputs=[
                MMDiffSubjects.Output(
                    display_name="subjects", tooltip="Subjects for MM-Diff Text Encode."
                )
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        subjects,
        settle: float,
        update: bool,
        sharpness: float,
        image_share: float,
        hold_tokens: bool,
        hold_nouns: bool,
        bound_self_attention: bool = False,
    ) -> io.NodeOutput:
        region = {
            "find": FindRegions(settle, update, sharpness, image_share),
            "hold_tokens": hold_tokens,
            "hold_nouns": hold_nouns,
            "bound_self_attention": bound_self_attention,
        }
        return io.NodeOutput(tuple(s.within(**region) for s in subjects))


class WatchAttention(CheckedNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffWatchAttention",
            display_name="MM-Diff Watch Attention",
            category=CATEGORY,
            description="Records each subject's attention probability at every position while the "
            "sampler runs, for its noun and for its tokens. Connect `maps` to MM-Diff "
            "Attention Maps.",
            inputs=_recording(),
            hidden=[io.Hidden.unique_id],
            outputs=[
                model_output(),
                MMDiffMaps.Output(
                    display_name="maps",
                    tooltip="Attention maps of the latest run, for MM-Diff Attention Maps.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        start_percent: float | None = None,
        end_percent: float | None = None,
        layers: str | None = None,
    ) -> bool | str:
        return told(cls, start_percent=start_percent, end_percent=end_percent, layers=layers)

    @classmethod
    def check(cls, values: Mapping[str, Any]) -> None:
        check_window(values)
        entries(values.get("layers", ""), "layers")

    @classmethod
    @checked
    def execute(
        cls, model, start_percent: float, end_percent: float, strip: int, layers: str, live: bool
    ) -> io.NodeOutput:
        view = live_view(cls.hidden.unique_id, page()) if live else None
        recorder = Recorder(WatchPlan(start_percent, end_percent, strip, layers), view)
        return io.NodeOutput(watch(model, recorder), recorder)


class ShowAttentionMaps(CheckedNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffAttentionMaps",
            display_name="MM-Diff Attention Maps",
            category=CATEGORY,
            is_output_node=True,
            description="Shows each subject's attention maps over the images that a watched model "
            "generated.",
            inputs=_showing(),
            outputs=[
                io.Image.Output(
                    display_name="overlay", tooltip="Heat map over each image, one per subject."
                ),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="The same maps as masks in 0..1, by image, then by subject.",
                ),
                io.Image.Output(
                    display_name="strip",
                    tooltip="One row per subject of the first image, with steps from "
                    "left to right.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **kwargs) -> float:
        return float("nan")  # what was recorded is not among the inputs

    @classmethod
    def validate_inputs(cls, kind: str | None = None) -> bool | str:
        return told(cls, kind=kind)

    @classmethod
    @checked
    def execute(cls, maps, image, kind: str, opacity: float) -> io.NodeOutput:
        over, masks, steps, said = show_maps(maps.maps, checked_images(image), kind, opacity)
        return io.NodeOutput(
            over, masks, steps, ui={**ui.PreviewImage(over, cls=cls).as_dict(), "text": (said,)}
        )


def _finding() -> list:
    return [
        MMDiffSubjects.Input(
            "subjects", tooltip="Two or more subjects; they may have masks as well."
        ),
        share(
            "settle",
            0.3,
            "Fraction of the denoising after which the regions apply. Until then every subject is "
            "free.",
            min=0.01,
        ),
        io.Boolean.Input(
            "update",
            default=False,
            tooltip="On: the regions keep following the attention maps. Off: they stay fixed.",
        ),
        io.Float.Input(
            "sharpness",
            default=4.0,
            min=0.0,
            max=16.0,
            step=0.5,
            tooltip="How strictly a position belongs to one subject: 0 = not at all, 8 = almost "
            "exclusively.",
        ),
        share(
            "image_share",
            0.5,
            "Weight of the subject tokens relative to the nouns when regions are assigned.",
            step=0.05,
        ),
    ]


def _holding() -> list:
    return [
        io.Boolean.Input(
            "hold_tokens",
            default=True,
            tooltip="Restrict the subject tokens (image branch) to the regions.",
        ),
        io.Boolean.Input(
            "hold_nouns",
            default=False,
            tooltip="Restrict the bound nouns in the text to the regions as well.",
        ),
        bounded(),
    ]


def _recording() -> list:
    return [
        io.Model.Input("model", tooltip="Model from Apply MM-Diff Attention."),
        *window("recording"),
        io.Int.Input(
            "strip",
            default=6,
            min=1,
            max=16,
            tooltip="Number of parts that the steps are grouped into.",
        ),
        io.String.Input(
            "layers",
            default="",
            tooltip='Layers to watch, by name: "middle, output.1". Empty = up to twelve layers '
            "spread over the model. Layers that are not watched add no cost.",
        ),
        io.Boolean.Input(
            "live",
            default=False,
            tooltip="Show the latest maps on the node while the sampler runs, at most twice a "
            "second.",
        ),
    ]


def _showing() -> list:
    return [
        MMDiffMaps.Input("maps", tooltip="Recording from MM-Diff Watch Attention."),
        io.Image.Input("image", tooltip="The decoded images of the same run."),
        io.Combo.Input(
            "kind",
            options=list(KINDS),
            default="both",
            tooltip="nouns: attention to the bound nouns in the text. tokens: attention to the "
            "subject tokens. both: geometric mean of the two.",
        ),
        share("opacity", 0.6, "Opacity of the heat map over the image.", step=0.05),
    ]
