"""What kind of file this is, from its size, its first bytes and its header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

# what tells a file's kind in its header: a weight's name (its end) and its shape
VIT_L14 = {
    "vision_model.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
    "vision_model.embeddings.position_embedding.weight": (257, 1024),
    "visual_projection.weight": (768, 1024),
}
DEEPEST_KEY = "model.diffusion_model.input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight"
SDXL = {DEEPEST_KEY: (1280, 2048)}
NOT_WEIGHTS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself",
    b"<!doctype": "is a web page",
    b"<html": "is a web page",
}


def wrong_with(path: Path) -> str | None:
    """Why this cannot be a file of weights, from its size and first bytes; None = nothing seen."""
    try:
        if not path.is_file():
            return "is missing"
        with path.open("rb") as file:
            head = file.read(32).lstrip().lower()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return (
        "is empty"
        if not head
        else next((said for start, said in NOT_WEIGHTS.items() if head.startswith(start)), None)
    )


def is_kind(path: Path, signs: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a .safetensors has every one of these weights in this shape; reads its header
    only."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            names = set(file.keys())
            return all(
                name in names and tuple(file.get_slice(name).get_shape()) == shape
                for name, shape in signs.items()
            )
    except (SafetensorError, OSError):
        return False
