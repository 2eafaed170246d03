"""Looking at attention while sampling: regions found from it, and recordings for a person to see.

Nothing here reads a number back from the device: which step it is comes from the sampler's own
callback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import comfy.patcher_extension
import torch
from torch import Tensor

from ..bases import Slot, TransformerBlock
from ..method.subjects import FindRegions, PromptSubject, count_tokens
from ..regions.attention_bias import Area
from ..regions.attention_maps import (
    AttentionMaps,
    Canvas,
    CanvasArea,
    canvas_grid,
    find_regions,
    members,
    noun_map,
    owners,
    token_map,
)
from ..regions.layer_weights import named_layers

WATCHED = 12  # layers that are looked at, spread over the model
FADE = 0.7  # how much earlier steps count after each one while found regions are updated


@dataclass(eq=False)
class StepCounter:
    """The step a sampling is at, told by its callback."""

    step: int = 0

    def counting(self, callback: Callable | None) -> Callable:
        """The sampler's callback(step, ...), which also moves this on."""

        def counted(step: int, *args, **kwargs):
            self.step = step + 1
            return None if callback is None else callback(step, *args, **kwargs)

        return counted


def step_of(percent: float, sigmas: Tensor, sampling) -> int:
    """The first step of the schedule that begins at or below a fraction of the denoising; all of
    them when none does."""
    if percent <= 0:
        return 0
    bound = float(sampling.percent_to_sigma(percent))
    begun = [i for i, sigma in enumerate(sigmas[:-1].tolist()) if sigma <= bound]
    return begun[0] if begun else len(sigmas) - 1


def watched_slots(blocks: Sequence[TransformerBlock]) -> frozenset[Slot]:
    """At most `WATCHED` layers, spread evenly."""
    every = max(1, -(-len(blocks) // WATCHED))
    return frozenset(block.slot for block in blocks[every // 2 :: every])


class Watcher(Protocol):
    """Whoever looks at a prompt's attention during a call."""

    slots: frozenset[Slot]  # the layers it looks at

    def look(self, layer: LayerAttention) -> None: ...


@dataclass(frozen=True, eq=False)
class LayerAttention:
    """What one layer shows of one group of rows.

    q [B P HD], k [B T HD] of its rows; key [1|B H N D] of the subjects; `bias` as the image branch
    has it; the layer's grid; `first` row's number in the latent batch; the part of the picture its
    cond covers.
    """

    q: Tensor
    k: Tensor
    heads: int
    key: Tensor
    bias: Tensor | None
    grid: tuple[int, int]
    first: int
    area: Area | None
    latent: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Columns:
    """Which text columns [T S] and which tokens [N S] are each subject's, on the device."""

    nouns: Tensor
    tokens: Tensor

    def to(self, device: torch.device) -> Columns:
        return Columns(self.nouns.to(device), self.tokens.to(device))

    @classmethod
    def of(
        cls,
        subjects: Sequence[PromptSubject],
        nouns: Sequence[Sequence[int]],
        length: int,
        device: torch.device,
    ) -> Columns:
        tokens = count_tokens(subjects)
        return cls(members(nouns, length, device), members(owners(tokens), sum(tokens), device))

    def maps(self, layer: LayerAttention) -> tuple[Tensor, Tensor]:
        """Text and image maps of a layer [B S h w]."""
        text = noun_map(layer.q, layer.k, layer.heads, self.nouns)
        image = token_map(layer.q, layer.key, layer.heads, self.tokens, layer.bias)
        return text.unflatten(-1, layer.grid), image.unflatten(-1, layer.grid)


def box_on(canvas: Canvas, area: Area | None, latent: tuple[int, int]) -> CanvasArea | None:
    """The part of the canvas that a cond's area covers."""
    if area is None:
        return None
    height, width, top, left = area
    down, across = (side / whole for side, whole in zip(canvas.looks.shape, latent, strict=True))
    y, x = round(top * down), round(left * across)
    return (
        y,
        x,
        max(1, round((top + height) * down) - y),
        max(1, round((left + width) * across) - x),
    )


@dataclass(eq=False)
class Finder:
    """Regions of one prompt's subjects during one run: looked for until `settle`, then held, or
    followed.

    shares      region of each subject [images S h w] in 0..1, once they are settled
    """

    plan: FindRegions
    settle: int
    slots: frozenset[Slot]
    columns: Columns
    canvas: Canvas
    shares: Tensor | None = None
    made_at: int = -1

    def on(self, device: torch.device, columns: Columns) -> Finder:
        """A finder of its own for another device."""
        text = self.canvas.text
        return Finder(
            self.plan,
            self.settle,
            self.slots,
            columns,
            Canvas.blank(len(text), text.shape[1], tuple(text.shape[-2:]), device),
        )

    def looks_at(self, step: int) -> bool:
        return step < self.settle or self.plan.update

    def look(self, layer: LayerAttention) -> None:
        text, image = self.columns.maps(layer)
        self.canvas.add(text, image, layer.first, box_on(self.canvas, layer.area, layer.latent))

    def regions(self, step: int) -> Tensor | None:
        """Region of each subject [images S h w] in 0..1, or None while nothing is settled. Made
        once, or, where they follow the maps, once a step."""
        if step < self.settle:
            return None
        if self.shares is None or (self.plan.update and self.made_at != step):
            self.shares = find_regions(
                *self.canvas.mean(), self.plan.sharpness, self.plan.image_share
            )
            self.canvas.fade(FADE)
            self.made_at = step
        return self.shares


def make_finder(
    subjects: Sequence[PromptSubject],
    columns: Columns,
    sigmas: Tensor,
    sampling,
    latent: tuple[int, int],
    pictures: int,
    slots: frozenset[Slot],
    device: torch.device,
) -> Finder | None:
    """A finder where the prompt's subjects ask for one and there is somebody to tell apart."""
    plan = next((s.region.find for s in subjects if s.region.find is not None), None)
    if plan is None or len(subjects) < 2:
        return None
    canvas = Canvas.blank(pictures, len(subjects), canvas_grid(latent), device)
    return Finder(plan, max(1, step_of(plan.settle, sigmas, sampling)), slots, columns, canvas)


# ---------------------------------------------------------------- recordings

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


@dataclass(eq=False)
class Recording:
    """One sampling run, recorded. Canvases are made at a prompt's first look and added to in
    place."""

    plan: WatchPlan
    first: int
    last: int
    pictures: int
    latent: tuple[int, int]
    steps: StepCounter
    # by the id of the prompt's state, which the sheet holds
    sheets: dict[int, Sheet] = field(default_factory=dict)

    def watcher(self, state, blocks: Sequence[TransformerBlock], step: int) -> Watcher | None:
        """Who records a prompt at this step, or None."""
        if not self.first <= step < self.last or state.columns is None:
            return None
        if id(state) not in self.sheets:
            subjects = state.prompt.subjects
            parts = min(self.plan.strip, self.last - self.first)
            slots = watched_slots(blocks)
            if self.plan.layers.strip():
                slots = named_layers(self.plan.layers, blocks)
            canvases = tuple(
                Canvas.blank(
                    self.pictures,
                    len(subjects),
                    canvas_grid(self.latent),
                    state.columns.nouns.device,
                )
                for _ in range(parts)
            )
            self.sheets[id(state)] = Sheet(state, slots, canvases)
        sheet = self.sheets[id(state)]
        part = (step - self.first) * len(sheet.canvases) // (self.last - self.first)
        return SheetPart(sheet.slots, state.columns, sheet.canvases[part])

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
class SheetPart:
    """Where this step's looks go."""

    slots: frozenset[Slot]
    columns: Columns
    canvas: Canvas

    def look(self, layer: LayerAttention) -> None:
        text, image = (self.of_pictures(seen) for seen in self.columns.maps(layer))
        self.canvas.add(text, image, layer.first, box_on(self.canvas, layer.area, layer.latent))

    def of_pictures(self, seen: Tensor) -> Tensor:
        """A prompt that is drawn twice in one call has its rows twice: their mean."""
        pictures = len(self.canvas.text)
        return seen.unflatten(0, (-1, pictures)).mean(0) if len(seen) > pictures else seen


class Recorder:
    """The wire between the node that watches a model and the one that shows what was seen: holds
    the newest finished run."""

    def __init__(self, plan: WatchPlan, live: Callable[[Recording, int, int], None] | None = None):
        self.plan, self.live = plan, live
        self.maps: list[AttentionMaps] = []

    def __deepcopy__(self, memo: dict) -> Recorder:
        return self

    def on_run(self, executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
        """SAMPLER_SAMPLE: record this run."""
        sampling, model_options = guider.inner_model.model_sampling, extra_args["model_options"]
        first = step_of(self.plan.start, sigmas, sampling)
        last = len(sigmas) - 1
        if self.plan.end < 1:
            last = max(first + 1, step_of(self.plan.end, sigmas, sampling))
        recording = Recording(
            self.plan, first, last, len(noise), tuple(noise.shape[-2:]), StepCounter()
        )
        transformer_options = {**model_options.get("transformer_options", {}), WATCH: recording}
        extra_args = {
            **extra_args,
            "model_options": {**model_options, "transformer_options": transformer_options},
        }
        try:
            return executor(
                guider,
                sigmas,
                extra_args,
                self.following(recording, callback, len(sigmas) - 1),
                noise,
                *args,
                **kwargs,
            )
        finally:
            self.maps = recording.result()
            recording.sheets.clear()

    def following(self, recording: Recording, callback: Callable | None, steps: int) -> Callable:
        counted = recording.steps.counting(callback)
        if self.live is None:
            return counted

        def shown(step: int, *args, **kwargs):
            answer = counted(step, *args, **kwargs)
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
