"""A prompt around every node of the pack, and what its schema says of its inputs."""

from __future__ import annotations

from collections.abc import Iterator

from comfy_api.latest import io

from support.graphs import node
from support.in_process import STAND_IN, Host, load_pack

WIDGETS = (
    io.Float.Input,
    io.Int.Input,
    io.String.Input,
    io.Boolean.Input,
    io.Combo.Input,
)

# what the small world and other nodes give to a socket, and the values that a default does not fit
LINKS = {
    "model": ["world", 0],
    "clip": ["world", 1],
    "clip_vision": ["world", 3],
    "mmdiff": ["world", 4],
    "image": ["sprite", 0],
    "faces": ["analysis", 0],
    "subjects": ["ann", 0],
    "maps": ["watch", 1],
    "images": ["decoded", 0],
    "scores": ["likeness", 0],
    "latent": ["latent", 0],
    "found_boxes": ["box", 0],
    "region": ["white", 0],
    "mask_1": ["white", 0],
}
VALUES = {
    "checkpoint": "tiny-portrait",
    "base_model": STAND_IN,
    "clip_vision": STAND_IN,
    "file": "ann.safetensors",
    "text": "a ghost<|ann|> at night",
    "strip": 2,
}
OWN = {
    "MMDiffFindFaces": {"image": ["photo", 0]},
    "MMDiffAttentionMaps": {"image": ["decoded", 0]},
    "MMDiffLikeness": {"image": ["decoded", 0]},
    "MMDiffWatchAttention": {"model": ["applied", 0]},
    "MMDiffSubjectEncoder": {"subjects": None, "faces": None},
    "MMDiffLoadSubject": {"subjects": None},
    "MMDiffMixSubjects": {"others": None},
    "MMDiffLoadModels": {"faces": "discs"},
    "MMDiffLoadFaceAnalysis": {"model": "discs", "device": "cpu"},
    "MMDiffSubjectWeights": {"name": "ann"},
    "MMDiffSaveSubject": {"overwrite": True},
}


def around(host: Host) -> dict:
    """The nodes that others need, each with a value that is right."""
    return host.constants | {
        "world": node("MMDiffSmallWorldLoader"),
        "sprite": _of("MMDiffSmallWorldSprite"),
        "ann": _of("MMDiffSubjectEncoder", name="ann"),
        "said": _of("MMDiffTextEncode"),
        "applied": _of("MMDiffApplyAttention"),
        "watch": _of("MMDiffWatchAttention"),
        "analysis": _of("MMDiffLoadFaceAnalysis"),
        "likeness": _of("MMDiffLikeness"),
        "latent": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "sampled": node(
            "KSampler",
            model=["watch", 0],
            positive=["said", 0],
            negative=["said", 1],
            latent_image=["latent", 0],
            seed=1,
            steps=2,
            cfg=1.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "decoded": node("VAEDecode", samples=["sampled", 0], vae=["world", 2]),
    }


def _of(kind: str, /, **changed) -> dict:
    """A node with right values, and these."""
    return node(kind, **(right_values(kind) | changed))


def schema_of(kind: str) -> io.Schema:
    return next(c for c in load_pack().NODES if c.GET_SCHEMA().node_id == kind).define_schema()


def right_values(kind: str) -> dict:
    """Inputs with which a node runs; required sockets are connected, optional ones are not."""
    given = {}
    for item in schema_of(kind).inputs:
        if isinstance(item, WIDGETS):
            default = item.options[0] if isinstance(item, io.Combo.Input) else ""
            default = default if item.default is None else item.default
            given[item.id] = VALUES.get(item.id, default)
        elif not item.optional:
            given[item.id] = LINKS[item.id]
    if kind == "MMDiffTextEncode":
        given["subjects"] = LINKS["subjects"]
    given |= OWN.get(kind, {})
    return {name: value for name, value in given.items() if value is not None}


def widgets() -> Iterator[tuple[str, str]]:
    """Every widget of every node: the node's id and the input's name."""
    for made in load_pack().NODES:
        found = made.define_schema()
        for item in found.inputs:
            if isinstance(item, WIDGETS):
                yield found.node_id, item.id


def sockets(*types: str) -> Iterator[tuple[str, str, str]]:
    """Every socket of these types: node, input, type."""
    for made in load_pack().NODES:
        found = made.define_schema()
        for item in found.inputs:
            if not isinstance(item, WIDGETS) and item.io_type in types:
                yield found.node_id, item.id, item.io_type


def prompt_with(host: Host, kind: str, /, **changed) -> dict:
    """A prompt that ends in a node of this kind, with right values but for these."""
    prompt = around(host) | {"tried": _of(kind, **changed)}
    found = schema_of(kind)
    if not found.is_output_node:
        prompt["end"] = node("Sink", value=["tried", 0])
    return prompt
