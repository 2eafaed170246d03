"""The graphs of the experiments, from one graph in API format that draws one image: more
references, boxes, and batches of frames whose noise or text walks, with ComfyUI's own nodes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .comfy_api import Graph
from .drawing import ENCODER, Template
from .experiment_sets import Asked
from .experiments import (
    BASE,
    FRAMES,
    NOISE_WALK,
    NOUNS,
    OVERLAP,
    OWN_NOISE,
    PROMPT_WALK,
    SELF,
    TOKENS,
    WINDOW,
    WINDOWS,
    Cell,
)
from .sets import MARKER

SAMPLER = "KSampler"
SETTINGS = ("model", "positive", "negative", "latent_image", "steps", "cfg", "scheduler")
FAR = 500_000  # from the seed of a walk's first noise to that of its last
# inputs that only newer versions have, and that are not left at their defaults: for causal video
# models a window would draw the image before it as well, and drop it
CHOSEN = {"ContextWindowsManual": {"causal_window_fix": False}}
TOP, HIGH, MARGIN = 0.1, 0.9, 0.02  # of the boxes, as shares of the image


def check_template(template: Template) -> None:
    """ValueError for a graph whose sampler is another one than KSampler."""
    kind = template.graph[template.sampler]["class_type"]
    if kind != SAMPLER:
        raise ValueError(
            f"the graph samples with {kind!r}; the experiments need one that samples with {SAMPLER}"
        )


def graph_of(template: Template, cell: Cell, asked: Asked, names: Sequence[Sequence[str]]) -> Graph:
    """The graph for one image, or for one batch of frames.

    names  of each subject's references in the server's input folder
    """
    plain = cell.drawn_by == BASE
    firsts = [of_subject[0] for of_subject in names]
    graph = template.fill(asked.case, firsts, asked.seed, plain)
    if not plain:
        _add_references(graph, names)
    if cell.held and not plain:
        _hold(graph, template, len(names), cell.held)
    if cell.frames:
        _Frames(graph, template).draw(cell, asked, plain)
    return graph


def with_defaults(graph: Graph, node: Callable[[str], Mapping[str, Any] | None]) -> Graph:
    """The graph with the inputs that a newer ComfyUI gave to its nodes: as in the page, they have
    their defaults.

    node  what the server says of a node by its type
    """
    filled = {}
    for name, each in graph.items():
        kind = each["class_type"]
        wanted = ((node(kind) or {}).get("input") or {}).get("required") or {}
        known = {key: told[1] for key, told in wanted.items() if len(told) > 1}
        defaults = {key: told["default"] for key, told in known.items() if "default" in told}
        chosen = {k: v for k, v in CHOSEN.get(kind, {}).items() if k in wanted}
        filled[name] = {**each, "inputs": {**defaults, **chosen, **each["inputs"]}}
    return filled


def _add(graph: Graph, name: str, kind: str, **inputs) -> list:
    graph[name] = {"class_type": kind, "inputs": inputs}
    return [name, 0]


def _add_references(graph: Graph, names: Sequence[Sequence[str]]) -> None:
    for number, of_subject in enumerate(names, 1):
        batch = [f"reference_{number}", 0]
        for k, name in enumerate(of_subject[1:], 2):
            image = _add(graph, f"reference_{number}_{k}", "LoadImage", image=name)
            join = f"references_{number}_{k}"
            batch = _add(graph, join, "ImageBatch", image1=batch, image2=image)
        encoder = graph[f"subject_{number}_of_set"]
        assert encoder["class_type"] == ENCODER
        encoder["inputs"]["image"] = batch


def _hold(graph: Graph, template: Template, subjects: int, held: Sequence[str]) -> None:
    """Boxes side by side, in the order of the prompt."""
    boxes = []
    for number in range(subjects):
        box = {"subject": number + 1, "x": number / subjects + MARGIN, "y": TOP}
        boxes.append({**box, "width": 1 / subjects - 2 * MARGIN, "height": HIGH})
    regions = _add(
        graph,
        "regions_of_set",
        "MMDiffConstraintMasks",
        subjects=graph[template.text]["inputs"]["subjects"],
        feather=0.0,
        boxes=json.dumps(boxes),
        hold_tokens=TOKENS in held,
        hold_nouns=NOUNS in held,
        bound_self_attention=SELF in held,
        latent=graph[template.sampler]["inputs"]["latent_image"],
    )
    graph[template.text]["inputs"]["subjects"] = regions


class _Frames:
    """Puts a batch of frames in the place of a graph's KSampler, drawn with euler, which adds no
    noise between the steps."""

    def __init__(self, graph: Graph, template: Template) -> None:
        self.graph, self.template = graph, template
        inputs = graph[template.sampler]["inputs"]
        self.given = {name: inputs[name] for name in SETTINGS}

    def draw(self, cell: Cell, asked: Asked, plain: bool) -> None:
        """Everything but the nodes that take the sampler's latent."""
        model, given = self.given["model"], self.given
        if cell.host == WINDOWS:
            model = self._windows(model)
        self.sigmas = _add(
            self.graph,
            "sigmas",
            "BasicScheduler",
            model=given["model"],
            scheduler=given["scheduler"],
            steps=given["steps"],
            denoise=1.0,
        )
        self.still = _add(self.graph, "no_noise", "DisableNoise")
        self.euler = _add(self.graph, "euler", "KSamplerSelect", sampler_name="euler")
        if cell.frames == PROMPT_WALK:
            drawn = self._prompt_walk(model, asked, plain)
        else:
            latents = [self._noise(cell, asked.seed, n) for n in range(FRAMES)]
            batch = self._joined("noise", latents)
            drawn = self._sample("frames", model, given["positive"], batch)
        self._instead(drawn)

    def _windows(self, model: list) -> list:
        return _add(
            self.graph,
            "windows",
            "ContextWindowsManual",
            model=model,
            context_length=WINDOW,
            context_overlap=OVERLAP,
            context_schedule="standard_static",
            context_stride=1,
            closed_loop=False,
            fuse_method="pyramid",
            dim=0,
        )

    def _noise(self, cell: Cell, seed: int, frame: int) -> list:
        """A frame's noise as a latent; a walk goes a quarter of a great circle."""
        if cell.frames == OWN_NOISE:
            return self._noise_of(seed + FAR * frame)
        assert cell.frames == NOISE_WALK
        turn = frame / (FRAMES - 1) * math.pi / 2
        parts = []
        for name, at, share in (("a", seed, math.cos(turn)), ("b", seed + FAR, math.sin(turn))):
            noise = self._noise_of(at)
            named = f"{name}_{frame}"
            parts.append(_add(self.graph, named, "LatentMultiply", samples=noise, multiplier=share))
        first, last = parts
        return _add(self.graph, f"mixed_{frame}", "LatentAdd", samples1=first, samples2=last)

    def _noise_of(self, seed: int) -> list:
        drawn = _add(self.graph, f"seed_{seed}", "RandomNoise", noise_seed=seed)
        return _add(
            self.graph,
            f"noise_{seed}",
            "AddNoise",
            model=self.given["model"],
            noise=drawn,
            sigmas=self.sigmas,
            latent_image=self.given["latent_image"],
        )

    def _prompt_walk(self, model: list, asked: Asked, plain: bool) -> list:
        """Every frame from the same noise, its text between two prompts of the same subjects."""
        text = dict(self.graph[self.template.text]["inputs"])
        toward = MARKER.sub("", asked.toward) if plain else asked.toward
        self.graph["text_there"] = {
            **self.graph[self.template.text],
            "inputs": {**text, "text": toward},
        }
        latents, noise = [], self._noise_of(asked.seed)
        for frame in range(FRAMES):
            mixed = _add(
                self.graph,
                f"text_{frame}",
                "ConditioningAverage",
                conditioning_to=["text_there", 0],
                conditioning_from=self.given["positive"],
                conditioning_to_strength=frame / (FRAMES - 1),
            )
            latents.append(self._sample(f"frame_{frame}", model, mixed, noise))
        return self._joined("frames", latents)

    def _sample(self, name: str, model: list, positive: list, latent: list) -> list:
        guided = _add(
            self.graph,
            f"guider_of_{name}",
            "CFGGuider",
            model=model,
            positive=positive,
            negative=self.given["negative"],
            cfg=self.given["cfg"],
        )
        return _add(
            self.graph,
            name,
            "SamplerCustomAdvanced",
            noise=self.still,
            guider=guided,
            sampler=self.euler,
            sigmas=self.sigmas,
            latent_image=latent,
        )

    def _joined(self, name: str, latents: Sequence[list]) -> list:
        batch = latents[0]
        for number, latent in enumerate(latents[1:], 1):
            joint = f"{name}_to_{number}"
            batch = _add(self.graph, joint, "LatentBatch", samples1=batch, samples2=latent)
        return batch

    def _instead(self, drawn: list) -> None:
        """What took the sampler's latent takes another."""
        old = [self.template.sampler, 0]
        for node in self.graph.values():
            for name, link in node["inputs"].items():
                if link == old:
                    node["inputs"][name] = drawn
        del self.graph[self.template.sampler]
