"""Checkpoints: the official folder of three .bin files and our single .safetensors, both read
strictly.

Nothing is executed. The table of names and shapes is checked before a tensor is read, every stored
checksum is, and every value. What is wrong is named with what was found, what was expected, and
the likely cause.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ..config import MMDiffConfig
from ..method.adapter import MMDiffAdapter, SubjectModules, collect_pairs
from .contents import Tensors, check
from .errors import CheckpointError
from .header import config_of, header_of, history
from .official import is_official_folder, read_official, save_official, split
from .single import read_single, save_single

__all__ = [
    "CheckpointError",
    "DTYPES",
    "build",
    "check",
    "config_of",
    "convert",
    "fingerprint",
    "header_of",
    "history",
    "is_official_folder",
    "load",
    "read",
    "read_official",
    "read_single",
    "save_official",
    "save_single",
    "split",
]

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def read(path: Path) -> tuple[MMDiffConfig, Tensors]:
    """Either layout -> config and checked flat tensors.

    CheckpointError, or FileNotFoundError for a file that an official folder lacks, says what is
    wrong.
    """
    return read_official(path) if path.is_dir() else read_single(path)


def fingerprint(config: MMDiffConfig, flat: Tensors) -> str:
    """Identity of an adapter: config, keys, shapes, and the first values of every tensor (dtype
    does not count)."""
    digest = hashlib.sha256(config.to_json().encode())
    for key in sorted(flat):
        head = flat[key].flatten()[:64].to(torch.float16)
        digest.update(
            f"{key}{tuple(flat[key].shape)}".encode() + head.view(torch.int16).numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def build(config: MMDiffConfig, flat: Tensors, source: str, ops=nn) -> MMDiffAdapter:
    """Checked tensors -> adapter; `ops` makes the layers (torch.nn, or the host's casting
    layers)."""
    groups = split(flat)
    modules = SubjectModules(config, ops).eval().requires_grad_(False)
    kept = next(iter(groups["modules"].values())).dtype
    # stored precision; the casting layers compute in their input's
    modules.to(kept)
    modules.load_state_dict(groups["modules"], strict=True)
    return MMDiffAdapter(
        config=config,
        modules=modules,
        unet=collect_pairs(groups["unet"]),
        text=collect_pairs(groups["text"]),
        vision=groups["vision"],
        fingerprint=fingerprint(config, flat),
        source=source,
    )


def load(path: Path, ops=nn) -> MMDiffAdapter:
    """A checkpoint in either layout, strictly. See `read` for the errors."""
    config, flat = read(Path(path))
    return build(config, flat, Path(path).name, ops)


def convert(source: Path, target: Path, dtype: str = "fp16", behaviour: str | None = None) -> str:
    """One layout into the other: a target ending in .safetensors is our single file, anything else
    the official folder.

    Returns a sentence saying what was written. `behaviour` overrides what the checkpoint says of
    itself.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, expected one of {sorted(DTYPES)}")
    config, flat = read(Path(source))
    if behaviour is not None:
        config = replace(config, behaviour=behaviour)
    single = target.suffix == ".safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    (save_single if single else save_official)(Path(target), config, flat, DTYPES[dtype])
    count = sum(t.numel() for t in flat.values())
    return (
        f"{Path(source).name} -> {target.name}: {config.name}, {len(flat)} tensors, "
        f"{count / 1e6:.1f} M values, {dtype}"
    )
