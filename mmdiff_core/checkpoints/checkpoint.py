"""Checkpoints: the official folder of three .bin files and our single .safetensors, both read
strictly.

Nothing is executed: .bin files are read with torch's weights-only unpickler, and a file that needs
more is refused. Every key is accounted for; a wrong one is named with what was found, what was
expected, and the likely cause.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..bases import BASES, Base
from ..config import PORTRAIT_SDXL, MMDiffConfig
from ..method.adapter import MMDiffAdapter, SubjectModules, collect_pairs
from . import released, shapes
from .released import BASE_FILE, CUSTOM_FILE, FILES, TEXT_FILE, UNET_FILE, VISION_GROUP

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]
FORMAT = "mm-diff"
HISTORY = ("made_by", "run", "training_config", "training_step", "hardware", "begun_from")
VERSION = "1"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
FLOATS = tuple(DTYPES.values())
GROUPS = ("modules", "unet", "text", "vision")
LIKELY = "Is it the adapter of another base model, another adapter's file, or a damaged download?"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which key, what was found and expected,
    and why."""


# ---------------------------------------------------------------- reading


def is_official_folder(path: Path) -> bool:
    """Whether a folder holds any of the three official files (a partial one is then refused by
    name)."""
    return path.is_dir() and any((path / name).is_file() for name in FILES)


def read_official(folder: Path) -> tuple[MMDiffConfig, Tensors]:
    """The released layout -> config and our flat tensors. FileNotFoundError or CheckpointError says
    what is wrong."""
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{folder.name}: {', '.join(missing)} not found; the released checkpoint is a folder "
            f"of {', '.join(FILES)}"
        )
    unet, text, custom = (_read_bin(folder / name) for name in FILES)
    groups = _custom_groups(custom)
    config = _official_config(unet, _own_base(folder))
    flat = {f"modules.{k}": v for k, v in _modules(config, groups).items()}
    flat |= {f"unet.{k}": v for k, v in _pairs(UNET_FILE, unet, released.unet_keys(config)).items()}
    flat |= {f"text.{k}": v for k, v in _text(config, text).items()}
    flat |= {
        f"vision.{k}": v
        for k, v in groups[VISION_GROUP].items()
        if k not in released.VISION_IGNORED
    }
    return config, flat


def read_single(path: Path) -> tuple[MMDiffConfig, Tensors]:
    """Our .safetensors -> config and flat tensors."""
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise CheckpointError(
                    f"{path.name} is not an MM-Diff checkpoint: its header says format "
                    f"{header.get('format')!r}, expected {FORMAT!r}. Convert MM-Diff Checkpoint "
                    "writes this format from a released folder."
                )
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return config_of(header, path.name), tensors
    except SafetensorError as error:
        raise CheckpointError(
            f"{path.name} cannot be read as safetensors ({error}): is the download complete?"
        ) from error


def config_of(header: Mapping[str, str], name: str) -> MMDiffConfig:
    """The config of our header, and with it the record of its base where that is not one of
    ours."""
    try:
        own = [Base.from_json(header["base"])] if "base" in header else []
        return MMDiffConfig.from_json(header["config"], BASES | {base.name: base for base in own})
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from error


def read(path: Path) -> tuple[MMDiffConfig, Tensors]:
    """Either layout -> config and checked flat tensors."""
    config, flat = read_official(path) if path.is_dir() else read_single(path)
    check(config, flat, path.name)
    return config, flat


def history(path: Path) -> str:
    """Where a trained adapter comes from, as JSON for the header of what is trained on from it; the
    name alone for an official folder."""
    if path.is_dir():
        return json.dumps({"file": path.name})
    with safe_open(str(path), framework="pt") as file:
        header = file.metadata() or {}
    return json.dumps({"file": path.name} | {k: header[k] for k in HISTORY if k in header})


def _read_bin(path: Path) -> dict:
    try:
        found = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None
        )
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path.name} contains more than weights ({_reason(error)}); loading it could run "
            "code, so it is refused"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(
            f"{path.name} cannot be read ({_reason(error)}): is the download complete?"
        ) from error
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"{path.name} contains a {type(found).__name__}, expected a dictionary of weights"
        )
    return dict(found)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _custom_groups(custom: Mapping) -> dict[str, Tensors]:
    expected = {*released.MODULES, VISION_GROUP}
    if set(custom) != expected:
        missing, unknown = sorted(expected - set(custom)), sorted(set(custom) - expected)
        raise CheckpointError(
            f"{CUSTOM_FILE}: groups missing {missing}, unknown {unknown}; expected "
            f"{sorted(expected)}. {LIKELY}"
        )
    if wrong := sorted(k for k, v in custom.items() if not isinstance(v, Mapping)):
        raise CheckpointError(f"{CUSTOM_FILE}: {wrong} should each be a dictionary of weights")
    return {k: dict(v) for k, v in custom.items()}


def _own_base(folder: Path) -> list[Base]:
    """The base whose record lies in an official folder, in a list; empty where none does."""
    path = folder / BASE_FILE
    return [Base.from_json(path.read_text(encoding="utf-8"))] if path.is_file() else []


def _official_config(unet: Tensors, own: list[Base]) -> MMDiffConfig:
    """The config of a released checkpoint; the full-size one gives PORTRAIT_SDXL."""
    found = {k: tuple(v.shape) for k, v in unet.items()}
    try:
        base = shapes.guess_base(found, own or BASES.values())
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if base == PORTRAIT_SDXL.base:
        return PORTRAIT_SDXL
    return replace(PORTRAIT_SDXL, base=base, name=f"portrait-{base.name}")


def _modules(config: MMDiffConfig, groups: Mapping[str, Tensors]) -> Tensors:
    stems = {
        (group, theirs): ours for ours, (group, theirs) in released.module_keys(config).items()
    }
    found = {}
    for group in released.MODULES:
        for key, tensor in groups[group].items():
            stem, part = key.rsplit(".", 1)
            if (group, stem) not in stems:
                raise CheckpointError(
                    f"{CUSTOM_FILE}: unknown key {group}.{key} {tuple(tensor.shape)}. {LIKELY}"
                )
            found[f"{stems[group, stem]}.{part}"] = tensor
    return found


def _pairs(file: str, tensors: Tensors, *tables: Mapping[str, str]) -> Tensors:
    """Upstream "<stem>.down.weight" -> our "<stem>.down"; any of several spellings."""
    ours = {theirs: stem for table in tables for stem, theirs in table.items()}
    found = {}
    for key, tensor in tensors.items():
        stem, _, part = key.removesuffix(".weight").rpartition(".")
        if stem not in ours or part not in ("down", "up") or not key.endswith(".weight"):
            raise CheckpointError(f"{file}: unknown key {key} {tuple(tensor.shape)}. {LIKELY}")
        if (name := f"{ours[stem]}.{part}") in found:
            raise CheckpointError(
                f"{file}: {key} appears twice, in upstream's old and new spelling"
            )
        found[name] = tensor
    return found


def _text(config: MMDiffConfig, tensors: Tensors) -> Tensors:
    return _pairs(
        TEXT_FILE, tensors, released.text_keys(config), released.text_keys(config, old_style=True)
    )


# ---------------------------------------------------------------- checking


def check(config: MMDiffConfig, flat: Tensors, name: str) -> None:
    """Every key known, none missing, every shape right. CheckpointError names the first wrong
    ones."""
    if wrong := sorted(
        k for k, v in flat.items() if not isinstance(v, Tensor) or v.dtype not in FLOATS
    ):
        raise CheckpointError(
            f"{name}: {wrong[0]} is not a float16, bfloat16 or float32 tensor. {LIKELY}"
        )
    expected = expected_shapes(config, flat)
    problems = [f"missing key {k} {expected[k]}" for k in sorted(set(expected) - set(flat))]
    allowed = expected | {f"vision.{k}": v for k, v in shapes.vision_shapes(config).items()}
    problems += [
        f"unknown key {k} {tuple(flat[k].shape)}" for k in sorted(set(flat) - set(allowed))
    ]
    problems += [
        f"{k} has shape {tuple(flat[k].shape)}, expected {allowed[k]}"
        for k in sorted(set(flat) & set(allowed))
        if tuple(flat[k].shape) != allowed[k]
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{name} does not fit {config.name} on {config.base.name}: "
            f"{'; '.join(problems[:3])}{more}. {LIKELY}"
        )


def expected_shapes(config: MMDiffConfig, flat: Tensors) -> dict[str, shapes.Shape]:
    """What a checkpoint must hold. Ranks, and which text encoder families were trained, are read
    from it."""
    expected = {f"modules.{k}": v for k, v in shapes.module_shapes(config).items()}
    unet_rank = _rank(flat, "unet.")
    expected |= {f"unet.{k}": v for k, v in shapes.unet_shapes(config, unet_rank).items()}
    for encoder in config.encoders:
        for projections in released.TEXT_FAMILIES.values():
            stems = [
                s
                for s in released.text_stems(config)
                if s.startswith(f"{encoder}.") and s.endswith(projections)
            ]
            present = [s for s in stems if f"text.{s}.down" in flat or f"text.{s}.up" in flat]
            if not present:
                continue
            rank = _rank(flat, f"text.{present[0]}.")
            for stem in stems:
                rows, columns = shapes.text_shape(config, stem)
                expected |= {f"text.{stem}.down": (rank, columns), f"text.{stem}.up": (rows, rank)}
    return expected


def _rank(flat: Tensors, prefix: str) -> int:
    downs = (
        v.shape[0]
        for k, v in flat.items()
        if k.startswith(prefix) and k.endswith(".down") and v.ndim == 2
    )
    return next(downs, 64)


# ---------------------------------------------------------------- building and writing


def split(flat: Tensors) -> dict[str, Tensors]:
    """Flat tensors by group, prefixes taken off."""
    groups: dict[str, Tensors] = {group: {} for group in GROUPS}
    for key, tensor in flat.items():
        group, rest = key.split(".", 1)
        groups[group][rest] = tensor
    return groups


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


def save_single(
    path: Path,
    config: MMDiffConfig,
    flat: Tensors,
    dtype: torch.dtype = torch.float16,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write our layout; the file appears under its name only when it is whole."""
    check(config, flat, path.name)
    header = {
        **(extra or {}),
        "format": FORMAT,
        "format_version": VERSION,
        "config": config.to_json(),
    }
    if BASES.get(config.base.name) != config.base:
        header["base"] = config.base.to_json()
    part = path.with_name(path.name + ".part")
    save_file(
        {k: v.to(dtype).contiguous().clone() for k, v in flat.items()}, str(part), metadata=header
    )
    part.replace(path)


def save_official(
    folder: Path, config: MMDiffConfig, flat: Tensors, dtype: torch.dtype = torch.float16
) -> None:
    """Write the released layout (portrait adapters on two text encoders only: the layout has no
    place for others)."""
    if not config.variant.reads_faces or config.encoders != ("l", "g"):
        raise CheckpointError(
            "the released layout supports only portrait adapters for SDXL; this one is "
            f"{config.name}"
        )
    check(config, flat, folder.name)
    groups = split({k: v.to(dtype).contiguous() for k, v in flat.items()})
    custom: dict[str, Tensors] = {group: {} for group in released.MODULES}
    stems = released.module_keys(config)
    for key, tensor in groups["modules"].items():
        stem, part = key.rsplit(".", 1)
        group, theirs = stems[stem]
        custom[group][f"{theirs}.{part}"] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(_upstream(groups["unet"], released.unet_keys(config)), folder / UNET_FILE)
    torch.save(_upstream(groups["text"], released.text_keys(config)), folder / TEXT_FILE)
    torch.save(custom | {VISION_GROUP: groups["vision"]}, folder / CUSTOM_FILE)
    if BASES.get(config.base.name) != config.base:
        (folder / BASE_FILE).write_text(config.base.to_json(), encoding="utf-8")


def _upstream(pairs: Tensors, table: Mapping[str, str]) -> Tensors:
    return {
        f"{table[key.rsplit('.', 1)[0]]}.{key.rsplit('.', 1)[1]}.weight": v
        for key, v in pairs.items()
    }


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
