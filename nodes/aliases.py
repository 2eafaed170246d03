"""What a node's schema tells hosts newer than ComfyUI 0.3.75: search aliases (0.11), and that its
results stay on the page (0.19)."""

from __future__ import annotations

import inspect

from comfy_api.latest import io

# what people type who do not know the method yet
SEVERAL = ("two people", "several people", "couple", "group")

ALIASES: dict[str, tuple[str, ...]] = {
    "MMDiffLoad": (
        "mmdiff loader",
        "identity adapter",
        "ip-adapter",
        "subject driven",
        "personalization",
    ),
    "MMDiffLoadModels": (
        "mmdiff loader",
        "all in one loader",
        "load checkpoint",
        "load clip vision",
        "ip-adapter",
    ),
    "MMDiffLoadFaceAnalysis": ("insightface", "buffalo_l", "arcface", "face detector", "face id"),
    "MMDiffFindFaces": ("detect faces", "face detection", "face boxes", "bounding box"),
    "MMDiffSubjectEncoder": (
        "face",
        "identity",
        "reference image",
        "consistent character",
        "multi subject",
        "ip-adapter",
        *SEVERAL,
    ),
    "MMDiffConstraintMasks": (
        "region",
        "regional",
        "attention mask",
        "multi subject",
        "attention couple",
    ),
    "MMDiffTextEncode": (
        "prompt",
        "subj marker",
        "clip text encode",
        "multi subject",
        "consistent character",
        *SEVERAL,
    ),
    "MMDiffApplyAttention": (
        "ip-adapter",
        "identity",
        "consistent character",
        "multi subject",
        "cross attention",
    ),
    "MMDiffConvert": ("convert", "safetensors", "bin", "checkpoint"),
    "MMDiffSaveSubject": ("save face", "save character", "identity", "subject library"),
    "MMDiffLoadSubject": ("load face", "load character", "identity", "subject library"),
    "MMDiffMixSubjects": ("blend faces", "merge identities", "average", "slerp", "morph"),
    "MMDiffSubjectWeights": ("strength", "identity weight", "fade", "batch weights"),
    "MMDiffFindRegions": (
        "no layout",
        "region",
        "two people",
        "identity bleeding",
        "attention couple",
    ),
    "MMDiffWatchAttention": ("attention map", "record attention", "heatmap", "daam"),
    "MMDiffAttentionMaps": (
        "attention map",
        "show attention",
        "heatmap",
        "daam",
        "attention visualization",
    ),
    "MMDiffLikeness": (
        "face similarity",
        "identity score",
        "clip score",
        "compare faces",
        "arcface",
        "clip-i",
        "who is missing",
    ),
    "MMDiffPickBest": (
        "best of batch",
        "best seed",
        "select images",
        "rank images",
        "keep best",
        "filter batch",
    ),
    "MMDiffSmallWorldLoader": ("demo model", "tiny model", "pixel art", "try mm-diff"),
    "MMDiffSmallWorldSprite": ("pixel art", "demo reference", "sprite"),
    "MMDiffDoctor": (
        "diagnose",
        "check installation",
        "what is missing",
        "troubleshoot",
        "versions",
        "onnxruntime",
    ),
}


# nodes that show something on the page without being output nodes
SHOWS = ("MMDiffSubjectEncoder", "MMDiffConstraintMasks", "MMDiffTextEncode", "MMDiffLoadSubject")


def sends_cached_results() -> bool:
    """Whether this host sends the page what such a node showed when it takes it from its cache."""
    return "has_intermediate_output" in inspect.signature(io.Schema).parameters


def schema(node_id: str, **fields) -> io.Schema:
    """io.Schema with as much of this as the host knows."""
    told = {
        "search_aliases": list(ALIASES[node_id]),
        "has_intermediate_output": node_id in SHOWS,
    }
    known = inspect.signature(io.Schema).parameters
    newer = {name: value for name, value in told.items() if name in known}
    return io.Schema(node_id=node_id, **fields, **newer)
