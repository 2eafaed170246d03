"""The released layout of a checkpoint: a folder of three .bin files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bases import BASES, Base
from ..config import PORTRAIT_SDXL, MMDiffConfig
from ..untrusted import listed, plain, quoted
from . import released, shapes
from .contents import (
    GROUPS,
    LIKELY,
    Table,
    Tensors,
    check,
    check_table,
    check_values,
    check_whole,
)
from .errors import CheckpointError, told_as
from .header import Parts
from .released import BASE_FILE, CUSTOM_FILE, FILES, TEXT_FILE, UNET_FILE, VISION_GROUP
from .tensor_file import check_regular
from .torch_file import TorchFile, open_torch_file

MOST_RECORD = 1 << 16  # bytes of a base's record


def is_official_folder(path: Path) -> bool:
    """Whether a folder holds any of the three official files (a partial one is then refused by
    name)."""
    return path.is_dir() and any((path / name).is_file() for name in FILES)


# ---------------------------------------------------------------- reading


def read_official(folder: Path) -> tuple[MMDiffConfig, Tensors]:
    """The released layout -> config and our flat tensors, checked. FileNotFoundError or
    CheckpointError says what is wrong."""
    name = plain(folder.name)
    if missing := [file for file in FILES if not (folder / file).is_file()]:
        raise FileNotFoundError(
            f"{name}: {', '.join(missing)} not found; the released checkpoint is a folder "
            f"of {', '.join(FILES)}"
        )
    with told_as(CheckpointError):
        files = [open_torch_file(folder / file) for file in FILES]
        unet, text, custom = (_dictionary(file) for file in files)
        config = _official_config(unet, _own_base(folder))
        table = _flat(config, unet, text, _groups(custom))
        check_table(config, table, name)
        check_whole(config, table, name)
        unet, text, custom = (file.read() for file in files)
        flat = _flat(config, unet, text, _groups(custom))
    check_values(flat, name)
    return config, flat


def _dictionary(file: TorchFile) -> dict:
    """The dictionary of weights that a file describes."""
    if not isinstance(file.tree, Mapping):
        kind = type(file.tree).__name__
        raise CheckpointError(f"{file.name} contains a {kind}, expected a dictionary of weights")
    _check_keys(file.name, file.tree)
    return dict(file.tree)


def _check_keys(name: str, group: Mapping) -> None:
    if wrong := [key for key in group if not isinstance(key, str)]:
        raise CheckpointError(f"{name}: the key {quoted(wrong[0])} is not a name. {LIKELY}")


def _groups(custom: Mapping[str, Any]) -> dict[str, Table]:
    expected = {*released.MODULES, VISION_GROUP}
    if set(custom) != expected:
        missing, unknown = sorted(expected - set(custom)), sorted(set(custom) - expected)
        raise CheckpointError(
            f"{CUSTOM_FILE}: groups missing {missing}, unknown {listed(unknown)}; expected "
            f"{sorted(expected)}. {LIKELY}"
        )
    if wrong := sorted(k for k, v in custom.items() if not isinstance(v, Mapping)):
        raise CheckpointError(f"{CUSTOM_FILE}: {wrong} should each be a dictionary of weights")
    for name, group in custom.items():
        _check_keys(f"{CUSTOM_FILE}: {name}", group)
    if not custom[VISION_GROUP]:
        raise CheckpointError(f"{CUSTOM_FILE}: {VISION_GROUP} is empty. {LIKELY}")
    return {name: dict(group) for name, group in custom.items()}


def _own_base(folder: Path) -> list[Base]:
    """The base whose record lies in an official folder, in a list; empty where none does."""
    path = folder / BASE_FILE
    if not path.is_file():
        return []
    if (size := check_regular(path)) > MOST_RECORD:
        raise CheckpointError(f"{BASE_FILE} has {size} bytes, expected at most {MOST_RECORD}")
    with told_as(CheckpointError, BASE_FILE):
        return [Base.from_json(path.read_bytes())]


def _official_config(unet: Table, own: Iterable[Base]) -> MMDiffConfig:
    """The config of a released checkpoint; the full-size one gives PORTRAIT_SDXL."""
    found = {key: tuple(entry.shape) for key, entry in unet.items() if hasattr(entry, "shape")}
    with told_as(CheckpointError):
        base = shapes.guess_base(found, own or BASES.values())
    if base == PORTRAIT_SDXL.base:
        return PORTRAIT_SDXL
    with told_as(CheckpointError, BASE_FILE):
        return replace(PORTRAIT_SDXL, base=base, name=f"portrait-{base.name}")


def _flat(config: MMDiffConfig, unet: Table, text: Table, groups: Mapping[str, Table]) -> dict:
    """All tensors, or the entries of their tables, by our flat names."""
    old, new = (released.text_keys(config, old_style=old) for old in (True, False))
    flat = {f"modules.{k}": v for k, v in _modules(config, groups).items()}
    flat |= {f"unet.{k}": v for k, v in _pairs(UNET_FILE, unet, released.unet_keys(config)).items()}
    flat |= {f"text.{k}": v for k, v in _pairs(TEXT_FILE, text, new, old).items()}
    for key, entry in groups[VISION_GROUP].items():
        if key not in released.VISION_IGNORED:
            flat[f"vision.{key}"] = entry
    return flat


def _modules(config: MMDiffConfig, groups: Mapping[str, Table]) -> dict:
    stems = {theirs: ours for ours, theirs in released.module_keys(config).items()}
    found = {}
    for group in released.MODULES:
        for key, entry in groups[group].items():
            stem, _, part = key.rpartition(".")
            if (group, stem) not in stems:
                raise CheckpointError(
                    f"{CUSTOM_FILE}: unknown key {_shaped(f'{group}.{key}', entry)}. {LIKELY}"
                )
            found[f"{stems[group, stem]}.{part}"] = entry
    return found


def _pairs(file: str, table: Table, *spellings: Mapping[str, str]) -> dict:
    """Upstream "<stem>.down.weight" -> our "<stem>.down"; any of several spellings."""
    ours = {}
    for spelling in reversed(spellings):
        ours |= {theirs: stem for stem, theirs in spelling.items()}
    found = {}
    for key, entry in table.items():
        stem, _, part = key.removesuffix(".weight").rpartition(".")
        if stem not in ours or part not in ("down", "up") or not key.endswith(".weight"):
            raise CheckpointError(f"{file}: unknown key {_shaped(key, entry)}. {LIKELY}")
        if (name := f"{ours[stem]}.{part}") in found:
            raise CheckpointError(
                f"{file}: {key} appears twice, in upstream's old and new spelling"
            )
        found[name] = entry
    return found


def _shaped(key: str, entry: object) -> str:
    shape = getattr(entry, "shape", None)
    return plain(key) if shape is None else f"{plain(key)} {tuple(shape)}"


# ---------------------------------------------------------------- writing


def split(flat: Tensors) -> dict[str, Tensors]:
    """Flat tensors by group, prefixes taken off."""
    groups: dict[str, Tensors] = {group: {} for group in GROUPS}
    for key, tensor in flat.items():
        group, rest = key.split(".", 1)
        groups[group][rest] = tensor
    return groups


def save_official(
    folder: Path, config: MMDiffConfig, flat: Tensors, dtype: torch.dtype = torch.float16
) -> None:
    """Write the released layout (portrait adapters on two text encoders only: the layout has no
    place for others, nor for an adapter that left a text encoder or the image encoder alone)."""
    if not config.variant.reads_faces or config.encoders != ("l", "g"):
        raise CheckpointError(
            "the released layout supports only portrait adapters for SDXL; this one is "
            f"{plain(config.name)}"
        )
    if config.routed:
        raise CheckpointError(
            "the released layout has no place for the routers of this adapter's image branch. Keep "
            "it as .safetensors"
        )
    name = plain(folder.name)
    check(config, flat, name)
    check_whole(config, flat, name)
    if not Parts.of(flat).vision:
        raise CheckpointError(
            "the released layout needs fine-tuned weights of the image encoder; this adapter has "
            "none. Keep it as .safetensors"
        )
    stored = {k: v.to(dtype).contiguous() for k, v in flat.items()}
    check_values(stored, f"{name} as {dtype}".replace("torch.", ""))
    groups = split(stored)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / UNET_FILE, _upstream(groups["unet"], released.unet_keys(config)))
    _write(folder / TEXT_FILE, _upstream(groups["text"], released.text_keys(config)))
    _write(folder / CUSTOM_FILE, _upstream_groups(config, groups))
    if BASES.get(config.base.name) != config.base:
        (folder / BASE_FILE).write_text(config.base.to_json(), encoding="utf-8")


def _write(path: Path, saved: Mapping[str, Any]) -> None:
    """Write a .bin file; it appears under its name only when it is whole."""
    part = path.with_name(path.name + ".part")
    try:
        torch.save(dict(saved), part)
        part.replace(path)
    except (OSError, RuntimeError):
        part.unlink(missing_ok=True)
        raise


def _upstream(pairs: Tensors, table: Mapping[str, str]) -> dict[str, Tensor]:
    named = {}
    for key, tensor in pairs.items():
        stem, _, part = key.rpartition(".")
        named[f"{table[stem]}.{part}.weight"] = tensor
    return named


def _upstream_groups(config: MMDiffConfig, groups: Mapping[str, Tensors]) -> dict[str, Tensors]:
    custom: dict[str, Tensors] = {group: {} for group in released.MODULES}
    stems = released.module_keys(config)
    for key, tensor in groups["modules"].items():
        stem, _, part = key.rpartition(".")
        group, theirs = stems[stem]
        custom[group][f"{theirs}.{part}"] = tensor
    return custom | {VISION_GROUP: groups["vision"]}
