"""Subgraph blueprints: everything between the images of N people and the image of them, as one node
with only what people change outside. The nodes are those of a bundled graph."""

from __future__ import annotations

import copy
import uuid
from dataclasses import dataclass, field

from .layout import GAP, TITLE, names

VERSION = 1  # of the format of a subgraph
INPUTS, OUTPUTS = -10, -20  # the ids of a subgraph's own ends
ENCODER, LOADERS = "MMDiffSubjectEncoder", "CheckpointLoaderSimple MMDiffLoad CLIPVisionLoader"
STEP = 380  # between the columns inside
DESCRIPTION = (
    "An image of {count} from reference images and a prompt, with MM-Diff. Connect images of one "
    "person to each input, and write each name right after its noun: a woman<|ann|>. Open the "
    "subgraph for the other models and settings."
)


def counted(count: int) -> str:
    return f"{count} subject{'s' * (count > 1)}"


def file_name(count: int) -> str:
    """ComfyUI shows it as the blueprint's name."""
    return f"Draw with {counted(count)}"


@dataclass
class Inside:
    """A subgraph that is being put together."""

    templates: dict[str, dict]
    nodes: dict[str, dict] = field(default_factory=dict)
    links: list[dict] = field(default_factory=list)
    inputs: list[dict] = field(default_factory=list)
    outputs: list[dict] = field(default_factory=list)

    def add(self, name: str, column: int, row: int) -> None:
        """A node like that of the bundled graph, without its links."""
        node = copy.deepcopy(self.templates[name.split()[0]])
        for socket in node["inputs"]:
            socket["link"] = None
        for socket in node["outputs"]:
            socket["links"] = []
        node["id"] = len(self.nodes) + 1
        node["pos"] = [column * STEP, row * (400 + GAP + TITLE)]
        self.nodes[name] = node

    def link(self, source: str, out: int, target: str, into: str) -> None:
        """From an output of a node to an input of another one."""
        origin, end = self.nodes[source], self.nodes[target]
        self._link(origin["id"], out, end, self._slot(end, into), origin["outputs"][out]["type"])
        origin["outputs"][out]["links"].append(len(self.links))

    def put_outside(self, name: str, target: str, into: str, kind: str, label: str = "") -> None:
        """An input or a widget of a node as an input of the whole."""
        node = self.nodes[target]
        if all(each["name"] != into for each in node["inputs"]):
            node["inputs"].append({"name": into, "type": kind, "widget": {"name": into}})
        self._link(INPUTS, len(self.inputs), node, self._slot(node, into), kind)
        self.inputs.append(self._end(name, kind, label, len(self.inputs)))

    def give(self, source: str, out: int, kind: str) -> None:
        """An output of a node as the output of the whole."""
        origin = self.nodes[source]
        self.links.append(self._as_link(origin["id"], out, OUTPUTS, len(self.outputs), kind))
        origin["outputs"][out]["links"].append(len(self.links))
        self.outputs.append(self._end(kind, kind, "", len(self.outputs)))

    def _link(self, origin: int, out: int, node: dict, into: int, kind: str) -> None:
        self.links.append(self._as_link(origin, out, node["id"], into, kind))
        node["inputs"][into]["link"] = len(self.links)

    def _as_link(self, origin: int, out: int, target: int, into: int, kind: str) -> dict:
        ends = {"origin_id": origin, "origin_slot": out, "target_id": target, "target_slot": into}
        return {"id": len(self.links) + 1, **ends, "type": kind}

    def _end(self, name: str, kind: str, label: str, number: int) -> dict:
        found = {"id": identity(f"{len(self.nodes)} {name}"), "name": name, "type": kind}
        found |= {"linkIds": [len(self.links)], "pos": [-220, 40 + 20 * number]}
        return found | ({"label": label} if label else {})

    @staticmethod
    def _slot(node: dict, name: str) -> int:
        return [each["name"] for each in node["inputs"]].index(name)


def identity(text: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"mm-diff blueprint {text}"))


def blueprint(graph: dict, count: int) -> dict:
    """The blueprint for so many subjects, with the nodes of a graph of two people."""
    inside = Inside(names(graph))
    last = _add_subjects(inside, count)
    _add_sampling(inside, last)
    _put_outside(inside, count)
    name = file_name(count)
    return {
        "id": identity(f"file {name}"),
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [_outer(inside, name)],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [_definition(inside, name, count)]},
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _add_subjects(inside: Inside, count: int) -> str:
    """The loaders, a chain of encoders, and for several subjects their regions; its end's name."""
    for row, loader in enumerate([*LOADERS.split(), "MMDiffLoadFaceAnalysis"]):
        inside.add(loader, 0, row)
    last = ""
    for number in range(count):
        encoder = f"{ENCODER} {number + 1}"
        inside.add(encoder, 1, number)
        inside.nodes[encoder]["widgets_values"][0] = ("ann", "ben", "eve")[number]
        inside.link("MMDiffLoad", 0, encoder, "mmdiff")
        inside.link("CLIPVisionLoader", 0, encoder, "clip_vision")
        inside.link("MMDiffLoadFaceAnalysis", 0, encoder, "faces")
        if last:
            inside.link(last, 0, encoder, "subjects")
        last = encoder
    if count > 1:
        inside.add("MMDiffFindRegions", 2, 0)
        inside.link(last, 0, "MMDiffFindRegions", "subjects")
        last = "MMDiffFindRegions"
    return last


PROMPTS = (
    "a photo of a woman<|ann|> in the snow, winter coat",
    "a photo of a woman<|ann|> and a man<|ben|> side by side on a beach",
    "a photo of a woman<|ann|>, a man<|ben|> and a girl<|eve|> on a beach",
)


def _add_sampling(inside: Inside, subjects: str) -> None:
    for name, column, row in (
        ("MMDiffTextEncode", 3, 0),
        ("MMDiffApplyAttention", 3, 1),
        ("EmptyLatentImage", 3, 2),
        ("KSampler", 4, 0),
        ("VAEDecode", 4, 1),
    ):
        inside.add(name, column, row)
    inside.link("CheckpointLoaderSimple", 1, "MMDiffTextEncode", "clip")
    inside.link("MMDiffLoad", 0, "MMDiffTextEncode", "mmdiff")
    inside.link(subjects, 0, "MMDiffTextEncode", "subjects")
    inside.link("CheckpointLoaderSimple", 0, "MMDiffApplyAttention", "model")
    inside.link("MMDiffLoad", 0, "MMDiffApplyAttention", "mmdiff")
    inside.link("MMDiffApplyAttention", 0, "KSampler", "model")
    inside.link("MMDiffTextEncode", 0, "KSampler", "positive")
    inside.link("MMDiffTextEncode", 1, "KSampler", "negative")
    inside.link("EmptyLatentImage", 0, "KSampler", "latent_image")
    inside.link("KSampler", 0, "VAEDecode", "samples")
    inside.link("CheckpointLoaderSimple", 2, "VAEDecode", "vae")
    inside.give("VAEDecode", 0, "IMAGE")


def _put_outside(inside: Inside, count: int) -> None:
    """What people change: images, names, the prompt, the base model and the strength."""
    numbers = range(1, count + 1)
    for number in numbers:
        inside.put_outside(f"image_{number}", f"{ENCODER} {number}", "image", "IMAGE")
    for number in numbers:
        inside.put_outside(f"name_{number}", f"{ENCODER} {number}", "name", "STRING")
    inside.put_outside("text", "MMDiffTextEncode", "text", "STRING", "prompt")
    inside.nodes["MMDiffTextEncode"]["widgets_values"][0] = PROMPTS[count - 1]
    inside.put_outside("fuse_scale", "MMDiffApplyAttention", "fuse_scale", "FLOAT")
    inside.put_outside("seed", "KSampler", "seed", "INT")
    inside.put_outside("ckpt_name", "CheckpointLoaderSimple", "ckpt_name", "COMBO")


def _outer(inside: Inside, name: str) -> dict:
    """The one node of the file: the subgraph as it is put on the canvas."""
    sampler = str(inside.nodes["KSampler"]["id"])
    shown = [["-1", each["name"]] for each in inside.inputs if each["type"] != "IMAGE"]
    control = [sampler, "control_after_generate"]  # older pages show it, newer ones do not
    return {
        "id": 1,
        "type": identity(name),
        "pos": [0, 0],
        "size": [400, 360],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": list(map(_socket, inside.inputs)),
        "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": []}],
        "properties": {"proxyWidgets": [*shown, control]},
        "widgets_values": [],
    }


def _socket(end: dict) -> dict:
    label = {"label": end["label"]} if "label" in end else {}
    widget = {} if end["type"] == "IMAGE" else {"widget": {"name": end["name"]}}
    return {"name": end["name"], "type": end["type"], "link": None} | label | widget


def _definition(inside: Inside, name: str, count: int) -> dict:
    state = {"lastNodeId": len(inside.nodes), "lastLinkId": len(inside.links)}
    right = 5 * STEP
    return {
        "id": identity(name),
        "version": VERSION,
        "state": {"lastGroupId": 0, "lastRerouteId": 0, **state},
        "revision": 0,
        "config": {},
        "name": name,
        "description": DESCRIPTION.format(count=counted(count)),
        "category": "MM-Diff",
        "inputNode": {"id": INPUTS, "bounding": [-260, 0, 120, 40 + 20 * len(inside.inputs)]},
        "outputNode": {"id": OUTPUTS, "bounding": [right, 0, 120, 60]},
        "inputs": inside.inputs,
        "outputs": inside.outputs,
        "widgets": [],
        "nodes": list(inside.nodes.values()),
        "groups": [],
        "links": inside.links,
        "extra": {},
    }
