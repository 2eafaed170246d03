"""The bundled workflows: read, turned into API graphs, and run on the tiny model."""

from __future__ import annotations

import json
from pathlib import Path

from support.paths import PACK

WORKFLOWS = sorted((PACK / "workflows").glob("*.json"))

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}

BUNDLED = {
    "11 One person",
    "12 One person, several photos",
    "10 Two people",
    "14 Two people in boxes",
    "13 Three people",
    "16 Mixed person",
    "22 Animal or thing",
    "17 With ControlNet",
    "18 With a style LoRA",
    "19 Save subjects",
    "20 Load saved subjects",
    "21 Delayed conditioning",
    "02 One subject, small world",
    "03 Several references, small world",
    "01 Two subjects, small world",
    "04 Three subjects, small world",
    "05 Boxes, small world",
    "06 Masks, small world",
    "07 Mixed subject, small world",
    "08 Attention maps, small world",
    "09 Best two of eight, small world",
    "15 Two people, best two of eight",
}

# how the graphs run without the real models: node type -> (stand-in, {output: output of the
# stand-in}); the LoRA and the general
# adapter are real files of the tiny model's size, under the names that the graphs ask for
TINY = "MMDiffLoadTinyReferenceModel"

STAND_INS = {
    "CheckpointLoaderSimple": (TINY, {0: 0, 1: 1, 2: 2}),
    "CLIPVisionLoader": (TINY, {0: 3}),
    "ControlNetLoader": ("MMDiffLoadTinyControlNet", {0: 0}),
}

FILES = {"portrait_generation": "tiny-portrait", "buffalo_l": "stand_in"}

SMALL = {
    "EmptyLatentImage": {"width": 192, "height": 128},
    "ImageScale": {"width": 192, "height": 128},
    "KSampler": {"steps": 2},
}

# its graphs run as they are, only shorter
SMALL_WORLD = {"KSampler": {"steps": 4}, "EmptyLatentImage": {"batch_size": 1}}


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def slots(entry: dict) -> list[tuple[str, list]]:
    return [
        (k, v) for kind in ("required", "optional") for k, v in entry["input"].get(kind, {}).items()
    ]


def widgets(entry: dict) -> list[str]:
    """Names of a node's widget values in their saved order, with the ones the page adds."""
    names = []
    for name, spec in slots(entry):
        if isinstance(spec[0], list) or spec[0] in WIDGET_TYPES:
            options = spec[1] if len(spec) > 1 else {}
            names += (
                [name]
                + ["control_after_generate"] * bool(options.get("control_after_generate"))
                + ["upload"] * bool(options.get("image_upload"))
            )
    return names


def drawn(workflow: dict) -> list[dict]:
    return [n for n in workflow["nodes"] if n["type"] != "MarkdownNote"]


def in_the_small_world(workflow: dict) -> bool:
    return any(n["type"] == "MMDiffSmallWorldLoader" for n in workflow["nodes"])


def to_api(workflow: dict, info: dict, instead: dict[str, dict] | None = None) -> dict:
    """The saved graph as the server takes it, with SDXL's loaders exchanged for the tiny model's,
    and other values `instead` for types of nodes; by default small pictures and few steps.
    """
    prompt: dict = {}
    if instead is None:
        instead = SMALL_WORLD if in_the_small_world(workflow) else SMALL
    kinds = {n["id"]: n["type"] for n in workflow["nodes"]}
    origin = {link[0]: (link[1], link[2]) for link in workflow["links"]}

    def source(link: int) -> list:
        node, out = origin[link]
        if kinds[node] not in STAND_INS:
            return [str(node), out]
        stand_in, outputs = STAND_INS[kinds[node]]
        prompt[stand_in] = {"class_type": stand_in, "inputs": {}}
        return [stand_in, outputs[out]]

    for node in drawn(workflow):
        kind = node["type"]
        if kind in STAND_INS:
            continue
        values = dict(zip(widgets(info[kind]), node["widgets_values"], strict=True))
        inputs = {
            k: "cpu" if k == "device" else FILES.get(v, v)
            for k, v in values.items()
            if k not in ("control_after_generate", "upload")
        } | instead.get(kind, {})
        inputs |= {s["name"]: source(s["link"]) for s in node["inputs"] if s["link"] is not None}
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs}
    return prompt


PHOTOS = PACK / "web/photos"
