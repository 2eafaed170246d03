"""Where subjects are: found while sampling, and shown afterwards."""
from __future__ import annotations

from comfy_api.latest import io, ui

from ..mmdiff_core.host.live import live_view, page
from ..mmdiff_core.host.watch import Recorder, WatchPlan, watch
from ..mmdiff_core.method.subjects import FindRegions
from ..mmdiff_core.regions.attention_maps import KINDS
from ..mmdiff_core.regions.map_images import show_maps
from .aliases import schema
from .sockets import CATEGORY, MMDiffMaps, MMDiffSubjects


class FindSubjectRegions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffFindRegions", display_name="MM-Diff Find Regions", category=CATEGORY,
            description="Keeps subjects apart without a layout: in the first steps it looks where each one's noun and tokens are read, and "
                        "from then on every place belongs to the subject it is read at most.",
            inputs=[
                MMDiffSubjects.Input("subjects", tooltip="Two or more subjects; they may have masks as well."),
                io.Float.Input("settle", default=0.3, min=0.01, max=1.0, step=0.01,
                               tooltip="Fraction of the denoising after which the regions hold. Before it every subject is free."),
                io.Boolean.Input("update", default=False, tooltip="On: the regions go on following the maps. Off: they stay as found."),
                io.Float.Input("sharpness", default=4.0, min=0.0, max=16.0, step=0.5,
                               tooltip="How clearly a place is one subject's: 0 = not at all, 8 = nearly its alone."),
                io.Float.Input("image_share", default=0.5, min=0.0, max=1.0, step=0.05,
                               tooltip="How much the subjects' own tokens count beside their nouns in saying who is where."),
                io.Boolean.Input("hold_tokens", default=True, tooltip="Hold the subjects' tokens (image branch) to the regions."),
                io.Boolean.Input("hold_nouns", default=False, tooltip="Hold the subjects' nouns in the text to the regions, too."),
            ],
            outputs=[MMDiffSubjects.Output(display_name="subjects", tooltip="For MM-Diff Text Encode.")],
        )

    @classmethod
    def execute(cls, subjects, settle: float, update: bool, sharpness: float, image_share: float, hold_tokens: bool, hold_nouns: bool
                ) -> io.NodeOutput:
        find = FindRegions(settle, update, sharpness, image_share)
        return io.NodeOutput(tuple(s.within(find=find, hold_tokens=hold_tokens, hold_nouns=hold_nouns) for s in subjects))


class WatchAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffWatchAttention", display_name="MM-Diff Watch Attention", category=CATEGORY,
            description="Records, while the sampler runs, how probable it is at every place to read each subject's noun and its tokens. "
                        "Connect `maps` to MM-Diff Attention Maps.",
            inputs=[
                io.Model.Input("model", tooltip="From Apply MM-Diff Attention."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01, tooltip="Fraction of the denoising to begin at."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="Fraction of the denoising to end at."),
                io.Int.Input("strip", default=6, min=1, max=16, tooltip="How many parts the steps are shown in."),
                io.String.Input("layers", default="", tooltip="Layers to watch, by name: \"middle, output.1\". Empty = at most twelve, "
                                                              "spread over the model. Layers that are not watched cost nothing."),
                io.Boolean.Input("live", default=False,
                                 tooltip="Show the newest maps here while the sampler runs, at most twice a second."),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For the sampler."),
                MMDiffMaps.Output(display_name="maps", tooltip="What the newest run showed, for MM-Diff Attention Maps."),
            ],
        )

    @classmethod
    def validate_inputs(cls, start_percent: float, end_percent: float) -> bool | str:
        return start_percent < end_percent or f"start_percent {start_percent} must be less than end_percent {end_percent}"

    @classmethod
    def execute(cls, model, start_percent: float, end_percent: float, strip: int, layers: str, live: bool) -> io.NodeOutput:
        view = live_view(cls.hidden.unique_id, page()) if live else None
        recorder = Recorder(WatchPlan(start_percent, end_percent, strip, layers), view)
        return io.NodeOutput(watch(model, recorder), recorder)


class ShowAttentionMaps(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="MMDiffAttentionMaps", display_name="MM-Diff Attention Maps", category=CATEGORY,
            description="Shows where each subject was read in the pictures that a watched model drew.",
            inputs=[
                MMDiffMaps.Input("maps", tooltip="From MM-Diff Watch Attention."),
                io.Image.Input("image", tooltip="The decoded pictures of the same run."),
                io.Combo.Input("kind", options=list(KINDS), default="both",
                               tooltip="nouns: the words in the text. tokens: the subjects' own tokens. both: where both are read."),
                io.Float.Input("opacity", default=0.6, min=0.0, max=1.0, step=0.05, tooltip="Of the heat over the picture."),
            ],
            outputs=[
                io.Image.Output(display_name="overlay", tooltip="Heat over each picture, one for each subject."),
                io.Mask.Output(display_name="masks", tooltip="The same as masks in 0..1, picture by picture, subject by subject."),
                io.Image.Output(display_name="strip", tooltip="A row for each subject of the first picture, the steps from left to right."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **kwargs) -> float:
        return float("nan")         # what was recorded is not among the inputs

    @classmethod
    def execute(cls, maps, image, kind: str, opacity: float) -> io.NodeOutput:
        over, masks, steps, said = show_maps(maps.maps, image, kind, opacity)
        return io.NodeOutput(over, masks, steps, ui={**ui.PreviewImage(over, cls=cls).as_dict(), "text": (said,)})
