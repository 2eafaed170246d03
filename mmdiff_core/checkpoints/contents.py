"""What a checkpoint must hold: every key known, none missing, every shape right, every number
finite.

The table of names, types and shapes is checked before any tensor is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..config import MMDiffConfig
from ..untrusted import plain, quoted
from . import released, shapes
from .errors import CheckpointError
from .header import Parts

Tensors = dict[str, Tensor]
GROUPS = ("modules", "unet", "text", "vision")
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
LIKELY = "Is it the adapter of another base model, another adapter's file, or a damaged download?"
MOST_RANK = 1024
LARGEST = 65504.0  # of float16: no weight of an adapter comes near


class Described(Protocol):
    """A tensor, or the entry of one in a file's table."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    ndim: int


Table = Mapping[str, Described]


def check(config: MMDiffConfig, flat: Tensors, name: str) -> None:
    """Table and values of a checkpoint. CheckpointError names the first wrong keys."""
    check_table(config, flat, name)
    check_values(flat, name)


def check_table(config: MMDiffConfig, table: Table, name: str) -> None:
    """Every key known, none missing, every type and shape right. CheckpointError names the first
    wrong ones."""
    floats = {key for key, entry in table.items() if getattr(entry, "dtype", None) in FLOATS}
    if wrong := sorted(set(table) - floats):
        raise CheckpointError(
            f"{name}: {plain(wrong[0])} is not a float16, bfloat16 or float32 tensor. {LIKELY}"
        )
    expected = expected_shapes(config, table, name)
    problems = [f"missing key {k} {expected[k]}" for k in sorted(set(expected) - set(table))]
    allowed = expected | {f"vision.{k}": v for k, v in shapes.vision_shapes(config).items()}
    problems += [f"unknown key {_shaped(k, table)}" for k in sorted(set(table) - set(allowed))]
    for key in sorted(set(table) & set(allowed)):
        if (found := tuple(table[key].shape)) != allowed[key]:
            problems.append(f"{key} has shape {found}, expected {allowed[key]}")
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{name} does not fit {plain(config.name)} on {plain(config.base.name)}: "
            f"{'; '.join(problems[:3])}{more}. {LIKELY}"
        )


def _shaped(key: str, table: Table) -> str:
    return f"{plain(key)} {tuple(table[key].shape)}"


def check_values(flat: Tensors, name: str) -> None:
    """CheckpointError unless every number is finite and of a size that a weight can have."""
    for key, least, most in out_of_range(flat):
        raise CheckpointError(
            f"{name}: {plain(key)} has values from {least:g} to {most:g}, expected finite numbers "
            f"within {LARGEST:g}. The file is damaged, or its training diverged; use another copy "
            "of it"
        )


def out_of_range(flat: Tensors) -> Iterator[tuple[str, float, float]]:
    """Key, least and largest value of every tensor with a number that is not finite or beyond
    `LARGEST`. Tensors on the meta device have no values, and bytes cannot be wrong."""
    for key, tensor in flat.items():
        if tensor.is_meta or tensor.dtype == torch.uint8 or not tensor.numel():
            continue
        least, most = (float(value) for value in torch.aminmax(tensor))
        if not -LARGEST <= least <= most <= LARGEST:
            yield key, least, most


# ---------------------------------------------------------------- what must be there


def expected_shapes(config: MMDiffConfig, table: Table, name: str) -> dict[str, shapes.Shape]:
    """What a checkpoint must hold. Ranks, and which text encoder families were trained, are read
    from it."""
    expected = {f"modules.{k}": v for k, v in shapes.module_shapes(config).items()}
    unet_rank = _rank(table, "unet.", name)
    expected |= {f"unet.{k}": v for k, v in shapes.unet_shapes(config, unet_rank).items()}
    for encoder in config.encoders:
        for projections in released.TEXT_FAMILIES.values():
            stems = _text_stems(config, encoder, projections)
            present = [s for s in stems if f"text.{s}.down" in table or f"text.{s}.up" in table]
            if not present:
                continue
            rank = _rank(table, f"text.{present[0]}.", name)
            for stem in stems:
                rows, columns = shapes.text_shape(config, stem)
                expected |= {f"text.{stem}.down": (rank, columns), f"text.{stem}.up": (rows, rank)}
    return expected


def _text_stems(config: MMDiffConfig, encoder: str, projections: tuple[str, ...]) -> list[str]:
    stems = (s for s in released.text_stems(config) if s.startswith(f"{encoder}."))
    return [stem for stem in stems if stem.endswith(projections)]


def _rank(table: Table, prefix: str, name: str) -> int:
    for key, entry in table.items():
        if key.startswith(prefix) and key.endswith(".down") and entry.ndim == 2:
            if not 1 <= entry.shape[0] <= MOST_RANK:
                raise CheckpointError(
                    f"{name}: {plain(key)} has rank {entry.shape[0]}, expected 1 to {MOST_RANK}"
                )
            return entry.shape[0]
    return 64


def check_parts(config: MMDiffConfig, keys: Iterable[str], told: Parts, name: str) -> None:
    """A file holds the optional parts that its header says. CheckpointError says what is gone."""
    found = Parts.of(keys)
    if found.text != told.text:
        raise CheckpointError(
            f"{name} is incomplete: it has LoRA for the text encoders' "
            f"{', '.join(found.text) or 'nothing'}, its header says "
            f"{plain(', '.join(told.text)) or 'nothing'}"
        )
    if found.vision != told.vision:
        raise CheckpointError(
            f"{name} is incomplete: it has {found.vision} weights of the image encoder, its header "
            f"says {told.vision}"
        )


def check_whole(config: MMDiffConfig, keys: Iterable[str], name: str, text: bool = True) -> None:
    """A file that does not say what it holds has no gap in it. CheckpointError names the gap.

    text    the attention of every text encoder must have LoRA; what one encoder has, all must

    Fine-tuning takes the image encoder from its output down, so a weight that is missing between
    two that are there was lost.
    """
    keys = set(keys)
    families = Parts.of(keys).text
    for family in released.TEXT_FAMILIES:
        needed = text and family == "attention" or any(f.endswith(family) for f in families)
        missing = [e for e in config.encoders if needed and f"{e}.{family}" not in families]
        if missing:
            raise CheckpointError(
                f"{name} is incomplete: it has no LoRA for the {family} of text encoder "
                f"{', '.join(map(quoted, missing))}. {LIKELY}"
            )
    started, lost = False, []
    for level in vision_levels(config):
        gone = [key for key in level if f"vision.{key}" not in keys]
        started = started or len(gone) < len(level)
        lost += gone if started else []
    if lost:
        raise CheckpointError(
            f"{name} is incomplete: the image encoder lacks {lost[0]} and {len(lost) - 1} more, "
            f"though weights below it are there. {LIKELY}"
        )


def vision_levels(config: MMDiffConfig) -> list[list[str]]:
    """The image encoder's weights from its input to its output, those of one level together."""
    keys = released.vision_keys(config)
    stages = ["vision_model.embeddings.", "vision_model.pre_layrnorm."]
    stages += [f"vision_model.encoder.layers.{i}." for i in range(config.base.image.depth)]
    stages += ["vision_model.post_layernorm.", "visual_projection."]
    levels = []
    for stage in stages:
        levels.append([key for key in keys if key.startswith(stage)])
    return levels
