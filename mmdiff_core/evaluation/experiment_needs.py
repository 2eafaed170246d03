"""What an experiment with real weights needs, looked for before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .comfy_api import ComfyServer, Graph
from .drawing import MODEL_INPUTS, Template
from .experiment_graphs import graph_of
from .experiment_sets import Asked, lacking, prompt_of
from .experiments import WINDOWS, Cell, Experiment
from .extractors import Extractor, find_folder
from .sets import Case, Subject

FOLDERS = {
    "ckpt_name": "models/checkpoints",
    "checkpoint": "models/mmdiff",
    "clip_name": "models/clip_vision",
    "unet_name": "models/diffusion_models",
    "vae_name": "models/vae",
    "lora_name": "models/loras",
    "model": "models/insightface/models",
}
FACES = "MMDiffLoadFaceAnalysis"  # names its models in `model`, as other nodes name links
LAST_WITHOUT_WINDOWS = (0, 3, 75)  # its context windows fail for a batch, of any model


@dataclass(frozen=True)
class Need:
    """One thing that is needed. `lacks`: what is missing and what to do; "" where it is there."""

    what: str
    lacks: str = ""

    def line(self) -> str:
        """For people."""
        return f"  {'there  ' if not self.lacks else 'MISSING'}  {self.what}" + (
            f": {self.lacks}" if self.lacks else ""
        )


def without_windows(experiment: Experiment, version: str) -> tuple[Cell, ...]:
    """The rows that a version of ComfyUI cannot draw."""
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())
    if len(numbers) == 3 and numbers > LAST_WITHOUT_WINDOWS:
        return ()
    return tuple(cell for cell in experiment.cells if cell.host == WINDOWS)


def needs_of(
    experiment: Experiment,
    server: ComfyServer,
    template: Template,
    subjects: Sequence[Subject],
    extractors: Sequence[Extractor],
    roots: Sequence[Path],
) -> tuple[Need, ...]:
    """Nodes and models of its graphs in the server, images of the subjects, models that score."""
    graphs = [example(template, cell) for cell in experiment.cells]
    found = [Need(f"ComfyUI {server.about()[0]} at {server.url}")]
    found += _of_graphs(graphs, server)
    told = lacking(experiment, subjects)
    count = sum(len(subject.references) for subject in subjects)
    images = f"images folder: {len(subjects)} subjects, {count} images"
    found.append(Need(images, f"this experiment needs {'; '.join(told)}" if told else ""))
    found += [_of_extractor(extractor, roots) for extractor in extractors]
    return tuple(found)


def example(template: Template, cell: Cell) -> Graph:
    """A graph of the cell, for its nodes and models alone."""
    names = tuple(f"s{number}" for number in range(cell.subjects))
    subjects = [Subject(name, "thing", (Path(name),)) for name in names]
    marked = prompt_of(subjects, "")
    case = Case(names, 0, marked, tuple(Path(name) for name in names))
    uploaded = [[name] * cell.references for name in names]
    return graph_of(template, cell, Asked(case, (), marked, 0, 0), uploaded)


def _of_graphs(graphs: Sequence[Graph], server: ComfyServer) -> list[Need]:
    kinds: dict[str, Mapping[str, Any] | None] = {}
    needs: dict[str, Need] = {}
    for graph in graphs:
        for node in graph.values():
            kind = node["class_type"]
            if kind not in kinds:
                kinds[kind] = server.node(kind)
                if kinds[kind] is None:
                    told = "the server has no such node; update ComfyUI, or install its pack"
                    needs[kind] = Need(f"node {kind}", told)
            for name, value in node["inputs"].items():
                model = name in MODEL_INPUTS or (kind == FACES and name == "model")
                if model and isinstance(value, str) and kinds[kind] is not None:
                    needs[f"{kind}.{name}={value}"] = _of_model(kinds[kind], kind, name, value)
    there = sum(known is not None for known in kinds.values())
    return [Need(f"{there} of {len(kinds)} kinds of nodes"), *needs.values()]


def _of_model(known: Mapping[str, Any], kind: str, name: str, value: str) -> Need:
    what = f"{value} ({kind})"
    if value in _choices(known, name):
        return Need(what)
    other = f"or name another one with --set NODE.{name}=FILE"
    return Need(what, f"put it into {FOLDERS[name]} of ComfyUI, {other}")


def _choices(known: Mapping[str, Any], name: str) -> list[object]:
    """A combo's entries, in either form in which servers tell them."""
    inputs = known.get("input") or {}
    for part in ("required", "optional"):
        told = (inputs.get(part) or {}).get(name)
        if isinstance(told, list) and told:
            if isinstance(told[0], list):
                return told[0]
            if len(told) > 1 and isinstance(told[1], dict):
                return list(told[1].get("options") or ())
    return []


def _of_extractor(extractor: Extractor, roots: Sequence[Path]) -> Need:
    what = f"{extractor.label}, which scores"
    try:
        find_folder(extractor, roots)
    except FileNotFoundError as error:
        return Need(what, f"{error} Or leave it out: --without {extractor.name}")
    return Need(what)


def told(needs: Sequence[Need]) -> str:
    """All of them, one a line."""
    return "\n".join(["needed:", *(need.line() for need in needs)])


def check(needs: Sequence[Need]) -> None:
    """FileNotFoundError where something is missing."""
    missing = [need.what for need in needs if need.lacks]
    if missing:
        raise FileNotFoundError(f"{len(missing)} things are missing: {'; '.join(missing)}")
