"""Recordings of attention while sampling, for a person to see."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import comfy.patcher_extension
import torch
from torch import Tensor

from ..bases import Slot, TransformerBlock
from ..regions.attention_maps import AttentionMaps, Canvas, canvas_grid
from ..regions.layer_weights import named_layers
from .layer_attention import Columns, LayerAttention, Watcher, canvas_area, watched_slots
from .progress import NEAR, Window

WATCH = "mmdiff-watch"
Wrappers = comfy.patcher_extension.WrappersMP


@dataclass(frozen=True)
class WatchPlan:
    """What is recorded: steps from `start` to `end` (fractions of the denoising), in `strip` parts
    of equal length; `layers` by name as in `layer_weights`, "" = some of all."""

    start: float = 0.0
    end: float = 1.0
    strip: int = 6
    layers: str = ""


def parts_of(plan: WatchPlan, sigmas: Tensor, sampling) -> tuple[Window, ...]:
    """The plan's parts of a schedule [steps + 1], each with as many of its sigmas as the others."""
    levels = sorted(set(sigmas[:-1].tolist()), reverse=True)

    def begin(percent: float) -> int:
        """Number of the first level at or below a fraction of the denoising."""
        bound = math.inf if percent <= 0 else float(sampling.percent_to_sigma(percent)) * NEAR
        return sum(level > bound for level in levels)

    first, last = begin(plan.start), len(levels)
    if plan.end < 1:
        last = min(last, max(first + 1, begin(plan.end)))
    steps = last - first
    count = min(plan.strip, steps)
    edges = [levels[first - (-part * steps // count)] * NEAR for part in range(count)]
    edges.append(-1.0 if last == len(levels) else levels[last] * NEAR)
    if first == 0:
        edges[0] = math.inf
    return tuple(map(Window, edges, edges[1:]))


@dataclass(eq=False)
class Recording:
    """One sampling run, recorded. Canvases are made at a prompt's first look and added to in
    place."""

    plan: WatchPlan
    parts: tuple[Window, ...]
    images: int
    latent: tuple[int, int]
    # by the id of the prompt's state, which the sheet holds
    sheets: dict[int, Sheet] = field(default_factory=dict)

    def watcher(
        self, state, blocks: Sequence[TransformerBlock], sigmas: Tensor
    ) -> Watcher | None:
        """Who records a prompt in a call at this sigma, or None."""
        factors = [part.factor(sigmas) for part in self.parts]
        if state.columns is None or all(isinstance(f, float) and f == 0 for f in factors):
            return None
        if id(state) not in self.sheets:
            self.sheets[id(state)] = self.blank_sheet(state, blocks)
        sheet = self.sheets[id(state)]
        places = []
        for canvas, factor in zip(sheet.canvases, factors, strict=True):
            if not isinstance(factor, float) or factor != 0:
                places.append((canvas, factor))
        return SheetLook(sheet.slots, state.columns, tuple(places))

    def blank_sheet(self, state, blocks: Sequence[TransformerBlock]) -> Sheet:
        slots = watched_slots(blocks)
        if self.plan.layers.strip():
            slots = named_layers(self.plan.layers, blocks)
        size = self.images, len(state.prompt.subjects), canvas_grid(self.latent)
        device = state.columns.nouns.device
        return Sheet(state, slots, tuple(Canvas.blank(*size, device) for _ in self.parts))

    def result(self) -> list[AttentionMaps]:
        """What was recorded so far, on the CPU."""
        found = []
        for sheet in self.sheets.values():
            means = [canvas.mean() for canvas in sheet.canvases if canvas.looks.any()]
            if means:
                text, image = (torch.stack(part).cpu() for part in zip(*means, strict=True))
                found.append(
                    AttentionMaps(tuple(s.name for s in sheet.state.prompt.subjects), text, image)
                )
        return found


@dataclass(frozen=True, eq=False)
class Sheet:
    """A prompt's canvases, one for each part of the steps."""

    state: object
    slots: frozenset[Slot]
    canvases: tuple[Canvas, ...]


@dataclass(frozen=True, eq=False)
class SheetLook:
    """Where a call's looks go: canvases, each with whether they count on it."""

    slots: frozenset[Slot]
    columns: Columns
    canvases: tuple[tuple[Canvas, float | Tensor], ...]

    def look(self, layer: LayerAttention) -> None:
        text, image = self.columns.maps(layer)
        for canvas, weight in self.canvases:
            area = canvas_area(canvas, layer.area, layer.latent)
            canvas.add(text, image, layer.first, area, weight)


class Recorder:
    """The link between the node that watches a model and the one that shows what was seen: holds
    the newest finished run. `live(recording, step, steps)` is called after every step."""

    def __init__(self, plan: WatchPlan, live: Callable[[Recording, int, int], None] | None = None):
        self.plan, self.live = plan, live
        self.maps: list[AttentionMaps] = []

    def __deepcopy__(self, memo: dict) -> Recorder:
        return self

    def on_run(self, executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
        """SAMPLER_SAMPLE: record this run."""
        model_options = extra_args["model_options"]
        parts = parts_of(self.plan, sigmas, guider.inner_model.model_sampling)
        recording = Recording(self.plan, parts, len(noise), tuple(noise.shape[-2:]))
        transformer_options = {**model_options.get("transformer_options", {}), WATCH: recording}
        extra_args = {
            **extra_args,
            "model_options": {**model_options, "transformer_options": transformer_options},
        }
        callback = self.following(recording, callback, len(sigmas) - 1)
        try:
            return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
        finally:
            self.maps = recording.result()
            recording.sheets.clear()

    def following(
        self, recording: Recording, callback: Callable | None, steps: int
    ) -> Callable | None:
        """The sampler's callback(step, ...), which also shows the recording so far."""
        if self.live is None:
            return callback

        def shown(step: int, *args, **kwargs):
            answer = None if callback is None else callback(step, *args, **kwargs)
            self.live(recording, step + 1, steps)
            return answer

        return shown


def watch(model, recorder: Recorder):
    """A clone of the model whose runs are recorded. Where no MM-Diff is applied there is nothing to
    record, and the recorder stays empty. ValueError when the model is watched already."""
    if WATCH in model.wrappers.get(Wrappers.SAMPLER_SAMPLE, {}):
        raise ValueError("this model is already watched; use one MM-Diff Watch Attention per model")
    patched = model.clone()
    patched.add_wrapper_with_key(Wrappers.SAMPLER_SAMPLE, WATCH, recorder.on_run)
    return patched
