"""Draws a set's images through a running ComfyUI, from a graph in API format.

The graph draws one image of some subjects. For every prompt its text, references, names and seed
are exchanged; all else stays as it is.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..untrusted import load_json, quoted
from .comfy_api import ComfyServer, Graph
from .extractors import file_hash
from .manifest import Manifest, read_manifest, write_manifest
from .sets import Case, TestSet, bounded_text

TEXT, ENCODER, APPLY = "MMDiffTextEncode", "MMDiffSubjectEncoder", "MMDiffApplyAttention"
SEEDS = ("seed", "noise_seed")
# inputs of loaders that name a model's file
MODEL_INPUTS = ("ckpt_name", "checkpoint", "clip_name", "unet_name", "vae_name", "lora_name")


@dataclass(frozen=True)
class Template:
    """A graph, and the ids of the nodes that change: prompt, sampler, saver, an encoder to copy."""

    graph: Graph
    text: str
    sampler: str
    save: str
    encoder: str

    def fill(self, case: Case, images: Sequence[str], seed: int, plain: bool = False) -> Graph:
        """The graph for one image.

        images  names of the references in the server's input folder, one for each subject
        plain   the base alone: the prompt without markers and subjects, the model without adapter
        """
        graph = copy.deepcopy(self.graph)
        self._sampler(graph)["seed" if "seed" in self._sampler(graph) else "noise_seed"] = seed
        text = graph[self.text]["inputs"]
        text["text"] = case.prompt if plain else case.marked
        text.pop("subjects", None)
        if plain:
            return _without_adapter(graph)
        for number, image in enumerate(images, 1):
            graph[f"reference_{number}"] = {"class_type": "LoadImage", "inputs": {"image": image}}
            encoder = copy.deepcopy(self.graph[self.encoder])
            inputs = encoder["inputs"]
            for name in ("subjects", "region", "boxes"):
                inputs.pop(name, None)
            inputs |= {"name": f"s{number}", "image": [f"reference_{number}", 0]}
            if number > 1:
                inputs["subjects"] = [f"subject_{number - 1}_of_set", 0]
            graph[f"subject_{number}_of_set"] = encoder
        text["subjects"] = [f"subject_{len(images)}_of_set", 0]
        return _without_unused(graph, self.save)

    def _sampler(self, graph: Graph) -> dict[str, Any]:
        return graph[self.sampler]["inputs"]


def read_template(path: Path, settings: Sequence[str] = ()) -> Template:
    """A graph from its file, with other values where `settings` say NODE.INPUT=VALUE.

    ValueError says which node is missing or there twice.
    """
    graph = load_json(bounded_text(path, "the graph"), str(path))
    nodes = graph.values() if isinstance(graph, dict) else ()
    if not nodes or not all(isinstance(n, dict) and "class_type" in n for n in nodes):
        raise ValueError(
            f"{path} is no graph in API format; in ComfyUI choose Workflow -> Export (API)"
        )
    for setting in settings:
        _set(graph, setting)
    seeded = [key for key, node in graph.items() if set(SEEDS) & set(node.get("inputs", {}))]
    samplers = [key for key in seeded if "Sampler" in graph[key]["class_type"]]
    samplers = samplers or [k for k in seeded if graph[k]["class_type"] == "RandomNoise"]
    texts = [key for key, node in graph.items() if node["class_type"] == TEXT]
    savers = [key for key, node in graph.items() if node["class_type"] == "SaveImage"]
    return Template(
        graph,
        _one(texts, TEXT, path),
        _one(samplers, "a sampler with a seed", path),
        _one(savers, "SaveImage", path),
        _first(graph, path),
    )


def _one(found: list[str], what: str, path: Path) -> str:
    if len(found) != 1:
        raise ValueError(f"{path} has {len(found)} nodes of the kind {what}; expected one")
    return found[0]


def _first(graph: Graph, path: Path) -> str:
    for key, node in graph.items():
        if node["class_type"] == ENCODER:
            return key
    raise ValueError(f"{path} has no {ENCODER}, whose settings all subjects get")


def _set(graph: Graph, setting: str) -> None:
    place, _, value = setting.partition("=")
    node, _, name = place.partition(".")
    if node not in graph or name not in graph[node].get("inputs", {}):
        inputs = [f"{k}.{i}" for k, n in graph.items() for i in n.get("inputs", {})]
        raise ValueError(f"the graph has no input {quoted(place)}; it has {', '.join(inputs)}")
    try:
        graph[node]["inputs"][name] = json.loads(value)
    except ValueError:
        graph[node]["inputs"][name] = value


def _without_adapter(graph: Graph) -> Graph:
    """What took the adapted model takes the plain one."""
    for key, node in list(graph.items()):
        if node["class_type"] == APPLY:
            source = node["inputs"]["model"]
            for other in graph.values():
                for name, link in other["inputs"].items():
                    if link == [key, 0]:
                        other["inputs"][name] = source
    save = next(key for key, node in graph.items() if node["class_type"] == "SaveImage")
    return _without_unused(graph, save)


def _without_unused(graph: Graph, save: str) -> Graph:
    """The nodes that the saved image needs, and no others."""
    needed, left = set(), [save]
    while left:
        key = left.pop()
        if key in graph and key not in needed:
            needed.add(key)
            links = graph[key]["inputs"].values()
            left += [link[0] for link in links if isinstance(link, list) and len(link) == 2]
    return {key: node for key, node in graph.items() if key in needed}


# ---------------------------------------------------------------- all images of a set


@dataclass(frozen=True)
class Drawing:
    """How a set is drawn.

    images  per prompt; image n has the seed `seed + n`, as all prompts' n-th image
    plain   the base alone
    """

    template: Template
    images: int
    seed: int = 0
    plain: bool = False
    protocol: str = ""

    def manifest(self, server: ComfyServer) -> Manifest:
        """What is kept of it beside the images."""
        version, device = server.about()
        models, settings = {}, {"seed": self.seed, "plain": self.plain, "device": device}
        for key, node in self.template.graph.items():
            for name, value in node.get("inputs", {}).items():
                if name in MODEL_INPUTS and isinstance(value, str):
                    models[value] = ""
                elif isinstance(value, (str, int, float, bool)) and name not in SEEDS:
                    settings[f"{key}.{name}"] = value
        tool = "the plain base in ComfyUI" if self.plain else "MM-Diff for ComfyUI"
        return Manifest(tool, self.protocol, version, settings, models)


def draw_set(
    server: ComfyServer,
    test_set: TestSet,
    drawing: Drawing,
    folder: Path,
    say: Callable[[str], None],
) -> int:
    """Draw what is not there yet into `folder/images/<subjects>/<prompt number>/<n>.png`; how many
    images were drawn. ValueError where other settings drew what is there."""
    manifest = drawing.manifest(server)
    check_same(folder, manifest)
    write_manifest(folder, manifest)
    left = list(missing(test_set, drawing.images, folder))
    uploaded: dict[Path, str] = {}
    began = time.monotonic()
    for done, (case, number, path) in enumerate(left, 1):
        names = [] if drawing.plain else [upload_once(server, p, uploaded) for p in case.given]
        graph = drawing.template.fill(case, names, drawing.seed + number, drawing.plain)
        keep_image(server.run(graph, drawing.template.save), path)
        seconds = (time.monotonic() - began) / done
        say(f"{done} of {len(left)} images, {seconds * (len(left) - done):.0f} s left")
    seeds = {}
    for case in test_set.cases:
        for number in range(drawing.images):
            seeds[f"{case.group}/{case.number}/{number}"] = drawing.seed + number
    manifest.seeds = seeds
    write_manifest(folder, manifest)
    return len(left)


def missing(test_set: TestSet, images: int, folder: Path) -> Iterator[tuple[Case, int, Path]]:
    """The images that are still to be drawn, in the set's order."""
    for case in test_set.cases:
        for number in range(images):
            path = folder / "images" / case.group / str(case.number) / f"{number}.png"
            if not path.is_file():
                yield case, number, path


def upload_once(server: ComfyServer, path: Path, uploaded: dict[Path, str]) -> str:
    """A file's name in the server's input folder, to which each file goes once."""
    if path not in uploaded:
        name = f"mmdiff-set-{file_hash(path)[:16]}{path.suffix.lower()}"
        uploaded[path] = server.upload(path, name)
    return uploaded[path]


def keep_image(content: bytes, path: Path) -> None:
    """Write an image's file, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_bytes(content)
    temporary.replace(path)


def check_same(folder: Path, manifest: Manifest) -> None:
    """ValueError where other settings or models drew what is in the folder."""
    before = read_manifest(folder)
    if before and (before["settings"], before["models"]) != (manifest.settings, manifest.models):
        changed = {
            k for k in manifest.settings if before["settings"].get(k, "") != manifest.settings[k]
        }
        raise ValueError(
            f"{folder} was drawn with other settings ({', '.join(sorted(changed)) or 'models'}); "
            "two in one folder would mix. Choose another folder"
        )
